"""What FP8 needs in front of experts."""

from megatron.core import parallel_state
from torch import Tensor

from alp_megatron.fp8.scope import current_pass
from alp_megatron.model.norm import RMSNorm


class Fp8ExpertsNorm(RMSNorm):
    """The norm [s, b, h] before router and experts; inside an `fp8_pass` padding leaves it as 0.

    Behind the router nobody knows which rows were padding, and what fills up a row must not move
    the scale of an expert's tokens.
    """

    def forward(self, hidden_states: Tensor) -> Tensor:
        normalised, run = super().forward(hidden_states), current_pass()
        if run is None:
            return normalised
        # A model with experts has sequence parallelism wherever it has TP: a rank has its part.
        count = len(normalised)
        start = parallel_state.get_tensor_model_parallel_rank() * count
        return normalised * run.tokens[start : start + count, :, None]
