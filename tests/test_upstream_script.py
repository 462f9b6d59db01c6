"""Loading, checking, patching and restoring a training script, and what ``--upstream_check`` says of it."""

from __future__ import annotations

import argparse
import ast
import builtins
import contextlib
import importlib.util
import shlex
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import train_flux_inpaint
from deepfashion_training import train_deepfashion_lora as wrapper
from deepfashion_training.cli import WrongUseError
from deepfashion_training.upstream import script as upstream
from deepfashion_training.upstream.arguments import parse_arguments, parser_of

SCRIPTS = Path(__file__).parent / "scripts"
CATVTON = SCRIPTS / "catvton_flux" / "train_flux_inpaint.py"
BROKEN = {
    "no_main": "no main",
    "renamed_dataset": "no VitonHDTestDataset",
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


# ---- loading


def test_a_script_is_run_once_and_its_bytes_stay(tmp_path: Path) -> None:
    path = write(tmp_path, CONTRACT)
    before = path.read_bytes()
    module = upstream.open_script(path).module
    assert upstream.open_script(str(path)).module is module is sys.modules[module.__name__]
    assert path.read_bytes() == before


def test_scripts_of_one_name_do_not_replace_each_other_or_our_trainer(tmp_path: Path) -> None:
    text = CONTRACT + "    import helper_here\n    import train_flux_inpaint as ours\n"
    one, two = (
        upstream.open_script(
            write(tmp_path / folder, text, name="train_flux_inpaint", helper_here=f"value = '{folder}'")
        ).module
        for folder in ("a", "b")
    )
    assert (one.helper_here.value, two.helper_here.value) == ("a", "b")
    assert one.ours is two.ours is train_flux_inpaint is sys.modules["train_flux_inpaint"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def main(args:\n", "is no valid Python: "),
        (CONTRACT + "    import absent_a", "No module named 'absent_a'; install it: pip install absent_a"),
        (CONTRACT + "    import helper, raising", "failed while it was loaded: RuntimeError: boom bang"),
        (CONTRACT + "    import helper, sys\n    sys.exit(3)", "SystemExit: 3"),
        (CONTRACT + "    import helper.nothing", "ModuleNotFoundError: No module named 'helper.nothing'"),
        (CONTRACT + "    import helper, broken", "SyntaxError: '(' was never closed (broken.py, line 2)"),
    ],
)
def test_a_script_that_does_not_load_is_one_line_and_leaves_nothing(tmp_path: Path, text: str, message: str) -> None:
    siblings = {"helper": "", "raising": "raise RuntimeError('boom\\n  bang')", "broken": "\nx = ("}
    path, before = write(tmp_path, text, **siblings), state()
    with pytest.raises(upstream.UpstreamError) as error:
        upstream.open_script(path)
    said = str(error.value)
    assert message in said and "\n" not in said and said.startswith(f"--upstream {path}")
    assert state() == before


@pytest.mark.parametrize(
    ("line", "files", "named"),
    [
        ("import einopsy", [], "pip install einopsy"),
        ("import yaml_absent.part", [], "pip install yaml_absent"),
        ("import flux", [], "checkout"),
        ("from src.flux_absent import x", [], "checkout"),
        ("from utils.text import x", [], "checkout"),
        ("import my_utils", [], "checkout"),
        ("from flags_elsewhere import parse_args", [], "checkout"),
        ("from rows_elsewhere.cp import VitonHDTestDataset", [], "checkout"),
        ("import shelf", ["shelf.py"], "shelf.py"),
        ("import shelf", ["shelf/box.py"], "shelf"),
        ("import lpips_absent", ["train/losses/lpips_absent.py"], "pip install lpips_absent"),
        ("from shelf.box import x", ["src/shelf/box.py"], "src/shelf"),
    ],
)
def test_pip_is_named_for_no_file_of_the_scripts_own_repository(
    line: str, files: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "[a] check out"
    for file in [".git/config", *files]:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    path = write(root / "train", f"{CONTRACT}    {line}")
    with pytest.raises(upstream.UpstreamError, match="ModuleNotFoundError") as error:
        upstream.open_script(path)
    said = str(error.value)
    assert named in said and ("pip install" in said) == ("pip" in named)
    if files and "pip" not in named:  # what it says to do works
        folder = shlex.split(said.partition("PYTHONPATH=")[2])[0]
        monkeypatch.syspath_prepend(folder)
        (root / files[0]).write_text("x = 3", encoding="utf-8")
        assert upstream.open_script(path).module
        sys.modules.pop("shelf", None)
        sys.modules.pop("shelf.box", None)


def test_ctrl_c_while_loading_leaves_nothing(tmp_path: Path) -> None:
    path, before = write(tmp_path, CONTRACT + "    import helper\n    raise KeyboardInterrupt", helper=""), state()
    with pytest.raises(KeyboardInterrupt):
        upstream.open_script(path)
    assert state() == before


def test_a_missing_script_is_named(tmp_path: Path) -> None:
    with pytest.raises(upstream.UpstreamError, match=r"nowhere\.py: no Python file there"):
        upstream.open_script(tmp_path / "nowhere.py")


def test_a_script_runs_without_packages_that_only_its_dataset_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)  # also where it is installed
    text = """
        import argparse
        from data_here.cp import VitonHDTestDataset
        def parse_args(input_args=None):
            from flags_here import name
            parser = argparse.ArgumentParser()
            parser.add_argument(name)
            return parser.parse_args(input_args)
        def main(args):
            return VitonHDTestDataset()
    """
    siblings = {
        "data_here__cp": "import cv2\ndef VitonHDTestDataset(): cv2.imread('x')",
        "flags_here": "name = '--found'",
    }
    path = write(tmp_path, text, **siblings)
    script = upstream.open_script(path)
    parser = parser_of(script)
    assert parser is not None and "--found" in parser._option_string_actions
    with script.imports.importable(), pytest.raises(ImportError, match=r"cv2\.imread is used"):
        script.module.VitonHDTestDataset()
    assert "cv2" in script.notes[1]


# ---- the contract


def test_the_contract_is_checked_before_the_script_runs(tmp_path: Path) -> None:
    text = "import absent\ndef mains(a): raise AssertionError\nclass VitonDataset: pass\nparse_args = 3\nassert False"
    with pytest.raises(upstream.UpstreamError, match="no VitonHDTestDataset, no main"):
        upstream.open_script(write(tmp_path, text))


def test_names_may_come_from_a_star_import(tmp_path: Path) -> None:
    module = upstream.open_script(write(tmp_path, "from all_here import *", all_here=CONTRACT)).module
    assert module.main(None) is module.VitonHDTestDataset
    with pytest.raises(upstream.UpstreamError, match="no VitonHDTestDataset, no parse_args, no main"):
        upstream.open_script(write(tmp_path, "from other_here import *", name="another", other_here=""))


@pytest.mark.parametrize("name", ["no_main", "other_signature", "no_argument", "renamed_dataset"])
def test_the_contract_comes_before_packages(name: str, tmp_path: Path) -> None:
    text = f"import absent_a, flux, utils\n{(SCRIPTS / f'{name}.py').read_text('utf-8')}"
    with pytest.raises(upstream.UpstreamError, match=BROKEN[name]) as error:
        upstream.open_script(write(tmp_path, text))
    assert "absent_a" not in str(error.value) and "pip" not in str(error.value)


def test_the_contract_is_checked_where_a_name_comes_from_a_file_beside_the_script(tmp_path: Path) -> None:
    text = "import absent_a\nfrom flags_here import parse_args\nclass VitonHDTestDataset: pass\n"
    text += "def main(args): VitonHDTestDataset"
    path = write(tmp_path, text, flags_here="def parse_args(): pass")
    with pytest.raises(upstream.UpstreamError, match="parse_args does not take one argument"):
        upstream.open_script(path)


def test_names_below_name_is_main_are_none(tmp_path: Path) -> None:
    text = CONTRACT.replace("def main", "if __name__ == '__main__':\n     def main")
    with pytest.raises(upstream.UpstreamError, match="no main"):
        upstream.open_script(write(tmp_path, text + "    import absent_a"))


@pytest.mark.parametrize("line", ["*", "VitonHDTestDataset, main, parse_args"])
def test_a_main_of_another_file_gets_our_dataset_too(line: str, tmp_path: Path) -> None:
    there = CONTRACT.replace("return VitonHDTestDataset", "args.seen = VitonHDTestDataset()")
    script = upstream.open_script(write(tmp_path, f"from all_here import {line}", all_here=there))
    args = argparse.Namespace()
    upstream.train(script, args, lambda: "ours")
    assert args.seen == "ours" != script.home.VitonHDTestDataset and script.home is not script.module


def test_another_class_can_be_named_as_the_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = CONTRACT.replace("return VitonHDTestDataset", "args.seen = VitonHDTestDataset()")
    text = text.replace("VitonHDTestDataset", "ShopDataset")
    path = write(tmp_path, text + "    class OtherDataset: pass")
    code, _, error = check(path, capsys)
    assert code == 1 and "--upstream_dataset ShopDataset" in error and "OtherDataset" not in error
    assert wrapper.main(["--upstream_check", str(path), "--upstream_dataset", "ShopDataset"]) == 0
    assert wrapper.main(["--upstream_check", str(path), "--upstream_dataset", "OtherDataset"]) == 1
    assert "main never builds OtherDataset" in capsys.readouterr().err
    args = argparse.Namespace()
    upstream.train(upstream.open_script(path, "ShopDataset"), args, lambda: "ours")
    assert args.seen == "ours"
    assert wrapper.main(["--upstream_dataset", "ShopDataset", "--embedded"]) == 2
    assert "--upstream_dataset does nothing" in capsys.readouterr().err


def test_a_name_that_cannot_be_called_is_refused(tmp_path: Path) -> None:
    with pytest.raises(upstream.UpstreamError, match="parse_args does not take one argument"):
        upstream.open_script(write(tmp_path, CONTRACT + "    parse_args = 3"))


def test_the_parser_of_a_script_is_seen_without_parsing(tmp_path: Path) -> None:
    parse, parse_known = argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_known_args
    script = upstream.open_script(write(tmp_path, CONTRACT))
    parser = parser_of(script)
    assert parser is not None and "--learning_rate" in parser._option_string_actions
    with pytest.raises(WrongUseError, match="--needed"):
        parse_arguments(script, parser, {}, {}, {}, [])
    assert argparse.ArgumentParser.parse_args is parse
    assert argparse.ArgumentParser.parse_known_args is parse_known
    text = CONTRACT.replace("parser = argparse.ArgumentParser()", "return None")
    assert parser_of(upstream.open_script(write(tmp_path, text, name="without"))) is None


# ---- how a LoRA comes out of a script


def check(path: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``--upstream_check``."""
    code = wrapper.main(["--upstream_check", str(path)])
    return code, *capsys.readouterr()


def test_a_script_that_trains_none_gets_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, error = check(CATVTON, capsys)
    assert (code, error) == (0, "") and out.startswith(f"{CATVTON} trains no LoRA")
    if importlib.util.find_spec("deepspeed") is None:
        assert "deepspeed" in out
    assert upstream.open_script(CATVTON).gets_lora


@pytest.mark.parametrize("path", [SCRIPTS / "native_lora.py", Path(train_flux_inpaint.__file__)])
def test_a_script_with_a_lora_of_its_own_gets_none(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, error = check(path, capsys)
    assert (code, error) == (0, "") and "trains in its own way" in out
    assert not upstream.open_script(path).gets_lora


def test_a_call_in_a_sibling_makes_a_lora_and_a_comment_does_not(tmp_path: Path) -> None:
    names = "        return FluxTransformer2DModel, Accelerator\n"
    names += "    FluxTransformer2DModel = FluxFillPipeline = Accelerator = object  # add_adapter()\n"
    contract = CONTRACT.replace("return VitonHDTestDataset", "print(VitonHDTestDataset)") + names
    makes = "def f(model):\n    model.add_adapter(None)"
    uses = contract + "    import makes_lora"
    assert upstream.open_script(write(tmp_path, contract, name="without")).gets_lora
    assert not upstream.open_script(write(tmp_path, uses, makes_lora=makes)).gets_lora


@pytest.mark.parametrize("name", BROKEN)
def test_a_script_that_breaks_the_contract_is_named_and_not_run(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = SCRIPTS / f"{name}.py"
    code, out, error = check(path, capsys)
    assert (code, out) == (1, "") and BROKEN[name] in error and str(path) in error and error.count("\n") == 1
    argv = ["--preset", "quick_test", "--embedded", "--output_dir", str(tmp_path / "out"), "--upstream", str(path)]
    assert wrapper.main(argv) == 1
    assert capsys.readouterr().err == error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CONTRACT + "    FluxTransformer2DModel = FluxFillPipeline = object", "no Accelerator at module level"),
        (CONTRACT + "        from diffusers import FluxTransformer2DModel", "no FluxTransformer2DModel, "),
    ],
)
def test_a_script_that_can_be_given_none_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(upstream.UpstreamError, match=message):
        upstream.open_script(write(tmp_path, text))


# ---- patching


@pytest.mark.parametrize("checkout", [True, False])
def test_a_main_from_a_folder_above_gets_our_dataset(tmp_path: Path, checkout: bool) -> None:
    (tmp_path / ".git").mkdir() if checkout else None
    text = f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        from common_{checkout}.core import VitonHDTestDataset, main, parse_args
    """
    core = CONTRACT.replace("return VitonHDTestDataset", "args.built.append(VitonHDTestDataset())")
    write(tmp_path, core, name=f"common_{checkout}__core")
    script = upstream.open_script(write(tmp_path / "scripts", text, name="train"))
    args = argparse.Namespace(built=[])
    upstream.train(script, args, lambda: "ours")
    assert args.built == ["ours"] and script.home.VitonHDTestDataset is not None
    assert (script.home.__name__ not in sys.modules) == checkout


def test_a_run_without_our_rows_is_no_success(tmp_path: Path) -> None:
    script = upstream.open_script(write(tmp_path, CONTRACT + "\n    def other(): VitonHDTestDataset()"))
    with pytest.raises(ValueError, match="never built VitonHDTestDataset"):
        upstream.train(script, argparse.Namespace(), object)


@pytest.mark.parametrize(
    "change", [("def main", "async def main"), ("return VitonHDTestDataset", "yield VitonHDTestDataset()")]
)
def test_a_main_that_does_nothing_when_called_is_refused(tmp_path: Path, change: tuple[str, str]) -> None:
    with pytest.raises(upstream.UpstreamError, match="main is a coroutine or a generator"):
        upstream.open_script(write(tmp_path, CONTRACT.replace(*change)))


@pytest.mark.parametrize("failure", [None, RuntimeError, KeyboardInterrupt])
def test_patched_names_are_the_originals_again(tmp_path: Path, failure: type[BaseException] | None) -> None:
    script = upstream.open_script(write(tmp_path, CONTRACT))
    module, seen = script.module, []

    def main(args: argparse.Namespace) -> None:
        seen.extend([module.VitonHDTestDataset(), vars(module)["args"]])
        if failure:
            raise failure

    module.main = main  # type: ignore[attr-defined]
    before = state(), dict(vars(module))
    with contextlib.suppress(RuntimeError, KeyboardInterrupt):
        upstream.train(script, argparse.Namespace(x=1), lambda: "ours")
    assert seen == ["ours", argparse.Namespace(x=1)]
    assert (state(), dict(vars(module))) == before


def test_a_script_that_stops_itself_has_failed(tmp_path: Path) -> None:
    text = CONTRACT.replace("return VitonHDTestDataset", "raise SystemExit(VitonHDTestDataset() and args)")
    script = upstream.open_script(write(tmp_path, text))
    with pytest.raises(ValueError, match=r"some_trainer\.py has stopped itself: 3"):
        upstream.train(script, 3, lambda: "ours")  # type: ignore[arg-type]
    upstream.train(script, 0, lambda: "ours")  # type: ignore[arg-type]


def test_a_key_that_only_the_run_shows_is_named_with_its_place(tmp_path: Path) -> None:
    text = CONTRACT.replace("return VitonHDTestDataset", "return VitonHDTestDataset()[args.key]")
    script = upstream.open_script(write(tmp_path, text))
    with pytest.raises(ValueError, match=r"some_trainer\.py, line 10 looks 'flat' up"):
        upstream.train(script, argparse.Namespace(key="flat"), lambda: {"image": 1})


@pytest.mark.parametrize("workers", [0, 1])
def test_a_key_that_a_collate_function_misses_is_named_with_its_place(workers: int, tmp_path: Path) -> None:
    text = CONTRACT.replace("return VitonHDTestDataset", "next(iter(loader_of(VitonHDTestDataset(), args.workers)))")
    text += """
    from torch.utils.data import DataLoader
    def collate(samples):
        return [sample["flat"] for sample in samples]
    def loader_of(data, workers):
        return DataLoader(data, collate_fn=collate, num_workers=workers)
    """
    script = upstream.open_script(write(tmp_path, text))
    with pytest.raises(ValueError, match=r"some_trainer\.py, line 14 looks 'flat' up"):
        upstream.train(script, argparse.Namespace(workers=workers), lambda: [{"image": 1}])


def test_the_trainer_imports_nothing_of_the_package() -> None:
    tree = ast.parse(Path(train_flux_inpaint.__file__).read_text("utf-8"))
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert "torch" in names and not any(name.startswith("deepfashion_training") for name in names)
