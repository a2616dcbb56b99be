"""What the training processes do in test_fp8."""

from types import SimpleNamespace
from unittest.mock import patch

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.fp8_utils import is_first_last_bf16_layer
from megatron.core.transformer.transformer_config import TransformerConfig

from alp_megatron.config.schema import Fp8Config
from alp_megatron.data.minibatch import as_sequence
from alp_megatron.fp8.linear import Fp8ColumnParallelLinear, count_surviving
from alp_megatron.fp8.recipes import Fp8Pass, fp8_pass, without_fp8
from alp_megatron.hf.shape import read_model_shape
from alp_megatron.learner.learner import Learner, token_logprobs
from alp_megatron.model.specs import Fp8ExpertsNorm
from alp_megatron.model.transformer_config import fp8_settings, policy_config
from alp_megatron.perturbation import NoiseRows
from alp_megatron.trainer.step import update_policy, update_step
from tests.support.jobs import update_gradients
from tests.support.layouts import KEY, NUM_SAMPLES


def gradients_of_recipes(config, rank, trajectories: list, recipes: tuple) -> dict:
    """`update_gradients` under each recipe (None: high precision), on rank 0."""
    results = {}
    for recipe in recipes:
        config.model.fp8 = None if recipe is None else Fp8Config(recipe=recipe)
        results[recipe] = update_gradients(config, rank, trajectories)
    return results


def histories(config, rank, trajectories: list) -> list[dict]:
    """The delayed recipe's buffers at first, after log-probabilities, after an update (learning
    rates 0), and after log-probabilities again; and both log-probability passes."""
    learner = Learner(config, rank.device)
    sequences = [as_sequence(t) for t in trajectories]

    def buffers() -> dict:
        return {n: b.clone() for n, b in learner.chunks[0].named_buffers() if "fp8_history" in n}

    seen = [buffers()]
    token_logprobs(learner, sequences)
    seen.append(buffers())
    update_policy(learner, trajectories, None, KEY)
    seen.append(buffers())
    token_logprobs(learner, sequences, key=KEY)
    seen.append(buffers())
    return seen


def with_and_without(config, rank, sequences: list) -> list[dict]:
    """Log-probabilities of an FP8 model, of it inside `without_fp8`, and of it again."""
    learner = Learner(config, rank.device, training=False)
    first = token_logprobs(learner, sequences)
    with without_fp8(learner.policy_config):
        high = token_logprobs(learner, sequences)
    return [first, high, token_logprobs(learner, sequences)]


def metrics(config, rank, trajectories: list) -> dict:
    """A step of two updates (learning rates 0): its FP8 metrics, as every rank has them."""
    config.seed, config.trainer.global_batch_size = 7, NUM_SAMPLES // 2
    learner = Learner(config, rank.device)
    return update_step(learner, trajectories, 3, measure_before=True).fp8_metrics


def surviving(config, rank, recipe: str, clean, noisy) -> list[int]:
    """The two counts of `count_surviving` of a layer whose norm is the identity; the last row of
    the hidden states [s, 1, h] is padding."""
    layer = SimpleNamespace(
        config=SimpleNamespace(emulated_fp8=Fp8Config(recipe=recipe)),
        self_attention=SimpleNamespace(linear_qkv=None),
        input_layernorm=torch.nn.Identity(),
    )
    ids = torch.tensor([5] * (len(clean) - 1) + [-1])
    noise = NoiseRows(KEY, ids, torch.arange(len(clean)))
    count_surviving(layer, clean, noisy, noise)
    return [int(noise.counts["fp8_changed"]), int(noise.counts["fp8_total"])]


def products(config, rank, recipe: str, x, w, g) -> tuple:
    """y, dx and dw of this rank's part of a column-parallel layer in E4M3 with E5M2 gradients.

    x [t, k], w [n, k] and g [t, n] are whole: a rank takes its rows of w and columns of g.
    """
    group = parallel_state.get_tensor_model_parallel_group()
    layer = _column_parallel(config, recipe, w)
    size = w.shape[0] // dist.get_world_size(group)
    mine = slice(dist.get_rank(group) * size, (dist.get_rank(group) + 1) * size)
    with torch.no_grad():
        layer.weight.copy_(w[mine])
    x = x[:, None].clone().requires_grad_()
    tokens = torch.ones(len(x), 1, dtype=torch.bool)
    with fp8_pass(Fp8Pass(tokens, records=True)):
        y = layer(x)[0]
    y.backward(g[:, None, mine])
    return y.detach()[:, 0], x.grad[:, 0], layer.weight.grad


def expert_products(config, rank, recipe: str, x, w, g, counts: list[int]) -> tuple:
    """The same of one expert, which every rank has whole; of the tokens rank r has counts[r]."""
    group = parallel_state.get_expert_tensor_parallel_group()
    layer = _column_parallel(config, recipe, w, is_expert=True, tp_group=group)
    with torch.no_grad():
        layer.weight.copy_(w)
    x, g = (whole.split(counts)[rank.rank].clone() for whole in (x, g))
    x.requires_grad_()
    with fp8_pass(Fp8Pass(torch.zeros(1, 1, dtype=torch.bool), records=True)):  # not looked at
        y = layer(x)[0]
    y.backward(g)
    return y.detach(), x.grad, layer.weight.grad


def _column_parallel(config, recipe: str, w, **kwargs) -> Fp8ColumnParallelLinear:
    settings = policy_config(config, read_model_shape(config.model.path))
    settings.emulated_fp8 = Fp8Config(recipe=recipe)
    return Fp8ColumnParallelLinear(
        w.shape[1],
        w.shape[0],
        config=settings,
        init_method=torch.nn.init.zeros_,
        bias=False,
        gather_output=False,
        skip_bias_add=False,
        **kwargs,
    )


def before_experts(config, rank, hidden, tokens) -> tuple:
    """This rank's rows of hidden [t, 1, h] normalised, outside and inside of an FP8 pass."""
    norm = Fp8ExpertsNorm(policy_config(config, read_model_shape(config.model.path)), 8)
    mine = hidden.chunk(parallel_state.get_tensor_model_parallel_world_size())[rank.rank]
    plain = norm(mine)
    with fp8_pass(Fp8Pass(tokens, records=True)):
        return plain.detach(), norm(mine).detach()


def megatron_settings(config, rank) -> tuple:
    """Megatron's configuration of `model.fp8` where there is CUDA, and which layers are in bf16."""
    with patch("torch.cuda.is_available", return_value=True):
        fields = fp8_settings(config.model.fp8)
    theirs = TransformerConfig(num_layers=4, hidden_size=64, num_attention_heads=4, **fields)
    return theirs, [is_first_last_bf16_layer(theirs, layer) for layer in range(4)]
