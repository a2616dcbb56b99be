import shutil

import pytest

from tests.support.slurm_cluster import SlurmCluster


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    missing = [name for name in ("munged", "slurmctld", "slurmd") if not shutil.which(name)]
    if missing:
        pytest.fail(f"{', '.join(missing)}: not installed; `make test-slurm` does it")
    root = tmp_path_factory.mktemp("slurm")
    for directory in (root, root.parent):  # munge asks that others cannot write there
        directory.chmod(0o755)
    cluster = SlurmCluster(root)
    yield cluster
    cluster.close()
