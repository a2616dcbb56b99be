"""`alp-megatron score`, end to end: any layout says the same, and what transformers says."""

import json
import random
from functools import cache

import pytest

from alp_megatron.config.load import config_from
from alp_megatron.perturbation import NoiseKey
from tests.support.marks import slow
from tests.support.models import hf_logprobs
from tests.support.runs import BASE_MODEL, Command

FP32 = "model.params_dtype=float32"
TP2 = ["model.tensor_model_parallel_size=2", "model.sequence_parallel=true"]
ONE_BY_ONE = ["trainer.micro_batch_size=1", "trainer.packing=false"]
NOISE = ["--perturb", "--sigma", "0.02", "--seed", "5", "--step", "3"]

# name -> arguments after the model, the tokens and the output
CALLS = {
    "plain": [FP32],
    "noise, tp2": [FP32, *TP2, *ONE_BY_ONE, *NOISE],
    "tp2": [FP32, *TP2],
    "noise": [FP32, *NOISE],
    "noise of another seed": [FP32, *NOISE, "--seed", "6"],
    "noise of sigma 0": [FP32, *NOISE, "--sigma", "0"],
}


@pytest.fixture(scope="module")
def sequences():
    """By sample id, in an order of their own, of awkward lengths."""
    rng = random.Random(3)
    ids = [41, 7, 2**62, 0, 19]
    lengths = [9, 31, 2, 17, 24]
    return {i: [rng.randrange(3, 20) for _ in range(n)] for i, n in zip(ids, lengths, strict=True)}


@pytest.fixture(scope="module")
def scores(tmp_path_factory, sequences):
    """A call's name -> {sample_id: logprobs}, in the order of its lines; made once."""
    directory = tmp_path_factory.mktemp("score")
    tokens = directory / "tokens.jsonl"
    lines = [json.dumps({"sample_id": i, "input_ids": ids}) for i, ids in sequences.items()]
    tokens.write_text("\n".join(lines) + "\n")

    @cache
    def of_call(name):
        out = directory / f"{name}.jsonl"
        files = ["--tokens", tokens, "--out", out]
        command = Command(directory, "score", BASE_MODEL, *CALLS[name], *files)
        assert command.wait() == 0, command.text()
        assert command.out == command.err == ""
        command.check_nothing_is_left(seconds=5)
        records = [json.loads(line) for line in out.read_text().splitlines()]
        assert all(record.keys() == {"sample_id", "logprobs"} for record in records)
        return {record["sample_id"]: record["logprobs"] for record in records}

    return of_call


def largest_difference(one, other):
    assert list(one) == list(other)
    return max(abs(a - b) for i in one for a, b in zip(one[i], other[i], strict=True))


@pytest.mark.parametrize("name", ["noise, tp2", slow("plain")])
def test_lines_keep_their_order_and_lengths(scores, sequences, name):
    assert list(scores(name)) == list(sequences)
    assert [len(x) for x in scores(name).values()] == [len(x) - 1 for x in sequences.values()]


@pytest.fixture
def of_transformers(sequences):
    return {i: hf_logprobs(BASE_MODEL, tokens).tolist() for i, tokens in sequences.items()}


@pytest.mark.slow
def test_it_equals_transformers(scores, of_transformers):
    assert largest_difference(scores("plain"), of_transformers) < 1e-4


def test_the_noise_is_that_of_its_key(workers, scores, sequences, of_transformers):
    """Samples, seed, step and sigma, in another layout than a process of the tests has them."""
    tree = {
        "model": {"path": str(BASE_MODEL)},
        "perturbation": {"sigma0": 0.02},
        "runtime": {"world_size": 1},
    }
    (expected,) = workers.run(
        "tests.support.jobs:logprobs",
        config_from(tree, [FP32]),
        1,
        sequences=sequences,
        key=NoiseKey(5, 3, 0),
    )
    # fp32 sums in another order: 1.1e-5 was seen on a processor with AVX-512.
    expected = {i: expected[i].tolist() for i in sequences}
    assert largest_difference(scores("noise, tp2"), expected) < 2e-5
    assert largest_difference(scores("noise, tp2"), of_transformers) > 1e-3


@pytest.mark.slow
def test_layouts_agree(scores):
    assert largest_difference(scores("plain"), scores("tp2")) < 2e-5
    assert largest_difference(scores("noise"), scores("noise, tp2")) < 2e-5


@pytest.mark.slow
def test_noise_of_another_key_and_of_none(scores):
    assert largest_difference(scores("noise"), scores("noise of another seed")) > 1e-3
    assert largest_difference(scores("plain"), scores("noise of sigma 0")) == 0
