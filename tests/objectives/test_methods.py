"""What every method computes does not depend on how the work is dealt out."""

import pytest

from alp_megatron.config.methods import METHODS, with_method_defaults
from alp_megatron.config.schema import ObjectiveConfig
from tests.support.layouts import config_for, processes_of, some_trajectories
from tests.support.marks import slow

JOBS = "tests.support.jobs:"


def objective(method: str, correction: dict | None = None, **settings) -> ObjectiveConfig:
    tree = {"method": method, **settings} | ({"correction": correction} if correction else {})
    return with_method_defaults(ObjectiveConfig.model_validate(tree))


# Every method; tight windows, so that some of every kind of token and sequence is rejected.
OBJECTIVES = [
    *(objective(method) for method in METHODS),
    objective("bypass", level="sequence", loss_normalization="sequence"),
    objective("tis", {"weight_level": "sequence"}, loss_normalization="sequence"),
    objective("mis", {"weight_level": "geometric", "weight_low": 0.9, "denominator": "kept"}),
    objective(
        "icepop",
        {"weight_low": 0.8, "weight_high": 1.2, "denominator": "kept"},
        loss_normalization="sequence",
    ),
    objective("grpo", {"reject_by": "k3", "reject_over": "sequence_mean", "reject_high": 0.25}),
    objective("alp", {"reject_by": "k2", "reject_high": 0.1, "veto": 0.3}, level="sequence"),
]


def step_records(workers, model, layout):
    config = config_for(
        model,
        layout,
        # A larger eps keeps Adam from blowing rounding up to a whole step where a gradient is ~0.
        trainer={"lr": 1e-3, "adam_eps": 1e-3, "clip_grad": 1.0},
        perturbation={"perturb_lr": 1e-2},
    )
    arguments = {"trajectories": some_trajectories(), "objectives": OBJECTIVES}
    return workers.run(JOBS + "step_records", config, processes_of(layout), **arguments)[0]


@pytest.fixture(scope="module")
def alone(workers, tied_model):
    return step_records(workers, tied_model, None)


def test_the_objectives_differ_and_reject(alone):
    losses = [record["loss/policy"] for record in alone]
    assert len({round(loss, 7) for loss in losses[1:]}) == len(losses) - 1
    rejecting = [o for o in OBJECTIVES if o.correction.rejects and o.method != "mis"]
    for record in (alone[OBJECTIVES.index(o)] for o in rejecting):
        assert 0 < record["correction/rejected_tokens"] < 1


@pytest.mark.parametrize(
    "layout", ["micro-batch-1", "dp2", slow("micro-batch-4"), slow("unpacked"), slow("tp2-sp")]
)
def test_no_metric_depends_on_the_layout(workers, tied_model, alone, layout):
    ours = step_records(workers, tied_model, layout)
    for made, record, expected in zip(OBJECTIVES, ours, alone, strict=True):
        assert record.keys() == expected.keys()
        for key in record.keys() - {"tokens/padding_share"}:
            assert record[key] == pytest.approx(expected[key], rel=1e-5, abs=1e-5), (made, key)
