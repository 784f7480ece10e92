"""The house: which room may import which, no rings, one name for one thing, and no module too long to read."""

from __future__ import annotations

import ast
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import st_asym

PACKAGE = Path(st_asym.__file__).parent
# Each may import, when it is loaded, the ones before it. What draws (report) is loaded by them where it is needed.
ROOMS = ["data", "retrieval", "heads", "cache", "losses", "trust", "trainer", "fitting", "evaluation"]
ROOMS += ["diagnosis", "export", "serving", "report", "cli"]
EXCEPTIONS = {("heads", "trust")}  # heads that are saved alone say what they were made of, and are verified
LONGEST = 450


def modules() -> dict[str, ast.Module]:
    """Each module's name and what is in it."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = modules()


def imported(name: str) -> set[str]:
    """The modules of ours that are imported as soon as this one is, those for the type checker left out."""
    found = set()
    for node in MODULES[name].body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.partition(".")[0] == "st_asym"}
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "st_asym":
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            # ``from st_asym.fitting import fit`` may be the function: its room's face imports the file of that name.
            found |= {one for one in inner if one in MODULES} or {str(node.module)}
    return found


def room(name: str) -> str:
    return name.partition(".")[2].partition(".")[0]


def test_a_room_imports_only_the_ones_before_it() -> None:
    rooms = {room(name) for name in MODULES} - {"", "__main__"}
    assert rooms <= set(ROOMS)
    wrong = []
    for name in MODULES:
        for other in imported(name):
            here, there = room(name), room(other)
            if {here, there} & {"", "__main__"} or here == there or (here, there) in EXCEPTIONS:
                continue
            if ROOMS.index(there) > ROOMS.index(here):
                wrong.append(f"{name} imports {other}")
    assert wrong == []


def test_no_module_waits_for_itself() -> None:
    """A face imports what is in its room: that is no ring."""
    faces = {name for name in MODULES if (PACKAGE.parent / name.replace(".", "/")).is_dir()}
    TopologicalSorter({name: imported(name) - faces for name in MODULES if name not in faces}).prepare()


def test_file_names_are_unique() -> None:
    names = Counter(path.name for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
    assert [name for name, count in names.items() if count > 1] == []


def test_class_names_are_unique() -> None:
    names = Counter(node.name for tree in MODULES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    assert {name for name, count in names.items() if count > 1} == set()


def test_no_module_is_too_long_to_read() -> None:
    lengths = {
        path.relative_to(PACKAGE).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in PACKAGE.rglob("*.py")
    }
    assert {name for name, length in lengths.items() if length > LONGEST} == set()
