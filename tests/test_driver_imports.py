"""Stand-ins that only the script's own files see, and siblings that come and go with the script."""

from __future__ import annotations

import builtins
import copy
import importlib
import importlib.util
import inspect
import os
import pickle
import sys
import textwrap
from abc import ABC
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from deepfashion_training.upstream import imports as driver_imports
from deepfashion_training.upstream.imports import HARMLESS, UNUSED, ScriptImports, is_missing, needs, pip_command
from deepfashion_training.upstream.source import read_source


@pytest.fixture(autouse=True)
def nothing_stays() -> Any:
    def state() -> tuple[Any, ...]:
        return list(sys.path), id(sys.path), list(sys.meta_path), dict(sys.modules), dict(vars(builtins))

    before = state()
    yield
    after = state()
    names = {name for name in after[3] if after[3][name] is not before[3].get(name)}
    assert not {name for name in names if name.split(".")[0] in ("helper", "lib", "late", "extra", "pkg", "absent")}
    assert not before[3].keys() - after[3].keys()
    assert (*before[:3], before[4]) == (*after[:3], after[4])


def folder(path: Path, **files: str) -> Path:
    """Files by name, ``__`` for a slash; returns ``train.py``."""
    for name, text in files.items():
        file = path / f"{name.replace('__', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text), encoding="utf-8")
    return path / "train.py"


def script(path: Path, stand_ins: tuple[str, ...] = (), **files: str) -> tuple[ModuleType, ScriptImports]:
    file = folder(path, **files)
    imports = ScriptImports(read_source(file), stand_ins)
    spec = importlib.util.spec_from_file_location("some_script", file, loader=imports.loader("some_script", file, ""))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with imports.installed():
        spec.loader.exec_module(module)
    return module, imports


@pytest.mark.parametrize(
    ("code", "report_to", "expected"),
    [
        ("import absent", "none", ([], {"absent": UNUSED})),
        ("import absent\ndef main(a): absent.f()", "none", (["absent"], {})),
        ("import zz_absent, absent\ndef main(a): absent.f(zz_absent)", "none", (["absent", "zz_absent"], {})),
        ("import numpy\ndef main(a): numpy.f()", "none", ([], {})),
        ("import deepspeed\ndef main(a): deepspeed.f", "none", ([], {"deepspeed": HARMLESS["deepspeed"]})),
        ("import wandb\ndef main(a): wandb.Settings()", "tensorboard", ([], {"wandb": HARMLESS["wandb"]})),
        ("import wandb\ndef main(a): wandb.Settings()", "wandb", (["wandb"], {})),
        ("import wandb\ndef main(a): wandb.Settings()", "all", (["wandb"], {})),
        ("if 1:\n    import wandb\ndef main(a): wandb.Settings()", "none", ([], {"wandb": HARMLESS["wandb"]})),
        ("if 1:\n    import wandb\ndef main(a): wandb.Settings()", "tensorboard,wandb", ([], {})),
        ("if 1:\n    import wandb\ndef main(a): pass", "none", ([], {})),
        ("if 1:\n    import absent\ndef main(a): absent.f()", "none", ([], {})),
        ("import sys, absent\nsys.path.append('x')\ndef main(a): absent.f()", "none", ([], {})),
    ],
)
def test_what_a_script_needs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    report_to: str,
    expected: tuple[list[str], dict[str, str]],
) -> None:
    for name in HARMLESS:  # also where they are installed
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    assert needs(read_source(folder(tmp_path, train=code)), report_to) == expected


def test_a_folder_that_runs_leave_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "absent").mkdir()
    (tmp_path / "present").mkdir()
    (tmp_path / "present" / "__init__.py").touch()
    assert is_missing("absent", tmp_path)
    assert not is_missing("present", tmp_path)
    assert not is_missing("numpy", tmp_path)
    monkeypatch.setitem(sys.modules, "absent", ModuleType("absent"))
    assert not is_missing("absent", tmp_path)


def test_the_command_that_installs_goes_by_the_names_of_packages() -> None:
    assert pip_command(["einops", "cv2", "PIL", "cv2"]) == "pip install Pillow einops opencv-python-headless"


