"""Stubs that only the script's own files see, and siblings that come and go with the script."""

from __future__ import annotations

import builtins
import copy
import importlib.util
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

from deepfashion_training.upstream.imports import ScriptImports, is_missing, make_stub


def written(folder: Path, **files: str) -> tuple[ScriptImports, ModuleType]:
    """Files by module name, ``__`` for a slash; imports and module of the first one, not yet run."""
    for name, text in files.items():
        file = folder / f"{name.replace('__', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text), encoding="utf-8")
    first = folder / f"{next(iter(files))}.py"
    spec = importlib.util.spec_from_file_location("some_script", first)
    assert spec is not None
    return ScriptImports(first), importlib.util.module_from_spec(spec)


def run(imports: ScriptImports, module: ModuleType) -> ModuleType:
    with imports.importable():
        module.__spec__.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def test_a_stub_is_there_for_the_scripts_files_and_for_nobody_else(tmp_path: Path) -> None:
    text = """
        import absent
        import absent.a.b as c
        from absent.a import d
        from helper import seen, spec
    """
    helper = "import absent, importlib.util\nseen = absent\nspec = importlib.util.find_spec('absent')"
    imports, module = written(tmp_path, script=text, helper=helper)
    imports.stubs |= {"absent": make_stub("absent"), "unused": make_stub("unused")}
    run(imports, module)
    assert module.absent is module.seen is imports.stubs["absent"]
    assert module.c is module.absent.a.b and module.d is module.absent.a.d
    assert module.spec is None and "absent" not in sys.modules and imports.used == {"absent"}
    with imports.importable(), pytest.raises(ModuleNotFoundError):
        import absent  # noqa: F401


def test_a_stub_may_be_asked_about_and_inherited_from_but_not_called() -> None:
    stub = make_stub("absent")
    assert not isinstance(3, stub.engine.Engine)
    assert stub.engine.Engine is stub.engine.Engine

    class Mine(stub.Dataset):
        pass

    for call in (Mine, stub.transforms.Compose, stub):
        with pytest.raises(ImportError, match="absent"):
            call()
    assert copy.copy(stub) is stub and not hasattr(stub, "__wrapped__")


def test_siblings_are_the_same_ones_each_time_and_gone_in_between(tmp_path: Path) -> None:
    text = """
        import sys, sibling, package.inner
        sys.path.append(sys.path[0] + "/more")
        def late():
            import other
            return other, sibling
    """
    imports, module = written(tmp_path, script=text, sibling="value = []", package__inner="", other="")
    path, modules, importer = list(sys.path), dict(sys.modules), builtins.__import__
    run(imports, module)
    for _ in range(2):
        assert sys.path == path and builtins.__import__ is importer
        assert sys.modules.keys() - modules.keys() <= {"package"}  # a folder without __init__.py has no file
        with imports.importable():
            assert module.late()[1] is module.sibling is sys.modules["sibling"]
    assert {file.name for file in imports.files} == {"script.py", "sibling.py", "inner.py", "other.py"}
    sys.modules.pop("package", None)


def test_what_is_installed_in_the_scripts_folder_is_no_sibling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imports, module = written(tmp_path, script="import installed", **{"env__site-packages__installed": ""})
    monkeypatch.syspath_prepend(tmp_path / "env" / "site-packages")
    run(imports, module)
    assert sys.modules.pop("installed") is module.installed


def test_a_folder_that_runs_leave_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    assert is_missing("wandb") or importlib.util.find_spec("wandb").origin  # type: ignore[union-attr]
    assert is_missing("no_such_package") and not is_missing("torch")
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert is_missing("cv2")
