"""What a probe does, what it refuses, and its figure."""

import json
from pathlib import Path

import numpy as np
import pytest

from alp_megatron.cli import main
from alp_megatron.config.load import load_config
from alp_megatron.data.trajectory import Trajectory
from alp_megatron.errors import UserError
from alp_megatron.learner.checkpoints import write_manifest
from alp_megatron.metrics.tokens import TokenRatios
from alp_megatron.studies.probe.figure import draw_figure, merged, width_by_update
from alp_megatron.studies.probe.files import (
    add_method,
    prepare,
    read_configs,
    read_record,
    read_rollouts,
    write_rollouts,
)
from alp_megatron.studies.probe.setup import set_up

CONFIG = "configs/quickstart.yaml"  # 32 x 8 samples, micro-batches of 32


def make(out, methods="bypass,alp", updates=16, overrides=(), start=None):
    return set_up(CONFIG, list(overrides), methods, updates, str(out), start)


def test_methods_share_everything_but_their_own_settings(tmp_path):
    wanted = make(tmp_path / "probe", "grpo,alp-sequence,gspo,grpo", overrides=["trainer.lr=1e-4"])
    assert list(wanted.configs) == ["grpo", "alp-sequence", "gspo"]
    shared = [c.model_dump(exclude={"objective", "perturbation"}) for c in wanted.configs.values()]
    assert shared[0] == shared[1] == shared[2]
    trainer = wanted.config.trainer
    assert (trainer.global_batch_size, trainer.micro_batch_size) == (16, 16)
    assert trainer.lr == 1e-4 and trainer.lr_warmup_steps == 0
    assert wanted.configs["grpo"].objective.eps_low == 0.2
    assert wanted.configs["alp-sequence"].objective.level == "sequence"
    assert wanted.configs["gspo"].objective.length_normalized


def test_a_name_wins_over_the_command_line(tmp_path):
    given = ["objective.method=gspo", "objective.dual_clip=7.0", "perturbation.sigma0=0.5"]
    configs = make(tmp_path / "probe", overrides=given).configs
    assert {name: c.objective.method for name, c in configs.items()} == {
        "bypass": "bypass",
        "alp": "alp",
    }
    assert {c.objective.dual_clip for c in configs.values()} == {7.0}
    assert configs["alp"].perturbation.sigma0 == 0.5


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--methods", "alp,bypas"], "names 'bypas', which is no method: did you mean bypass"),
        (["--methods", ""], "names '', which is no method: use some of grpo"),
        (["--updates", "15"], "--updates 15 does not divide the 256 samples"),
        (["--updates", "0"], "--updates 0 does not divide"),
        (["--from", "nowhere/step_000001"], "--from nowhere/step_000001 is no checkpoint of a run"),
        (["runtime.world_size=3"], "runtime.world_size=3 is not a multiple"),
        (
            ["task.name=file", "task.train=README.md", "task.eval=README.md"],
            "README.md:1",
        ),
        (["trainer.learning=1"], "Unknown key trainer.learning"),
        (["perturbation.layer_end=9", "--methods", "alp"], "'alp': perturbation.layer_end=9"),
        (["--out", "README.md"], "--out README.md is there, but holds no probe.json"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, capsys, arguments, sentence):
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "probe")]
    assert main(["probe", CONFIG, *arguments, *out]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and sentence in line
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    checkpoint = tmp_path / "step_000001"
    (checkpoint / "state").mkdir(parents=True)
    (checkpoint / "hf").mkdir()
    (checkpoint / "counters.json").write_text("{}")
    shape = json.loads(Path("configs/models/arithmetic/config.json").read_text())
    (checkpoint / "hf" / "config.json").write_text(json.dumps(shape))
    write_manifest(checkpoint, {})
    assert make(tmp_path / "probe", start=str(checkpoint)).start == checkpoint
    shape["num_hidden_layers"] += 1
    (checkpoint / "hf" / "config.json").write_text(json.dumps(shape))
    with pytest.raises(UserError, match="is damaged .hf/config.json is not what was written"):
        make(tmp_path / "probe", start=str(checkpoint))
    write_manifest(checkpoint, {})
    with pytest.raises(UserError, match="is of another model than model.path="):
        make(tmp_path / "probe", start=str(checkpoint))


def trajectories():
    return [
        Trajectory(i, i // 2, [1, 2], [3, 4], [1, 1], [-0.1, -1 / 3], 0, True, float(i % 2), 0.7)
        for i in range(4)
    ]


def finish(out, name, config):
    empty = {field: [] for field in TokenRatios.__dataclass_fields__}
    add_method(out, name, config, [{"update": 0}], 0.5, TokenRatios(**empty))


def test_a_directory_is_gone_on_with(tmp_path):
    out = tmp_path / "deep" / "probe"
    first = make(out)
    out.mkdir(parents=True)  # an empty one is as good as none
    assert prepare(first) == ["bypass", "alp"]
    assert read_rollouts(out) is None
    write_rollouts(out, trajectories(), score=0.25)
    assert read_rollouts(out) == trajectories()  # every float comes back as it was
    finish(out, "bypass", first.configs["bypass"])
    more = make(out, "alp,bypass,gspo")
    assert prepare(more) == ["alp", "gspo"]
    assert read_configs(out, ["alp", "gspo"]) == {n: more.configs[n] for n in ("alp", "gspo")}
    record = read_record(out)
    assert record["start_score"] == 0.25 and list(record["methods"]) == ["bypass"]


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"overrides": ["trainer.lr=1e-3"]}, "a probe with trainer.lr=3e-05, not 0.001"),
        ({"updates": 8}, "a probe with --updates=16, not 8"),
        ({"overrides": ["objective.eps_low=0.25"]}, "objective.eps_low=0.5, not 0.25"),
        ({"overrides": ["rollout.dtype=float32"]}, 'rollout.dtype="bfloat16", not "float32"'),
    ],
)
def test_a_probe_of_another_configuration_is_refused(tmp_path, change, sentence):
    out = tmp_path / "probe"
    wanted = make(out)
    prepare(wanted)
    finish(out, "bypass", wanted.configs["bypass"])
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    with pytest.raises(UserError) as error:
        prepare(make(out, **change))
    assert sentence in str(error.value)
    assert before == {path: path.read_bytes() for path in out.rglob("*.*")}


