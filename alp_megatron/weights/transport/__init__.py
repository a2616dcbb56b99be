"""How weights travel to the rollout engine: one protocol, a file for each way."""

from alp_megatron.weights.transport.buckets import DEFAULT_CAPACITY, pack, unpack
from alp_megatron.weights.transport.memory import SharedBuffer

__all__ = ["DEFAULT_CAPACITY", "SharedBuffer", "pack", "unpack"]