def test_every_way_to_import_a_stand_in(tmp_path: Path) -> None:
    text = """
        import absent
        import absent.transforms as t
        from absent.transforms import Compose, _private as p
        from absent.transforms.functional import crop
        import helper
        def late():
            from absent import transforms
            return transforms
    """
    module, _ = script(tmp_path, ("absent",), train=text, helper="from absent import transforms as h")
    assert module.absent.transforms is module.t is module.helper.h is module.late()
    assert module.t.Compose is module.Compose and module.t.functional.crop is module.crop
    assert repr(module.p) == "<stand-in for absent.transforms._private>"


def test_nobody_else_sees_a_stand_in(tmp_path: Path) -> None:
    module, imports = script(tmp_path, ("absent",), train="import absent, os, helper", helper="from absent import x")
    assert "absent" not in sys.modules and importlib.util.find_spec("absent") is None
    with imports.installed(), pytest.raises(ModuleNotFoundError):
        import absent  # noqa: F401
    assert module.os is os
    assert "__import__" in vars(module)["__builtins__"] and vars(os)["__builtins__"] is vars(builtins)


def test_without_stand_ins_the_builtins_are_the_usual_ones(tmp_path: Path) -> None:
    module, _ = script(tmp_path, train="import os")
    assert vars(module)["__builtins__"] is vars(builtins)


def test_a_stand_in_can_be_asked_about_annotated_with_and_inherited_from(tmp_path: Path) -> None:
    text = """
        from __future__ import annotations
        from abc import ABC
        import absent
        class Child(absent.Base, ABC): pass
        def f(x: "absent.Tensor[int]"): return isinstance(x, (absent.Base, Child))
    """
    module, _ = script(tmp_path, ("absent",), train=text)
    assert module.f(3) is False and issubclass(module.Child, (module.absent.Base,)) and issubclass(module.Child, ABC)
    assert module.absent.Tensor[int] | None and isinstance(module.absent.Tensor, type)
    with pytest.raises(TypeError):
        iter(module.absent.Tensor)


@pytest.mark.parametrize("code", ["absent.transforms.Compose([1], a=2)", "Child()"])
def test_calling_a_stand_in_says_what_to_install(tmp_path: Path, code: str) -> None:
    text = f"import absent\nclass Child(absent.transforms.Compose): pass\ndef f(): {code}"
    module, _ = script(tmp_path, ("absent",), train=text)
    message = r"^absent\.transforms\.Compose is used, but absent is not installed: pip install absent$"
    with pytest.raises(ImportError, match=message):
        module.f()


def test_a_stand_in_survives_those_who_look_into_things(tmp_path: Path) -> None:
    module, _ = script(tmp_path, ("absent",), train="import absent.a.b")
    thing = module.absent.a.b
    for name in ("__path__", "__file__", "__spec__", "__wrapped__", "__version__", "_is_protocol"):
        assert not hasattr(thing, name)
    assert copy.copy(thing) is thing and copy.deepcopy(thing) is thing
    assert inspect.isclass(thing) and inspect.getmodule(thing) is None and inspect.getdoc(thing) is None
    with pytest.raises((pickle.PicklingError, ImportError)):
        pickle.dumps(thing)


def test_a_guarded_package_is_bound_after_loading_unless_the_script_did(tmp_path: Path) -> None:
    text = """
        if False:
            import wandb
            from wandb.sdk import Settings as settings
        try:
            import wandb as caught
        except ImportError:
            caught = None
        import helper
        def f(): return wandb.Settings(code_dir=".")
    """
    missing = "if False:\n    import wandb"
    sys.modules["wandb"] = None  # type: ignore[assignment]  # also where it is installed
    try:
        module, _ = script(tmp_path, ("wandb",), train=text, helper=missing)
    finally:
        del sys.modules["wandb"]
    assert isinstance(module.f(), driver_imports.Inert) and copy.deepcopy(module.f())
    assert repr(module.settings) == "<stand-in for wandb.sdk.Settings>"
    assert module.caught is None and module.helper.wandb is module.wandb
    with pytest.raises(ImportError, match=r"^wandb\.Image is used"):
        module.wandb.Image()


