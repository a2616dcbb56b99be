"""`alp-megatron launch`: submit, sweep, status, results."""

from argparse import ArgumentParser, Namespace

from alp_megatron.commands.arguments import add_overrides


def add_arguments(parser: ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")

    def action(name: str, text: str) -> ArgumentParser:
        return actions.add_parser(name, help=text, description=text)

    of_both = "of the run, or of the cluster, as in cluster.nodes=4"
    submit = action("submit", "submit one run to Slurm")
    submit.add_argument("config", help="YAML file of a run")
    add_overrides(submit, of_both)
    submit.add_argument("--cluster", required=True, help="YAML file, as in configs/clusters")
    submit.add_argument("--dry-run", action="store_true", help="print the batch script only")
    submit.add_argument("--resume", action="store_true", help="go on with what is in run_dir")

    sweep = action("sweep", "launch the members of a sweep that have not finished")
    sweep.add_argument("config", help="YAML file of a sweep, as in configs/sweeps")
    add_overrides(sweep, of_both)
    sweep.add_argument("--cluster", help="YAML file, as in configs/clusters")
    sweep.add_argument(
        "--local", action="store_true", help="here, as many at once as the cores allow"
    )
    sweep.add_argument("--dry-run", action="store_true", help="print what would be launched")

    status = action("status", "how runs and sweeps stand")
    status.add_argument("run_dir", nargs="+", help="run directory or sweep_dir")

    results = action("results", "the table of a sweep, also as results.csv")
    results.add_argument("sweep_dir")


def run(arguments: Namespace) -> int:
    """Does the action that was named. Returns its exit code; raises UserError and RunError."""
    from alp_megatron.launch.status import results
    from alp_megatron.launch.submit import status, submit, sweep

    actions = {"submit": submit, "sweep": sweep, "status": status, "results": results}
    return actions[arguments.action](arguments)
