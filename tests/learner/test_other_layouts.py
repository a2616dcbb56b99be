"""A checkpoint goes on in other layouts as in its own."""

import pytest

from tests.support.layouts import config_for, layout_config, some_trajectories
from tests.support.models import SHAPES, make_model

JOBS = "tests.support.checkpoint_jobs:"
SETTINGS = {
    "trainer": {"lr": 1e-4, "use_distributed_optimizer": True, "clip_grad": 1.0},
    "perturbation": {"perturb_lr": 1e-2},
}
BOUND = 1e-5  # of log-probabilities in nats, absolute; of losses, gradient norms, sigmas, relative


# name -> (TP, PP, processes)
LAYOUTS = {
    "tp2-pp2": (2, 2, 4),
    "tp2-dp2": (2, 1, 4),
    "tp1": (1, 1, 1),
    "tp2": (2, 1, 2),
    "tp4": (4, 1, 4),
    "pp2": (1, 2, 2),
    "dp2": (1, 1, 2),
}
# trainer.distrib_optim_sharding_type -> the layout that saves, those that read
FORMS = {
    "fully_reshardable": ("tp2-pp2", ["tp2-pp2", "tp1", "tp4", "pp2", "dp2"]),
    "dp_reshardable": ("tp2-dp2", ["tp2-dp2", "tp2"]),
}
READS = [(form, layout) for form, (_, layouts) in FORMS.items() for layout in layouts]


def run(workers, model, layout, form, job, arguments):
    tp, pp, processes = LAYOUTS[layout]
    config = config_for(model, **{section: dict(values) for section, values in SETTINGS.items()})
    config.trainer.distrib_optim_sharding_type = form
    config.model.tensor_model_parallel_size = tp
    config.model.pipeline_model_parallel_size = pp
    return workers.run(JOBS + job, config, processes, **arguments)[0]


@pytest.fixture(scope="module")
def saved(workers, untied_model, tmp_path_factory, request):
    """A checkpoint of the form after two steps, and what the next three steps were."""
    form = request.param
    arguments = {
        "run_dir": str(tmp_path_factory.mktemp("run")),
        "trajectories": some_trajectories(),
    }
    own = run(workers, untied_model, FORMS[form][0], form, "save_and_go_on", arguments)
    assert len(own) == 3 and own[0]["grad_norm"] > 0
    return form, arguments, own


@pytest.mark.slow
@pytest.mark.parametrize("saved", ["dp_reshardable"], indirect=True)
def test_what_is_bound_to_its_layout_is_refused_elsewhere(workers, untied_model, saved):
    form, arguments, _ = saved
    sentence = "UserError: .* was made with model.tensor_model_parallel_size=2 and .* set"
    with pytest.raises(AssertionError, match=sentence):
        run(workers, untied_model, "dp2", form, "load_and_go_on", arguments)


@pytest.mark.slow
@pytest.mark.parametrize("saved, layout", READS, indirect=["saved"])
def test_the_next_three_steps(workers, untied_model, saved, layout):
    form, arguments, own = saved
    steps = run(workers, untied_model, layout, form, "load_and_go_on", arguments)
    bound = 0 if layout == FORMS[form][0] else BOUND
    largest = compare(steps, own, bound)
    print(f"{form}, {layout}: largest difference of a log-probability {largest:.1e} nats")


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_experts_go_on_bitwise(workers, tmp_path, form):
    """They have an optimizer of their own, over other replicas."""
    model = make_model(tmp_path / "model", SHAPES["qwen3_moe"])
    config = layout_config(model, "tp2-sp-ep4-dp2")
    config.trainer.lr, config.perturbation.perturb_lr = 1e-4, 1e-2
    config.trainer.use_distributed_optimizer = True
    config.trainer.distrib_optim_sharding_type = form
    arguments = {"run_dir": str(tmp_path), "trajectories": some_trajectories()}
    own, steps = (
        workers.run(JOBS + job, config, 4, **arguments)[0]
        for job in ("save_and_go_on", "load_and_go_on")
    )
    compare(steps, own, bound=0)


def compare(steps: list[dict], own: list[dict], bound: float) -> float:
    """Assert that they agree; returns the largest difference of a log-probability."""
    largest = 0.0
    for ours, theirs in zip(steps, own, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            if key != "logprobs":
                assert ours[key] == pytest.approx(value, rel=bound), key
        for sample, logprobs in theirs["logprobs"].items():
            largest = max(largest, (logprobs - ours["logprobs"][sample]).abs().max().item())
    assert largest <= bound
    return largest
