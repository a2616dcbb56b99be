"""What the training processes do in the tests of this folder."""

import threading
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state

import alp_megatron.perturbation.layer as perturbed_layer
from alp_megatron.data.microbatch import Sequence
from alp_megatron.data.minibatch import as_sequence
from alp_megatron.learner.learner import Learner, token_logprobs
from alp_megatron.learner.optimizer import log_scales, sigmas
from alp_megatron.model.logprobs import vocab_parallel_logprobs
from alp_megatron.perturbation import NoiseKey, NoiseRows, add_noise
from alp_megatron.perturbation.add_noise import LogitsNoise
from alp_megatron.runtime.mesh import from_every_rank
from alp_megatron.trainer.record import step_record
from alp_megatron.trainer.step import update_policy, update_step
from alp_megatron.weights.export import WeightExport
from benchmarks.gpu.graph_jobs import layer_calls
from tests.support.layouts import KEY, NUM_SAMPLES
from tests.support.waits import FindWaits


def logprobs(
    config, rank, sequences: list[list[int]] | dict[int, list[int]], key: NoiseKey | None = None
) -> dict:
    """{sample_id: log-probabilities} as every rank has them; a list's samples are its indices."""
    learner = Learner(config, rank.device, training=False)
    of_samples = sequences if isinstance(sequences, dict) else dict(enumerate(sequences))
    samples = [Sequence(i, tokens, first_predicted=1) for i, tokens in of_samples.items()]
    return token_logprobs(learner, samples, key=key)


def noisy_head(config, rank, hidden, weight, targets, noise_of: dict, upstream) -> tuple:
    """Log-probabilities [n] with noise on the logits, and this rank's gradients of
    upstream . logprobs by hidden (a part of the sum over ranks) and by its rows of the weight."""
    group = parallel_state.get_tensor_model_parallel_group()
    shard = weight.chunk(dist.get_world_size(group))[dist.get_rank(group)].clone()
    hidden, shard = hidden.clone().requires_grad_(), shard.requires_grad_()
    rows = NoiseRows(KEY, noise_of["sample_ids"], noise_of["positions"])
    logprobs, _ = vocab_parallel_logprobs(
        hidden,
        shard,
        targets,
        temperature=0.7,
        vocab_size=61,
        chunk=5,
        group=group,
        noise=LogitsNoise(rows.key_words, **noise_of),
    )
    (logprobs * upstream).sum().backward()
    return logprobs.detach(), hidden.grad, shard.grad


def whole(config, rank, sequences: list[list[int]], trajectories: list) -> dict:
    """What a layout must not change: the noise of this rank's rows as its layers draw it,
    {(layer, sample_id, position): bytes of sigma * z}; log-probabilities without noise and with
    it; and all that `update_gradients` gives."""
    learner = Learner(config, rank.device)
    samples = [Sequence(i, tokens, first_predicted=1) for i, tokens in enumerate(sequences)]
    clean = token_logprobs(learner, samples)
    drawn, perturbed = _noise_of(lambda: token_logprobs(learner, samples, key=KEY))
    found = {"noise": drawn, "clean": clean, "perturbed": perturbed}
    return found | _gradients_of(learner, trajectories)


def _noise_of(compute) -> tuple[dict, dict]:
    """The noise that the layers draw in `compute()`, and its result."""
    drawn = {}

    def recording(hidden_states, log_scale, sigma0, noise, layer, mode):
        rows = add_noise(
            torch.zeros_like(hidden_states), log_scale, sigma0, noise, layer, mode
        ).flatten(0, 1)
        places = zip(noise.sample_ids.tolist(), noise.positions.tolist(), strict=True)
        for (sample_id, position), row in zip(places, rows, strict=True):
            if sample_id >= 0:
                drawn[layer, sample_id, position] = row.detach().numpy().tobytes()
        return add_noise(hidden_states, log_scale, sigma0, noise, layer, mode)

    perturbed_layer.add_noise = recording
    try:
        return drawn, compute()
    finally:
        perturbed_layer.add_noise = add_noise


