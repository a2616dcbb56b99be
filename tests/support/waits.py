"""Finds what would make the host wait for a GPU, on a CPU: operations whose result's size or value
the host must know."""

import traceback

from torch.utils._python_dispatch import TorchDispatchMode

WAITS = {
    "_local_scalar_dense",  # .item(), float(), a tensor in `if`
    "nonzero",  # also indexing with booleans
    "masked_select",
    "bincount",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "equal",
}


class FindWaits(TorchDispatchMode):
    """Collects the names of such operations in `found` while it is active."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        sizes_from_data = name == "repeat_interleave" and len(args) == 1
        if (name in WAITS or sizes_from_data) and not _of_a_generator():
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def _of_a_generator() -> bool:
    """Megatron compares states of the CPU generator, which are in the host's memory."""
    return any(frame.name == "fork" for frame in traceback.extract_stack())
