"""The report: one self-contained page about a run or several, its figures also as PNG files."""

import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from alp_megatron.errors import UserError
from alp_megatron.files import write_atomic
from alp_megatron.report.one_run import one_run
from alp_megatron.report.run_record import read_runs
from alp_megatron.report.several_runs import several_runs


def write_report(run_dirs: Sequence[Path], out: Path | None = None) -> Path:
    """Makes the page, and figures/*.png beside it, from what the run directories hold.

    Args:
        out: the page. Without it, report.html in the run's directory, or in the one directory
            that several runs lie in.

    Returns:
        The path of the page.

    Raises:
        UserError: a run's files are missing, malformed or of another version; nothing is
            written then. Or there is no space, or no place for the page.
    """
    runs = read_runs(run_dirs)
    out = out or _default_page(run_dirs)
    _make_directory(out)
    content = one_run(runs[0]) if len(runs) == 1 else several_runs(runs)
    groups = [content["curves"], *(group["pictures"] for group in content["envelope_groups"])]
    for picture in (picture for group in groups for picture in group):
        write_atomic(out.parent / "figures" / f"{picture.name}.png", picture.png)
    write_atomic(out, _page(content).encode())
    return out


def _page(content: dict) -> str:
    """Fills report.html.j2; whatever is not the template's own text is escaped."""
    environment = Environment(
        loader=PackageLoader("alp_megatron.report", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=True,
    )
    environment.filters["breakable"] = _breakable
    return environment.get_template("report.html.j2").render(content).lstrip()


def _breakable(name: str) -> Markup:
    """Returns the name with leave to break its line after a dot or an underscore."""
    return Markup(re.sub(r"([._])", r"\1<wbr>", str(escape(name))))


def _default_page(run_dirs: Sequence[Path]) -> Path:
    if len(run_dirs) == 1:
        return run_dirs[0] / "report.html"
    if len({path.resolve().parent for path in run_dirs}) > 1:
        raise UserError(
            "the runs lie in different directories: say where their report goes with --out FILE."
        )
    return run_dirs[0].parent / "report.html"


def _make_directory(out: Path) -> None:
    if out.is_dir():
        raise UserError(f"--out {out} is a directory: name a file in it, as in {out}/report.html.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out {out}: {out.parent} cannot be made: {error.strerror}; choose another file."
        ) from error
