"""The Dockerfile names what there is. It is not built here; its versions are in test_versions."""

import re
import tomllib
from fnmatch import fnmatch

from tests.support.runs import REPO

DOCKERFILE = (REPO / "Dockerfile").read_text()


def copied_paths() -> list[str]:
    copies = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
    return [source for line in copies for source in line.split()[:-1]]


def test_every_copied_path_exists_and_reaches_docker():
    kept = [
        line[1:] for line in (REPO / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    assert len(copied_paths()) >= 9
    for path in copied_paths():
        assert (REPO / path).exists(), path
        assert any(fnmatch(path, pattern) for pattern in kept), f"{path} is in .dockerignore"
    assert sorted(kept) == sorted(copied_paths())


def test_every_package_of_the_project_is_copied():
    project = tomllib.loads((REPO / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {package.removesuffix("*") for package in packages} <= set(copied_paths())


def test_the_image_runs_doctor_and_not_as_root():
    assert re.search(r'^HEALTHCHECK [^\n]*\\\n +CMD \["alp-megatron", "doctor"\]', DOCKERFILE, re.M)
    user = re.findall(r"^USER (\d+)$", DOCKERFILE, re.M)
    assert user and user[-1] != "0"
