"""What a comparison consists of, and what it refuses before anything starts."""

import json

import pytest
import yaml

from alp_megatron.cli import main
from alp_megatron.config.load import load_config, resolved_yaml
from alp_megatron.studies.compare.config import load_comparison
from alp_megatron.studies.compare.trials import trials_of
from alp_megatron.studies.methods import NAMES, named_values
from tests.support.runs import QUICKSTART, REPO

EXAMPLES = sorted((REPO / "configs" / "comparisons").glob("*.yaml"))


@pytest.fixture
def file(tmp_path):
    """Writes a comparison of `bypass` and `alp` with changes, and returns its path."""

    def write(**changes):
        tree = {
            "compare_dir": str(tmp_path / "out"),
            "base": str(REPO / QUICKSTART),
            "methods": ["bypass", "alp"],
            "seeds": [1, 2],
        } | changes
        path = tmp_path / "comparison.yaml"
        path.write_text(json.dumps({key: tree[key] for key in tree if tree[key] is not None}))
        return path

    return write


def test_one_seed_after_the_other_with_fixed_numbers(file, tmp_path):
    values = {"rollout.quantization": "int4"}
    path = file(mismatches={"none": {}, "int4": values}, set={"trainer.lr": 1e-4})
    trials = trials_of(load_comparison(path, []), ["trainer.steps=7"])
    labels = [(t.mismatch, t.method, t.seed) for t in trials]
    cells = [("none", "bypass"), ("none", "alp"), ("int4", "bypass"), ("int4", "alp")]
    assert labels == [(*cell, seed) for seed in (1, 2) for cell in cells]
    assert [t.member.index for t in trials] == list(range(8))
    for trial in trials:
        config = trial.config
        assert (config.objective.method, config.seed) == (trial.method, trial.seed)
        assert (config.rollout.quantization == "int4") == (trial.mismatch == "int4")
        assert (config.trainer.steps, config.trainer.lr) == (7, 1e-4)
        assert config.run_dir == str(tmp_path / "out" / f"{trial.member.index:04d}")
    assert not (tmp_path / "out").exists()


def test_own_values_are_added_to_those_of_the_name(file):
    own = {"alp-fixed-sigma": {"perturbation.sigma0": 0.1}, "wide": {"objective.eps_high": 9.0}}
    fixed, wide = trials_of(load_comparison(file(methods=own, seeds=[1]), []), [])
    assert (fixed.config.perturbation.learnable, fixed.config.perturbation.sigma0) == (False, 0.1)
    assert (wide.config.objective.method, wide.config.objective.eps_high) == ("alp", 9.0)


def test_the_command_line_chooses(file):
    path = file(methods={"alp": {"perturbation.sigma0": 0.1}}, seeds=None)
    config = load_comparison(path, ["final_evaluations=1"], "tis,alp", None, "3, 4")
    assert config.methods == {"tis": {}, "alp": {"perturbation.sigma0": 0.1}}
    assert (config.seeds, config.final_evaluations) == ([3, 4], 1)


@pytest.mark.parametrize(
    "layers, ranges",
    [
        (3, [(0, 1), (1, 2), (2, 3)]),
        (4, [(0, 1), (1, 3), (3, 4)]),
        (28, [(0, 9), (9, 19), (19, 28)]),
    ],
)
def test_thirds_of_the_layers(layers, ranges):
    keys = "perturbation.layer_start", "perturbation.layer_end"
    for name, wanted in zip(("first", "middle", "last"), ranges, strict=True):
        values = named_values(f"alp-{name}-third", layers)
        assert tuple(values[key] for key in keys) == wanted


def test_every_named_method_can_run(file):
    trials = trials_of(load_comparison(file(methods=list(NAMES), seeds=[1]), []), [])
    configs = {t.method: t.config for t in trials}
    assert len(
        {resolved_yaml(c.model_copy(update={"run_dir": ""})) for c in configs.values()}
    ) == len(NAMES)
    levels = [configs[n].objective.correction.weight_level for n in ("mis", "mis-geometric", "tis")]
    assert levels == ["token", "geometric", "token"]
    assert configs["alp-logits"].perturbation.target == "logits"
    assert configs["bypass-sequence"].objective.level == "sequence"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_committed_comparisons_can_run(path, monkeypatch):
    monkeypatch.chdir(REPO)
    assert trials_of(load_comparison(path, []), [])


