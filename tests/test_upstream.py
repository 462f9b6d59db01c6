"""Loading, checking, patching and restoring a training script."""

from __future__ import annotations

import argparse
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from deepfashion_training import upstream

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


def script(folder: Path, text: str, name: str = "some_trainer.py") -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def forget_modules():
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("some_trainer"):
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
        ("import no_such_package_here\n", r"needs the package no_such_package_here, which is not installed"),
        ("raise RuntimeError('boom')\n", r"failed while it was loaded: RuntimeError: boom"),
        ("import sys; sys.exit(3)\n", r"failed while it was loaded: SystemExit: 3"),
    ],
)
def test_a_script_that_does_not_load_is_one_line_and_leaves_no_module(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(upstream.UpstreamError, match=message) as error:
        upstream.load_script(script(tmp_path, text))
    assert "\n" not in str(error.value)
    assert "some_trainer" not in sys.modules


def test_a_missing_script_is_named(tmp_path: Path) -> None:
    with pytest.raises(upstream.UpstreamError, match=r"nowhere\.py: no Python file there"):
        upstream.load_script(tmp_path / "nowhere.py")


def test_everything_that_the_contract_misses_is_named(tmp_path: Path) -> None:
    module = upstream.load_script(script(tmp_path, "def main(): pass\nVitonDataset = object\nparse_args = 3\n"))
    with pytest.raises(upstream.UpstreamError) as error:
        upstream.check_contract(module)
    for part in ("no VitonHDTestDataset", "no parse_args", "main() does not take one argument", "some_trainer.py"):
        assert part in str(error.value)


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


def test_the_trainer_imports_nothing_of_the_package() -> None:
    code = (
        "import sys, train_flux_inpaint; "
        "print([name for name in sys.modules if name.startswith('deepfashion_training')])"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
