"""Runs the whole training: rollouts -> rewards -> updates -> sync, step after step."""

import time
from contextlib import contextmanager

from alp_megatron.learner.saver import CheckpointSaver
from alp_megatron.runtime.mesh import from_first_rank
from alp_megatron.trainer.record import has_envelope, has_mismatch, step_record
from alp_megatron.trainer.run import Run, acknowledge_stop, stop_requested
from alp_megatron.trainer.step import update_step


def train(run: Run) -> bool:
    """Makes the run's steps on every rank; only rank 0 has a driver and an output.

    Returns whether the last step was made; False if a stop was asked for before.
    """
    config, learner, driver = run.config, run.learner, run.driver
    saver = CheckpointSaver(run.run_dir, learner, run.export)
    for step in range(run.first_step, config.trainer.steps):
        done, seconds = step + 1, dict[str, float]()
        last = done == config.trainer.steps
        synced = last or done % config.rollout.sync_interval == 0
        with phase("total", seconds):
            with phase("rollout", seconds):
                trajectories = driver.rollout(step) if driver else []
            with phase("reward", seconds):
                if driver:
                    driver.reward(step, trajectories)
                trajectories = from_first_rank(trajectories)
            with phase("train", seconds):
                result = update_step(
                    learner,
                    trajectories,
                    step,
                    measure_before=has_mismatch(config, step),
                    measure_clean=has_envelope(config, step),
                )
            with phase("sync", seconds):
                version_before = run.policy_version
                run.policy_version += 1
                if synced:
                    run.sync.push(run.policy_version)

        if driver and (done % config.evaluation.interval == 0 or last):
            run.latest_score, run.scored_step = driver.evaluate(), done
        if run.output:
            record = step_record(trajectories, result, version_before, seconds | result.seconds)
            run.output.write(step, record | run.scores(), trajectories, result.updates)
        # A checkpoint holds no weights but these: it is made where the engine has them too.
        stop = synced and not last and stop_requested(run.run_dir)
        if done % config.trainer.save_interval == 0 or last or stop:
            saver.start(done, run.counters())
        elif saver.written():
            saver.finish()
        if stop:
            saver.finish()
            if run.output:
                acknowledge_stop(run.run_dir)
                run.output.say(f"stopped after step {done}; --resume goes on")
            return False
    saver.finish()
    return True


@contextmanager
def phase(name: str, seconds: dict[str, float]):
    """Puts the wall-clock seconds of the block, as this rank sees them, into `seconds[name]`."""
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started
