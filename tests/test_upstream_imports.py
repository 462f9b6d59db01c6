"""Stubs that only the script's own files see, and siblings that come and go with the script."""

from __future__ import annotations

import builtins
import copy
import importlib.util
import sys
import textwrap
from abc import ABC
from pathlib import Path
from types import ModuleType

import pytest

from deepfashion_training.upstream.imports import HARMLESS, ImportedScript, is_missing, make_stub, pip_command
from deepfashion_training.upstream.inspection import imported_packages, lora_call, module_names, parse


def write(folder: Path, **files: str) -> Path:
    """Files by module name, ``__`` for a slash; returns the first one."""
    for name, text in files.items():
        file = folder / f"{name.replace('__', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text), encoding="utf-8")
    return folder / f"{next(iter(files))}.py"


def opened(folder: Path, **files: str) -> ImportedScript:
    """A script and siblings, not yet run."""
    file = write(folder, **files)
    spec = importlib.util.spec_from_file_location("some_script", file)
    assert spec is not None
    return ImportedScript(file, importlib.util.module_from_spec(spec))


def run(script: ImportedScript) -> ModuleType:
    with script.importable():
        script.module.__spec__.loader.exec_module(script.module)  # type: ignore[union-attr]
    return script.module


def test_a_stub_is_there_for_the_scripts_files_and_for_nobody_else(tmp_path: Path) -> None:
    text = """
        import absent
        import absent.a.b as c
        from absent.a import d
        from helper import seen, spec
    """
    helper = "import absent, importlib.util\nseen = absent\nspec = importlib.util.find_spec('absent')"
    imports = opened(tmp_path, script=text, helper=helper)
    imports.stubs["absent"] = make_stub("absent")
    module = run(imports)
    assert module.absent is module.seen is imports.stubs["absent"]
    assert module.c is module.absent.a.b and module.d is module.absent.a.d
    assert module.spec is None and "absent" not in sys.modules
    with imports.importable(), pytest.raises(ModuleNotFoundError):
        import absent  # noqa: F401


def test_a_stub_may_be_asked_about_and_inherited_from_but_not_called() -> None:
    stub = make_stub("absent")
    assert not isinstance(3, stub.engine.Engine)
    assert stub.engine.Engine is stub.engine.Engine

    class Mine(stub.Dataset, ABC):
        pass

    for call in (Mine, stub.transforms.Compose, stub):
        with pytest.raises(ImportError, match="pip install absent"):
            call()
    assert copy.copy(stub) is stub and not hasattr(stub, "__wrapped__")
    assert make_stub("wandb").Settings(code_dir=".") is not None


def test_siblings_are_the_same_ones_each_time_and_gone_in_between(tmp_path: Path) -> None:
    text = """
        import sys, sibling, package.inner
        sys.path.append(sys.path[0] + "/more")
        def late():
            import other
            return other, sibling
    """
    files = {"sibling": "value = []", "package__inner": "", "other": "", "more__far": "value = 1"}
    imports = opened(tmp_path, script=text, **files)
    path, modules, importer = list(sys.path), dict(sys.modules), builtins.__import__
    module = run(imports)
    for _ in range(2):
        assert sys.path == path and builtins.__import__ is importer
        assert sys.modules.keys() - modules.keys() <= {"package"}  # a folder without __init__.py has no file
        with imports.importable():
            assert module.late()[1] is module.sibling is sys.modules["sibling"]
            assert importlib.util.find_spec("far") is not None
    assert {file.name for file in imports.files} == {"script.py", "sibling.py", "inner.py", "other.py"}
    sys.modules.pop("package", None)


def test_what_is_installed_in_the_scripts_folder_is_no_sibling(tmp_path: Path) -> None:
    site = tmp_path / "env" / "site-packages"
    files = {"script": "import installed_there", "env__site-packages__installed_there": ""}
    imports = opened(tmp_path, **files)
    sys.path.append(str(site))
    try:
        module = run(imports)
        assert sys.modules.pop("installed_there") is module.installed_there
    finally:
        sys.path.remove(str(site))


def test_a_folder_that_runs_leave_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    assert is_missing("wandb") or importlib.util.find_spec("wandb").origin  # type: ignore[union-attr]
    assert is_missing("no_such_package") and not is_missing("torch")
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert is_missing("cv2")


def test_the_pip_command_has_the_names_of_packages() -> None:
    assert pip_command(["PIL", "einops", "cv2"]) == "pip install Pillow einops opencv-python-headless"


# ---- what the source says


def test_names_that_a_module_binds(tmp_path: Path) -> None:
    text = """
        import a.b, c as d
        from e import f as g
        if True:
            def h(): inside = 1
        else:
            i: int = 2
        for j in (): k, l = 1, 2
        class M:
            n = 1
    """
    assert set(module_names(parse(write(tmp_path, script=text)))) == {*"adghijklM"}
    assert "*" in module_names(parse(write(tmp_path, script="from x import *")))


def test_packages_that_a_script_imports(tmp_path: Path) -> None:
    text = """
        import os, einops.layers, sibling
        from torch import nn
        try:
            import xformers, wandb
        except ImportError:
            pass
        def f():
            import bitsandbytes, cv2
    """
    file = write(tmp_path, script=text, sibling="from . import einops2")
    assert imported_packages([file], HARMLESS) == ["cv2", "einops", "torch", "wandb"]


def test_where_a_lora_is_made(tmp_path: Path) -> None:
    used = write(tmp_path, used="from peft import LoraConfig\n\ndef f(model):\n    model.add_adapter(None)")
    unused = write(tmp_path, unused="from peft import LoraConfig  # add_adapter()")
    assert lora_call([unused]) is None
    assert lora_call([unused, used]) == "used.py line 4: add_adapter"
