"""What the machine has, from the standard library alone: it answers where nothing is installed."""

import platform
import shutil
from importlib import metadata
from pathlib import Path


def installed_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    return _proc_field("/proc/cpuinfo", "model name") or platform.processor()


def nvidia_gpus() -> list[str]:
    """Names of the NVIDIA devices that the driver lists."""
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return [_proc_field(str(file), "Model") or "unknown" for file in files]


def free_gb(path: Path) -> float:
    return shutil.disk_usage(path).free / 1e9 if path.exists() else 0.0


def memory_gb() -> float:
    """Memory that can be taken without swapping; 0 where the system does not say."""
    kilobytes = (_proc_field("/proc/meminfo", "MemAvailable") or "0 kB").split()[0]
    return int(kilobytes) * 1024 / 1e9


def cpu_flags() -> set[str]:
    """Instruction-set flags of an x86 processor, such as avx2."""
    return set((_proc_field("/proc/cpuinfo", "flags") or "").split())


def _proc_field(path: str, field: str) -> str | None:
    """The value of the first `field : value` line; None where the file or the field is absent."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() == field), None)