def update_gradients(config, rank, trajectories: list, old_logprobs: dict | None = None) -> dict:
    """One real update (learning rates 0): the loss and every gradient under its Hugging Face name.

    Rank 0 holds them; `s_l` are under "log_sigma_scale.{layer}".
    """
    return _gradients_of(Learner(config, rank.device), trajectories, old_logprobs)


def _gradients_of(learner, trajectories: list, old_logprobs: dict | None = None) -> dict:
    """As in `update_gradients`; the learner's weights are gone then."""
    record = update_policy(learner, trajectories, old_logprobs, KEY)
    export = WeightExport(learner.chunks, learner.hf["model_type"])
    own = {}
    with torch.no_grad():
        for chunk in learner.chunks:
            for layer in chunk.decoder.layers:
                own[f"log_sigma_scale.{layer.layer_number - 1}"] = (
                    layer.log_sigma_scale.main_grad.clone()
                )
            for parameter in chunk.parameters():
                parameter.copy_(parameter.main_grad)
    gradients = {name: tensor.clone() for name, tensor in export.stream(torch.float32)}
    for stage in from_every_rank(own, parallel_state.get_pipeline_model_parallel_group()):
        gradients |= stage
    return {
        "loss": record.loss,
        "grad_norm": record.grad_norm,
        "tokens": record.tokens,
        "gradients": gradients,
        "effective_fraction": record.counts["noise_changed"] / max(record.counts["noise_total"], 1),
        "padding_share": record.counts["padding"] / record.counts["tokens"],
    }


def what_waits(config, rank, trajectories: list) -> dict:
    """What would wait for a GPU between the first micro-batch of an update, or of a log-prob pass,
    and its last; and whether the model was in training mode then."""
    learner = Learner(config, rank.device)
    schedule, found = learner._forward_backward, {}

    def watched(**arguments):
        with FindWaits() as waits:
            kept = schedule(**arguments)
        name = "log-probs" if arguments["forward_only"] else "update"
        found[name] = (waits.found, learner.chunks[0].training)
        return kept

    learner._forward_backward = watched
    old = token_logprobs(learner, [as_sequence(t) for t in trajectories])
    update_policy(learner, trajectories, old, KEY)
    return found | {"afterwards": learner.chunks[0].training}


def weights_after_updates(config, rank, trajectories: list, updates: int) -> dict:
    """The exported weights after some updates on the same mini-batch, on rank 0."""
    learner = Learner(config, rank.device)
    for index in range(updates):
        update_policy(learner, trajectories, None, NoiseKey(7, 3, index))
    export = WeightExport(learner.chunks, learner.hf["model_type"])
    return {name: tensor.clone() for name, tensor in export.stream(torch.float32)}


def step_records(config, rank, trajectories: list, objectives: list) -> list[dict]:
    """A step of two updates under each objective, from the same weights: the step's metrics."""
    config.seed, config.trainer.global_batch_size = 7, NUM_SAMPLES // 2
    records = []
    for objective in objectives:
        config.objective = objective
        learner = Learner(config, rank.device)
        result = update_step(learner, trajectories, 3, measure_before=True, measure_clean=True)
        seconds = {"rollout": 1.0, "train": 1.0}
        records.append(step_record(trajectories, result, 0, seconds))
    return records


def update_and_clean(config, rank, trajectories: list, measure_clean: bool) -> dict:
    """Log-probabilities, an update, log-probabilities: all by sample id."""
    learner = Learner(config, rank.device)
    sequences = [as_sequence(t) for t in trajectories]
    before = token_logprobs(learner, sequences)
    record = update_policy(learner, trajectories, None, KEY, measure_clean=measure_clean)
    return {"before": before, "record": record, "after": token_logprobs(learner, sequences)}


def layer_under_keys(config, rank) -> list:
    """A layer's output and gradient of s_l under one key, under another, and once more by the
    first call after its noise was given the other's key words."""
    learner = Learner(config, rank.device, training=False)
    keys = [NoiseKey(1, 2, 3), NoiseKey(1, 2, 4)]
    (call, noise), (other_call, other) = layer_calls(learner, keys)
    results = [call(), other_call()]
    noise.key_words.copy_(other.key_words)
    return [*results, call()]


