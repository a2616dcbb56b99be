"""requirements/find_python.sh finds a Python that starts, whatever else is on PATH."""

import subprocess
import sys

import pytest

from tests.support.runs import REPO

FAILS = "exit 127"  # a version manager's, of a version that it does not have
STARTS = f'exec "{sys.executable}" "$@"'
OTHER = 'case "$*" in *3,?12*) exit 1;; esac'  # answers as another version does


@pytest.fixture
def found(tmp_path):
    """Finds a Python where PATH has these directories and no version manager has any."""

    def run(*directories, named=()):
        managers = ("HOME", "PYENV_ROOT", "UV_PYTHON_INSTALL_DIR", "ASDF_DATA_DIR", "CONDA_PREFIX")
        environment = dict.fromkeys(managers, str(tmp_path / "none"))
        return subprocess.run(
            ["/bin/sh", REPO / "requirements" / "find_python.sh", *named],
            env=environment | {"PATH": ":".join(map(str, directories))},
            capture_output=True,
            text=True,
        )

    return run


@pytest.fixture
def directory(tmp_path):
    """Makes a directory with a program in it."""

    def make(name, program, body):
        (tmp_path / name).mkdir(exist_ok=True)
        path = tmp_path / name / program
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return path.parent

    return make


@pytest.mark.parametrize("program", ["python3.12", "python3"])
def test_the_first_on_path_that_starts(found, directory, tmp_path, program):
    directories = [
        tmp_path / "absent",
        directory("fails", program, FAILS),
        directory("other", program, OTHER),
        directory("it starts", program, STARTS),
        directory("later", program, STARTS),
    ]
    done = found(*directories)
    assert done.returncode == 0 and done.stdout == f"{tmp_path}/it starts/{program}\n"
    assert done.stderr == ""


def test_one_of_the_version_before_a_plain_one(found, directory, tmp_path):
    plain = directory("plain", "python3", STARTS)
    done = found(plain, directory("exact", "python3.12", STARTS))
    assert done.stdout == f"{tmp_path}/exact/python3.12\n"


def test_where_none_starts(found, directory):
    done = found(directory("fails", "python3.12", FAILS), directory("fails", "python3", FAILS))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: no Python 3.12 with venv was found: install one")


def test_one_that_is_given_is_the_only_one_tried(found, directory):
    bad, good = directory("fails", "python3.12", FAILS), directory("starts", "python3.12", STARTS)
    done = found(good, named=[bad / "python3.12"])
    assert done.returncode == 2 and f"PYTHON={bad}/python3.12 is no Python 3.12" in done.stderr
    assert found(bad, named=[good / "python3.12"]).stdout == f"{good}/python3.12\n"