def test_a_script_that_changes_its_path_gets_the_real_package_first(tmp_path: Path) -> None:
    text = """
        import sys
        sys.path.append(__file__.replace("train.py", "packages"))
        import absent
        def late():
            import extra
            return extra.value
    """
    files = {"packages__absent": "value = 1", "packages__extra": "value = 2"}
    before = list(sys.path)
    try:
        module, imports = script(tmp_path, ("absent",), train=text, **files)
        assert module.absent.value == 1 and sys.path == before
        with imports.installed():
            assert sys.path == [str(tmp_path), *before, str(tmp_path / "packages")]
            assert module.late() == 2
    finally:  # they are not of the script's folder, so they stay, as any package does
        for name in ("absent", "extra"):
            sys.modules.pop(name, None)


LATE = "import helper\nfrom lib import part\ndef f():\n    from lib import late\n    return late"


def test_siblings_are_the_same_modules_each_time_and_gone_between(tmp_path: Path) -> None:
    files = {"helper": "", "lib__part": "", "lib__late": "", "extra": "", "inner": ""}
    module, imports = script(tmp_path, train=LATE, **files)
    assert not {"helper", "lib", "lib.part"} & sys.modules.keys() and str(tmp_path) not in sys.path
    with imports.installed():
        assert sys.modules["helper"] is module.helper and sys.modules["lib.part"] is module.part
        late = module.f()
        extra = importlib.import_module("extra")  # by a name that no source says
        with imports.installed():
            assert module.f() is late
            inner = importlib.import_module("inner")
        assert sys.modules["inner"] is inner
        assert sys.modules["lib.late"] is late and sys.path[0] == str(tmp_path)
    assert not {"helper", "lib", "lib.late", "extra", "inner"} & sys.modules.keys()
    with imports.installed():
        assert module.f() is late and importlib.import_module("extra") is extra


def test_modules_of_the_same_names_are_back_afterwards(tmp_path: Path) -> None:
    others = {name: ModuleType(name) for name in ("helper", "lib", "lib.old")}
    sys.modules.update(others)
    try:
        module, imports = script(tmp_path, train=LATE, helper="", lib__part="", lib__late="")
        assert module.helper is not others["helper"]
        with pytest.raises(KeyboardInterrupt), imports.installed():
            assert "lib.old" not in sys.modules and sys.modules["helper"] is module.helper
            raise KeyboardInterrupt
        assert all(sys.modules[name] is other for name, other in others.items()) and "lib.part" not in sys.modules
    finally:
        for name in others:
            del sys.modules[name]


def test_a_module_of_this_very_folder_is_left_alone(tmp_path: Path) -> None:
    sys.path.insert(1, str(folder(tmp_path, helper="", train="import helper").parent))
    try:
        importlib.invalidate_caches()
        helper = importlib.import_module("helper")
        before = list(sys.path)
        module, imports = script(tmp_path, train="import helper")
        assert module.helper is helper is sys.modules["helper"] and sys.path == before
        with imports.installed():
            assert sys.path == [str(tmp_path), before[0], *before[2:]]
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("helper", None)


def test_two_scripts_with_siblings_of_the_same_names_take_turns(tmp_path: Path) -> None:
    text = "import helper\ndef f():\n    from lib import late\n    return helper.name, late.name"
    loaded = {
        name: script(tmp_path / name, train=text, helper=f"name = '{name}'", lib__late=f"name = '{name}'")
        for name in "ab"
    }
    for name in "abab":
        module, imports = loaded[name]
        with imports.installed():
            assert module.f() == (name, name)
    (first, outer), (second, inner) = loaded["a"], loaded["b"]
    with outer.installed():
        with inner.installed():
            assert second.f() == ("b", "b")
        assert first.f() == ("a", "a") and sys.modules["helper"] is first.helper


def test_a_failing_import_leaves_no_sibling(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="half-way"):
        script(tmp_path, train="import helper, lib.part", helper="", lib__part="raise RuntimeError('half-way')")


def test_a_file_elsewhere_keeps_its_name(tmp_path: Path) -> None:
    file = folder(tmp_path / "elsewhere", extra="where = 'elsewhere'").with_name("extra.py")
    source = read_source(folder(tmp_path, train="", extra="where = 'beside'"))
    with ScriptImports(source, elsewhere={"extra": file}).installed():
        assert importlib.import_module("extra").where == "elsewhere"
    assert sys.modules.pop("extra").where == "elsewhere"
