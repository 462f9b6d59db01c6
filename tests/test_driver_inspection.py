"""``--upstream-check``: what the table says of a script, and that scripts that are none are refused in one line."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

from deepfashion_training import train_deepfashion_lora as wrapper
from deepfashion_training.upstream import script as upstream
from deepfashion_training.upstream.inspection import lora_kind
from deepfashion_training.upstream.quirks import QUIRKS
from deepfashion_training.upstream.source import read_source

STAND_INS = Path(__file__).parent / "stand_ins"
SCRIPT = STAND_INS / "catvton_flux" / "train_flux_inpaint.py"
BROKEN = {
    "no_main": "no main",
    "renamed_dataset": "no VitonHDTestDataset (is it VitonHDDataset?)",
    "other_signature": "main(args, accelerator) does not take one argument",
    "no_argument": "main() does not take one argument",
}
CONTRACT = """
    import argparse
    class VitonHDTestDataset: pass
    def parse_args(input_args=None): return argparse.ArgumentParser().parse_args(input_args)
    def main(args): raise AssertionError("it was run")
"""


@pytest.fixture(autouse=True)
def forget_modules():
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("some_script", *BROKEN)):
            del sys.modules[name]


def written(folder: Path, text: str) -> Path:
    path = folder / "some_script.py"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def check(path: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, tuple[str, str]], str]:
    """Exit code, rows of the table (name to state and remark, lines joined), and what stands on stderr."""
    code = wrapper.main(["--upstream-check", str(path)])
    text, error = capsys.readouterr()
    assert all(len(line) <= 120 for line in text.splitlines())
    states = "found|MISSING|UNUSABLE|absent|handled|stand-in|native|by adapter|its own|IMPOSSIBLE|all there".split("|")
    rows: dict[str, tuple[str, str]] = {}
    name = ""
    for line in text.splitlines():
        state = next((state for state in states if f"  {state}  " in line or line.endswith(f"  {state}")), None)
        if state is not None:
            before, _, remark = line.partition(f"  {state}")
            name = before.strip()
            rows[name] = (state, remark.strip())
        elif line.startswith("   "):
            rows[name] = (rows[name][0], f"{rows[name][1]} {line.strip()}")
    return code, rows, error


def test_the_table_of_a_script_that_gets_a_lora(capsys: pytest.CaptureFixture[str]) -> None:
    code, rows, error = check(SCRIPT, capsys)
    assert (code, error) == (0, "")
    names = "VitonHDTestDataset parse_args main FluxTransformer2DModel FluxFillPipeline Accelerator encode_prompt "
    names += "load_text_encoders prepare_fill_with_mask encode_images_to_latents"
    assert {name: rows[name][0] for name in names.split()} == dict.fromkeys(names.split(), "found")
    assert rows["LoRA"][0] == "by adapter"
    assert rows["deepspeed"] == ("stand-in", "only asked whether a model is its engine")
    assert rows["torchvision"][0] == rows["cv2"][0] == "stand-in" or "torchvision" not in rows  # where it is installed
    for quirk in QUIRKS:
        assert rows[quirk.name] == ("handled", f"{quirk.habit}: {quirk.mended}")


@pytest.mark.parametrize(
    ("path", "call"),
    [(STAND_INS / "native_lora.py", "inject_adapter_in_model"), (upstream.DEFAULT_SCRIPT, "add_adapter")],
)
def test_a_script_with_a_lora_of_its_own_is_native(path: Path, call: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, rows, error = check(path, capsys)
    assert (code, error) == (0, "")
    line = next(n for n, text in enumerate(path.read_text("utf-8").splitlines(), start=1) if f"{call}(" in text)
    said = f"the script makes its own ({path.name} line {line}: {call}): only the dataset is replaced"
    assert rows["LoRA"] == ("native", said)
    assert set(rows) == {"VitonHDTestDataset", "parse_args", "main", "LoRA", "packages"}


@pytest.mark.parametrize("name", BROKEN)
def test_a_script_that_is_none_is_seen_to_be_none(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = STAND_INS / f"{name}.py"
    code, rows, error = check(path, capsys)
    assert (code, error) == (
        1, f"train_deepfashion_lora: {path} is no training script that can be driven: {BROKEN[name]}\n",
    )  # fmt: skip
    wrong = {row: remark for row, (state, remark) in rows.items() if state in ("MISSING", "UNUSABLE")}
    assert list(wrong.values()) == [BROKEN[name]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CONTRACT + "    import absent_package\n    absent_package.f()", "not installed: pip install absent_package"),
        (CONTRACT + "    raise RuntimeError('boom')", "failed while it was loaded: RuntimeError: boom"),
        ("x = 1\ndef main(args:\n", "line 2 is no valid Python"),
        (
            CONTRACT + "    FluxTransformer2DModel = FluxFillPipeline = object",
            "cannot be given one: it has no Accelera",
        ),
        (CONTRACT + "    FluxTransformer2DModel = object", "it has no FluxFillPipeline, Accelerator at module level"),
        (None, "no Python file there"),
    ],
)
def test_what_cannot_be_driven_is_one_line_from_both_commands(
    text: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "some_script.py" if text is None else written(tmp_path, text)
    code, rows, error = check(path, capsys)
    assert code == 1 and message in error and error.count("\n") == 1 and error.count(str(path)) == 1
    assert all(state != "by adapter" for state, _ in rows.values())
    argv = ["--preset", "quick_test", "--embedded", "--output_dir", str(tmp_path / "out"), "--upstream", str(path)]
    before = list(sys.path), list(sys.meta_path)
    assert wrapper.main(argv) == 1
    again = capsys.readouterr()
    assert (again.out, again.err) == ("", error)
    assert (list(sys.path), list(sys.meta_path)) == before
    assert "some_script" not in sys.modules or not hasattr(sys.modules["some_script"], "print")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_script_is_not_run_and_not_patched(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = STAND_INS / f"{name}.py"
    module = upstream.load_script(path)
    before = dict(vars(module))
    argv = ["--preset", "quick_test", "--embedded", "--output_dir", str(tmp_path / "out"), "--upstream", str(path)]
    assert wrapper.main(argv) == 1
    error = capsys.readouterr().err
    assert error == f"train_deepfashion_lora: {path} is no training script that can be driven: {BROKEN[name]}\n"
    assert dict(vars(module)) == before
    assert not (tmp_path / "out").exists()


# ---- how a LoRA comes out of a script


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("def main(args): model.add_adapter(c)", "native"),
        ("def main(args): get_peft_model(model, c)", "native"),
        ("from peft import LoraConfig", "none"),  # imported, never called
        ("Accelerator = FluxFillPipeline = FluxTransformer2DModel = object", "adapter"),
        (
            "from diffusers import FluxTransformer2DModel, FluxFillPipeline\nfrom accelerate import Accelerator",
            "adapter",
        ),
        ("Accelerator = FluxFillPipeline = object", "none"),
    ],
)
def test_the_kind_of_lora(text: str, kind: str, tmp_path: Path) -> None:
    assert lora_kind(read_source(written(tmp_path, text))) == kind


def test_a_name_that_only_a_function_imports_cannot_be_replaced(tmp_path: Path) -> None:
    text = "from diffusers import FluxTransformer2DModel, FluxFillPipeline\n"
    text += "def main(args):\n    from accelerate import Accelerator\n"
    with pytest.raises(ValueError, match=r"trains no LoRA and cannot be given one: it has no Accelerator at module le"):
        lora_kind(read_source(written(tmp_path, text)))


def test_what_is_opened_is_driven_or_the_module_itself(tmp_path: Path) -> None:
    driven = upstream.open_script(SCRIPT)
    assert isinstance(driven, upstream.DrivenScript) and driven.module is upstream.load_script(SCRIPT)
    assert driven.VitonHDTestDataset is driven.module.VitonHDTestDataset
    assert isinstance(upstream.open_script(STAND_INS / "native_lora.py"), ModuleType)
    assert isinstance(upstream.open_script(written(tmp_path, CONTRACT)), ModuleType)
