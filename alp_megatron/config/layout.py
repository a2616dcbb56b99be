"""How many processes a configuration asks for, and how they are divided."""

from math import lcm

from alp_megatron.config.schema import Config


def model_parallel_size(config: Config) -> int:
    """Returns processes that hold one replica of the model: TP x PP."""
    return config.model.tensor_model_parallel_size * config.model.pipeline_model_parallel_size


def world_size(config: Config) -> int:
    """Returns training processes in all; the fewest that hold the model where it is not given."""
    return config.runtime.world_size or smallest_world_size(config)


def smallest_world_size(config: Config) -> int:
    """Returns one replica's worth, or as many replicas as the experts need: EP divides TP x DP."""
    model = config.model
    stage = lcm(model.tensor_model_parallel_size, model.expert_model_parallel_size)
    return stage * model.pipeline_model_parallel_size


def data_parallel_size(config: Config) -> int:
    """Returns the replicas of the model.

    Exact only for a world size that validate() has accepted.
    """
    return world_size(config) // model_parallel_size(config)


def num_microbatches(config: Config) -> int:
    """Returns the micro-batches of one replica in one optimizer update."""
    samples = data_parallel_size(config) * config.trainer.micro_batch_size
    return config.trainer.global_batch_size // samples
