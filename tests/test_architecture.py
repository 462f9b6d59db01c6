"""Who may import whom, read from the sources. `docs/architecture.md` has the picture."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: What each room may import of the project. A room is a folder of the package, or a file at its root.
MAY_IMPORT = {
    "training_run": set(),
    "train_flux_inpaint": {"training_run"},
    "garment_types": set(),
    "cli": {"training_run"},
    "images": {"garment_types", "training_run"},
    "embedded": {"garment_types", "cli", "training_run"},
    "data": {"images", "garment_types", "training_run"},
    "reports": {"images", "garment_types", "training_run"},
    "deepfashion_dataset": {"data", "images", "garment_types", "training_run"},
    "models": {"train_flux_inpaint", "training_run", "images", "garment_types"},
    "upstream": {"train_flux_inpaint", "training_run", "cli"},
    "inference": {"models", "images", "embedded", "garment_types", "cli", "training_run"},
    "preparation": {"models", "data", "images", "reports", "garment_types", "training_run"},
    "evaluation": {"inference", "models", "data", "images", "reports", "embedded", "garment_types", "training_run"}
    | {"train_flux_inpaint"},
    "tryon": {"inference", "models", "images", "garment_types", "cli", "embedded", "training_run"},
    "demo": {"inference", "models", "garment_types", "cli", "training_run"},
    "export": {"models", "cli", "training_run"},
    "prepare": {"preparation", "models", "data", "images", "reports", "garment_types", "cli", "training_run"},
    "plan": {"upstream", "models", "deepfashion_dataset", "embedded", "cli", "training_run"},
    "preflight": {"plan", "upstream", "models", "cli", "training_run"},
    "run_arguments": {"train_flux_inpaint", "upstream", "embedded", "garment_types", "cli", "training_run"},
    "evaluate": {"evaluation", "inference", "models", "embedded", "garment_types", "cli", "training_run"},
}
#: May import everything below them, and are imported by nothing but what stands behind the name.
TOP = {"launch": set(), "train_deepfashion_lora": {"benchmarks"}, "embedded.make": {"benchmarks"}, "benchmarks": set()}


def product_files() -> list[Path]:
    files = [ROOT / "train_flux_inpaint.py"]
    for folder in ("training_run", "deepfashion_training", "benchmarks"):
        files += sorted((ROOT / folder).rglob("*.py"))
    return files


def room_of(module: str) -> str | None:
    """The room that a module of the project lies in; None for other packages and the package's own ``__init__``."""
    parts = module.split(".")
    if parts[0] in ("training_run", "train_flux_inpaint", "benchmarks"):
        return parts[0]
    if parts[0] != "deepfashion_training" or len(parts) == 1:
        return None
    if parts[1] == "__init__":
        return None
    return "embedded.make" if parts[1:3] == ["embedded", "make"] else parts[1]


@cache
def modules() -> dict[str, Path]:
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in product_files()}


def imported(path: Path) -> set[str]:
    """Modules of the project that a file imports, at the top or inside functions, for types or for use."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [f"{node.module}.{name.name}" for name in node.names]
            found |= {name if name in modules() else str(node.module) for name in names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {name for name in found if room_of(name) is not None}


@cache
def arrows() -> dict[str, dict[str, list[str]]]:
    """For each room the rooms that it imports, and by which files."""
    found: dict[str, dict[str, list[str]]] = {}
    for module, path in modules().items():
        room = room_of(module)
        if room is None:
            continue
        for other in {room_of(name) for name in imported(path)} - {room, None}:
            found.setdefault(room, {}).setdefault(str(other), []).append(str(path.relative_to(ROOT)))
    return found


def test_every_room_is_in_the_table():
    rooms = {room_of(module) for module in modules()} - {None}
    assert rooms == MAY_IMPORT.keys() | TOP.keys()


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_only_what_lies_below(room):
    wrong = {other: files for other, files in arrows().get(room, {}).items() if other not in MAY_IMPORT[room]}
    assert not wrong


@pytest.mark.parametrize("room", TOP)
def test_nothing_imports_what_stands_on_top(room):
    assert {other for other, below in arrows().items() if room in below} <= TOP[room]


def test_the_house_has_at_most_eight_floors():
    """The longest chain of rooms that import each other; a circle would make it endless."""

    def height(room: str, above: tuple[str, ...] = ()) -> int:
        assert room not in above, f"a circle: {' -> '.join([*above, room])}"
        return 1 + max((height(other, (*above, room)) for other in arrows().get(room, {})), default=0)

    heights = {room: height(room) for room in {*MAY_IMPORT, *TOP}}
    assert max(heights.values()) <= 8, sorted(heights.items(), key=lambda item: item[1])


def test_files_import_each_other_in_no_circle():
    below = {module: imported(path) & modules().keys() - {module} for module, path in modules().items()}
    while leaves := [module for module, others in below.items() if not others & below.keys()]:
        for module in leaves:
            del below[module]
    assert not below, f"imports in a circle: {sorted(below)}"


def test_no_two_files_and_no_two_classes_have_the_same_name():
    files: dict[str, list[str]] = {}
    classes: dict[str, list[str]] = {}
    for path in product_files():
        place = str(path.relative_to(ROOT))
        if path.name != "__init__.py":
            files.setdefault(path.stem, []).append(place)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes.setdefault(node.name, []).append(place)
    # A command and the benchmark that measures it share a name on purpose.
    twice = {name: places for name, places in files.items() if len(places) > 1}
    assert not {name: places for name, places in twice.items() if not any("benchmarks" in place for place in places)}
    assert not {name: places for name, places in classes.items() if len(places) > 1}
