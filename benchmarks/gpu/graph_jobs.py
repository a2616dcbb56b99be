"""What the training process does for the CUDA graph of a layer; the eager half runs anywhere."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from alp_megatron.data.microbatch import Sequence
from alp_megatron.learner.learner import Learner
from alp_megatron.perturbation import NoiseKey, NoiseRows

TOKENS = 48
# -> the layer's output, the gradient of its s_l
Call = Callable[[], tuple[Tensor, Tensor]]


def layer_calls(learner: Learner, keys: list[NoiseKey]) -> list[tuple[Call, NoiseRows]]:
    """For each key a call of the first layer on the same hidden states, forward and backward, with
    all that the model would give it; and the noise from which the call reads the key."""
    layer = learner.chunks[0].decoder.layers[0]
    batch = learner.pack([Sequence(5, list(range(3, 3 + TOKENS)), first_predicted=1)], 1)[0]
    calls: list[tuple[Call, NoiseRows]] = []
    for key in keys:
        given: dict = {}
        hook = layer.register_forward_pre_hook(partial(_keep, given), with_kwargs=True)
        with torch.no_grad():
            learner.chunks[0](batch, key=key)
        hook.remove()
        given["hidden_states"] = given["hidden_states"].clone().requires_grad_()
        calls.append((partial(_forward_backward, layer, given), given["packed_seq_params"].noise))
    return calls


def _keep(given: dict, module, args, kwargs) -> None:
    given.update(kwargs)


def _forward_backward(layer, given: dict) -> tuple[Tensor, Tensor]:
    out = layer(**given)[0]
    (gradient,) = torch.autograd.grad(out.float().square().mean(), layer.log_sigma_scale)
    return out.detach(), gradient


def replayed_layer(config, rank) -> dict:
    """Capture the layer under one key, replay under another, beside eager calls under that."""
    from megatron.core.tensor_parallel import (
        get_cuda_rng_tracker,
        model_parallel_cuda_manual_seed,
    )

    # The states of Megatron's own generators cannot be exchanged during a capture.
    model_parallel_cuda_manual_seed(1, use_cudagraphable_rng=True, force_reset_rng=True)
    learner = Learner(config, rank.device, training=False)
    keys = [NoiseKey(1, 2, 3), NoiseKey(1, 2, 4)]
    (captured_call, noise), (other_call, other) = layer_calls(learner, keys)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # compiles kernels, makes workspaces
            captured_call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    for state in get_cuda_rng_tracker().get_states().values():
        graph.register_generator_state(state)
    with torch.cuda.graph(graph):
        out, gradient = captured_call()
    noise.key_words.copy_(other.key_words)
    graph.replay()
    expected, expected_gradient = other_call()
    return {
        "bitwise_equal": torch.equal(out, expected),
        "gradient_relative_error": float((gradient / expected_gradient - 1).abs()),
    }