def exported(config, rank) -> dict:
    """The export stream of freshly loaded weights, on rank 0, in order."""
    learner = Learner(config, rank.device, training=False)
    export = WeightExport(learner.chunks, learner.hf["model_type"])
    return {name: tensor.clone() for name, tensor in export.stream(torch.float32)}


def loss_at_scales(config, rank, trajectories: list, layer: int, shifts: list[float]) -> list:
    """The loss with s_l of one layer at each of some values, at fixed noise."""
    learner = Learner(config, rank.device)
    scale = learner.chunks[0].decoder.layers[layer].log_sigma_scale
    losses = []
    for shift in shifts:
        with torch.no_grad():
            scale.fill_(shift)
        losses.append(update_policy(learner, trajectories, None, KEY).loss)
    return losses


def update_with_nan(config, rank, trajectories: list) -> dict:
    """An update whose gradient is not a number, then a sound one; weights after each."""
    learner = Learner(config, rank.device)
    export = WeightExport(learner.chunks, learner.hf["model_type"])

    def weights():
        return {name: tensor.clone() for name, tensor in export.stream(torch.float32)}

    before = weights()
    advantage, trajectories[0].advantage = trajectories[0].advantage, float("nan")
    poisoned = update_policy(learner, trajectories, None, KEY)
    after_poison = weights()
    trajectories[0].advantage = advantage
    sound = update_policy(learner, trajectories, None, KEY)
    return {
        "skipped": [poisoned.skipped, sound.skipped],
        "unchanged": all(torch.equal(before[n], after_poison[n]) for n in before),
        "trained": any(not torch.equal(before[n], t) for n, t in weights().items()),
    }


def save_then_continue(config, rank, run_dir: str, trajectories: list) -> dict:
    """Two updates, a checkpoint, two more; the final weights and sigmas on rank 0."""
    return _updates_and_weights(config, rank, run_dir, trajectories, save=True)


def load_then_continue(config, rank, run_dir: str, trajectories: list) -> dict:
    """The last two updates of `save_then_continue`, from its checkpoint."""
    return _updates_and_weights(config, rank, run_dir, trajectories, save=False)


def _updates_and_weights(config, rank, run_dir, trajectories, save) -> dict:
    from alp_megatron.learner.saver import CheckpointSaver
    from alp_megatron.learner.state import load_checkpoint, newest_whole

    learner = Learner(config, rank.device)
    export = WeightExport(learner.chunks, learner.hf["model_type"])
    counters = {}
    if save:
        for index in range(2):
            update_policy(learner, trajectories, None, NoiseKey(7, 0, index))
        saver = CheckpointSaver(Path(run_dir), learner, export)
        trained = threading.Event()
        saver._thread.submit(trained.wait)  # a slow disk: what is written is what `start` saw
        saver.start(1, {"policy_version": 5})
    else:
        counters = load_checkpoint(newest_whole(Path(run_dir)), learner)
    for index in range(2):  # while the checkpoint is being written
        update_policy(learner, trajectories, None, NoiseKey(7, 1, index))
    if save:
        trained.set()
        saver.finish()
    scales = sigmas([log_scales(learner.chunks)], config.perturbation.sigma0)[0]
    weights = {name: tensor.clone() for name, tensor in export.stream(torch.float32)}
    return {"weights": weights, "sigmas": scales, "counters": counters}


def off_policy(config, rank, configs: dict, trajectories: list) -> dict[str, list[dict]]:
    """A probe's updates with each configuration in turn: their metrics."""
    from alp_megatron.studies.probe.job import metrics_by_update

    results = {
        name: update_step(Learner(own, rank.device), trajectories, 0, measure_clean=True)
        for name, own in configs.items()
    }
    return {name: metrics_by_update(result) for name, result in results.items()}


def start_of_probe(config, rank, checkpoint: str) -> dict:
    """What a probe begins with: the exported fp32 weights, and s_l by layer."""
    from alp_megatron.studies.probe.job import load_start

    learner = Learner(config, rank.device, load=lambda chunks: load_start(Path(checkpoint), chunks))
    export = WeightExport(learner.chunks, learner.hf["model_type"])
    return {
        "weights": {name: tensor.clone() for name, tensor in export.stream(torch.float32)},
        "scales": [layer.log_sigma_scale.item() for layer in learner.chunks[0].decoder.layers],
    }
