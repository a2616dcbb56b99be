"""Python imports this first in every process that has this folder on PYTHONPATH.

ALP_TEST_FLIP="trainer NAME BIT" flips one bit of the Megatron parameter NAME on rank 1 after it
was loaded; "transport NAME" flips one bit of the tensor NAME while it lies in shared memory.
"""

import importlib.abc
import importlib.util
import os
import sys

WHERE, NAME, *BIT = os.environ["ALP_TEST_FLIP"].split()


def flip_in_trainer(module):
    load = module.load_hf

    def load_hf(chunks, *arguments):
        import torch

        load(chunks, *arguments)
        parameter = dict(chunks[0].named_parameters())[NAME]
        if os.environ["RANK"] == "1":
            parameter.data.view(-1)[:1].view(torch.int32).bitwise_xor_(1 << int(BIT[0]))

    module.load_hf = load_hf


def flip_in_transport(module):
    import torch

    original = module.pack

    def pack(tensors, buffer):
        for bucket in original(tensors, buffer):
            for piece in bucket:
                if piece.name == NAME:
                    buffer.view(piece)[-1:].view(torch.uint8)[0] ^= 1
            yield bucket

    module.pack = pack


class AfterImport(importlib.abc.MetaPathFinder):
    def __init__(self, module: str, then):
        self._module, self._then = module, then

    def find_spec(self, name, path=None, target=None):
        if name != self._module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            self._then(module)

        spec.loader.exec_module = exec_module
        return spec


if WHERE == "trainer":
    sys.meta_path.insert(0, AfterImport("alp_megatron.weights.hf_model", flip_in_trainer))
else:
    sys.meta_path.insert(0, AfterImport("alp_megatron.weights.transport", flip_in_transport))
