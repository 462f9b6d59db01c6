"""Whole runs through ``main``: what they leave behind, how they resume, fail and share work between processes."""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import HEIGHT, ROOT, WIDTH, forget_accelerator
from diffusers import FluxFillPipeline, FluxTransformer2DModel
from peft import get_peft_model_state_dict
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import train_flux_inpaint as tfi
from training_run import checkpoints, sheets
from training_run.output_dir import continues, find_checkpoint, prepare_output_dir

NO_TEXT = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
#: Flags of the straight run and of those that are compared with it.
STRAIGHT = (
    "--max_train_steps 4 --lr_scheduler cosine --learning_rate 1e-2 --lora_alpha 6 --checkpointing_steps 1 "
    "--checkpoints_total_limit 2 --validation_steps 2 --guidance_scale 2.5 --caption_dropout 0"
).split()


@dataclass
class Finished:
    """A run that ``main`` has driven, its folder, and the model's parameters as they were before the first step."""

    run: tfi.Run
    folder: Path
    before: dict[str, torch.Tensor]

    def read(self, name: str) -> dict:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def losses(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "logs" / "losses.jsonl").read_text().splitlines()]

    def names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


def drive(args: argparse.Namespace) -> Finished:
    """Run ``main`` and keep hold of what it trained."""
    seen: list[Finished] = []
    plain_train = tfi.train

    def watched(run: tfi.Run, *rest: object) -> None:
        before = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}
        seen.append(Finished(run, run.folder, before))
        plain_train(run, *rest)

    forget_accelerator()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tfi, "train", watched)
            tfi.main(args)
    finally:
        forget_accelerator()
    return seen[0]


@pytest.fixture(scope="module")
def straight(tiny_args: Callable[..., argparse.Namespace]) -> Finished:
    """Four steps in one go."""
    return drive(tiny_args(*STRAIGHT))


class FailsAtThePicture(tfi.VitonHDTestDataset):
    """Raises when row number ``left`` is read in training."""

    left = 0

    def __getitem__(self, index: int) -> dict:
        if self.phase == "train":
            type(self).left -= 1
            if self.left < 0:
                raise OSError("the disk is gone")
        return super().__getitem__(index)


@pytest.fixture(scope="module")
def broken(tiny_args: Callable[..., argparse.Namespace]) -> Path:
    """Folder of a run like ``straight`` whose disk fails while the third batch is read."""
    args = tiny_args(*STRAIGHT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfi, "VitonHDTestDataset", FailsAtThePicture)
        patch.setattr(FailsAtThePicture, "left", 4)
        with pytest.raises(OSError, match="the disk is gone"):
            drive(args)
    return Path(args.output_dir)


def forward(transformer: FluxTransformer2DModel) -> torch.Tensor:
    """Output on one fixed random input."""
    draw = torch.Generator().manual_seed(1)
    shapes = {"hidden_states": (1, 4, 384), "encoder_hidden_states": (1, 5, 32), "pooled_projections": (1, 32)}
    inputs = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    ids = {"txt_ids": torch.zeros(5, 3), "img_ids": torch.tensor([[0.0, y, x] for y in (0, 1) for x in (0, 1)])}
    with torch.no_grad():
        return transformer(**inputs, **ids, timestep=torch.tensor([0.7]), guidance=torch.ones(1)).sample


# ------------------------------------------------------------------------------------------------- what is left


def test_a_run_leaves_exactly_its_files(straight):
    assert straight.names() == {
        "pytorch_lora_weights.safetensors",
        "checkpoint-3",  # of the checkpoints 1 to 4 the newest two are kept
        "checkpoint-4",
        "validation",
        "logs",
        "run.json",
    }
    saved = {"pytorch_lora_weights.safetensors", "training_state.safetensors", "training_state.json", "manifest.json"}
    for step in (3, 4):
        assert {path.name for path in (straight.folder / f"checkpoint-{step}").iterdir()} == saved
    assert {path.name for path in (straight.folder / "validation").iterdir()} == {
        "step-0.png",
        "step-2.png",
        "step-4.png",
    }


