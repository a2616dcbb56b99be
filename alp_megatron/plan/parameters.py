"""How many parameters a rank holds, by the way in which they are divided."""

from dataclasses import dataclass, replace
from math import prod

from alp_megatron.config.layout import data_parallel_size
from alp_megatron.config.model_shape import ModelShape
from alp_megatron.config.schema import Config


@dataclass(frozen=True)
class Held:
    """Parameters of one rank: slices over TP, whole tensors, and whole experts of its share.

    `dp` and `expert_dp` are the ranks that hold the same dense part, and the same experts.
    """

    split: int
    replicated: int
    expert: int
    dp: int
    expert_dp: int

    @property
    def dense(self) -> int:
        return self.split + self.replicated

    @property
    def total(self) -> int:
        return self.dense + self.expert


def held_by_stage(config: Config, shape: ModelShape) -> list[Held]:
    """What a rank of each pipeline stage holds, each layer's sigma included."""
    model = config.model
    tp, pp, ep = (
        model.tensor_model_parallel_size,
        model.pipeline_model_parallel_size,
        model.expert_model_parallel_size,
    )
    dp = data_parallel_size(config)
    layer = _by_kind(replace(shape, num_hidden_layers=1).tensor_shapes(), "model.layers.")
    layers = shape.num_hidden_layers // pp
    table = -(-shape.vocab_size // tp) * shape.hidden_size  # padded to a multiple of TP
    stages = []
    for stage in range(pp):
        last = stage == pp - 1
        # A tied table stands at both ends of a pipeline, but once where there is one stage.
        tables = (stage == 0) + (last and not (shape.tie_word_embeddings and pp == 1))
        stages.append(
            Held(
                split=layers * layer["split"] // tp + tables * table,
                replicated=layers * (layer["replicated"] + 1) + last * shape.hidden_size,
                expert=layers * layer["expert"] // ep,
                dp=dp,
                expert_dp=max(1, tp * dp // ep),
            )
        )
    return stages


def _by_kind(shapes: dict[str, tuple[int, ...]], prefix: str) -> dict[str, int]:
    counts = {"split": 0, "replicated": 0, "expert": 0}
    for name, shape in shapes.items():
        if name.startswith(prefix):
            counts[_kind(name)] += prod(shape)
    return counts


def _kind(name: str) -> str:
    if ".experts." in name:
        return "expert"
    whole = ("norm.weight", "mlp.gate.weight", "o_proj.bias", "down_proj.bias")
    return "replicated" if name.endswith(whole) else "split"
