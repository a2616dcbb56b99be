import pytest

from alp_megatron.config.load import load_config, resolved_yaml
from alp_megatron.errors import UserError
from tests.support.runs import REPO

MODEL = "model: {path: somewhere}\n"


@pytest.fixture
def write(tmp_path):
    def write(text, name="run.yaml"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


def refusal(path, overrides=()):
    with pytest.raises(UserError) as caught:
        load_config(path, list(overrides))
    sentence = str(caught.value)
    assert "\n" not in sentence and len(sentence) < 300
    return sentence


@pytest.mark.parametrize("text", ["1e-5", "1E-05", "0.00001", ".00001", "+1.0e-5"])
def test_floats_in_files_and_overrides(write, text):
    assert load_config(write(MODEL + f"trainer: {{lr: {text}}}")).trainer.lr == 1e-5
    assert load_config(write(MODEL), [f"trainer.lr={text}"]).trainer.lr == 1e-5


def test_an_int_is_accepted_for_a_float_and_nothing_else_is_converted(write):
    path = write(MODEL)
    assert isinstance(load_config(path, ["trainer.lr=1"]).trainer.lr, float)
    for wrong in (
        "trainer.steps=10.0",
        "trainer.steps=1e1",
        "trainer.steps='10'",
        "trainer.steps=010",
        "trainer.lr=true",
        "trainer.lr=.inf",
        "trainer.lr=.nan",
        "model.path=3",
        "model.sequence_parallel=1",
        "model.sequence_parallel=yes",
        "run_dir=",
    ):
        key, _, value = wrong.partition("=")
        assert refusal(path, [wrong]).startswith(f"{key} is ")


def test_overrides_take_null_lists_and_booleans(write):
    config = load_config(
        write(MODEL),
        [
            "objective.dual_clip=null",
            "rollout.stop_token_ids=[1, 2]",
            "model.sequence_parallel=true",
            "run_dir=2026-01-01",
        ],
    )
    assert config.objective.dual_clip is None
    assert config.rollout.stop_token_ids == [1, 2]
    assert config.model.sequence_parallel is True
    assert config.run_dir == "2026-01-01"


def test_extends_is_relative_to_its_file_and_later_values_win(write):
    write(MODEL + "trainer: {lr: 1, steps: 2}\nseed: 1", "base/a.yaml")
    write("extends: a.yaml\ntrainer: {steps: 3}\nseed: 2", "base/b.yaml")
    write("seed: 3", "c.yaml")
    path = write("extends: [base/b.yaml, c.yaml]\ntrainer: {micro_batch_size: 4}")
    config = load_config(path, ["trainer.weight_decay=0.5"])
    assert (config.trainer.lr, config.trainer.steps, config.seed) == (1.0, 3, 3)
    assert (config.trainer.micro_batch_size, config.trainer.weight_decay) == (4, 0.5)


def test_a_cycle_of_extends_is_refused_and_a_diamond_is_not(write):
    write("extends: run.yaml", "other.yaml")
    assert "extends" in refusal(write("extends: other.yaml"))
    write(MODEL, "top.yaml")
    write("extends: top.yaml\nseed: 1", "left.yaml")
    write("extends: top.yaml\nseed: 2", "right.yaml")
    assert load_config(write("extends: [left.yaml, right.yaml]")).seed == 2


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("trainer.lrr=1", "trainer.lr"),
        ("lr=1", "trainer.lr"),
        ("model.tensor_parallel_size=2", "model.tensor_model_parallel_size"),
        ("trainr.steps=2", "trainer"),
        ("rollouts.temperature=1", "rollout"),
    ],
)
def test_an_unknown_key_names_the_closest(write, override, nearest):
    key = override.partition("=")[0]
    sentence = refusal(write(MODEL), [override])
    assert key.split(".")[0] in sentence and f"did you mean {nearest}" in sentence


def test_range_and_choice_errors_name_the_key(write):
    path = write(MODEL)
    assert "trainer.steps is 0" in refusal(path, ["trainer.steps=0"])
    assert "'alp', 'bypass'" in refusal(path, ["objective.method=ppo"])
    assert "rollout.stop_token_ids.1" in refusal(path, ["rollout.stop_token_ids=[1, a]"])
    assert "trainer is 5" in refusal(path, ["trainer=5"])
    assert "model.path is missing" in refusal(write("seed: 1"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 1\ntrainer: [1", "run.yaml:"),
        ("seed: 1\nseed: 2", "run.yaml:2: the key 'seed' is given twice"),
        ("trainer:\n  lr: 1\n  lr: 2", "run.yaml:3: the key 'lr' is given twice"),
        ("seed: 1\n\tlr: 2", "run.yaml:2:"),
        ("a: 1\n---\nb: 2", "run.yaml:"),
        ("", "is empty"),
        ("# only a comment", "is empty"),
        ("- a", "must hold"),
        ("just words", "must hold"),
        ("seed: \x00", "not YAML"),
        (MODEL + "trainer: &x {lr: *x}", "trainer.lr is a section"),
        ("extends: 5", "extends"),
        ("extends: nowhere.yaml", "nowhere.yaml: there is no such file"),
        ("[" * 5000, "nested too deeply"),
        ("{a: 1}: 2", "run.yaml:1"),
    ],
)
def test_malformed_files(write, text, expected):
    assert expected in refusal(write(text))


def test_unreadable_files(tmp_path, write):
    assert "no such file" in refusal(tmp_path / "absent.yaml")
    assert "cannot be read" in refusal(tmp_path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"run_dir: caf\xe9")
    assert "UTF-8" in refusal(latin)
    for override in ("trainer.lr", "=1", "trainer..lr=1", "trainer.lr=[1"):
        assert override.split("=")[0] in refusal(write(MODEL), [override])


def test_the_resolved_file_reads_back_equal(write):
    config = load_config(
        write(MODEL), ["run_dir='1e-5'", "trainer.lr=1e-7", "task.train='yes'", "seed=9"]
    )
    assert load_config(write(resolved_yaml(config), "again.yaml")) == config


def test_the_quickstart_loads():
    root = REPO
    assert load_config(root / "configs" / "quickstart.yaml").model.sequence_parallel


def test_a_method_brings_its_own_defaults(write):
    def bounds(*overrides):
        objective = load_config(write("model: {path: x}"), list(overrides)).objective
        return objective.eps_low, objective.eps_high, objective.dual_clip

    assert bounds() == (0.5, 3.0, 3.0)
    assert bounds("objective.method=grpo") == (0.2, 0.28, 10.0)
    assert bounds("objective.method=grpo", "objective.eps_high=0.4") == (0.2, 0.4, 10.0)


def test_a_methods_correction_survives_being_written_down(write):
    def window(*overrides):
        config = load_config(write(MODEL), list(overrides))
        again = load_config(write(resolved_yaml(config), "again.yaml"))
        assert again == config
        c = again.objective.correction
        return c.weight, c.weight_level, c.weight_low, c.weight_high

    icepop, given = "objective.method=icepop", "objective.correction.weight_high=3"
    assert window() == ("none", "token", None, None)
    assert window("objective.method=tis") == ("truncated", "token", None, 2.0)
    assert window("objective.method=mis") == ("masked", "sequence", 0.0, 5.0)
    assert window(icepop) == ("masked", "token", 0.5, 5.0)
    assert window(icepop, given) == ("masked", "token", 0.5, 3.0)
