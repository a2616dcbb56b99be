"""Faults made by hand in the package's source; `mutations` tries them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """A piece of the package's source, which stands there once, and what it is made to be."""

    kind: str
    name: str
    find: str
    replace: str
    tests: tuple[str, ...]  # files under tests/, or tests in them


FAULTS = [
    Fault(
        "kernel",
        "CPU Philox: nine rounds",
        ("    for _ in range(10):\n        p0, p1 = _M0 * c0"),
        ("    for _ in range(9):\n        p0, p1 = _M0 * c0"),
        ("perturbation/test_cpu_kernel.py",),
    ),
    Fault(
        "kernel",
        "CPU: sine and cosine exchanged",
        "z0 = _from_bits(u32(_float_bits(f32(r * (sin if odd else cos)))",
        "z0 = _from_bits(u32(_float_bits(f32(r * (cos if odd else cos)))",
        ("perturbation/test_cpu_kernel.py",),
    ),
    Fault(
        "kernel",
        "CPU: bfloat16 truncated instead of rounded",
        "rounded = u16(u32(bits + half) >> u32(16))",
        "rounded = u16(u32(bits) >> u32(16))",
        ("perturbation/test_cpu_kernel.py", "perturbation/test_add_noise.py"),
    ),
    Fault(
        "kernel",
        "CPU: upper half of the sample id dropped",
        "c1, c2, c3 = u64(position) & _LOW, u64(sample_id) & _LOW, u64(sample_id) >> _HALF",
        "c1, c2, c3 = u64(position) & _LOW, u64(sample_id) & _LOW, u64(0)",
        ("perturbation/test_cpu_kernel.py",),
    ),
    Fault(
        "kernel",
        "noise gradient ignores the scale",
        "grad_scale = (scale.double() * dots).sum().float().view(1)",
        "grad_scale = dots.sum().float().view(1)",
        ("perturbation/test_add_noise.py",),
    ),
    Fault(
        "kernel",
        "relative sigma without the square root of the width",
        "scale = scale * (norm / h**0.5)",
        "scale = scale * norm",
        ("perturbation/test_add_noise.py",),
    ),
    Fault(
        "kernel",
        "key words ignore the update",
        "counter = np.array([step, update, *_DOMAIN], dtype=np.uint32)",
        "counter = np.array([step, 0, *_DOMAIN], dtype=np.uint32)",
        ("perturbation/test_philox.py", "perturbation/test_statistics.py"),
    ),
    Fault(
        "kernel",
        "log-probs: padding of the vocabulary counts",
        ("    if padding:\n        logits[:, max(0, weight.shape[0] - padding) :] = -1e30"),
        ("    if padding < 0:\n        logits[:, max(0, weight.shape[0] - padding) :] = -1e30"),
        ("model/test_layouts.py::test_padded_vocabulary",),
    ),
    Fault(
        "kernel",
        "log-probs: gradient not divided by the temperature",
        "grad *= (grad_logprobs[rows] / temperature)[:, None]",
        "grad *= grad_logprobs[rows][:, None]",
        ("model/test_logits_noise.py",),
    ),
    Fault(
        "kernel",
        "entropy without the ranks' scale",
        "entropy = log_normalizer - (weighted * scale).sum(0) / total",
        "entropy = log_normalizer - weighted.sum(0) / total",
        ("model/test_logits_noise.py::test_a_step_with_noise_on_the_logits_alone",),
    ),
    Fault(
        "ratio",
        "sequence ratio as a mean",
        ("        if length_normalized:\n            total = total / sum_by_sequence(mask"),
        ("        if not length_normalized:\n            total = total / sum_by_sequence(mask"),
        ("objectives/test_ratios.py",),
    ),
    Fault(
        "ratio",
        "masked tokens enter the ratio",
        "difference = (logprobs - reference_logprobs.detach()).where(mask > 0, 0.0)",
        "difference = logprobs - reference_logprobs.detach()",
        ("objectives/test_ratios.py",),
    ),
    Fault(
        "ratio",
        "dual clip on positive advantages too",
        "dual = negative & (ratio > dual_clip)",
        "dual = ratio > dual_clip",
        ("objectives/test_loss.py",),
    ),
    Fault(
        "ratio",
        "upper clip bound without 1 +",
        "low, high = 1.0 - eps_low, 1.0 + eps_high",
        "low, high = 1.0 - eps_low, max(1.0, eps_high)",
        ("objectives/test_loss.py",),
    ),
    Fault(
        "ratio",
        "loss divided by all tokens, not the unmasked",
        "return mask / max(num_tokens_global, 1)",
        "return mask / max(len(mask), 1)",
        ("objectives/test_loss.py",),
    ),
    Fault(
        "ratio",
        "advantage by the population deviation",
        ("/ (count - 1).clamp(min=1)\n    advantage"),
        ("/ count.clamp(min=1)\n    advantage"),
        ("objectives/test_ratios.py",),
    ),
    Fault(
        "ratio",
        "truncation at twice C",
        "return log_weight.exp().clamp(max=high)",
        "return log_weight.exp().clamp(max=2 * high)",
        ("objectives/test_correction.py",),
    ),
    Fault(
        "ratio",
        "k3 with the sign of l turned",
        "value = log_weight.expm1() - log_weight",
        "value = (-log_weight).expm1() + log_weight",
        ("objectives/test_correction.py",),
    ),
    Fault(
        "ratio",
        "mismatch k3 in the metrics: expm1 of -l",
        '"k3": np.maximum(np.expm1(_clamp(log_weight)) - log_weight, 0).mean()',
        '"k3": np.maximum(np.expm1(_clamp(-log_weight)) + log_weight, 0).mean()',
        ("metrics/test_tokens.py",),
    ),
    Fault(
        "resharding",
        "gate and up not interleaved by rank",
        "return torch.cat([half.chunk(size)[rank] for half in whole.chunk(2)])",
        "return whole.chunk(size)[rank]",
        ("model/test_layouts.py::test_logprobs_agree",),
    ),
    Fault(
        "resharding",
        "k and v exchanged on export",
        "q, k, v = heads[:, :-2], heads[:, -2:-1], heads[:, -1:]",
        "q, v, k = heads[:, :-2], heads[:, -2:-1], heads[:, -1:]",
        ("learner/test_updates.py::test_export_reproduces_the_checkpoint",),
    ),
    Fault(
        "resharding",
        "vocabulary padding exported",
        'return whole[:vocab_size] if layout == "vocab" else whole',
        "return whole",
        ("learner/test_updates.py::test_export_reproduces_the_checkpoint",),
    ),
    Fault(
        "resharding",
        "layer numbers of the stage, not of the model",
        ("    return layer.layer_number - 1, expert\n"),
        ("    return int(in_layer[1]), expert\n"),
        ("learner/test_updates.py::test_export_reproduces_the_checkpoint",),
    ),
    Fault(
        "resharding",
        "expert numbers of the rank, not of the layer",
        "expert = layer.mlp.local_expert_indices[int(in_expert[1])] if in_expert else None",
        "expert = int(in_expert[1]) if in_expert else None",
        ("model/test_families.py::test_export_reproduces_the_experts",),
    ),
    Fault(
        "resharding",
        "int8 scale from 127 instead of 127.5",
        "scales = nonzero(weight.abs().amax(1, keepdim=True) / (INT8_LEVELS / 2))",
        "scales = nonzero(weight.abs().amax(1, keepdim=True) / (INT8_LEVELS // 2))",
        ("weights/test_quantize_codes.py",),
    ),
    Fault(
        "resharding",
        "a piece larger than the buffer loses its tail",
        "count = min(flat.numel() - start, (buffer.capacity - used) // size)",
        "count = max(1, min(flat.numel() - start, (buffer.capacity - used) // size - 1))",
        ("weights/test_buckets.py",),
    ),
    Fault(
        "resharding",
        "a missing tensor passes",
        "missing = [name for name in self._remaining if name not in self._optional]",
        "missing = [name for name in self._remaining if False]",
        ("weights/test_verify.py",),
    ),
    Fault(
        "resume",
        "all parameters share one Adam step",
        'state["step"] = state["step"].clone()',
        "pass",
        (
            "learner/test_updates.py::test_a_resumed_run_is_bitwise_the_unbroken_one",
            "trainer/test_loop.py",
            "model/test_layouts.py",
        ),
    ),
    Fault(
        "resume",
        "the step count restarts",
        ('    run.first_step = counters["step"]\n'),
        ("    run.first_step = 0\n"),
        ("trainer/test_loop.py",),
    ),
    Fault(
        "resume",
        "another seed is accepted",
        'if counters["seed"] != run.config.seed:',
        "if False:",
        ("trainer/test_loop.py",),
    ),
    Fault(
        "resume",
        "a changed file passes the manifest",
        'if describe(directory / name)["sha256"] != digest:',
        "if False:",
        ("learner/test_checkpoints.py",),
    ),
    Fault(
        "resume",
        "tensors in use are not copied before they are written",
        "return tensor if alone else tensor.clone()",
        "return tensor",
        ("learner/test_updates.py::test_a_resumed_run_is_bitwise_the_unbroken_one",),
    ),
    Fault(
        "resume",
        "the sigmas are not loaded (fill skips them)",
        ('        if prefix + "log_sigma_scale" in missing:\n            missing.remove'),
        (
            "        self.log_sigma_scale.data.zero_()\n"
            '        if prefix + "log_sigma_scale" in missing:\n'
            "            missing.remove"
        ),
        ("perturbation/test_layer.py",),
    ),
    Fault(
        "packing",
        "positions run on through the row",
        ("        positions += range(length)\n"),
        ("        positions += range(start, start + length)\n"),
        ("learner/test_updates.py::test_logprobs_equal_transformers",),
    ),
    Fault(
        "packing",
        "the row before the first predicted token is off by one",
        "rows += range(start + sequence.first_predicted - 1, start + n - 1)",
        "rows += range(start + sequence.first_predicted, start + n)",
        ("learner/test_updates.py::test_logprobs_equal_transformers",),
    ),
    Fault(
        "packing",
        "padding takes a sample's noise",
        "sample_ids.extend([PAD_SAMPLE_ID] * n)",
        "sample_ids.extend([0] * n)",
        ("model/test_layouts.py::test_noise_is_bitwise_the_same",),
    ),
    Fault(
        "packing",
        "replicas get overlapping shares",
        "return learner.pack(by_length[rank::size], count)",
        "return learner.pack(by_length[:: size], count)",
        ("model/test_layouts.py::test_gradients_agree",),
    ),
    Fault(
        "packing",
        "mini-batches in the same order every step",
        "generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)",
        "generator = torch.Generator().manual_seed(seed % 2**63)",
        ("data/test_minibatch.py",),
    ),
    Fault(
        "packing",
        "sequence parallel: noise of rank 0's rows on every rank",
        "rows = slice(tp_rank * share, (tp_rank + 1) * share)",
        "rows = slice(0, share)",
        ("model/test_layouts.py::test_noise_is_bitwise_the_same",),
    ),
    Fault(
        "refusal",
        "TP that does not divide the heads",
        ('    if heads % tp:\n        return f"{heads} attention heads"\n'),
        "",
        ("check/test_validate.py",),
    ),
    Fault(
        "refusal",
        "an unknown key of the configuration",
        'model_config = ConfigDict(extra="forbid", strict=True',
        'model_config = ConfigDict(extra="ignore", strict=True',
        ("config/test_load.py",),
    ),
    Fault(
        "refusal",
        "a file cut short",
        "    if size != end:",
        "    if size > end:",
        ("commands/test_refusals.py",),
    ),
    Fault(
        "refusal",
        "a run directory in use",
        "    if occupied and not resume:",
        "    if False:",
        ("runtime/test_run_dir.py",),
    ),
    Fault(
        "refusal",
        "a prompt that leaves no room",
        "    if len(prompt_ids) > max_prompt_tokens:",
        "    if False:",
        ("tasks/test_dataset.py",),
    ),
    Fault(
        "refusal",
        "a gradient that is not finite is applied",
        ("    if math.isfinite(norm):\n        for part in chained"),
        ("    if True:\n        for part in chained"),
        ("learner/test_updates.py::test_a_gradient_that_is_not_finite_is_skipped",),
    ),
]
