"""Loading, checking, patching and restoring a training script."""

from __future__ import annotations

import argparse
import ast
import builtins
import importlib.util
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from deepfashion_training.upstream import script as upstream

GOOD = """
    import argparse
    class VitonHDTestDataset: pass
    def parse_args(input_args=None):
        parser = argparse.ArgumentParser()
        parser.add_argument("--learning_rate", type=float, default=1e-4)
        parser.add_argument("--needed", required=True)
        return parser.parse_args(input_args)
    def main(args):
        return VitonHDTestDataset
"""


def script(folder: Path, text: str, name: str = "some_trainer.py", **siblings: str) -> Path:
    """A script, and siblings by name, ``__`` for a slash."""
    for file, code in {name: text, **{f"{key.replace('__', '/')}.py": code for key, code in siblings.items()}}.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(textwrap.dedent(code), encoding="utf-8")
    return folder / name


def state() -> tuple[Any, ...]:
    """Everything that a failure must leave as it was."""
    return list(sys.path), list(sys.meta_path), dict(sys.modules), dict(vars(builtins))


@pytest.fixture(autouse=True)
def forget_modules():
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("some_trainer", "train_flux_inpaint_")):
            del sys.modules[name]


def test_a_script_is_loaded_once_and_its_bytes_stay(tmp_path: Path) -> None:
    path = script(tmp_path, GOOD)
    before = path.read_bytes()
    module = upstream.load_script(path)
    upstream.check_contract(module)
    assert upstream.load_script(str(path)) is module
    assert sys.modules["some_trainer"] is module
    assert path.read_bytes() == before


def test_two_scripts_of_one_name_do_not_replace_each_other(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    first = upstream.load_script(script(tmp_path / "a", GOOD))
    second = upstream.load_script(script(tmp_path / "b", GOOD))
    assert first is not second
    assert sys.modules["some_trainer"] is first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def main(args:\n", r"line 1 is no valid Python"),
        (
            "import cv2_absent as c\nx = c.y\n",
            r"packages that are not installed: pip install cv2_absent [(]or is cv2_absent.py missing beside it[?][)]$",
        ),
        (
            "import helper\nif 1:\n    import absent.x\n",
            r"needs packages that are not installed: pip install absent [(]or is absent.py missing beside it[?][)]$",
        ),
        ("import helper\nraise RuntimeError('boom\\n  bang')", r"failed while it was loaded: RuntimeError: boom bang$"),
        (
            "import helper, sys\nsys.exit(3)\n",
            r"failed while it was loaded: SystemExit: 3 [(]what it does beside its functions",
        ),
        ("import helper.nothing\n", r"failed while it was loaded: ModuleNotFoundError: No module named 'helper.noth"),
        ("import helper, broken", r"some_trainer\.py: broken\.py line 2 is no valid Python"),
        ("import helper\nreturn", r"some_trainer\.py: line 2 is no valid Python: 'return' outside function"),
        ("def main(args): pass\nimport helper, absent\nimport failing", r"loaded: ValueError: no$"),
    ],
)
def test_a_script_that_does_not_load_is_one_line_and_leaves_nothing(tmp_path: Path, text: str, message: str) -> None:
    before = state()
    with pytest.raises(upstream.UpstreamError, match=message) as error:
        siblings = {"helper": "", "failing": "raise ValueError('no')"}
        upstream.load_script(script(tmp_path, text, broken="\nx = (", **siblings))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"--upstream {tmp_path / 'some_trainer.py'}")
    assert state() == before


