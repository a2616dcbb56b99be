"""How many processes a configuration asks for, and how they are divided."""

from alp_megatron.config.schema import Config


def model_parallel_size(config: Config) -> int:
    """Processes that hold one replica of the model: TP x PP."""
    return config.model.tensor_model_parallel_size * config.model.pipeline_model_parallel_size


def world_size(config: Config) -> int:
    """Training processes in all; one replica's worth where runtime.world_size is not given."""
    return config.runtime.world_size or model_parallel_size(config)


def data_parallel_size(config: Config) -> int:
    """Replicas of the model. Exact only for a world size that validate() has accepted."""
    return world_size(config) // model_parallel_size(config)


def num_microbatches(config: Config) -> int:
    """Micro-batches of one replica in one optimizer update."""
    samples = data_parallel_size(config) * config.trainer.micro_batch_size
    return config.trainer.global_batch_size // samples
