"""The house: no ring of folders, a floor that imports nothing above it, files of a readable size.

A folder of the package is a room, one inside another a room of its own, and so is a module that
lies directly in the package. An import counts wherever it stands, inside a function as well, and
also where `import_module` or `__import__` makes it. `python -m MODULE` is no import: it starts a
process.
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
    """Raises AssertionError for an import that cannot be followed, or leaves the package for what
    lies beside it: no wheel has that."""
    files = {_module(path, root): path for path in sorted((root / package).rglob("*.py"))}
    rooms = {module: _room(path, root / package) for module, path in files.items()}
    beside = {path.parent.name for path in root.glob("*/*.py")} - {package}
    beside |= {path.stem for path in root.glob("*.py")}
    found: Imports = defaultdict(list)
    for module, path in files.items():
        for target in _imported(ast.parse(path.read_text()), module, package, files):
            top = target.split(".")[0]
            assert top not in beside, f"{module} imports {top}, which no wheel has"
            if top != package:
                continue
            assert target in files, f"{module} imports {target}, which is not there"
            if rooms[module] != rooms[target]:
                found[rooms[module], rooms[target]].append((module, target))
    return found


def _module(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def _room(path: Path, package: Path) -> str:
    place = path.relative_to(package)
    return place.stem if len(place.parts) == 1 else place.parent.as_posix()


def _imported(tree: ast.Module, module: str, package: str, modules) -> list[str]:
    targets = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                whole = alias.name == package or (not alias.asname and _within(alias.name, package))
                assert not whole, f"{module}: `import {alias.name}` reaches all of {package}"
                targets.append(alias.name)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: imports are absolute here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            targets += [name if name in modules else node.module for name in names]
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__"):
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            targets.append(_literal(given[0], module))
    return targets


def _within(name: str, package: str) -> bool:
    return name.startswith(f"{package}.")


def _called(call: ast.Call) -> str:
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def _literal(node: ast.expr, module: str) -> str:
    """Returns the module that a call names, or the folder of it where f"FOLDER.{name}" does."""
    folder = isinstance(node, ast.JoinedStr)
    first = node.values[0] if folder else node
    name = getattr(first, "value", None)
    assert isinstance(name, str) and name[0] != ".", f"{module}: nothing says what this imports"
    return name.rpartition(".")[0] if folder else name


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
    assert ("cli", "commands") in imports and ("rollout/server", "rollout/vllm") in imports
    assert on_a_ring(imports) == []


def house(root: Path, modules: dict[str, str]) -> Imports:
    for name, text in {"house/__init__": "", "house/low/__init__": "", **modules}.items():
        path = root / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return imports_between_rooms(root, "house")


LOW, HIGH = "house/low/a", "house/high/b"
BOTH = ["house.high.b imports house.low.a", "house.low.a imports house.high.b"]


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        pytest.param({LOW: "", HIGH: "from house.low.a import x"}, [], id="none"),
        pytest.param(
            {LOW: "import house.high.b as b", HIGH: "from house.low import a"}, BOTH, id="two"
        ),
        pytest.param(
            {
                LOW: "def late():\n    from house.top.c import x",
                HIGH: "from house.low.a import late",
                "house/top/c": "from house.high.b import late",
                "house/roof/d": "from house.top.c import late",
            },
            [
                "house.high.b imports house.low.a",
                "house.low.a imports house.top.c",
                "house.top.c imports house.high.b",
            ],
            id="three, one of them inside a function",
        ),
        pytest.param(
            {
                LOW: "from house.low.inner.c import x",
                "house/low/inner/c": "import house.low.a as a",
            },
            ["house.low.a imports house.low.inner.c", "house.low.inner.c imports house.low.a"],
            id="a folder and one inside it",
        ),
        pytest.param(
            {
                "house/low/one/a": "from house.low.two.b import x",
                "house/low/two/b": "from house.low.one.a import x",
            },
            [
                "house.low.one.a imports house.low.two.b",
                "house.low.two.b imports house.low.one.a",
            ],
            id="two inside one",
        ),
        *(
            pytest.param({LOW: text, HIGH: "from house.low.a import x"}, BOTH, id=text)
            for text in (
                "importlib.import_module('house.high.b')",
                "import_module(name='house.high.b')",
                "__import__('house.high.b')",
            )
        ),
        pytest.param(
            {
                LOW: "import_module(f'house.high.{name}')",
                "house/high/__init__": "",
                HIGH: "from house.low.a import x",
            },
            ["house.high.b imports house.low.a", "house.low.a imports house.high"],
            id="a name put together",
        ),
        pytest.param(
            {LOW: "run([python, '-m', 'house.high.b'])", HIGH: "from house.low.a import x"},
            [],
            id="a process",
        ),
    ],
)
def test_a_ring_is_found(tmp_path, modules, expected):
    assert on_a_ring(house(tmp_path, modules)) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import house", "reaches all of house"),
        ("import house as home", "reaches all of house"),
        ("import house.low.a", "reaches all of house"),
        ("from . import a", "absolute"),
        ("import_module('.a', 'house.low')", "nothing says"),
        ("import_module(name)", "nothing says"),
        ("import_module(f'{name}.a')", "nothing says"),
        ("import house.gone as gone", "is not there"),
        ("from scripts.run import main", "no wheel has"),
        ("def late():\n    import scripts", "no wheel has"),
        ("import_module('scripts.run')", "no wheel has"),
        ("import setup", "no wheel has"),
    ],
)
def test_an_import_that_is_refused(tmp_path, text, why):
    with pytest.raises(AssertionError, match=why):
        house(tmp_path, {LOW: "", HIGH: text, "scripts/run": "", "setup": ""})


def test_the_scripts_beside_the_package_are_known():
    beside = {path.parent.name for path in REPO.glob("*/*.py")}
    assert beside >= {PACKAGE, "launch", "conversion", "tests", "benchmarks"}


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
