"""Everything that lets Megatron-Core run without CUDA, and nothing else.

`enable_cpu_megatron()` must run before the first import of `megatron`. Where CUDA is present it
does nothing. Each patch states why it is needed; they were made for Megatron-Core 0.19.2 and
the version is checked, because a patch on other code would be wrong without an error.
"""

import importlib
import logging
from importlib.metadata import version

import torch
from torch.overrides import TorchFunctionMode

MEGATRON_VERSION = "0.19.2"
CPU = torch.device("cpu")


def enable_cpu_megatron() -> None:
    """Install the patches once per process. Raises RuntimeError on another Megatron version."""
    if torch.cuda.is_available() or getattr(torch.cuda, "_alp_cpu_megatron", False):
        return
    found = version("megatron-core")
    if found != MEGATRON_VERSION:
        raise RuntimeError(
            f"megatron-core {found} is installed, but the CPU patches are for {MEGATRON_VERSION}: "
            f"pip install megatron-core=={MEGATRON_VERSION}"
        )
    torch.cuda._alp_cpu_megatron = True
    _patch_torch_cuda()
    _patch_rng()
    _patch_moe()
    _patch_distributed_optimizer()


class _NoStream:
    """Stands in for torch.cuda.Stream, which Megatron also uses as a class and in hints."""

    def __init__(self, *args, **kwargs):
        pass

    def __class_getitem__(cls, item):
        return cls

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return False

    def record_event(self, event=None):
        return event if event is not None else _NoStream()

    def _nothing(self, *args, **kwargs):
        return None

    wait_stream = wait_event = wait = record = synchronize = _nothing


class _CudaMeansCpu(TorchFunctionMode):
    """Rewrites `device='cuda'` where tensors are made.

    A mode, because wrapping torch.empty and its kin breaks `with torch.device('meta')`, on
    which transformers' loading relies.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda or func is torch.Tensor.pin_memory:
            return args[0]
        device = kwargs.get("device")
        if device is not None and str(device).startswith("cuda"):
            kwargs = {**kwargs, "device": CPU}
        if kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}
        if func is torch.Tensor.to:
            args = tuple(
                CPU if isinstance(a, str | torch.device) and str(a).startswith("cuda") else a
                for a in args
            )
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            # The optimizer asserts that parameters are of a 'torch.cuda.*Tensor' type.
            return func(*args).replace("torch.", "torch.cuda.", 1)
        return func(*args, **kwargs)


def _patch_torch_cuda() -> None:
    """Device queries, streams and RNG calls that Megatron makes unconditionally: the current
    device in embeddings and linear layers, streams in gradient buffers and the MoE dispatcher.

    Each name gets a function of its own: torch's compiler refuses one object under two names.
    """
    cuda = torch.cuda
    cuda.current_device = lambda: CPU
    cuda.Stream = _NoStream
    cuda.stream = lambda *a, **k: _NoStream()
    cuda.current_stream = lambda *a, **k: _NoStream()
    cuda.get_rng_state = lambda *a, **k: torch.get_rng_state()
    cuda.manual_seed = lambda seed: torch.manual_seed(seed)
    _CudaMeansCpu().__enter__()


def _patch_rng() -> None:
    """Megatron's RNG tracker reads CUDA generators directly."""
    random = importlib.import_module("megatron.core.tensor_parallel.random")
    random._get_cuda_rng_state = lambda *a, **k: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *a, **k: torch.set_rng_state(state)
    # Its fork warns that the CPU generator moved, which here is the generator it forks.
    logging.getLogger(random.__name__).setLevel(logging.ERROR)


def _patch_moe() -> None:
    """Megatron makes numpy arrays of the tokens' counts only where it also copies them from CUDA,
    but needs them in any case."""
    dispatcher = importlib.import_module("megatron.core.transformer.moe.token_dispatcher")

    def to_cpu(tensor, as_numpy=False, record_stream=False):
        return tensor.numpy() if as_numpy and isinstance(tensor, torch.Tensor) else tensor

    dispatcher.maybe_move_tensor_to_cpu = to_cpu


def _patch_distributed_optimizer() -> None:
    """Without TE or apex the inner optimizer is torch's AdamW, whose state has a `step` tensor.

    Checkpoint code looks for a step beside each parameter's moments, or takes that of the new
    optimizer, and after a load lets all parameters share one `step` tensor, which then counts
    once for each of them (docs/upstream.md).
    """
    module = importlib.import_module("megatron.core.optimizer.distrib_optimizer")
    cls = module.DistributedOptimizer
    load_state_dict = cls.load_state_dict

    def set_under_no_grad(self, model_param, tensors):
        group, order = self.model_param_group_index_map[model_param]
        main_param = self.optimizer.param_groups[group]["params"][order]
        targets = {"param": main_param, **self.optimizer.state[main_param]}
        targets.pop("step", None)
        with torch.no_grad():
            for name, target in targets.items():
                target.copy_(tensors[name])

    def load_with_own_steps(self, state_dict):
        load_state_dict(self, state_dict)
        for state in self.optimizer.state.values():
            if isinstance(state.get("step"), torch.Tensor):
                state["step"] = state["step"].clone()

    cls._set_main_param_and_optimizer_states = set_under_no_grad
    cls.load_state_dict = load_with_own_steps
