"""ALP-Megatron: RL post-training that stays stable when rollouts come from another policy."""

__version__ = "0.1.0"