BAD = [
    ({"methods": ["grppo"]}, [], "There is no method 'grppo': did you mean grpo"),
    ({"methods": []}, [], "there are no methods: list some of grpo, "),
    ({"mismatches": {"a/b": {}}}, [], "the name 'a/b' may hold letters, digits and _.+- only."),
    ({"methods": 3}, [], "methods is 3: it should be names, or `name: values` lines."),
    ({"methods": ["alp", "alp"]}, [], "methods is a list: it names something twice."),
    ({"mismatches": {}}, [], "there are no mismatches"),
    ({"seeds": None}, [], "there are no seeds: give --seeds 1,2,3"),
    ({"seeds": [1, 1]}, [], "seed=1' twice"),
    ({}, ["--seeds", "1,x"], "--seeds holds 'x': give whole numbers"),
    ({}, ["--methods", "alp,,tis"], "--methods is 'alp,,tis': give different values"),
    ({}, ["--methods", "albp"], "There is no method 'albp': did you mean alp"),
    ({}, ["--mismatch", "int4"], "--mismatch names 'int4', which"),
    ({}, ["--parallel", "0"], "--parallel is 0: give 1 or more."),
    ({}, ["seed=3"], "seed cannot be the same for all runs of a comparison: list it in seeds."),
    ({"set": {"run_dir": "a"}}, [], "run_dir cannot be the same"),
    ({"collapse": {"drop": -1}}, [], "collapse.drop is -1"),
    ({"colapse": {}}, [], "Unknown key colapse: did you mean collapse"),
    (
        {"methods": {"mis": {"objective.correction.weight_low": 9.0}}},
        [],
        "method=mis seed=1': objective.correction.weight_low=9 is not below",
    ),
    (
        {"methods": {"alp": {"objective.correction.weight": "masked"}}},
        [],
        "method=alp seed=1': objective.correction.weight=masked contradicts objective.method=alp",
    ),
    (
        {
            "methods": {"alp": {"trainer.global_batch_size": 64}},
            "mismatches": {"u16": {"trainer.global_batch_size": 16}},
        },
        [],
        "method=alp seed=1': method and mismatch both set trainer.global_batch_size",
    ),
    ({}, ["--table-only"], "holds no finished run of this comparison"),
]


@pytest.mark.parametrize("changes, words, sentence", BAD)
def test_refused_in_one_sentence(file, tmp_path, capsys, changes, words, sentence):
    assert main(["compare", str(file(**changes)), *words]) == 2
    said = capsys.readouterr()
    assert sentence in said.err and said.err.count("\n") == 1 and said.out == ""
    assert not (tmp_path / "out").exists()


def member(path, **changes):
    """A run that has begun, its config.yaml as the comparison would write it, but for changes."""
    trial = trials_of(load_comparison(path, []), [])[0]
    tree = yaml.safe_load(resolved_yaml(trial.config)) | changes
    trial.run_dir.mkdir(parents=True)
    (trial.run_dir / "config.yaml").write_text(yaml.safe_dump(tree))


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"seed": 7}, "config.yaml has seed=7 where the comparison has 1: restore it"),
        (
            {"colour": "red"},
            "was written by another version of ALP-Megatron (colour is only there)",
        ),
    ],
)
@pytest.mark.parametrize("words", [[], ["--table-only"], ["--dry-run"]])
def test_a_run_of_something_else_is_in_the_way(file, capsys, changes, sentence, words):
    path = file()
    member(path, **changes)
    assert main(["compare", str(path), *words]) == 2
    said = capsys.readouterr()
    assert sentence in said.err and said.err.count("\n") == 1 and said.out == ""


def test_an_older_run_is_tabulated_but_does_not_go_on(file, capsys):
    """rollout.weight_noise was added: without it a run had none."""
    path = file()
    member(path, rollout=without("rollout", "weight_noise"))
    assert main(["compare", str(path)]) == 2
    assert "another version of ALP-Megatron (rollout.weight_noise is missing there)" in (
        capsys.readouterr().err
    )
    assert main(["compare", str(path), "--table-only"]) == 2
    assert "holds no finished run" in capsys.readouterr().err
    assert main(["compare", str(path), "--table-only", "rollout.weight_noise=0.1"]) == 2
    assert "another version of ALP-Megatron (rollout.weight_noise" in capsys.readouterr().err


def test_a_run_with_a_part_that_is_off_by_default_is_tabulated(file, capsys):
    """Also if it is older than a key of that part."""
    path = file(set={"model.fp8.recipe": "tensorwise"})
    model = load_config(REPO / QUICKSTART, ["model.fp8.recipe=tensorwise"]).model_dump()["model"]
    del model["fp8"]["param_gather"]
    member(path, model=model)
    assert main(["compare", str(path), "--table-only"]) == 2
    assert "holds no finished run" in capsys.readouterr().err


def without(section, key):
    tree = load_config(REPO / QUICKSTART).model_dump()[section]
    del tree[key]
    return tree


def test_a_run_of_the_comparison_is_not_in_the_way(file, capsys):
    path = file()
    member(path)
    assert main(["compare", str(path), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[0] == "mismatch=as-configured method=bypass seed=1"
    assert lines[-1].endswith(" at once")


def test_configuration_of_a_run_is_the_one_of_train(file):
    """Nothing but what the comparison says differs from the base configuration."""
    trial = trials_of(load_comparison(file(methods=["alp"]), []), [])[0]
    alone = [f"run_dir={trial.run_dir}", "objective.method=alp", "seed=1"]
    assert trial.config == load_config(REPO / QUICKSTART, alone)
