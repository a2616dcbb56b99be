"""What a training run saved becomes a Hugging Face model, without optimizer states and scales."""

import pytest

from tests.support.layouts import config_for, some_trajectories
from tests.support.marks import slow
from tests.support.models import make_model
from tests.support.trips import assert_same_weights, to_hf


@pytest.mark.parametrize("layout", ["tp2-sp", slow("pp2-vpp2")])
def test_checkpoint_of_a_run(workers, tmp_path, layout):
    """The same bits as the run's own export, which went over the processes instead."""
    model = make_model(tmp_path / "model", tie_word_embeddings=False, vocab_size=61)
    run_dir = tmp_path / "run"
    workers.run(
        "tests.support.jobs:save_then_continue",
        config_for(model, layout, trainer={"lr": 1e-3, "use_distributed_optimizer": True}),
        2,
        run_dir=str(run_dir),
        trajectories=some_trajectories(),
    )
    step = run_dir / "checkpoints" / "step_000001"
    assert_same_weights(to_hf(step, tmp_path / "hf", step / "hf"), step / "hf")
    with pytest.raises(AssertionError):
        assert_same_weights(step / "hf", model)  # it has been trained
