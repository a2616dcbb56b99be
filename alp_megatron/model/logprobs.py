"""Makes log-probabilities and entropy of vocabulary-parallel logits, a chunk at a time."""

import torch
import torch.distributed as dist
from torch import Tensor

from alp_megatron.perturbation.add_noise import LogitsNoise


class _VocabParallelLogProbs(torch.autograd.Function):
    """Keeps no logits: the backward pass recomputes each chunk's."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, vocab_size, chunk, group, noise):
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        first = rank * weight.shape[0]
        # Per token and rank: max, sum of exp, sum of exp * logit (both relative to the max),
        # and the target's logit if this rank holds it. One gather combines the ranks.
        parts = torch.empty(4, hidden.shape[0], dtype=torch.float32, device=hidden.device)
        for rows in _chunks(hidden.shape[0], chunk):
            logits = _logits(hidden, rows, weight, temperature, vocab_size, first, noise)
            top = logits.amax(-1)
            exp = (logits - top[:, None]).exp()
            local = targets[rows] - first
            mine = (local >= 0) & (local < weight.shape[0])
            at_target = logits.gather(1, local.clamp(0, weight.shape[0] - 1)[:, None])[:, 0]
            parts[0, rows], parts[1, rows] = top, exp.sum(-1)
            parts[2, rows] = (exp * logits).sum(-1)
            parts[3, rows] = torch.where(mine, at_target, 0.0)
        gathered = torch.empty(size, *parts.shape, dtype=parts.dtype, device=parts.device)
        dist.all_gather(list(gathered.unbind(0)), parts, group=group)
        top, sums, weighted, at_target = gathered.unbind(1)
        highest = top.amax(0)
        scale = (top - highest).exp()
        total = (sums * scale).sum(0)
        log_normalizer = highest + total.log()
        entropy = log_normalizer - (weighted * scale).sum(0) / total
        ctx.save_for_backward(hidden, weight, targets, log_normalizer)
        ctx.args = (temperature, vocab_size, chunk, first, noise)
        ctx.mark_non_differentiable(entropy)
        return at_target.sum(0) - log_normalizer, entropy

    @staticmethod
    def backward(ctx, grad_logprobs, _):
        hidden, weight, targets, log_normalizer = ctx.saved_tensors
        temperature, vocab_size, chunk, first, noise = ctx.args
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        for rows in _chunks(hidden.shape[0], chunk):
            logits = _logits(hidden, rows, weight, temperature, vocab_size, first, noise)
            grad = (logits - log_normalizer[rows, None]).exp_().neg_()
            local = targets[rows] - first
            mine = (local >= 0) & (local < weight.shape[0])
            at_target = local.clamp(0, weight.shape[0] - 1)[:, None]
            grad.scatter_add_(1, at_target, mine[:, None].to(grad.dtype))
            grad *= (grad_logprobs[rows] / temperature)[:, None]
            grad = grad.to(hidden.dtype)
            grad_hidden[rows] = grad @ weight
            grad_weight += grad.t() @ hidden[rows]
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None, None, None, None


def _chunks(n: int, chunk: int):
    return [slice(i, min(i + chunk, n)) for i in range(0, n, chunk)]


def _logits(hidden, rows, weight, temperature, vocab_size, first, noise):
    """Returns fp32 logits [rows, v] of this rank's vocabulary, hugely negative where it is padded.

    Not -inf: a rank that holds nothing but padding would compute inf - inf.
    """
    logits = (hidden[rows] @ weight.t()).float()
    if noise is not None:
        noise.add_to(logits, rows, first)
    logits = logits / temperature
    padding = max(0, first + weight.shape[0] - vocab_size)
    if padding:
        logits[:, max(0, weight.shape[0] - padding) :] = -1e30
    return logits


def vocab_parallel_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    vocab_size: int,
    chunk: int,
    group: dist.ProcessGroup,
    noise: LogitsNoise | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns log softmax(hidden @ W^T / temperature) at the targets, and the entropy, detached.

    Args:
        hidden: [n, h], the same on every rank of the group.
        weight: [v / TP, h], this rank's rows of the output embedding.
        targets: [n] int64, global token ids.
        vocab_size: ids at or above it only pad the embedding and get probability 0.
        chunk: rows whose fp32 logits exist at once.
        noise: added to the logits before the temperature divides them.

    Returns:
        log-probabilities [n] and entropies [n] in nats, fp32. The gradient of `hidden` is this
        rank's part: the caller sums it over the group.
    """
    return _VocabParallelLogProbs.apply(
        hidden, weight, targets, temperature, vocab_size, chunk, group, noise
    )
