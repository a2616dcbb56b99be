"""The arguments of `alp-megatron launch`. Imports nothing heavy before a command is chosen."""

from argparse import Namespace


def add_launch_commands(actions, overrides: dict) -> None:
    def action(name, run, text):
        sub = actions.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    of_both = overrides | {"help": "of the run, or of the cluster, as in cluster.nodes=4"}
    submit = action("submit", _submit, "submit one run to Slurm")
    submit.add_argument("config", help="YAML file of a run")
    submit.add_argument("overrides", **of_both)
    submit.add_argument("--cluster", required=True, help="YAML file, as in configs/clusters")
    submit.add_argument("--dry-run", action="store_true", help="print the batch script only")
    submit.add_argument("--resume", action="store_true", help="go on with what is in run_dir")

    sweep = action("sweep", _sweep, "launch the members of a sweep that have not finished")
    sweep.add_argument("config", help="YAML file of a sweep, as in configs/sweeps")
    sweep.add_argument("overrides", **of_both)
    sweep.add_argument("--cluster", help="YAML file, as in configs/clusters")
    sweep.add_argument(
        "--local", action="store_true", help="here, as many at once as the cores allow"
    )
    sweep.add_argument("--dry-run", action="store_true", help="print what would be launched")

    status = action("status", _status, "how runs and sweeps stand")
    status.add_argument("run_dir", nargs="+", help="run directory or sweep_dir")

    results = action("results", _results, "the table of a sweep, also as results.csv")
    results.add_argument("sweep_dir")


def _submit(arguments: Namespace) -> int:
    from alp_megatron.launch.submit import submit

    return submit(arguments)


def _sweep(arguments: Namespace) -> int:
    from alp_megatron.launch.submit import sweep

    return sweep(arguments)


def _status(arguments: Namespace) -> int:
    from alp_megatron.launch.submit import status

    return status(arguments)


def _results(arguments: Namespace) -> int:
    from alp_megatron.launch.status import results

    return results(arguments)