def test_a_missing_package_is_told_before_the_script_runs(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    text = f"import pathlib, cv2, absent\npathlib.Path({str(ran)!r}).touch()\ndef main(args): cv2.x, absent.x"
    sys.modules["cv2"] = None  # type: ignore[assignment]  # also where it is installed
    try:
        with pytest.raises(
            upstream.UpstreamError,
            match=r": pip install absent opencv-python-headless [(]or is absent.py missing beside it[?][)]$",
        ):
            upstream.load_script(script(tmp_path, text))
    finally:
        del sys.modules["cv2"]
    assert not ran.exists()


def test_ctrl_c_while_loading_leaves_nothing(tmp_path: Path) -> None:
    before = state()
    with pytest.raises(KeyboardInterrupt):
        upstream.load_script(script(tmp_path, "import helper\nraise KeyboardInterrupt", helper=""))
    assert state() == before


def test_a_script_with_siblings_and_stand_ins_runs(tmp_path: Path) -> None:
    text = """
        import absent.transforms as t
        from data.cp import VitonHDTestDataset
        from helper import parse_args
        def main(args):
            from data.late import value
            return value, VitonHDTestDataset(), isinstance(args, t.Compose)
    """
    siblings = {
        "helper": """
            import argparse
            def parse_args(input_args=None):
                import flags
                parser = argparse.ArgumentParser()
                parser.add_argument(flags.name)
                return parser.parse_args(input_args)
        """,
        "flags": "name = '--found'",
        "data__cp": "import absent\nclass VitonHDTestDataset:\n    def __init__(self): absent.f()",
        "data__late": "value = 7",
    }
    before = state()
    path = script(tmp_path, text, **siblings)
    module = upstream.load_script(path)
    upstream.check_contract(module)
    parser = upstream.script_parser(module)
    assert parser is not None and "--found" in parser._option_string_actions
    with upstream.importable(module), upstream.patched(module, VitonHDTestDataset=lambda: "ours"):
        assert module.main(None) == (7, "ours", False)
    with upstream.importable(module), pytest.raises(ImportError, match=r"^absent\.f is used, but absent is not inst"):
        module.main(None)
    assert state()[:2] == before[:2] and state()[2] == {**before[2], "some_trainer": module}
    known = upstream.loaded(module)
    assert known is not None and known.stand_ins == {"absent": "imported, never used by main with our dataset"}
    assert sorted(known.source.siblings) == ["data.cp", "data.late", "flags", "helper"]


def test_a_tracker_that_is_used_is_needed_also_of_a_script_that_is_loaded(tmp_path: Path) -> None:
    text = "import wandb\ndef main(args): wandb.Settings()"
    sys.modules["wandb"] = None  # type: ignore[assignment]  # also where it is installed
    try:
        path = script(tmp_path, text)
        module = upstream.load_script(path, report_to="tensorboard")
        assert upstream.load_script(path, report_to="none") is module
        with pytest.raises(upstream.UpstreamError, match=r"pip install wandb$"):
            upstream.load_script(path, report_to="wandb")
    finally:
        del sys.modules["wandb"]


def test_a_script_named_like_our_trainer_never_takes_its_name(tmp_path: Path) -> None:
    text = GOOD + "    import some_trainer_too as ours\n"
    path = script(tmp_path, text, name="train_flux_inpaint.py", some_trainer_too="value = 1")
    trainer = sys.modules.pop("train_flux_inpaint", None)
    try:
        module = upstream.load_script(path)
        assert "train_flux_inpaint" not in sys.modules
        assert module.__name__.startswith("train_flux_inpaint_") and sys.modules[module.__name__] is module
        assert upstream.load_script(path) is module
        with upstream.importable(module):
            spec = importlib.util.find_spec("train_flux_inpaint")
        assert spec is not None and spec.origin == str(upstream.DEFAULT_SCRIPT)
    finally:
        if trainer is not None:
            sys.modules["train_flux_inpaint"] = trainer


def test_a_module_that_was_not_loaded_here_is_left_as_it_is() -> None:
    before = state()
    with upstream.importable(ModuleType("other")):
        assert state() == before
    assert upstream.loaded(argparse) is None


def test_a_missing_script_is_named(tmp_path: Path) -> None:
    with pytest.raises(upstream.UpstreamError, match=r"nowhere\.py: no Python file there"):
        upstream.load_script(tmp_path / "nowhere.py")


def test_everything_that_the_contract_misses_is_named(tmp_path: Path) -> None:
    module = upstream.load_script(script(tmp_path, "def main(): pass\nVitonDataset = object\nparse_args = 3\n"))
    with pytest.raises(upstream.UpstreamError) as error:
        upstream.check_contract(module)
    for part in (
        "no VitonHDTestDataset (is it VitonDataset?)",
        "no parse_args",
        "main() does not take one argument",
        "some_trainer.py",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def options(a=None): pass", "no VitonHDTestDataset, no parse_args, no main"),
        ("def parse_arguments(a=None): pass", "no parse_args (is it parse_arguments?), no main"),
        (
            "def parse_arg(a=None): pass\nVitonHDTestDatasets = 3",
            "no VitonHDTestDataset, no parse_args (is it parse_arg?)",
        ),
        (
            "def mains(a): pass\nclass VitonHDDataset: pass",
            "(is it VitonHDDataset?), no parse_args, no main (is it mains?)",
        ),
    ],
)
def test_a_near_name_is_asked_about(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(upstream.UpstreamError) as error:
        upstream.check_contract(upstream.load_script(script(tmp_path, text)))
    assert said in str(error.value)


def test_the_projects_own_trainer_keeps_the_contract() -> None:
    upstream.check_contract(upstream.load_script(upstream.DEFAULT_SCRIPT))


def test_the_parser_of_a_script_is_seen_without_parsing(tmp_path: Path) -> None:
    parse, parse_known = argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_known_args
    parser = upstream.script_parser(upstream.load_script(script(tmp_path, GOOD)))
    assert parser is not None
    assert "--learning_rate" in parser._option_string_actions
    assert argparse.ArgumentParser.parse_args is parse
    assert argparse.ArgumentParser.parse_known_args is parse_known


def test_a_script_without_argparse_has_no_parser(tmp_path: Path) -> None:
    text = GOOD.replace("parser = argparse.ArgumentParser()", "return None")
    assert upstream.script_parser(upstream.load_script(script(tmp_path, text))) is None


@pytest.mark.parametrize("failure", [None, RuntimeError, KeyboardInterrupt])
def test_patched_names_are_the_originals_again(tmp_path: Path, failure: type[BaseException] | None) -> None:
    module = upstream.load_script(script(tmp_path, GOOD))
    original = module.VitonHDTestDataset
    replacement = object()
    try:
        with upstream.patched(module, VitonHDTestDataset=replacement):
            assert module.main(None) is replacement
            if failure:
                raise failure
    except (RuntimeError, KeyboardInterrupt):
        pass
    assert module.VitonHDTestDataset is original


def test_a_name_that_is_not_there_is_not_patched_in(tmp_path: Path) -> None:
    module = upstream.load_script(script(tmp_path, GOOD))
    with pytest.raises(AttributeError), upstream.patched(module, main=print, no_such_name=1):
        pass
    assert module.main is not print


def test_a_name_may_be_added_and_is_deleted_again(tmp_path: Path) -> None:
    module = upstream.load_script(script(tmp_path, GOOD))
    before = dict(vars(module))
    with upstream.patched(module, create=True, args=1, main=2):
        assert (module.args, module.main) == (1, 2)
        del module.args
    assert vars(module) == before


class Base:
    inherited = 1

    @staticmethod
    def static() -> int:
        return 2


class Stubborn(Base):
    """Complains when given a ``bad`` attribute, and when ``sticky`` is put back, once it has it."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.first = self.bad = self.sticky = self.last = 0

    def __setattr__(self, name: str, value: object) -> None:
        known = name in vars(self)
        super().__setattr__(name, value)
        if known:
            self.log.append(f"{name}={value}")
            if (name, value) in (("bad", 1), ("sticky", 0)):
                raise RuntimeError(name)


def test_a_failure_half_way_restores_what_was_set() -> None:
    target = Stubborn()
    with pytest.raises(RuntimeError, match="bad"), upstream.patched(target, first=1, last=1, bad=1):
        pytest.fail("the block must not run")
    assert (target.first, target.last, target.bad) == (0, 0, 0)


def test_originals_come_back_in_reverse_and_one_failure_stops_no_other() -> None:
    target = Stubborn()
    with pytest.raises(RuntimeError, match="sticky"), upstream.patched(target, first=1, sticky=1, last=1):
        target.log.clear()
    assert target.log == ["last=0", "sticky=0", "first=0"]
    assert (target.first, target.last) == (0, 0)


def test_static_methods_and_inherited_attributes_stay_what_they_are() -> None:
    with upstream.patched(Base, static=print), upstream.patched(Stubborn, inherited=5):
        assert Stubborn.inherited == 5
    assert isinstance(vars(Base)["static"], staticmethod)
    assert "inherited" not in vars(Stubborn) and Stubborn.inherited == 1


def test_the_trainer_imports_nothing_of_the_package() -> None:
    tree = ast.parse(upstream.DEFAULT_SCRIPT.read_text("utf-8"))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert "torch" in names and not any(name.startswith("deepfashion_training") for name in names)
    assert "deepfashion_training" not in upstream.DEFAULT_SCRIPT.read_text("utf-8")
