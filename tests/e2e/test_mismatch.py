"""`alp-megatron mismatch`: the whole command on the base model."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.runs import BASE_MODEL, QUICKSTART, SMALL, Command

ONE_PROCESS = ["model.tensor_model_parallel_size=1", "model.sequence_parallel=false"]
GROUP = 128  # input channels that share an int4 scale; it divides all of the model's


def int4(weight: torch.Tensor) -> torch.Tensor:
    """Codes from -8 to 7 times scales in bfloat16, in numpy."""
    groups = weight.float().numpy().reshape(weight.shape[0], -1, GROUP)
    scales = torch.from_numpy(np.abs(groups).max(-1, keepdims=True) / 7.5).bfloat16().float()
    codes = np.clip(np.round(groups / scales.numpy()), -8, 7)
    return torch.from_numpy(codes * scales.numpy()).reshape(weight.shape)


def hf_scores(records: list[dict], quantised: bool) -> np.ndarray:
    """transformers' float32 log-probabilities of the responses, in one row."""
    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32)
    if quantised:
        for name, parameter in model.named_parameters():
            if name.endswith("_proj.weight"):
                parameter.data = int4(parameter.data)
    scores = []
    for record in records:
        ids = torch.tensor([record["input_ids"]])
        with torch.no_grad():
            logprobs = model(ids).logits[0, :-1].double().log_softmax(-1)
        chosen = logprobs.gather(-1, ids[0, 1:, None])[:, 0]
        scores.append(chosen[record["prompt_length"] - 1 :].numpy())
    return np.concatenate(scores)


def complete(directory, *arguments) -> Command:
    command = Command(directory, "mismatch", QUICKSTART, *SMALL, *ONE_PROCESS, *arguments)
    assert command.wait(600) == 0, command.text()
    return command


@pytest.mark.slow
def test_matrix(tmp_path):
    out = tmp_path / "matrix.md"
    command = complete(tmp_path, "--out", out, "--quantizations", "none,int4")
    figures = json.loads(out.with_suffix(".json").read_text())
    lines = out.with_suffix(".tokens.jsonl").read_text().splitlines()
    assert figures["sequences"] == len(lines) == 32
    records = [json.loads(line) for line in lines]
    exact, quantised = (hf_scores(records, q) for q in (False, True))

    found = {(row["trainer"], row["rollout"]): row["result"] for row in figures["rows"]}
    assert len(found) == 4 and all(r["tokens"] == exact.size for r in found.values())
    # bfloat16 in the engine, and in the second trainer, is all that separates these from
    # transformers in float32; a few tokens make most of k3.
    difference = exact - quantised
    expected = {
        "k3": (np.exp(difference) - difference - 1).mean(),
        "abs_diff_mean": np.abs(difference).mean(),
        "envelope_width": np.subtract(*np.percentile(difference, (98, 2))),
    }
    for trainer, tolerance in (("float32", 0.3), ("bfloat16", 0.6)):
        for name, value in expected.items():
            assert found[trainer, "int4"][name] == pytest.approx(value, rel=tolerance), name
            assert found[trainer, "none"][name] < value / 2
    assert "| float32 | int4 |" in out.read_text() and "float32   int4" in command.out

    again = tmp_path / "again.md"
    tokens = out.with_suffix(".tokens.jsonl")
    complete(tmp_path, "--out", again, "--quantizations", "int4", "--tokens", tokens)
    rows = json.loads(again.with_suffix(".json").read_text())["rows"]
    same = {(row["trainer"], row["rollout"]): row["result"]["k3"] for row in rows}
    assert same == {pair: found[pair]["k3"] for pair in same} and len(same) == 2
