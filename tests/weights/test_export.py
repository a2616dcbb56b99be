"""Which rank gives which part, and in which order and buckets."""

import random

from alp_megatron.weights.export import Part, entries_of
from alp_megatron.weights.mapping import Rule
from alp_megatron.weights.transport.buckets import bounded

Q, K, V = (f"model.layers.0.self_attn.{x}_proj.weight" for x in "qkv")


def part(names, rank, *, layout="column", index=0, expert=False, shape=(4, 2)):
    return Part(Rule(layout, names, expert), index, rank, 0, "local name", shape)


def test_the_lowest_holder_gives_each_part():
    held = [
        part((Q, K, V), rank, layout="qkv", index=rank % 2) for rank in (3, 2, 1, 0)
    ]  # TP 2 x DP 2
    held += [part(("model.norm.weight",), rank, layout="replicated") for rank in (1, 3)]
    qkv, norm = entries_of(held)
    assert [p.rank for p in qkv.parts] == [0, 1]
    assert [p.rank for p in norm.parts] == [1]


def test_the_order_is_that_of_the_model():
    names = [
        "model.embed_tokens.weight",
        "model.layers.2.mlp.experts.9.down_proj.weight",
        "model.layers.2.mlp.experts.10.down_proj.weight",
        "model.layers.10.input_layernorm.weight",
        "model.norm.weight",
        "lm_head.weight",
    ]
    held = [part((name,), 0) for name in names]
    random.Random(0).shuffle(held)
    assert [entry.rule.hf_names[0] for entry in entries_of(held)] == names


def test_buckets_are_bounded_and_whole():
    held = [part((f"model.layers.{i}.x",), 0, shape=(size,)) for i, size in enumerate(range(1, 40))]
    entries = entries_of(held)
    buckets = list(bounded(entries, lambda entry: entry.numel * 2, capacity=60))
    assert [entry for bucket in buckets for entry in bucket] == entries
    for bucket in buckets:
        assert len(bucket) == 1 or sum(entry.numel for entry in bucket) * 2 <= 60
