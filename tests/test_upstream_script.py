"""Loading, checking, patching and restoring a training script, and what ``--upstream_check`` says of it."""

from __future__ import annotations

import argparse
import ast
import builtins
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from deepfashion_training import train_deepfashion_lora as wrapper
from deepfashion_training.upstream import script as upstream
from deepfashion_training.upstream.patching import patched

SCRIPTS = Path(__file__).parent / "scripts"
CATVTON = SCRIPTS / "catvton_flux" / "train_flux_inpaint.py"
BROKEN = {
    "no_main": "no main",
    "renamed_dataset": "no VitonHDTestDataset (is it VitonHDDataset?)",
    "other_signature": "main does not take one argument",
    "no_argument": "main does not take one argument",
}
CONTRACT = """
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


def write(folder: Path, text: str, name: str = "some_trainer", **siblings: str) -> Path:
    """A script, and siblings by name, ``__`` for a slash."""
    for file, code in {name: text, **siblings}.items():
        path = folder / f"{file.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(code), encoding="utf-8")
    return folder / f"{name}.py"


def state() -> tuple[Any, ...]:
    """Everything that a failure must leave as it was."""
    return list(sys.path), list(sys.meta_path), dict(sys.modules), dict(vars(builtins))


@pytest.fixture(autouse=True)
def own_trainer() -> ModuleType:
    """Our own trainer, which is always imported first."""
    return upstream.load_script(upstream.DEFAULT_SCRIPT)


# ---- loading


def test_a_script_is_loaded_once_and_its_bytes_stay(tmp_path: Path) -> None:
    path = write(tmp_path, CONTRACT)
    before = path.read_bytes()
    module = upstream.load_script(path)
    assert upstream.load_script(str(path)) is module is sys.modules[module.__name__]
    assert path.read_bytes() == before


def test_scripts_of_one_name_do_not_replace_each_other_or_our_trainer(tmp_path: Path, own_trainer: ModuleType) -> None:
    text = CONTRACT + "    import helper_here\n    import train_flux_inpaint as ours\n"
    one, two = (
        upstream.load_script(
            write(tmp_path / folder, text, name="train_flux_inpaint", helper_here=f"value = '{folder}'")
        )
        for folder in ("a", "b")
    )
    assert (one.helper_here.value, two.helper_here.value) == ("a", "b")
    assert one.ours is two.ours is own_trainer is sys.modules["train_flux_inpaint"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def main(args:\n", "is no valid Python: "),
        (CONTRACT + "    import absent_a, absent_b.x", "pip install absent_a absent_b"),
        (CONTRACT + "    import helper, raising", "failed while it was loaded: RuntimeError: boom bang"),
        (CONTRACT + "    import helper, sys\n    sys.exit(3)", "SystemExit: 3"),
        (CONTRACT + "    parse_args([])", "UnknownFlagError: the following arguments are required"),
        (CONTRACT + "    import helper.nothing", "ModuleNotFoundError: No module named 'helper.nothing'"),
        (CONTRACT + "    import helper, broken", "SyntaxError: '(' was never closed (broken.py, line 2)"),
    ],
)
def test_a_script_that_does_not_load_is_one_line_and_leaves_nothing(tmp_path: Path, text: str, message: str) -> None:
    siblings = {"helper": "", "raising": "raise RuntimeError('boom\\n  bang')", "broken": "\nx = ("}
    path, before = write(tmp_path, text, **siblings), state()
    with pytest.raises(upstream.UpstreamError) as error:
        upstream.load_script(path)
    said = str(error.value)
    assert message in said and "\n" not in said and said.startswith(f"--upstream {path}")
    assert state() == before


def test_ctrl_c_while_loading_leaves_nothing(tmp_path: Path) -> None:
    path, before = write(tmp_path, CONTRACT + "    import helper\n    raise KeyboardInterrupt", helper=""), state()
    with pytest.raises(KeyboardInterrupt):
        upstream.load_script(path)
    assert state() == before


def test_a_missing_script_is_named(tmp_path: Path) -> None:
    with pytest.raises(upstream.UpstreamError, match=r"nowhere\.py: no Python file there"):
        upstream.load_script(tmp_path / "nowhere.py")


def test_a_script_runs_without_packages_that_only_its_dataset_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cv2", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)  # also where it is installed
    text = """
        import argparse
        from data_here.cp import VitonHDTestDataset
        if False:
            import wandb
        def parse_args(input_args=None):
            from flags_here import name
            parser = argparse.ArgumentParser()
            parser.add_argument(name)
            parser.add_argument("--report_to")
            return parser.parse_args(input_args)
        def main(args):
            wandb.Settings()
            return VitonHDTestDataset()
    """
    siblings = {
        "data_here__cp": "import cv2\ndef VitonHDTestDataset(): cv2.imread('x')",
        "flags_here": "name = '--found'",
    }
    path = write(tmp_path, text, **siblings)
    module = upstream.load_script(path)
    parser = upstream.script_parser(module)
    assert parser is not None and "--found" in parser._option_string_actions
    with upstream.importable(module), patched(module, VitonHDTestDataset=lambda: "ours"):
        assert module.main(None) == "ours"
    with pytest.raises(ImportError, match=r"cv2\.imread is used.*pip install opencv-python-headless"):
        module.main(None)
    with pytest.raises(upstream.UpstreamError, match=r"--report_to wandb needs .*pip install wandb"):
        upstream.parse_arguments(module, argparse.ArgumentParser(), {}, {}, {}, ["--report_to=wandb"])


# ---- the contract


def test_the_contract_is_checked_before_the_script_runs(tmp_path: Path) -> None:
    text = "import absent\ndef mains(a): raise AssertionError\nclass VitonDataset: pass\nparse_args = 3\nassert False"
    with pytest.raises(upstream.UpstreamError) as error:
        upstream.load_script(write(tmp_path, text))
    assert "no VitonHDTestDataset (is it VitonDataset?), no main (is it mains?)" in str(error.value)


def test_names_may_come_from_a_star_import(tmp_path: Path) -> None:
    module = upstream.load_script(write(tmp_path, "from all_here import *", all_here=CONTRACT))
    assert module.main(None) is module.VitonHDTestDataset
    with pytest.raises(upstream.UpstreamError, match="no VitonHDTestDataset, no parse_args, no main"):
        upstream.load_script(write(tmp_path, "from other_here import *", name="another", other_here=""))


def test_a_name_that_cannot_be_called_is_refused(tmp_path: Path) -> None:
    with pytest.raises(upstream.UpstreamError, match="parse_args does not take one argument"):
        upstream.load_script(write(tmp_path, CONTRACT + "    parse_args = 3"))


def test_the_parser_of_a_script_is_seen_without_parsing(tmp_path: Path) -> None:
    parse, parse_known = argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_known_args
    parser = upstream.script_parser(upstream.load_script(write(tmp_path, CONTRACT)))
    assert parser is not None and "--learning_rate" in parser._option_string_actions
    assert argparse.ArgumentParser.parse_args is parse
    assert argparse.ArgumentParser.parse_known_args is parse_known
    text = CONTRACT.replace("parser = argparse.ArgumentParser()", "return None")
    assert upstream.script_parser(upstream.load_script(write(tmp_path, text, name="without"))) is None


# ---- how a LoRA comes out of a script, and the table


def check(path: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, str], str]:
    """Exit code, state by row of the table, and what stands on stderr."""
    code = wrapper.main(["--upstream_check", str(path)])
    text, error = capsys.readouterr()
    assert all(len(line) <= 120 for line in text.splitlines())
    rows = [line.split() for line in text.splitlines() if not line.startswith(" ")]
    return code, {name: state for name, state, *_ in rows}, error


FOUND = dict.fromkeys(("VitonHDTestDataset", "parse_args", "main"), "found")


def test_the_table_of_a_script_that_gets_a_lora(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    code, rows, error = check(CATVTON, capsys)
    assert (code, error) == (0, "")
    assert rows.items() >= {**FOUND, "LoRA": "adapter", "deepspeed": "stub"}.items()
    assert set(rows.values()) == {"found", "adapter", "stub"}
    opened = upstream.open_script(CATVTON)
    assert isinstance(opened, upstream.DrivenScript) and opened.module is upstream.load_script(CATVTON)


@pytest.mark.parametrize("path", [SCRIPTS / "native_lora.py", upstream.DEFAULT_SCRIPT])
def test_the_table_of_a_script_with_a_lora_of_its_own(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, rows, error = check(path, capsys)
    assert (code, rows, error) == (0, {**FOUND, "LoRA": "its"}, "")
    assert isinstance(upstream.open_script(path), ModuleType)


@pytest.mark.parametrize("name", BROKEN)
def test_a_script_that_breaks_the_contract_is_named_and_not_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = SCRIPTS / f"{name}.py"
    code, _, error = check(path, capsys)
    assert code == 1 and BROKEN[name] in error and str(path) in error and error.count("\n") == 1
    argv = ["--preset", "quick_test", "--embedded", "--output_dir", str(tmp_path / "out"), "--upstream", str(path)]
    assert wrapper.main(argv) == 1
    assert capsys.readouterr().err == error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CONTRACT + "    import absent_package", "pip install absent_package"),
        ("x = 1\ndef main(args:\n", "some_trainer.py, line 2"),
        (CONTRACT + "    FluxTransformer2DModel = FluxFillPipeline = object", "no Accelerator at module level"),
        (
            CONTRACT + "        from diffusers import FluxTransformer2DModel",
            "cannot be given one: no FluxTransformer2D",
        ),
    ],
)
def test_what_cannot_be_driven_is_one_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, text)
    code, rows, error = check(path, capsys)
    assert code == 1 and message in error and error.count("\n") == 1
    assert rows.get("LoRA", "-") == "-"
    assert rows.get("absent_package", "MISSING") == "MISSING"


def test_a_script_without_a_flux_transformer_only_gets_the_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, CONTRACT)
    assert check(path, capsys)[1]["LoRA"] == "none"
    module = upstream.open_script(path)
    seen: list[Any] = []
    with patched(module, main=lambda args: seen.extend([module.VitonHDTestDataset, vars(module)["args"]])):
        upstream.train(module, argparse.Namespace(x=1), "ours")
    assert seen == ["ours", argparse.Namespace(x=1)]
    assert not hasattr(module, "args")


# ---- patching


@pytest.mark.parametrize("failure", [None, RuntimeError, KeyboardInterrupt])
def test_patched_names_are_the_originals_again(tmp_path: Path, failure: type[BaseException] | None) -> None:
    module = upstream.load_script(write(tmp_path, CONTRACT))
    before, replacement = dict(vars(module)), object()
    try:
        with patched(module, create=True, VitonHDTestDataset=replacement, args=1):
            assert (module.main(None), module.args) == (replacement, 1)
            if failure:
                raise failure
    except (RuntimeError, KeyboardInterrupt):
        pass
    assert vars(module) == before


def test_a_name_that_is_not_there_is_not_patched_in(tmp_path: Path) -> None:
    module = upstream.load_script(write(tmp_path, CONTRACT))
    with pytest.raises(AttributeError), patched(module, main=print, no_such_name=1):
        pass
    assert module.main is not print


class Base:
    inherited = 1

    @staticmethod
    def static() -> int:
        return 2


class Stubborn(Base):
    """Complains when given a ``bad`` attribute, and when ``sticky`` is put back, once it has it."""

    def __init__(self) -> None:
        self.first = self.bad = self.sticky = self.last = 0

    def __setattr__(self, name: str, value: object) -> None:
        known = name in vars(self)
        super().__setattr__(name, value)
        if known and (name, value) in (("bad", 1), ("sticky", 0)):
            raise RuntimeError(name)


@pytest.mark.parametrize("name", ["bad", "sticky"])
def test_one_failure_leaves_nothing_else_replaced(name: str) -> None:
    target = Stubborn()
    with pytest.raises(RuntimeError, match=name), patched(target, first=1, **{name: 1}, last=1):
        pass
    assert (target.first, target.bad, target.sticky, target.last) == (0, 0, 0, 0)


def test_static_methods_and_inherited_attributes_stay_what_they_are() -> None:
    with patched(Base, static=print), patched(Stubborn, inherited=5):
        assert Stubborn.inherited == 5
    assert isinstance(vars(Base)["static"], staticmethod)
    assert "inherited" not in vars(Stubborn) and Stubborn.inherited == 1


def test_the_trainer_imports_nothing_of_the_package() -> None:
    tree = ast.parse(upstream.DEFAULT_SCRIPT.read_text("utf-8"))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert "torch" in names and not any(name.startswith("deepfashion_training") for name in names)
