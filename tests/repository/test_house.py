"""The house: no ring of folders, a floor that imports nothing above it, files of a readable size.

A folder of the package, or a module that lies directly in it, is a room. An import counts wherever
it stands, inside a function as well.
"""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

from tests.support.runs import REPO

PACKAGE = "alp_megatron"
MAX_LINES = 400
# What each room of the floor may import; errors.py imports nothing of the package.
FLOOR = {"errors": set(), "files": {"errors"}, "config": {"errors", "files"}}

# (importing module, imported module) by (importing room, imported room)
Imports = dict[tuple[str, str], list[tuple[str, str]]]


def imports_between_rooms(root: Path, package: str = PACKAGE) -> Imports:
    files = {_module(path, root): path for path in sorted((root / package).rglob("*.py"))}
    found: Imports = defaultdict(list)
    for module, path in files.items():
        for target in _imported(ast.parse(path.read_text()), files):
            rooms = _room(module), _room(target)
            if target.split(".")[0] == package and rooms[0] != rooms[1]:
                found[rooms].append((module, target))
    return found


def _module(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def _imported(tree: ast.Module, modules) -> list[str]:
    targets = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            targets += [name if name in modules else node.module for name in names]
    return targets


def on_a_ring(imports: Imports) -> list[str]:
    """Returns the imports that lead to a room from which the importing one can be reached."""
    above = defaultdict(set)
    for room, target in imports:
        above[room].add(target)

    def reached(room: str) -> set[str]:
        seen, waiting = set(), [room]
        while waiting:
            further = above[waiting.pop()] - seen
            seen |= further
            waiting += further
        return seen

    return sorted(
        f"{module} imports {target}"
        for (room, other), pairs in imports.items()
        if room in reached(other)
        for module, target in pairs
    )


def test_no_ring():
    imports = imports_between_rooms(REPO)
    assert len(imports) > 50  # they were found
    assert on_a_ring(imports) == []


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        pytest.param({"low/a": "", "high/b": "from house.low.a import x"}, [], id="none"),
        pytest.param(
            {"low/a": "import house.high.b", "high/b": "from house.low import a"},
            ["house.high.b imports house.low.a", "house.low.a imports house.high.b"],
            id="two",
        ),
        pytest.param(
            {
                "low/a": "def late():\n    from house.top.c import x",
                "high/b": "from house.low.a import late",
                "top/c": "from house.high.b import late",
                "roof/d": "from house.top.c import late",
            },
            [
                "house.high.b imports house.low.a",
                "house.low.a imports house.top.c",
                "house.top.c imports house.high.b",
            ],
            id="three, one of them inside a function",
        ),
    ],
)
def test_a_ring_is_found(tmp_path, modules, expected):
    for name, text in modules.items():
        path = tmp_path / "house" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert on_a_ring(imports_between_rooms(tmp_path, "house")) == expected


@pytest.mark.parametrize("room", FLOOR)
def test_the_floor_imports_nothing_above_it(room):
    imports = imports_between_rooms(REPO)
    assert {other for first, other in imports if first == room} <= FLOOR[room]


def test_files_are_of_a_readable_size():
    lengths = {
        str(path.relative_to(REPO)): len(path.read_text().splitlines())
        for path in (REPO / PACKAGE).rglob("*.py")
    }
    assert {path: lines for path, lines in lengths.items() if lines > MAX_LINES} == {}