def test_damage_is_named(tmp_path):
    out = tmp_path / "probe"
    prepare(make(out))
    write_rollouts(out, trajectories(), score=0.25)
    with open(out / "rollouts.jsonl", "a") as file:
        file.write("\n")
    with pytest.raises(UserError, match="rollouts.jsonl is not the file that probe.json names"):
        read_rollouts(out)
    (out / "probe.json").write_text((out / "probe.json").read_text().replace('"version"', '"v"'))
    with pytest.raises(UserError, match="written by another version"):
        prepare(make(out))
    (out / "probe.json").write_text("{")
    with pytest.raises(UserError, match="probe.json is damaged"):
        prepare(make(out))


def test_the_configuration_of_a_method_can_be_read_back(tmp_path):
    wanted = make(tmp_path / "probe", "mis-geometric")
    prepare(wanted)
    path = tmp_path / "probe" / "configs" / "mis-geometric.yaml"
    assert load_config(path) == wanted.configs["mis-geometric"]


EDGES = np.array([-4.0, -3.0, -2.0, -1.0, 0.0])


def test_bins_are_joined_until_every_group_fills_them():
    one = np.array([-0.5, -0.2, -1.5, -2.5, -3.5])
    other = np.array([-0.5, -1.5, -1.6, -2.5, -3.5])
    # From 0 on: [-1, 0] has one of the other group, so it takes in [-2, -1]; then two bins more.
    assert merged(EDGES, [one, other], fewest=2).tolist() == [-4, -2, 0]
    assert merged(EDGES, [one, other], fewest=1).tolist() == [-4, -3, -2, -1, 0]
    # What is left at the lower end joins the last bin made.
    assert merged(EDGES, [one[:4], other[:4]], fewest=1).tolist() == [-4, -2, -1, 0]
    assert merged(EDGES, [one, other], fewest=9).tolist() == [-4, 0]
    assert merged(EDGES, [np.zeros(0)], fewest=1).tolist() == [-4, 0]


def ratios(noise: float, updates=(0, 1, 2)) -> TokenRatios:
    rng = np.random.default_rng(0)
    update = np.repeat(np.array(updates, np.int32), 101)
    rollout = np.full(len(update), -1.0, np.float32)
    # The log ratios of update u are 0, 0.01 (u + 1), ..., u + 1: their P98 - P2 is 0.96 (u + 1).
    clean = rollout + np.tile(np.arange(101) / 100, len(updates)) * (update + 1)
    perturbed = clean + noise * rng.standard_normal(len(update))
    values = (v.astype(np.float32) for v in (rollout, clean, perturbed))
    return TokenRatios(np.arange(len(update)), update, *values)


def test_the_width_at_each_update():
    updates, widths = width_by_update(ratios(0.0, (0, 2)), "clean")
    assert updates.tolist() == [0, 2]
    assert widths == pytest.approx([0.96, 2.88], abs=1e-5)


@pytest.mark.parametrize("updates", [(0, 1, 2), ()])
def test_a_picture_of_every_method(updates):
    """Also where all updates of a method were skipped, so that it has no token."""
    png = draw_figure({"bypass": ratios(0.0), "alp": ratios(0.5, updates)})
    assert png[:4] == b"\x89PNG" and len(png) > 20_000