def test_run_json_says_what_ran(straight):
    facts = straight.read("run.json")
    assert (facts["status"], facts["step"], facts["world_size"], facts["device"]) == ("done", 4, 1, "cpu")
    assert facts["weights"] == "pytorch_lora_weights.safetensors"
    assert facts["trainable_parameters"] == 4 * 26880  # worked out in test_train_flux_inpaint.py
    assert facts["resumed_from_step"] is None
    assert facts["arguments"] == {**vars(straight.run.args)} and facts["arguments"]["lora_alpha"] == 6
    assert facts["dataset"]["train"]["rows"] == 8 and facts["dataset"]["validation"]["rows"] == 3
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["seconds_per_step"] > 0
    assert facts["pairs_per_second"] == pytest.approx(2 / facts["seconds_per_step"])


def test_losses_are_written_and_add_up(straight):
    lines = straight.losses()
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    # A pair has 16 x 24 latent cells: 16 x 12 garment. The mask box, 24-72 x 40-100 pixels, touches 8 rows and 6
    # columns of the other 16 x 12.
    for line in lines:
        parts = 192 * line["loss_garment"] + 48 * line["loss_mask"] + 144 * line["loss_background"]
        assert line["loss"] == pytest.approx(parts / 384, rel=1e-5)
    # lr after step n of 4: cosine of half a turn
    expected = [1e-2 * (1 + np.cos(np.pi * n / 4)) / 2 for n in range(1, 5)]
    assert [line["lr"] for line in lines] == pytest.approx(expected, abs=1e-9)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # its reader never closes its file
def test_tensorboard_holds_the_same_curves_and_the_pictures(straight):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(straight.folder / "logs" / "catvton-flux-lora"), size_guidance={"images": 0})
    events.Reload()
    for name in ("loss", "loss_garment", "loss_mask", "loss_background", "lr"):
        logged = {event.step: event.value for event in events.Scalars(name)}
        assert logged == pytest.approx({line["step"]: line[name] for line in straight.losses()}, rel=1e-6)
    images = events.Images("validation")
    assert [image.step for image in images] == [0, 2, 4]
    sheet = Image.open(straight.folder / "validation" / "step-0.png")
    assert (images[0].width, images[0].height) == sheet.size
    del events
    gc.collect()


def test_validation_pictures_show_garment_masked_person_result_and_truth(straight):
    """128 x 96 pictures are drawn twice as large; gaps of 6, lines of text of 22 pixels, 4 columns, 2 rows."""
    sheets = [np.asarray(Image.open(straight.folder / "validation" / f"step-{step}.png")) for step in (0, 2, 4)]
    width, height, gap, line = 2 * WIDTH, 2 * HEIGHT, 6, 22
    assert all(sheet.shape == (line + 2 * (line + height + gap), 4 * (width + gap) + gap, 3) for sheet in sheets)

    def cell(sheet: np.ndarray, row: int, column: int) -> np.ndarray:
        top, left = line + row * (line + height + gap) + line, gap + column * (width + gap)
        return sheet[top : top + height, left : left + width]

    for sheet in sheets:
        for row in range(2):
            garment, masked, result, truth = (cell(sheet, row, column) for column in range(4))
            assert (garment == (10 * row, 100, 250)).all()
            assert (truth == (200, 10 * row, 50)).all()
            assert (masked[80:200, 48:144] == 128).all()  # the mask box, twice as large
            assert (masked[:80] == (200, 10 * row, 50)).all()
            outside = np.ones(result.shape[:2], bool)
            outside[80:200, 48:144] = False
            assert (result[outside] == truth[outside]).all() and (result != truth).any()  # in the photo, as by tryon
    results = [cell(sheet, 0, 2).astype(int) for sheet in sheets]
    assert np.abs(results[2] - results[0]).mean() > 1  # four steps at a high rate show


