"""The pieces of a report: one self-contained HTML file, readable offline and on a phone."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
       max-width: 66rem; margin: 0 auto; padding: 1rem; }}
h1 {{ font-size: 1.5rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.25rem; margin: 2.5rem 0 .75rem; }}
h3 {{ font-size: 1rem; margin: 1.25rem 0 .25rem; overflow-wrap: anywhere; }}
figure h3 {{ margin-top: 0; }}
p {{ max-width: 44rem; }}
img {{ width: 100%; height: auto; display: block; }}
.figures {{ display: grid; gap: 1.75rem 2rem;
           grid-template-columns: repeat(auto-fill, minmax(min(100%, 28rem), 1fr)); }}
figure {{ margin: 0; }} figcaption {{ color: #555; font-size: .9rem; margin-top: .25rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; }}
td, th {{ text-align: left; padding: .25rem 1.25rem .25rem 0; vertical-align: top;
         border-bottom: 1px solid #ddd; }}
th {{ font-weight: 600; }}
.list td {{ overflow-wrap: anywhere; }}
.grid td, .grid tbody th {{ white-space: nowrap; }}
.grid thead th {{ min-width: 7rem; vertical-align: bottom; }}
.grid thead th:first-child {{ min-width: 0; }}
.grid td {{ font-variant-numeric: tabular-nums; }}
.grid th:first-child {{ position: sticky; left: 0; background: #fff; }}
wbr {{ display: none; }}
pre {{ overflow-x: auto; background: #f5f5f5; padding: .75rem; font-size: .85rem; }}
.note {{ border-left: 4px solid #E69F00; padding-left: .75rem; }}
@media (max-width: 40rem) {{
  .list {{ table-layout: fixed; width: 100%; }} wbr {{ display: inline; }}
  .grid {{ font-size: .9rem; }}
  .grid tbody th {{ white-space: normal; min-width: 7rem; }}
}}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


@dataclass(frozen=True)
class Picture:
    """A figure of the page; `name` is its file's, without the ending."""

    name: str
    title: str
    caption: str
    png: bytes


def page(title: str, parts: Sequence[str]) -> bytes:
    return PAGE.format(title=escape(title), body="\n".join(parts)).encode()


def heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def subheading(text: str) -> str:
    return f"<h3>{escape(text)}</h3>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def note(text: str) -> str:
    """A sentence that should not be overlooked."""
    return f'<p class="note">{escape(text)}</p>'


def code(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def pairs(rows: Mapping[str, str]) -> str:
    """A table of names and values."""
    cells = (f"<tr><th>{_breakable(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows.items())
    return f'<table class="list">{"".join(cells)}</table>'


def table(columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """A table that scrolls sideways where it is too wide; the first column stays in sight.

    Args:
        columns: their titles, the first one's as well.
        rows: name -> a cell for each of the other columns.
    """
    head = "".join(f"<th>{escape(title)}</th>" for title in columns)
    body = "".join(
        f"<tr><th>{_breakable(name)}</th>{''.join(f'<td>{escape(c)}</td>' for c in cells)}</tr>"
        for name, cells in rows.items()
    )
    return (
        f'<div class="scroll"><table class="grid"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _breakable(name: str) -> str:
    """A line may break after a dot or an underscore."""
    return re.sub(r"([._])", r"\1<wbr>", escape(name))


def figures(pictures: Sequence[Picture]) -> str:
    """Side by side where there is room."""
    return f'<div class="figures">{"".join(map(_figure, pictures))}</div>'


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    title = escape(picture.title)
    return (
        f'<figure><h3>{title}</h3><img alt="{title}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )
