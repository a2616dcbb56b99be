"""The perturbation, and the perturbed layer, inside a captured CUDA graph."""

import torch

from benchmarks.gpu.models import model_directory, training_config
from benchmarks.gpu.one_rank import one_rank
from benchmarks.gpu.part import Found, Goal, need


def graph_follows_key() -> Found:
    """Forward and backward of the perturbation captured once, replayed with another key: the
    result must be that key's, not the captured one's."""
    need("triton")
    from alp_megatron.perturbation import NoiseKey, NoiseRows, add_noise

    rows = torch.arange(256, device="cuda")
    noise = NoiseRows(NoiseKey(1, 2, 3), rows, rows)
    hidden = torch.randn(256, 1024, device="cuda").requires_grad_()
    log_scale = torch.zeros(1, device="cuda").requires_grad_()
    weight = torch.randn_like(hidden)

    def run(noise):
        out = add_noise(hidden, log_scale, 0.1, noise, 0)
        (gradient,) = torch.autograd.grad((out * weight).sum(), log_scale)
        return out, gradient

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(noise)  # compiles the kernels, outside of the capture
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(noise)
    other = NoiseRows(NoiseKey(1, 2, 4), rows, rows)
    noise.key_words.copy_(other.key_words)
    graph.replay()
    expected = run(other)
    same = all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
    return Found({"bitwise_equal": same}, [Goal("replay is bitwise eager", same, at_least=1)])


def layer_graph_follows_key() -> Found:
    """The same of the whole layer, Transformer Engine's attention and MLP included; in its
    backward pass sums may be made in another order."""
    need("megatron", "transformer_engine", "triton")
    config = training_config(model_directory("tiny"), "alp", None)
    with one_rank(config) as rank:
        from benchmarks.gpu.graph_jobs import replayed_layer

        figures = replayed_layer(config, rank)
    goals = [
        Goal("replay of the layer is bitwise eager", figures["bitwise_equal"], at_least=1),
        Goal("error of s_l's gradient", figures["gradient_relative_error"], at_most=0.01),
    ]
    return Found(figures, goals)
