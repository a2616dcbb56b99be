"""The real vLLM in its process, against transformers and against itself."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import cached_property
from pathlib import Path

import pytest
import torch

from alp_megatron.errors import UserError
from alp_megatron.rollout.engine import EngineDied, EngineError, SamplingSpec
from alp_megatron.weights.verify import digest
from tests.support import shared_memory
from tests.support.marks import slow
from tests.support.models import TINY, hf_distributions, hf_logprobs, make_model, weights_of
from tests.support.runs import REPO
from tests.support.tiny_engine import MAX_LEN, SEQUENCES, start

PROMPTS = [[2, 3, 4], [7], list(range(5, 25))]
CASES = {"float32 tied": ("float32", True), "bfloat16 untied": ("bfloat16", False)}


# A client in a process of its own, to be killed while its engine works.
CLIENT = """
import json, sys
from pathlib import Path
from tests.support.tiny_engine import SEQUENCES, start
model_dir, dtype = sys.argv[1:]
engine = start(model_dir, dtype, Path(model_dir))
scores = engine.score(SEQUENCES)
print(json.dumps({"pid": engine.pid, "scores": scores}), flush=True)
engine.score([[2, 3]] * 10**6)
"""


class Case:
    """Two random checkpoints: an engine started on the first; a client, on the second."""

    def __init__(self, directory: Path, dtype: str, tied: bool):
        self.dtype = dtype
        self.old = make_model(directory / "old", TINY, tie_word_embeddings=tied)
        self.new = make_model(directory / "new", TINY, tie_word_embeddings=tied, seed=1)
        self.engine = start(self.old, dtype, directory / "old")
        self.client = subprocess.Popen(
            [sys.executable, "-c", CLIENT, self.new, dtype],
            cwd=REPO,
            stdout=subprocess.PIPE,
            text=True,
        )

    @cached_property
    def fresh(self) -> dict:
        """`pid` and `scores` of the client's engine, which was started on the new weights."""
        return json.loads(self.client.stdout.readline())

    def close(self) -> None:
        self.engine.close()
        self.client.kill()
        self.client.communicate()


# As in a worker of torchrun: an engine that believed it would wait for the other rank.
TORCHRUN = {
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "1",
}


# Engines in bfloat16 are also those of the runs in e2e and of the quantised ones.
@pytest.fixture(scope="module", params=["float32 tied", slow("bfloat16 untied")])
def started(tmp_path_factory, request):
    before = shared_memory.names()
    case = None
    try:
        with pytest.MonkeyPatch.context() as environment:
            for key, value in TORCHRUN.items():
                environment.setenv(key, value)
            case = Case(tmp_path_factory.mktemp("engine"), *CASES[request.param])
        yield case
    finally:
        if case:
            case.close()
    assert not shared_memory.lost(before)


@pytest.fixture
def case(started):
    """The engine holds the old weights at the start of each test."""
    started.engine.update_weights(weights_of(started.old).items(), version=0)
    return started


def spec(**changes) -> SamplingSpec:
    defaults = {"n": 3, "temperature": 0.7, "max_new_tokens": 8, "stop_token_ids": (), "seed": 5}
    return SamplingSpec(**(defaults | changes))


def largest(a, b) -> float:
    assert len(a) == len(b) > 0
    return (torch.as_tensor(a) - torch.as_tensor(b)).abs().max().item()


def test_counts_limits_and_stop_tokens(case):
    samples = case.engine.generate(PROMPTS, spec(n=16, stop_token_ids=(3, 17, 40)))
    assert [len(of_prompt) for of_prompt in samples] == [16] * len(PROMPTS)
    flat = [sample for of_prompt in samples for sample in of_prompt]
    assert {sample.finished for sample in flat} == {True, False}
    for sample in flat:
        assert len(sample.rollout_logprobs) == len(sample.response_ids)
        stops = [token in (3, 17, 40) for token in sample.response_ids]
        assert stops.index(True) == len(stops) - 1 if sample.finished else not any(stops)
        assert sample.finished or len(stops) == 8


def test_only_the_given_stop_tokens_stop_and_max_model_len_cuts(case):
    prompt = list(range(2, 32))
    samples = case.engine.generate([prompt], spec(n=64, temperature=2.0, max_new_tokens=100))[0]
    assert {len(sample.response_ids) for sample in samples} == {MAX_LEN - len(prompt)}
    assert any(1 in sample.response_ids[:-1] for sample in samples)  # 1 is the model's own


def test_unfit_prompts_are_refused_by_name(case):
    with pytest.raises(UserError, match="prompt 1 has 48 tokens.*1 to 47"):
        case.engine.generate([[2], [2] * MAX_LEN], spec())
    with pytest.raises(UserError, match="sequence 0 has 0 tokens"):
        case.engine.score([[]])


def test_the_seed_decides_the_samples(case):
    first = case.engine.generate(PROMPTS, spec())
    assert case.engine.generate(PROMPTS, spec()) == first
    assert case.engine.generate(PROMPTS, spec(seed=6)) != first


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_sampled_logprobs_are_at_the_sampling_temperature(case, temperature):
    generated = case.engine.generate(PROMPTS, spec(temperature=temperature))
    pairs = [(p, s) for p, of in zip(PROMPTS, generated, strict=True) for s in of]

    def expected(dtype: str) -> torch.Tensor:
        scored = [
            (p, hf_logprobs(case.old, p + s.response_ids, temperature, dtype)) for p, s in pairs
        ]
        return torch.cat([logprobs[len(prompt) - 1 :] for prompt, logprobs in scored])

    sampled = torch.tensor([x for _, s in pairs for x in s.rollout_logprobs])
    check_as_exact_as_transformers(case.dtype, sampled, expected)


