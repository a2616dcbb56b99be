"""The whole run: rollouts -> rewards -> advantages -> updates -> sync, step after step."""

import time
from contextlib import contextmanager

from alp_megatron.config.methods import METHODS, needs_old_logprobs
from alp_megatron.data.minibatch import as_sequence, minibatches
from alp_megatron.learner.learner import token_logprobs
from alp_megatron.learner.optimizer import sigmas
from alp_megatron.learner.saver import CheckpointSaver
from alp_megatron.perturbation import NoiseKey
from alp_megatron.runtime.mesh import from_first_rank
from alp_megatron.trainer.record import fp8_mismatch, fp8_update_metrics, has_envelope, step_record
from alp_megatron.trainer.run import Run, acknowledge_stop, stop_requested
from alp_megatron.trainer.step import update_policy


def train(run: Run) -> bool:
    """Every rank runs this loop; only rank 0 has a driver (engine and task) and an output.

    Returns whether the last step was made; False if a stop was asked for before.
    """
    config, learner, driver = run.config, run.learner, run.driver
    saver = CheckpointSaver(run.run_dir, learner, run.plan)
    for step in range(run.first_step, config.trainer.steps):
        seconds = {"old_logprobs": 0.0, "clean_logprobs": 0.0}
        started = time.perf_counter()

        with phase("rollout", seconds):
            trajectories = driver.rollout(step) if driver else []
        with phase("reward", seconds):
            if driver:
                driver.reward(step, trajectories)
            trajectories = from_first_rank(trajectories)

        with phase("train", seconds):
            old = old_logprobs(run, step, trajectories, seconds)
            precision = fp8_mismatch(learner, trajectories, old)
            both = has_envelope(config, step)
            updates = [
                update_policy(
                    learner, minibatch, old, NoiseKey(config.seed, step, index), measure_clean=both
                )
                for index, minibatch in enumerate(
                    minibatches(trajectories, config.trainer.global_batch_size, config.seed, step)
                )
            ]
            precision |= fp8_update_metrics(learner, updates)
            seconds["envelope"] = sum(update.clean_seconds for update in updates)
        done = step + 1
        last = done == config.trainer.steps
        synced = last or done % config.rollout.sync_interval == 0
        with phase("sync", seconds):
            version = run.policy_version
            run.policy_version += 1
            if synced:
                run.sync()
        seconds["total"] = time.perf_counter() - started

        if driver and (done % config.evaluation.interval == 0 or last):
            run.latest_score, run.scored_step = driver.evaluate(), done
        noisy = METHODS[config.objective.method].perturbed
        scales = sigmas(learner.chunks, config.perturbation.sigma0 if noisy else 0.0)
        if driver:
            record = step_record(trajectories, old, updates, scales, version, seconds)
            run.output.write(step, record | precision | run.scores(), trajectories, updates)
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


def old_logprobs(run: Run, step: int, trajectories: list, seconds: dict) -> dict | None:
    """The unperturbed log-probabilities at the step's first weights, if anything needs them.

    They are the weights that sampled, unless the engine lags (rollout.sync_interval).

    They cost a forward pass, part of `train`: booked as `old_logprobs` where the method needs
    them, as `clean_logprobs` where only the metrics `mismatch/*` do.
    """
    config = run.config
    needed = needs_old_logprobs(config.objective)
    interval = config.logging.clean_mismatch_interval
    if not needed and (interval == 0 or step % interval):
        return None
    with phase("old_logprobs" if needed else "clean_logprobs", seconds):
        sequences = [as_sequence(t) for t in trajectories]
        return token_logprobs(run.learner, sequences, config.rollout.temperature)


@contextmanager
def phase(name: str, seconds: dict[str, float]):
    """Adds the wall-clock seconds of the block, as this rank sees them, to `seconds[name]`."""
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started
