"""What a training run does in the end: compare LoRA and base, and publish all the same."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deepfashion_training import evaluate as evaluate_command
from deepfashion_training import run_arguments
from deepfashion_training import train_deepfashion_lora as wrapper
from deepfashion_training.embedded.wardrobe import write_wardrobe
from deepfashion_training.evaluation import evaluation_plan as plan_module
from training_run.output_dir import LORA_FILE

Compared = Callable[..., tuple[list[dict[str, Any]], str]]


@pytest.fixture(scope="module")
def wardrobe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wardrobe(tmp_path_factory.mktemp("wardrobe") / "it", rows=9, size=(64, 64))


@pytest.fixture
def compared(
    wardrobe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Compared:
    """What ``compare_with_base`` asks ``evaluate`` for, and says, after a run with these flags."""

    def compare(lora: bool = True, **flags: Any) -> tuple[list[dict[str, Any]], str]:
        if lora:
            (tmp_path / LORA_FILE).touch()
        args = argparse.Namespace(
            dataset_name=str(wardrobe), dataset_revision=None, validation_split="validation", train_split="train",
            evaluate_samples=6, cloth_types="lower", embedded=True, quantize_base=None,
        )  # fmt: skip
        vars(args).update(flags)
        asked: list[dict[str, Any]] = []

        def noted(device: Any, **flags: Any) -> None:
            asked.append(flags)

        monkeypatch.setattr(evaluate_command, "evaluate_trained", noted)
        wrapper.compare_with_base(args, tmp_path, wrapper.held_out_split(args))
        return asked, capsys.readouterr().out

    return compare


def test_the_small_models_comparison_asks_nothing_of_the_hub(compared: Compared, wardrobe: Path) -> None:
    (asked,), said = compared()
    assert (asked["dataset_name"], asked["split"], asked["limit"]) == (str(wardrobe), "test", 6)
    assert not {"steps", "resize_mode", "height", "prompt"} & set(asked)  # which the LoRA says itself
    assert (asked["parser"], asked["dino_model"], asked["extras"]) == ("none", "none", False)
    assert said == ""  # and what the real run takes cannot be told from a small model


def test_the_real_models_comparison_uses_what_evaluate_uses(compared: Compared) -> None:
    (asked,), said = compared(embedded=False)
    assert "parser" not in asked and "dino_model" not in asked and asked["quantize_base"] is None
    assert said == ""


def test_people_who_were_trained_on_are_not_compared_on(compared: Compared) -> None:
    assert compared(train_split="test")[0][0]["split"] == "validation"
    asked, said = compared(train_split="test", validation_split="test")
    assert asked == [] and "has neither a split test nor a validation split" in said


def test_without_a_lora_nothing_is_compared(compared: Compared) -> None:
    asked, said = compared(lora=False)
    assert asked == [] and said == "compared  nothing: no LoRA was trained\n"


@pytest.mark.parametrize("problem", [ValueError("no test row"), RuntimeError("CUDA out of memory")])
def test_a_failed_comparison_keeps_nothing_from_the_hub(
    problem: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from deepfashion_training.models import publish
    from deepfashion_training.reports import model_card
    from deepfashion_training.upstream import script as upstream

    def fails(args: argparse.Namespace, folder: Path, split: str | None) -> None:
        raise problem

    (tmp_path / "run.json").write_text("{}")
    (tmp_path / LORA_FILE).write_bytes(b"")
    monkeypatch.setattr(upstream, "train", lambda *_: None)
    monkeypatch.setattr(model_card, "write_model_card", lambda *_: tmp_path / "README.md")
    monkeypatch.setattr(publish, "push", lambda *_: "https://huggingface.co/me/it")
    monkeypatch.setattr(wrapper, "compare_with_base", fails)
    args, script = run_arguments.parse(["--preset", "quick_test", "--embedded", "--output_dir", str(tmp_path)])
    args.publish, args.dataset_name = True, "some/pairs"
    monkeypatch.setattr(wrapper, "needs_preparation", lambda _: False)
    monkeypatch.setattr(wrapper, "check_rows", lambda _: None)  # which would be downloaded
    monkeypatch.setattr(wrapper, "held_out_split", lambda _: "test")
    told = f"the LoRA is in {tmp_path}, but .* failed: .*{problem}.* cd .* -m deepfashion_training.evaluate"
    with pytest.raises(ValueError, match=told):
        wrapper.run(args, script)
    assert capsys.readouterr().out.endswith("published https://huggingface.co/me/it\n")


def test_what_the_comparison_would_forget_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = ["--preset", "quick_test", "--embedded", "--check", "--output_dir", str(tmp_path / "o")]
    assert wrapper.main([*argv, "--inpaint_revision", "abc"]) == 1
    assert "--inpaint_revision and --evaluate_samples do not go together" in capsys.readouterr().err
    assert wrapper.main([*argv, "--inpaint_revision", "abc", "--evaluate_samples", "0"]) == 0


def test_no_dino_and_no_extras_load_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("this would be downloaded")

    monkeypatch.setattr(plan_module, "find_dino", never)
    name, left_out = plan_module._find_dino("none")
    assert name is None and set(left_out) == {"dino", "fd_dinov2", "kd_dinov2"}


def test_the_small_model_is_drawn_in_full_precision_everywhere() -> None:
    from deepfashion_training.embedded import TINY_FLUX_FILL
    from deepfashion_training.models.fill import precision_of

    for device in ("cpu", "cuda"):
        assert precision_of(str(TINY_FLUX_FILL), torch.device(device)) == torch.float32
    assert precision_of("xiaozaa/catvton-flux-alpha", torch.device("cuda")) == torch.bfloat16
