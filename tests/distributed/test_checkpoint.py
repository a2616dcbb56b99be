"""A checkpoint goes on in other layouts as in its own."""

import pytest

from tests.distributed.layouts import config_for, some_trajectories

JOBS = "tests.distributed.checkpoint_jobs:"
SETTINGS = {
    "trainer": {"lr": 1e-4, "use_distributed_optimizer": True, "clip_grad": 1.0},
    "perturbation": {"perturb_lr": 1e-2},
}
BOUND = 1e-5  # of log-probabilities in nats, absolute; of losses, gradient norms, sigmas, relative


# name -> (TP, PP, processes)
LAYOUTS = {
    "tp2-pp2": (2, 2, 4),
    "tp1": (1, 1, 1),
    "tp4": (4, 1, 4),
    "pp2": (1, 2, 2),
    "dp2": (1, 1, 2),
}


def run(workers, model, layout, job, arguments):
    tp, pp, processes = LAYOUTS[layout]
    config = config_for(model, **{section: dict(values) for section, values in SETTINGS.items()})
    config.model.tensor_model_parallel_size = tp
    config.model.pipeline_model_parallel_size = pp
    return workers.run(JOBS + job, config, processes, **arguments)[0]


@pytest.fixture(scope="module")
def saved(workers, untied_model, tmp_path_factory):
    """A checkpoint of TP 2 x PP 2 after two steps, and what the next three steps were."""
    arguments = {
        "run_dir": str(tmp_path_factory.mktemp("run")),
        "trajectories": some_trajectories(),
    }
    own = run(workers, untied_model, "tp2-pp2", "save_and_go_on", arguments)
    assert len(own) == 3 and own[0]["grad_norm"] > 0
    return arguments, own


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_next_three_steps(workers, untied_model, saved, layout):
    arguments, own = saved
    steps = run(workers, untied_model, layout, "load_and_go_on", arguments)
    bound = 0 if layout == "tp2-pp2" else BOUND
    largest = 0.0
    for ours, theirs in zip(steps, own, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            if key != "logprobs":
                assert ours[key] == pytest.approx(value, rel=bound), key
        for sample, logprobs in theirs["logprobs"].items():
            largest = max(largest, (logprobs - ours["logprobs"][sample]).abs().max().item())
    print(f"{layout}: largest difference of a log-probability {largest:.1e} nats")
    assert largest <= bound