def check_as_exact_as_transformers(dtype: str, ours: torch.Tensor, of) -> None:
    """In bfloat16: as far from the exact values as another implementation's, and no farther."""
    exact = of("float32")
    if dtype == "float32":
        assert largest(ours, exact) < 1e-4
        return
    error, usual = ((values - exact).abs().mean() for values in (ours, of("bfloat16")))
    assert 0 < error < 1.5 * usual


def test_greedy_takes_the_likeliest_token(case):
    if case.dtype != "float32":
        pytest.skip("another implementation in bfloat16 may take the next to likeliest")
    (sample,) = case.engine.generate([PROMPTS[0]], spec(n=1, temperature=0))[0]
    for t, token in enumerate(sample.response_ids):
        context = PROMPTS[0] + sample.response_ids[:t]
        choices = hf_distributions(case.old, context)[-1]
        assert choices.argmax() == token
        assert abs(sample.rollout_logprobs[t] - choices.max()) < 1e-4


def test_score_equals_transformers(case):
    def expected(dtype: str) -> torch.Tensor:
        return torch.cat([hf_logprobs(case.old, tokens, dtype=dtype) for tokens in SEQUENCES])

    scores = torch.tensor(sum(case.engine.score(SEQUENCES), []))
    check_as_exact_as_transformers(case.dtype, scores, expected)


def test_score_equals_the_logprobs_of_generation(case):
    samples = case.engine.generate(PROMPTS, spec(temperature=1.0))
    pairs = [(p, s) for p, of_prompt in zip(PROMPTS, samples, strict=True) for s in of_prompt]
    scores = case.engine.score([prompt + sample.response_ids for prompt, sample in pairs])
    tolerance = 1e-4 if case.dtype == "float32" else 0.2
    for (prompt, sample), score in zip(pairs, scores, strict=True):
        assert largest(sample.rollout_logprobs, score[len(prompt) - 1 :]) < tolerance


def test_updated_weights_equal_a_fresh_engine_bit_for_bit(case):
    before = case.engine.score(SEQUENCES)
    # In the engine's dtype, as a sync sends them: on processors with AMX vLLM holds biases in fp32.
    dtype = getattr(torch, case.dtype)
    weights = {name: tensor.to(dtype) for name, tensor in weights_of(case.new).items()}
    received = case.engine.update_weights(weights.items(), version=7, digests=True)
    assert received == {name: digest(tensor) for name, tensor in weights.items()}
    after = case.engine.score(SEQUENCES)
    assert after == case.fresh["scores"]
    assert all(largest(a, b) > 0.1 for a, b in zip(after, before, strict=True))
    samples = case.engine.generate(PROMPTS, spec())
    assert {sample.policy_version for of_prompt in samples for sample in of_prompt} == {7}


NAME = "model.layers.1.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda items: [i for i in items if i[0] != NAME], f"{NAME} did not come"),
        (lambda items: [*items, ("stray.weight", torch.zeros(2))], "no tensor stray.weight"),
        (lambda items: [*items, items[0]], "came twice"),
        (lambda items: [(n, t[1:] if n == NAME else t) for n, t in items], f"{NAME} has shape"),
    ],
    ids=["missing", "unknown", "repeated", "shape"],
)
def test_a_spoilt_update_names_the_tensor_and_a_whole_one_mends(case, spoil, message):
    weights = list(weights_of(case.old).items())
    case.engine.update_weights(weights, version=1)
    expected = case.engine.score(SEQUENCES)
    with pytest.raises(EngineError, match=message):
        case.engine.update_weights(spoil(weights), version=2)
    with pytest.raises(EngineError, match="not whole"):
        case.engine.score(SEQUENCES)
    case.engine.update_weights(weights, version=3)
    assert case.engine.score(SEQUENCES) == expected


def test_trajectories_keep_tokens_and_number_samples(case):
    groups = case.engine.generate(PROMPTS, spec(n=2))
    flat = [t for group in groups for t in group]
    assert [t.sample_id for t in flat] == [0, 1, 2, 3, 4, 5]
    assert [t.group_id for t in flat] == [0, 0, 1, 1, 2, 2]
    assert flat[3] is groups[1][1] and flat[3].prompt_ids == PROMPTS[1]
    assert (
        flat[3].loss_mask == [1] * len(flat[3].response_ids) == [1] * len(flat[3].rollout_logprobs)
    )
    assert flat[3].reward is None and flat[3].advantage is None


def test_a_model_that_cannot_load_is_reported(tmp_path):
    make_model(tmp_path, TINY)
    (tmp_path / "model.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(EngineError, match="vllm.log"):
        start(str(tmp_path), "float32", tmp_path).wait_ready()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_killing_the_client_ends_its_engine(case):
    engine = case.fresh["pid"]
    assert alive(engine)
    case.client.kill()
    deadline = time.monotonic() + 10
    while alive(engine) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(engine)


def test_a_killed_engine_is_reported_with_its_log(case):
    """Last: it uses up an engine."""
    with open(Path(case.old) / "vllm.log", "a") as log:
        log.write("the last words\n")
    os.kill(case.engine.pid, signal.SIGINT)  # Ctrl-C at the console: it must not mind
    assert len(case.engine.score([[2, 3]])) == 1
    os.kill(case.engine.pid, signal.SIGKILL)
    with pytest.raises(EngineDied, match=r"SIGKILL[\s\S]*vllm.log[\s\S]*the last words"):
        case.engine.score([[2, 3]])
    with pytest.raises(EngineDied):
        case.engine.score([[2, 3]])
