"""One real vLLM server, its weights through a directory, against transformers and vLLM itself."""

import asyncio

import pytest
import torch

from alp_megatron.cli import main
from alp_megatron.errors import UserError
from alp_megatron.rollout.engine import EngineError, SamplingSpec
from alp_megatron.rollout.identity import identity
from alp_megatron.rollout.server.client import check_reachable, new_session
from alp_megatron.rollout.server.engine import ServerEngine
from alp_megatron.weights.transport.directory import Directory
from alp_megatron.weights.verify import digest
from tests.support.models import TINY, hf_logprobs, make_model, weights_of
from tests.support.runs import QUICKSTART, QUIET, REPO
from tests.support.servers import MAX_LEN, settings_of, start_servers

PROMPTS = [[2, 3, 4], [7], list(range(5, 25))]
SEQUENCES = [[2, 3, 4, 9, 11], [7, 7, 8], [(5 * i) % 64 for i in range(MAX_LEN)]]
SPEC = SamplingSpec(n=3, temperature=0.7, max_new_tokens=8, stop_token_ids=(3, 17), seed=5)


class Case:
    def __init__(self, directory):
        self.old = make_model(directory / "old", TINY)
        self.new = make_model(directory / "new", TINY, seed=1)
        self.directory = directory
        # A bucket smaller than the largest tensor: the updates go in pieces.
        transport = Directory(directory / "weights", capacity=8192)
        self.engine = start_servers(self.old, transport, "directory", directory, count=1)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    case = Case(tmp_path_factory.mktemp("server"))
    with case.engine:
        yield case


@pytest.fixture
def engine(case):
    """It holds the old weights at the start of each test."""
    case.engine.update_weights(weights_of(case.old).items(), version=0)
    return case.engine


def largest(a, b) -> float:
    assert len(a) == len(b) > 0
    return (torch.as_tensor(a) - torch.as_tensor(b)).abs().max().item()


def test_samples_and_their_logprobs(case, engine):
    for prompt, samples in zip(PROMPTS, engine.generate(PROMPTS, SPEC), strict=True):
        assert len(samples) == SPEC.n
        for sample in samples:
            stops = [token in SPEC.stop_token_ids for token in sample.response_ids]
            assert sample.finished == any(stops)
            assert stops.index(True) == len(stops) - 1 if sample.finished else len(stops) == 8
            expected = hf_logprobs(case.old, prompt + sample.response_ids, SPEC.temperature)
            assert largest(sample.rollout_logprobs, expected[len(prompt) - 1 :]) < 1e-4


def test_the_seed_decides_the_tokens(engine):
    def tokens(seed: int) -> list:
        spec = SamplingSpec(n=3, temperature=1.0, max_new_tokens=8, stop_token_ids=(), seed=seed)
        samples = engine.generate([PROMPTS[0]] * 2, spec)
        return [sample.response_ids for of_prompt in samples for sample in of_prompt]

    first = tokens(5)
    assert tokens(5) == first != tokens(6)
    assert len({tuple(ids) for ids in first}) == len(first)  # also among equal prompts


def test_unfit_prompts_are_refused_by_name(engine):
    with pytest.raises(UserError, match="prompt 1 has 48 tokens.*1 to 47"):
        engine.generate([[2], [2] * MAX_LEN], SPEC)


def test_an_update_over_http(case, engine):
    """That it equals an engine's in its own process bit by bit: test_two_servers."""
    before = [engine.score([tokens])[0] for tokens in SEQUENCES]
    weights = weights_of(case.new)
    received = engine.update_weights(weights.items(), version=7, digests=True)
    assert received == {name: digest(tensor) for name, tensor in weights.items()}
    after = [engine.score([tokens])[0] for tokens in SEQUENCES]
    for tokens, scores in zip(SEQUENCES, after, strict=True):
        assert largest(scores, hf_logprobs(case.new, tokens)) < 1e-4
    assert all(largest(a, b) > 0.1 for a, b in zip(after, before, strict=True))
    (samples,) = engine.generate([PROMPTS[0]], SPEC)
    assert {sample.policy_version for sample in samples} == {7}
    assert list((case.directory / "weights").iterdir()) == []


NAME = "model.layers.1.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda items: [i for i in items if i[0] != NAME], f"{NAME} did not come"),
        (lambda items: [*items, ("stray.weight", torch.zeros(2))], "no tensor stray.weight"),
        (lambda items: [(n, t[1:] if n == NAME else t) for n, t in items], f"{NAME} has shape"),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_a_spoilt_update_names_the_tensor_and_a_whole_one_mends(case, engine, spoil, message):
    weights = list(weights_of(case.old).items())
    expected = engine.score(SEQUENCES[:1])
    with pytest.raises(EngineError, match=message):
        engine.update_weights(spoil(weights), version=2)
    with pytest.raises(EngineError, match="not whole"):
        engine.score(SEQUENCES)
    engine.update_weights(weights, version=3)
    assert engine.score(SEQUENCES[:1]) == expected


def test_a_source_that_fails_half_way_leaves_a_server_that_can_be_updated(case, engine):
    def broken():
        yield from list(weights_of(case.old).items())[:3]
        raise KeyError("the trainer")

    with pytest.raises(KeyError, match="the trainer"):
        engine.update_weights(broken(), version=2)
    weights = weights_of(case.new)
    assert engine.update_weights(weights.items(), version=3, digests=True) == {
        name: digest(tensor) for name, tensor in weights.items()
    }


def test_a_server_that_was_started_elsewhere(case, engine):
    """Another trainer takes it over; its sample would be refused by the first one."""
    settings = settings_of(case.old)
    url = engine.servers[0].url + "/"
    transport = Directory(case.directory / "of another", 8192)
    with ServerEngine(settings, transport, "directory", None, 0, [url]) as other:
        other.update_weights(weights_of(case.new).items(), version=9)
        assert other.generate([[2]], SPEC)[0][0].policy_version == 9
    with pytest.raises(EngineError, match="version 9, not 0"):
        engine.generate([[2]], SPEC)
    assert engine.servers[0].process.returncode is None


def test_a_server_that_cannot_be_used_is_one_sentence(case, engine, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(REPO)

    def sentence(url: str) -> str:
        urls = [f"rollout.server_urls=[{url}]", "rollout.engine=server"]
        assert main(["train", QUICKSTART, f"run_dir={tmp_path / 'run'}", *QUIET, *urls]) == 2
        assert not (tmp_path / "run").exists()
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1
        return said

    url = engine.servers[0].url
    assert f"{url} serves the model old (26 tensors), but the run's is" in sentence(url)
    assert "http://127.0.0.1:9 cannot be reached" in sentence("http://127.0.0.1:9")
    ours = identity(settings_of(case.old), "shared_memory")
    with pytest.raises(UserError, match="rollout.transport=directory, but the run has shared_mem"):
        asyncio.run(check(url, ours))


async def check(url: str, ours: dict) -> None:
    async with new_session() as session:
        await check_reachable(session, url, ours)