def test_text_says_what_the_columns_are(straight, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(sheets, "labelled_grid", lambda *a: seen.append(a) or Image.new("RGB", (8, 8)))
    monkeypatch.setattr(
        straight.run, "accelerator", SimpleNamespace(device=torch.device("cpu"), trackers=[], is_main_process=True)
    )
    monkeypatch.setattr(straight.run, "folder", tmp_path)
    sample = tfi.VitonHDTestDataset(straight.run.args.dataroot, "test", size=(HEIGHT, WIDTH))[1]
    monkeypatch.setattr(straight.run, "pictures", [sample])
    straight.run.validate()
    _, columns, labels = seen[0]
    assert columns == ["garment", "masked person", "step 4, in the photo", "photo"]
    assert labels[0].strip() == "001_00.jpg"


# --------------------------------------------------------------------------------------------------------- LoRA


def test_the_lora_file_tells_how_to_use_it(straight):
    with safe_open(straight.folder / "pytorch_lora_weights.safetensors", "pt") as file:
        told, names = file.metadata(), set(file.keys())
        dtypes = {file.get_tensor(name).dtype for name in names}
    args = straight.run.args
    assert (told["rank"], told["alpha"], told["target_modules"]) == ("4", "4", "all")
    assert told["base_model"] == args.pretrained_model_name_or_path
    assert told["transformer"] == args.pretrained_inpaint_model_name_or_path
    assert (told["guidance_scale"], told["prompt"]) == ("2.5", tfi.DEFAULT_PROMPT)
    assert (told["height"], told["width"], told["max_sequence_length"]) == ("128", "96", "96")
    assert (told["num_inference_steps"], told["resize_mode"]) == ("2", "stretch")
    with safe_open(straight.folder / "checkpoint-4" / "pytorch_lora_weights.safetensors", "pt") as file:
        assert file.metadata()["alpha"] == "6.0"  # what is trained is as it was
    adapter = json.loads(told["lora_adapter_metadata"])
    assert (adapter["transformer.r"], adapter["transformer.lora_alpha"]) == (4, 4)
    layers = 2 * (8 + 4) + 4 * (3 + 2)
    assert len(names) == 2 * layers and all(name.startswith("transformer.") for name in names)
    assert dtypes == {torch.float32}


def test_a_plain_pipeline_loads_the_lora_and_draws_otherwise(straight, tiny_flux_fill):
    pipeline = FluxFillPipeline.from_pretrained(tiny_flux_fill, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    base, sample = forward(pipeline.transformer), np.zeros((64, 64, 3), np.uint8) + 90

    def picture() -> np.ndarray:
        return pipeline(
            prompt="red top", image=Image.fromarray(sample), mask_image=Image.new("L", (64, 64), 255), height=64,
            width=64, num_inference_steps=2, max_sequence_length=32, generator=torch.Generator().manual_seed(0),
            output_type="np",
        ).images[0]  # fmt: skip

    before = picture()
    pipeline.load_lora_weights(straight.folder)
    trained, loaded = forward(straight.run.model), forward(pipeline.transformer)
    torch.testing.assert_close(loaded, trained, rtol=0, atol=1e-5)
    assert (trained - base).abs().max() > 0.05
    assert np.abs(picture() - before).max() > 0.01
    pipeline.unload_lora_weights()
    assert np.array_equal(picture(), before)


def test_the_frozen_base_is_bit_identical_and_every_matrix_moved(straight):
    for name, parameter in straight.run.model.named_parameters():
        assert torch.equal(parameter, straight.before[name]) == ("lora_" not in name), name


# ------------------------------------------------------------------------------------- distance to the base


class Dressed(tfi.VitonHDTestDataset):
    """The first three rows are tops, the others trousers."""

    def cloth_types(self) -> list[int]:
        return [1 if row < 3 else 2 for row in range(len(self))]

    def __getitem__(self, index: int) -> dict:
        return {**super().__getitem__(index), "cloth_type": self.cloth_types()[index]}


def test_a_run_that_is_held_to_its_base_logs_how_far_it_is(straight, tiny_args, monkeypatch):
    """Rows 3, 4 | 2, 7 | 6, 1 | 5, 0 are drawn. At step 2 the LoRA has made one step, as without the flag."""
    monkeypatch.setattr(tfi, "VitonHDTestDataset", Dressed)
    flags = [*STRAIGHT, "--prior_loss_weight", 100, "--validation_steps", 0]
    held, cached = drive(tiny_args(*flags)), drive(tiny_args(*flags, "--cache_latents", "--gradient_checkpointing"))
    assert held.losses() == cached.losses()  # whatever the samples hold, and what is recomputed
    lines, plain = held.losses(), straight.losses()
    assert lines[0] == plain[0]
    assert all(line.get("loss_prior", 1e-4) > 1e-5 for line in lines)
    assert [line["step"] for line in lines if "loss_prior" in line] == [2, 3, 4]
    assert lines[1]["loss"] == pytest.approx(plain[1]["loss"] + 100 / 2 * lines[1]["loss_prior"], rel=1e-5)


def test_an_unknown_type_is_told_before_models_are_loaded(tiny_args, monkeypatch):
    monkeypatch.setattr(tfi, "VitonHDTestDataset", Dressed)
    monkeypatch.setattr(tfi, "Run", lambda *_: pytest.fail("loaded"))
    args = tiny_args("--prior_loss_weight", 1, "--prior_cloth_types", 3)
    with pytest.raises(ValueError, match="--prior_cloth_types 3, all that are drawn are of 1, 2"):
        drive(args)
    assert not Path(args.output_dir).exists()
    tops = [float(kind == 1) for kind in Dressed(args.dataroot, "train").cloth_types()]
    others = [1 - weight for weight in tops]
    monkeypatch.setattr(Dressed, "sampling_weights", lambda _: others, raising=False)
    args = tiny_args("--prior_loss_weight", 1, "--prior_cloth_types", 1)
    with pytest.raises(ValueError, match="--prior_cloth_types 1, all that are drawn are of 2"):
        drive(args)
    monkeypatch.setattr(Dressed, "final_sampling_weights", lambda _: tops, raising=False)
    with pytest.raises(pytest.fail.Exception, match="loaded"):  # they are drawn in the end
        drive(args)


def test_a_base_that_shifts_nothing_is_told_before_models_are_loaded(tiny_args, monkeypatch):
    monkeypatch.setattr(tfi, "Run", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr(tfi, "prompts_of_run", lambda *_: pytest.fail("encoded"))
    monkeypatch.setattr(tfi, "load_scheduler", lambda _: tfi.FlowScheduler())
    with pytest.raises(ValueError, match="--timestep_shift tokens"):
        drive(tiny_args("--timestep_shift", "tokens"))


# --------------------------------------------------------------------------------------------- the average


@pytest.fixture(scope="module")
def averaged(tiny_args: Callable[..., argparse.Namespace]) -> tuple[Finished, list[dict[str, torch.Tensor]]]:
    """The straight run with an average, every checkpoint kept, and the LoRA that each validation picture shows."""
    shown, draw = [], tfi.Run.draw_results

    def seen(run: tfi.Run) -> list[Image.Image]:
        shown.append({name: tensor.clone() for name, tensor in get_peft_model_state_dict(run.model).items()})
        return draw(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfi.Run, "draw_results", seen)
        return drive(tiny_args(*STRAIGHT, "--checkpoints_total_limit", 4, "--ema_decay", 0.5)), shown


def lora_in(folder: Path) -> dict[str, torch.Tensor]:
    """The matrices of a LoRA, under the names that peft has for them."""
    return {name.removeprefix("transformer."): part for name, part in load_file(folder / tfi.LORA_FILE).items()}


def test_an_average_of_the_weights_is_what_is_shown_and_written(straight, averaged):
    """The average keeps 1 - n^(-2/3) of itself at step n, and at most the decay: 0, 0.370, 0.519 and so 0.5, 0.5."""
    (run, shown), total = averaged, lora_in(averaged[0].folder / "checkpoint-1")
    assert run.losses() == straight.losses()  # training does without it
    for step, kept in ((2, 1 - 2 ** (-2 / 3)), (3, 0.5), (4, 0.5)):
        trained = lora_in(run.folder / f"checkpoint-{step}")
        total = {name: kept * part + (1 - kept) * trained[name] for name, part in total.items()}
        if step in (2, 4):
            torch.testing.assert_close(shown[step // 2], total, rtol=1e-4, atol=1e-6)
    scale = 6 / 4  # of alpha / rank, which is in B of what is written at the end
    written = {name: part * (scale if ".lora_B." in name else 1) for name, part in total.items()}
    torch.testing.assert_close(lora_in(run.folder), written, rtol=1e-4, atol=1e-6)
    assert max((total[name] - trained[name]).abs().max() for name in total) > 1e-3
    for name, part in get_peft_model_state_dict(run.run.model).items():
        assert torch.equal(part, trained[name]), name


def test_an_averaged_run_is_continued_bit_for_bit(averaged, tiny_args, tmp_path):
    whole, flags = averaged[0], ["--output_dir", tmp_path / "out", "--checkpoints_total_limit", 4, "--ema_decay", 0.5]
    resumed = drive(tiny_args(*STRAIGHT, *flags, "--resume_from_checkpoint", whole.folder / "checkpoint-2"))
    assert resumed.losses() == whole.losses()[2:]
    ours, theirs = lora_in(resumed.folder), lora_in(whole.folder)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    pictures = [(run.folder / "validation" / "step-4.png").read_bytes() for run in (resumed, whole)]
    assert pictures[0] == pictures[1]


def test_an_average_may_begin_or_change_where_a_run_is_continued(straight, averaged, tiny_args, tmp_path):
    """Its first step takes the weights as they are, so that after one step it is what the run without it has."""
    flags = ["--allow_changed_arguments", "--validation_steps", 0, "--output_dir"]
    begun = ["--ema_decay", 0.5, "--resume_from_checkpoint", straight.folder / "checkpoint-3", *flags, tmp_path / "a"]
    ours, theirs = lora_in(drive(tiny_args(*STRAIGHT, *begun)).folder), lora_in(straight.folder)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)
    earlier = ["--resume_from_checkpoint", averaged[0].folder / "checkpoint-3", *flags]
    changed = drive(tiny_args(*STRAIGHT, "--ema_decay", 0.25, *earlier, tmp_path / "b"))
    assert (changed.run.average.decay, changed.run.average.cur_decay_value) == (0.25, 0.25)
    dropped = lora_in(drive(tiny_args(*STRAIGHT, *earlier, tmp_path / "c")).folder)
    assert all(torch.equal(dropped[name], theirs[name]) for name in theirs)


# ------------------------------------------------------------------------------------------- resume and failure


def test_a_failed_run_says_so_and_keeps_its_checkpoints(broken):
    facts = json.loads((broken / "run.json").read_text())
    assert (facts["status"], facts["step"]) == ("failed", 2)
    assert {path.name for path in broken.iterdir()} == {
        "checkpoint-1",
        "checkpoint-2",
        "validation",
        "logs",
        "run.json",
    }
    assert "weights" not in facts


def test_resuming_equals_never_having_stopped(straight, broken, tiny_args, tmp_path):
    shutil.copytree(broken, tmp_path / "out")
    resumed = drive(tiny_args(*STRAIGHT, "--output_dir", tmp_path / "out", "--resume_from_checkpoint", "latest"))
    assert resumed.losses() == straight.losses()  # bit for bit: written with every digit
    ours, theirs = (load_file(run.folder / "pytorch_lora_weights.safetensors") for run in (resumed, straight))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    pictures = [(run.folder / "validation" / "step-4.png").read_bytes() for run in (resumed, straight)]
    assert pictures[0] == pictures[1]
    facts = resumed.read("run.json")
    assert (facts["status"], facts["resumed_from_step"], facts["step"]) == ("done", 2, 4)
    assert {name for name in resumed.names() if name.startswith("checkpoint")} == {"checkpoint-3", "checkpoint-4"}


def test_latest_in_an_empty_folder_starts_afresh_and_a_missing_checkpoint_is_named(tiny_args, tmp_path, accelerator):
    args = tiny_args("--resume_from_checkpoint", "latest", "--output_dir", tmp_path)
    assert find_checkpoint(args) is None
    for name in (2, 10):
        with checkpoints.staged(tmp_path / f"checkpoint-{name}") as draft:
            (draft / "part").write_text("whole")
    (tmp_path / "checkpoint-11").mkdir()  # there, but not complete
    (tmp_path / "checkpoint-99-tmp").mkdir()
    assert find_checkpoint(args) == tmp_path / "checkpoint-10"
    args.resume_from_checkpoint = str(tmp_path / "checkpoint-11")
    with pytest.raises(ValueError, match=r"checkpoint-11 has no readable manifest.json"):
        find_checkpoint(args)
    args.resume_from_checkpoint = None
    assert find_checkpoint(args) is None


def test_an_earlier_run_is_neither_overwritten_nor_mixed(tiny_args, tmp_path):
    for name in ("checkpoint-4", "validation", "logs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old.txt").write_text("old")
    for name in ("pytorch_lora_weights.safetensors", "run.json", "notes.txt"):
        (tmp_path / name).write_text("old")
    present = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=rf"{tmp_path} holds an earlier run .* --overwrite_output_dir"):
        tfi.main(tiny_args("--output_dir", tmp_path))
    forget_accelerator()
    assert sorted(tmp_path.rglob("*")) == present
    prepare_output_dir(tiny_args("--output_dir", tmp_path, "--resume_from_checkpoint", "latest"))
    assert sorted(tmp_path.rglob("*")) == present
    prepare_output_dir(tiny_args("--output_dir", tmp_path, "--overwrite_output_dir"))
    assert {path.name for path in tmp_path.rglob("*")} == {"logs", "notes.txt"}  # the user's own file stays


# ---------------------------------------------------------------------------------------------- other ways to run


@pytest.mark.parametrize(
    "flags",
    [["--lora_alpha", 1], ["--lora_rank", 2, "--lora_alpha", 6], ["--use_dora"], ["--use_rslora"]],
    ids=["alpha", "rank", "dora", "rslora"],
)
def test_a_lora_of_another_form_or_scale_is_refused(straight, tiny_args, flags):
    args = tiny_args("--lora_alpha", 6, *flags)
    transformer = tfi.load_transformer(args, torch.float32)
    tfi.make_trainable(transformer, args)
    with pytest.raises(ValueError, match="another LoRA than these flags make"):
        tfi.read_checkpoint_lora(transformer, args, straight.folder / "checkpoint-4")


@pytest.mark.long
def test_steps_taken_again_are_written_once(straight, tiny_args, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(straight.folder, folder)
    with (folder / "logs" / "losses.jsonl").open("a") as lines:
        lines.write('{"step": 5, "lo')  # a crash in the middle of a line
    again = drive(tiny_args(*STRAIGHT, "--output_dir", folder, "--resume_from_checkpoint", folder / "checkpoint-3"))
    assert [line["step"] for line in again.losses()] == [1, 2, 3, 4]
    assert again.losses() == straight.losses()


@pytest.mark.long
def test_an_older_checkpoint_continued_is_not_the_one_deleted(straight, tiny_args, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(straight.folder, folder)
    for step in (8, 9):
        shutil.copytree(folder / "checkpoint-4", folder / f"checkpoint-{step}")
    drive(tiny_args(*STRAIGHT, "--output_dir", folder, "--resume_from_checkpoint", folder / "checkpoint-3"))
    assert (folder / "checkpoint-4").is_dir()
    assert len(checkpoints.checkpoints_in(folder)) == 2


def test_files_of_the_user_are_not_an_earlier_run(tiny_args, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "validation").mkdir()
    (tmp_path / "validation" / "a.jpg").write_text("mine")
    for flags in ([], ["--overwrite_output_dir"]):
        prepare_output_dir(tiny_args("--output_dir", tmp_path, *flags))
        assert (tmp_path / "README.md").read_text() == (tmp_path / "validation" / "a.jpg").read_text() == "mine"


def test_the_record_of_a_failed_run_is_an_earlier_run(tiny_args, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"earlier run \(run\.json\)"):
        prepare_output_dir(tiny_args("--output_dir", tmp_path))


def test_only_checkpoints_are_checkpoints(tiny_args, tmp_path):
    for name in ("checkpoint-10", "checkpoint-2", "checkpoint-best-3", "checkpoint-2-old1", "checkpoint-v9"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoints.checkpoints_in(tmp_path)] == ["checkpoint-2", "checkpoint-10"]
    prepare_output_dir(tiny_args("--output_dir", tmp_path, "--overwrite_output_dir"))
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"checkpoint-best-3", "checkpoint-2-old1", "checkpoint-v9", "logs"}


def test_a_caption_of_two_lines_is_a_label_of_one():
    cells = [[Image.new("RGB", (WIDTH, HEIGHT))] * 4]
    two, one = (
        sheets.labelled_grid(cells, list("abcd"), [text]) for text in ("a top.\nand trousers", "a top. and trousers")
    )
    assert two.tobytes() == one.tobytes()


def test_steps_that_are_not_finite_are_skipped_and_then_stop_the_run(tiny_args):
    flags = (
        "--max_train_steps 9 --learning_rate 1e30 --checkpointing_steps 1 --validation_steps 0 --max_skipped_steps 2"
    )
    args = tiny_args(*flags.split())
    with pytest.raises(ValueError, match=r"not finite at step 4: .*rows 005_00.jpg, 000_00.jpg; 3 steps were skipped"):
        drive(args)
    folder = Path(args.output_dir)
    first, last = (load_file(folder / f"checkpoint-{step}" / tfi.LORA_FILE) for step in (1, 3))
    assert all(torch.equal(first[name], last[name]) for name in first)  # what was skipped has changed nothing
    skipped = [json.loads(line) for line in (folder / "logs" / "skipped.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in skipped] == [(2, "nan"), (3, "nan"), (4, "nan")]
    assert not (folder / tfi.LORA_FILE).exists()
    facts = json.loads((folder / "run.json").read_text())
    assert (facts["status"], facts["skipped_steps"]) == ("failed", 3)


def test_a_checkpoint_of_elsewhere_is_not_continued_into_an_earlier_run(straight, tiny_args, tmp_path):
    (tmp_path / "checkpoint-9").mkdir()
    flags = ["--output_dir", tmp_path, "--resume_from_checkpoint", straight.folder / "checkpoint-3"]
    with pytest.raises(ValueError, match=r"earlier run \(checkpoint-9\)"):
        tfi.main(tiny_args(*flags))
    assert not continues(tiny_args(*flags))
    inside = tiny_args("--output_dir", tmp_path, "--resume_from_checkpoint", tmp_path / "checkpoint-9")
    assert continues(inside)


def test_a_run_that_is_already_at_its_last_step_says_so_and_keeps_its_record(straight, tiny_args, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(straight.folder, folder)
    before = (folder / "run.json").read_bytes()
    with pytest.raises(ValueError, match="at step 4 of 4: raise --max_train_steps"):
        drive(tiny_args(*STRAIGHT, "--output_dir", folder, "--resume_from_checkpoint", "latest"))
    assert (folder / "run.json").read_bytes() == before


@pytest.mark.long
def test_a_failure_of_the_command_is_one_line(tiny_flags):
    command = [sys.executable, str(ROOT / "train_flux_inpaint.py"), *tiny_flags("--dataroot", "/no/where")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("train_flux_inpaint.py: no pair list /no/where/train_pairs.txt")
    assert "Traceback" not in done.stderr


def test_bf16_trains_and_draws(tiny_args):
    args = tiny_args(
        "--mixed_precision", "bf16", "--max_train_steps", 2, "--gradient_checkpointing", "--num_validation_images", 1
    )
    done = drive(args)
    assert done.read("run.json")["status"] == "done"
    assert {path.name for path in (done.folder / "validation").iterdir()} == {"step-0.png", "step-2.png"}
    assert {path.name for path in done.folder.glob("checkpoint-*")} == {"checkpoint-2"}
    assert all(np.isfinite(line["loss"]) for line in done.losses())
    dtypes = {"lora_" in name: parameter.dtype for name, parameter in done.run.model.named_parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}
    saved = load_file(done.folder / "pytorch_lora_weights.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert any(tensor.any() for name, tensor in saved.items() if "lora_B" in name)


def test_the_base_models_attention_trains_and_nothing_else(tiny_args, tiny_flux_fill):
    flags = "--train_base_model --max_train_steps 2 --learning_rate 1e-3 --validation_steps 0 --report_to none"
    done = drive(tiny_args(*flags.split(), "--checkpointing_steps", 1, "--logging_steps", 2))
    assert done.names() == {"transformer", "checkpoint-1", "checkpoint-2", "logs", "run.json"}  # no pictures
    assert {path.name for path in (done.folder / "logs").iterdir()} == {"losses.jsonl"}  # and no tracker
    assert [line["step"] for line in done.losses()] == [2]
    assert done.read("run.json")["weights"] == "transformer"

    saved = FluxTransformer2DModel.from_pretrained(done.folder / "transformer")
    base = FluxTransformer2DModel.from_pretrained(tiny_flux_fill, subfolder="transformer").state_dict()
    changed = {name for name, tensor in saved.state_dict().items() if not torch.equal(tensor, base[name])}
    # In the last double block the text stream's output goes into the single blocks, so all of attention learns.
    assert changed == {name for name in base if ".attn." in name}
    torch.testing.assert_close(forward(saved), forward(done.run.model), rtol=0, atol=1e-5)  # rounding, on some CPUs

    again = drive(tiny_args(*flags.split(), "--resume_from_checkpoint", done.folder / "checkpoint-1"))
    resumed = FluxTransformer2DModel.from_pretrained(again.folder / "transformer").state_dict()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in saved.state_dict().items())


def test_epochs_become_steps_and_no_checkpoint_is_kept_at_zero(tiny_args):
    """2 passes over 8 rows in steps of 2 x 3 pairs: 16 / 6, rounded up."""
    flags = "--num_train_epochs 2 --gradient_accumulation_steps 3 --checkpointing_steps 0 --validation_steps 0"
    done = drive(tiny_args(*flags.split(), "--report_to", "none", "--dataloader_num_workers", 1))
    assert [line["step"] for line in done.losses()] == [1, 2, 3]
    assert done.names() == {"pytorch_lora_weights.safetensors", "logs", "run.json"}
    assert done.read("run.json")["arguments"]["max_train_steps"] == 3


# -------------------------------------------------------------------------------------------------- two processes

WATCHED = """
import hashlib, json, os, sys
from pathlib import Path
import train_flux_inpaint as tfi

out, rank = Path(sys.argv[1]), os.environ["RANK"]
encode, lines = tfi.Run.encode, []

def watched(run, samples, forward_pass):
    batch = encode(run, samples, forward_pass)
    digest = hashlib.sha256(batch.noise.numpy().tobytes()).hexdigest()
    world = run.accelerator.num_processes
    lines.append({"world": world, "rows": samples["im_name"], "noise": digest, "times": batch.timesteps.tolist()})
    return batch

tfi.Run.encode = watched
tfi.main(tfi.parse_args(sys.argv[2:]))
ours = sorted(name for name in sys.modules if name.split(".")[0] == "deepfashion_training")
(out / f"rank-{rank}.json").write_text(json.dumps({"lines": lines, "modules": ours}))
"""


@dataclass
class TwoRanks:
    """What each of two processes saw, and the folder that they trained into."""

    folder: Path
    ranks: list[dict]


@pytest.fixture(scope="module")
def two_ranks(tiny_flags: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoRanks]:
    here = tmp_path_factory.mktemp("ranks")
    (here / "watched.py").write_text(WATCHED, encoding="utf-8")
    flags = "--max_train_steps 3 --checkpointing_steps 2 --validation_steps 0 --report_to none"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        *(str(here / "watched.py"), str(here)),
        *tiny_flags(*flags.split(), "--output_dir", here / "out"),
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-5000:]
    yield TwoRanks(here / "out", [json.loads((here / f"rank-{rank}.json").read_text()) for rank in (0, 1)])


@pytest.mark.long
def test_two_processes_share_the_rows_and_draw_their_own_noise(two_ranks):
    first, second = (rank["lines"] for rank in two_ranks.ranks)
    assert [line["world"] for line in first + second] == [2] * 6
    for ours, theirs in zip(first, second, strict=True):
        assert ours["times"] != theirs["times"]
    assert len({line["noise"] for line in first + second}) == 6
    rows = [row for ours, theirs in zip(first, second, strict=True) for row in ours["rows"] + theirs["rows"]]
    assert sorted(rows[:8]) == [f"{row:03d}_00.jpg" for row in range(8)]  # an epoch is two steps of 2 x 2
    assert len(set(rows[8:])) == 4


@pytest.mark.long
def test_two_processes_write_one_run(two_ranks):
    names = {path.name for path in two_ranks.folder.iterdir()}
    assert names == {"pytorch_lora_weights.safetensors", "checkpoint-2", "checkpoint-3", "logs", "run.json"}
    facts = json.loads((two_ranks.folder / "run.json").read_text())
    assert (facts["world_size"], facts["status"], facts["step"]) == (2, "done", 3)
    lines = (two_ranks.folder / "logs" / "losses.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


@pytest.mark.long
def test_the_trainer_runs_without_the_package_around_it(two_ranks):
    """In a fresh interpreter with the repository on its path, no module of the package is loaded."""
    assert [rank["modules"] for rank in two_ranks.ranks] == [[], []]
