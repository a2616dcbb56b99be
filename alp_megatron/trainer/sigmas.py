"""The noise scales of the whole model, wherever its layers live."""

import math

from megatron.core import parallel_state

from alp_megatron.runtime.process_groups import from_every_rank


def sigmas(chunks: list, sigma0: float) -> list[float]:
    """sigma_l = sigma0 * exp(s_l) of every layer, in order; 0 where none is perturbed.

    A collective call.
    """
    mine = {
        layer.layer_number - 1: (
            sigma0 * math.exp(layer.log_sigma_scale.item()) if layer.perturbs() else 0.0
        )
        for chunk in chunks
        for layer in chunk.decoder.layers
    }
    group = parallel_state.get_pipeline_model_parallel_group()
    stages = from_every_rank(mine, group)
    everywhere = {number: sigma for stage in stages for number, sigma in stage.items()}
    return [everywhere[number] for number in sorted(everywhere)]
