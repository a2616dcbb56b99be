"""Builds this rank's chunks of the policy."""

from megatron.core import parallel_state
from megatron.core.transformer.transformer_block import get_num_layers_to_build

from alp_megatron.config.model_shape import read_model_shape
from alp_megatron.config.schema import Config
from alp_megatron.model.hf_config import policy_config
from alp_megatron.model.policy import PolicyModel
from alp_megatron.model.specs import block_spec


def build_model(config: Config) -> list[PolicyModel]:
    """This rank's model chunks: one, or one for each virtual pipeline stage.

    The weights are left uninitialised: `weights.load` fills them.
    """
    shape = read_model_shape(config.model.path)
    policy = policy_config(config, shape)
    chunks = config.model.virtual_pipeline_model_parallel_size
    stages = range(chunks) if chunks else [None]
    return [
        PolicyModel(
            policy,
            block_spec(policy, get_num_layers_to_build(policy, vp_stage=stage)),
            max_sequence_length=shape.max_position_embeddings,
            pre_process=parallel_state.is_pipeline_first_stage(
                ignore_virtual=False, vp_stage=stage
            ),
            post_process=parallel_state.is_pipeline_last_stage(
                ignore_virtual=False, vp_stage=stage
            ),
            vp_stage=stage,
        )
        for stage in stages
    ]
