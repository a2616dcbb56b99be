"""Every run that the configurations in this repository describe, members of sweeps included."""

from pathlib import Path

from alp_megatron.config.load import load_config
from alp_megatron.config.schema import Config
from alp_megatron.launch.members import expand, load_sweep, overrides

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"

# In the shared parts of the models' files there is no model yet.
RUN_FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (
        CONFIGS / "quickstart.yaml",
        *CONFIGS.glob("experiments/**/*.yaml"),
        *CONFIGS.glob("models/*/*h100*.yaml"),
    )
)
SWEEP_FILES = sorted(path.relative_to(ROOT).as_posix() for path in CONFIGS.glob("sweeps/*.yaml"))


def run_configs() -> dict[str, Config]:
    """By file name. Paths in them hold in the repository's root."""
    return {name: load_config(ROOT / name) for name in RUN_FILES}


def sweep_members() -> dict[str, Config]:
    """By 'file: values'."""
    members = {}
    for name in SWEEP_FILES:
        sweep = load_sweep(ROOT / name)
        for values in expand(sweep):
            given = overrides(sweep.set | values)
            members[f"{name}: {' '.join(given)}"] = load_config(sweep.base, given)
    return members
