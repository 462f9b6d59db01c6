"""Whole runs through a script that trains no LoRA: what they leave, what they train, how they continue and fail."""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import pytest
import torch
from conftest import forget_accelerator
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import train_flux_inpaint as trainer
from deepfashion_training import train_deepfashion_lora as wrapper
from deepfashion_training.embedded import TINY_FLUX_FILL
from deepfashion_training.embedded.wardrobe import write_wardrobe
from deepfashion_training.models.lora_files import write_fused
from deepfashion_training.upstream import driven_run as run_module
from deepfashion_training.upstream import pipeline as pipeline_module
from deepfashion_training.upstream import script as upstream
from training_run import checkpoints
from training_run.lora_formats import fitted, read_lora

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = Path(__file__).parent / "scripts"
SCRIPT = SCRIPTS / "catvton_flux" / "train_flux_inpaint.py"
LAUNCHER = ROOT / "deepfashion_training" / "train_deepfashion_lora.sh"
BASE = TINY_FLUX_FILL / "transformer" / "diffusion_pytorch_model.safetensors"
LORA = "pytorch_lora_weights.safetensors"
OWN_PROMPT = "Words of the script alone"
NO_PICTURES = ["--validation_steps", "0"]
SMALL = "--train_batch_size 2 --lora_rank 4 --num_inference_steps 1 --num_validation_images 2".split()


class Named:
    """A dataset that notes the names of the rows that are read."""

    def __init__(self, data: Any, names: list[str]) -> None:
        self.data, self.names = data, names

    def __getitem__(self, row: int) -> Any:
        sample = self.data[row]
        self.names.append(sample["im_name"])
        return sample

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)


class Recorder(run_module.DrivenRun):
    """The run, with what its script was given along the way."""

    latest: ClassVar[Recorder | None] = None

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.names: list[str] = []
        self.every_loss: list[float] = []
        self.global_args: Any = None
        Recorder.latest = self

    def add_loss(self, loss: torch.Tensor) -> None:
        super().add_loss(loss)
        self.global_args = vars(upstream.open_script(SCRIPT).module).get("args")
        self.every_loss.append(loss.item())

    def build_dataset(self, *args: Any, **kwargs: Any) -> Any:
        rows = super().build_dataset(*args, **kwargs)
        if isinstance(rows, run_module.TrainingRows):
            rows.dataset = Named(rows.dataset, self.names)
        return rows


@dataclass
class Trained:
    """How a run went; ``run`` is None when it never began."""

    folder: Path
    code: int
    out: str
    err: str
    run: Any
    pipelines: list[tuple[str, set[str]]]
    transformers: int

    @property
    def problem(self) -> str:
        """What the command says of its failure; a progress bar may stand on the same line."""
        said = re.findall(r"train_deepfashion_lora: ([^\r\n]*)\n", self.err)
        assert len(said) == 1 and "Traceback" not in self.err
        return said[0]

    @property
    def losses(self) -> list[tuple[int, float]]:
        lines = (self.folder / "logs" / "losses.jsonl").read_text("utf-8").splitlines()
        return [(line["step"], line["loss"]) for line in map(json.loads, lines)]

    @property
    def record(self) -> dict[str, Any]:
        return json.loads((self.folder / "run.json").read_text("utf-8"))

    def lora(self, folder: str = "") -> dict[str, torch.Tensor]:
        return load_file(self.folder / folder / LORA)

    def pictures(self) -> set[str]:
        return {path.name for path in (self.folder / "validation").glob("*")}


def train(data: Path, folder: Path, *flags: object, script: Path = SCRIPT) -> Trained:
    """A run of the wrapper's command in this process."""
    pipelines: list[tuple[str, set[str]]] = []
    transformers: list[str] = []
    load_pipeline = pipeline_module.FluxFillPipeline.from_pretrained
    load_transformer = trainer.load_transformer

    def noting_pipeline(source: str, **parts: Any) -> Any:
        pipelines.append((str(source), set(parts)))
        return load_pipeline(source, **parts)

    def noting_transformer(*args: Any) -> Any:
        transformers.append("one")
        return load_transformer(*args)

    forget_accelerator()
    Recorder.latest = None
    out, err = io.StringIO(), io.StringIO()
    argv = ["--preset", "quick_test", "--embedded", "--upstream", script, "--dataset_name", data]
    argv += ["--evaluate_samples", "0"]
    argv += ["--output_dir", folder, *(SMALL if script == SCRIPT else []), *flags]
    with (
        mock.patch.object(upstream, "DrivenRun", Recorder),
        mock.patch.object(pipeline_module.FluxFillPipeline, "from_pretrained", noting_pipeline),
        mock.patch.object(trainer, "load_transformer", noting_transformer),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = wrapper.main(list(map(str, argv)))
    forget_accelerator()
    recorded = Recorder.latest
    return Trained(folder, code, out.getvalue(), err.getvalue(), recorded, pipelines, len(transformers))


@pytest.fixture(scope="module")
def wardrobe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wardrobe(tmp_path_factory.mktemp("data") / "wardrobe", rows=30, seed=1, size=(128, 96))


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return upstream.open_script(SCRIPT).module


@pytest.fixture(scope="module")
def before(wardrobe: Path, module: ModuleType) -> dict[str, Any]:
    """What must be the same after all runs of this file."""
    return {
        "names": dict(vars(module)),
        "path": list(sys.path),
        "script": {path: path.read_bytes() for path in SCRIPT.parent.rglob("*.py")},
        "base": hashlib.sha256(BASE.read_bytes()).hexdigest(),
    }


def assert_nothing_stays(module: ModuleType, before: dict[str, Any]) -> None:
    assert vars(module).keys() == before["names"].keys()
    assert [name for name, value in vars(module).items() if value is not before["names"][name]] == []
    assert sys.path == before["path"]
    assert type(builtins.__import__).__name__ == "builtin_function_or_method"
    files = [str(getattr(each, "__file__", None)) for name, each in sys.modules.items() if name != module.__name__]
    assert [file for file in files if file.startswith(str(SCRIPT.parent))] == []
    assert {path: path.read_bytes() for path in before["script"]} == before["script"]


@pytest.fixture(scope="module")
def whole(wardrobe: Path, before: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Five steps in fp32 with pictures and checkpoints."""
    flags = "--max_train_steps 5 --checkpointing_steps 2 --checkpoints_total_limit 2 --validation_steps 2 "
    flags += "--lora_alpha 8 --guidance_scale 2.5 --no-balance_cloth_types --lr_scheduler constant"
    done = train(wardrobe, tmp_path_factory.mktemp("whole") / "out", *flags.split())
    assert done.code == 0, done.err
    return done


SAME = "--lora_alpha 8 --guidance_scale 2.5 --no-balance_cloth_types --checkpointing_steps 2".split()
SAME += ["--lr_scheduler", "constant", "--evaluate_samples", "0"]


@pytest.fixture(scope="module")
def begun(whole: Trained, wardrobe: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The first two steps of ``whole``, without pictures."""
    done = train(wardrobe, tmp_path_factory.mktemp("begun") / "out", *SAME, "--max_train_steps", 2, *NO_PICTURES)
    assert done.code == 0, done.err
    return done


def copied(done: Trained, folder: Path) -> Path:
    shutil.copytree(done.folder, folder)
    return folder


@pytest.fixture(scope="module")
def resumed(begun: Trained, wardrobe: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """``begun``, continued to the end of ``whole`` without pictures; a folder that is none is not taken for one."""
    folder = copied(begun, tmp_path_factory.mktemp("resumed") / "out")
    (folder / "checkpoint-500-tmp").mkdir()
    flags = [*SAME, "--max_train_steps", 5, *NO_PICTURES, "--resume_from_checkpoint", "latest"]
    done = train(wardrobe, folder, *flags)
    assert done.code == 0, done.err
    return done


@pytest.mark.long
def test_a_run_that_starts_from_a_lora_begins_as_the_merged_model(
    begun: Trained, wardrobe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lora = fitted(read_lora(begun.folder / LORA), str(TINY_FLUX_FILL))
    write_fused(lora, TINY_FLUX_FILL / "transformer", torch.float32, tmp_path / "merged")
    flags = [*SAME, "--max_train_steps", 1, *NO_PICTURES]
    found = train(wardrobe, tmp_path / "out", *flags, "--lora", begun.folder)
    base = ["--pretrained_inpaint_model_name_or_path", tmp_path / "merged"]
    wanted = train(wardrobe, tmp_path / "wanted", *flags, *base)
    assert found.code == wanted.code == 0, found.err
    assert abs(found.losses[0][1] - wanted.losses[0][1]) < 1e-6 < abs(begun.losses[0][1] - wanted.losses[0][1])
    assert found.record["started_from"]["sha256"] == lora.sha256 and "Starting from the LoRA" in caplog.text
    own = train(wardrobe, tmp_path / "own", "--lora", begun.folder, script=SCRIPTS / "native_lora.py")
    assert own.code == 2 and "--lora" in own.problem


@pytest.fixture(scope="module")
def half(wardrobe: Path, module: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Two steps in bf16 with pictures as often as can be, no checkpoints, and another prompt in the script."""
    flags = "--max_train_steps 2 --checkpointing_steps 0 --validation_steps 1 --mixed_precision bf16".split()
    with mock.patch.object(module, "PROMPT", OWN_PROMPT):
        done = train(wardrobe, tmp_path_factory.mktemp("half") / "out", *flags)
    assert done.code == 0, done.err
    return done


ACCUMULATED = "--train_batch_size 1 --gradient_accumulation_steps 2 --balance_cloth_types --report_to none "
ACCUMULATED += "--max_grad_norm 0 --checkpointing_steps 1 --checkpoints_total_limit 1 --validation_steps 0"


@pytest.fixture(scope="module")
def accumulated(wardrobe: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Two steps of two passes with nothing to report to and no clipping."""
    folder = tmp_path_factory.mktemp("accumulated") / "out"
    done = train(wardrobe, folder, *ACCUMULATED.split(), "--max_train_steps", 2)
    assert done.code == 0, done.err
    return done


# ---- what a run leaves


def test_a_run_leaves_what_the_design_promises(whole: Trained) -> None:
    names = {path.name for path in whole.folder.iterdir()}
    assert names == {"README.md", "checkpoint-4", "checkpoint-5", "logs", LORA, "run.json", "validation"}
    closing = whole.out.strip().splitlines()
    assert [line.split()[0] for line in closing] == ["LoRA", "pictures", "report", "curves", "next"]
    assert str(whole.folder / LORA) in closing[0] and "step-5.png" in closing[1]
    assert any(path.name.startswith("events.out.tfevents") for path in (whole.folder / "logs").rglob("*"))
    card = (whole.folder / "README.md").read_text("utf-8")
    for part in ("validation/step-5.png", "| `lora_rank` | 4 |", "load_lora_weights", "non-commercial"):
        assert part in card


def test_the_lora_loads_in_diffusers_and_changes_the_output(whole: Trained) -> None:
    from diffusers import FluxFillPipeline

    pipeline = FluxFillPipeline.from_pretrained(TINY_FLUX_FILL)
    pipeline.set_progress_bar_config(disable=True)
    picture, mask = Image.new("RGB", (192, 128), "white"), Image.new("L", (192, 128), 255)

    def draw() -> torch.Tensor:
        return pipeline(
            "a shirt", image=picture, mask_image=mask, height=128, width=192, num_inference_steps=1,
            max_sequence_length=96, generator=torch.Generator().manual_seed(0), output_type="latent",
        ).images  # fmt: skip

    plain = draw()
    pipeline.load_lora_weights(whole.folder)
    assert (draw() - plain).abs().max() > 0.01


def metadata(folder: Path) -> dict[str, str]:
    with safe_open(folder / LORA, framework="pt") as file:
        return file.metadata()


def test_the_metadata_is_that_of_the_run_and_the_prompt_that_of_the_script(whole: Trained, half: Trained) -> None:
    said = metadata(whole.folder)
    expected = {"rank": "4", "alpha": "4", "guidance_scale": "2.5", "height": "128", "width": "96"}
    assert {name: said[name] for name in expected} == expected
    assert said["base_model"] == said["transformer"] == str(TINY_FLUX_FILL)
    assert said["prompt"] == trainer.DEFAULT_PROMPT
    assert metadata(half.folder)["prompt"] == half.record["arguments"]["instance_prompt"] == OWN_PROMPT


def test_the_run_is_on_record(whole: Trained) -> None:
    run = whole.record
    assert (run["status"], run["step"], run["world_size"], run["resumed_from_step"]) == ("done", 5, 1, None)
    wanted = {"lora_rank": 4, "lora_alpha": 8.0, "max_train_steps": 5, "train_batch_size": 2, "preset": "quick_test"}
    wanted |= {"checkpoints_total_limit": 2, "validation_steps": 2, "checkpointing_steps": 2, "seed": 42}
    wanted |= {"num_inference_steps": 1, "num_validation_images": 2, "mixed_precision": "no", "max_grad_norm": 1.0}
    assert {name: run["arguments"][name] for name in wanted} == wanted
    assert run["upstream"]["script"] == str(SCRIPT)
    assert run["upstream"]["sha256"] == hashlib.sha256(SCRIPT.read_bytes()).hexdigest()
    assert run["upstream"]["lora"] == "adapter"
    assert run["trainable_parameters"] == sum(weight.numel() for weight in whole.lora().values())
    assert run["dataset"]["train"]["fingerprint"] != run["dataset"]["validation"]["fingerprint"]
    assert set(run["dataset"]["train"]["by_type"]) == {"upper", "lower", "full"}
    assert run["seconds_per_step"] > 0 and run["weights"] == LORA


def test_the_whole_pipeline_is_neither_saved_nor_loaded_again(whole: Trained, resumed: Trained) -> None:
    folders = {path.name for path in whole.folder.rglob("*") if path.is_dir()}
    assert not folders & {"transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "scheduler"}
    assert [path.name for path in whole.folder.rglob("*.safetensors") if path.parent == whole.folder] == [LORA]
    assert whole.transformers == resumed.transformers == 1
    assert {source for source, _ in whole.pipelines} == {str(TINY_FLUX_FILL)}
    assert all({"transformer", "vae", "text_encoder", "text_encoder_2"} <= parts for _, parts in whole.pipelines)
    assert len(whole.pipelines) == 3
    assert resumed.pipelines == []


def test_the_losses_of_every_step_are_written(whole: Trained) -> None:
    assert [step for step, _ in whole.losses] == [1, 2, 3, 4, 5]
    assert [loss for _, loss in whole.losses] == pytest.approx(whole.run.every_loss)
    assert whole.losses[-1][1] < whole.losses[0][1]


# ---- what is trained


def layers_of_every_block() -> set[str]:
    """Layers of attention and of feed-forward in every block of the base, by their weights in its file."""
    with safe_open(BASE, "pt") as file:
        names = {name.removesuffix(".weight") for name in file.keys() if name.endswith(".weight")}  # noqa: SIM118
    inside = {name for name in names if "transformer_blocks." in name and ".norm" not in name}
    return {name for name in inside if not name.endswith(("norm_q", "norm_k", "norm_added_q", "norm_added_k"))}


@pytest.mark.parametrize("which", ["whole", "half", "accumulated"])
def test_a_lora_in_every_layer_of_every_block_is_trained_in_fp32(which: str, request: pytest.FixtureRequest) -> None:
    weights = request.getfixturevalue(which).lora()
    layers = {name.removeprefix("transformer.").rsplit(".lora_", 1)[0] for name in weights}
    assert layers == layers_of_every_block()
    assert {"single_transformer_blocks.1.attn.to_q", "single_transformer_blocks.1.proj_mlp"} <= layers
    assert {"transformer_blocks.0.ff.net.2", "transformer_blocks.0.ff_context.net.0.proj"} <= layers
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    unmoved = [name for name, weight in weights.items() if ".lora_B." in name and not weight.any()]
    assert unmoved == []
    assert all(not torch.equal(weight, weight.bfloat16().float()) for weight in weights.values())


@pytest.mark.parametrize(("which", "dtype"), [("whole", torch.float32), ("half", torch.bfloat16)])
def test_the_base_stays_as_it_was_bit_for_bit(
    which: str, dtype: torch.dtype, before: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(which).run.model
    held = {
        name.replace(".base_layer.", "."): parameter
        for name, parameter in torch.nn.Module.named_parameters(model)
        if name not in model.adapter_names
    }
    file = load_file(BASE)
    assert held.keys() == file.keys()
    assert [name for name, value in file.items() if not torch.equal(held[name], value.to(dtype))] == []
    assert not any(parameter.requires_grad for parameter in held.values())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert hashlib.sha256(BASE.read_bytes()).hexdigest() == before["base"]


# ---- pictures and checkpoints


def test_pictures_come_one_step_after_every_n(whole: Trained, half: Trained, seen: Trained) -> None:
    assert whole.pictures() == {"step-1.png", "step-3.png", "step-5.png"}
    assert half.pictures() == {"step-1.png"}
    assert seen.pictures() == {"step-3.png"}


def test_no_pictures_and_no_checkpoints_where_none_are_wanted(begun: Trained, half: Trained) -> None:
    assert begun.pictures() == set() and begun.record["arguments"]["validation_steps"] == 0
    assert "none: --validation_steps 0" in begun.out
    assert not list(half.folder.glob("*checkpoint*")) and half.record["arguments"]["checkpointing_steps"] == 0


def test_a_sheet_shows_garment_masked_person_result_and_truth(whole: Trained) -> None:
    samples = whole.run.samples
    assert len(samples) == 2
    with Image.open(whole.folder / "validation" / "step-3.png") as file:
        sheet = file.convert("RGB")
    assert sheet.size == (4 * (192 + 6) + 6, 22 + 2 * (22 + 256 + 6))  # pictures enlarged twice, gaps of 6, lines of 22
    for row, sample in enumerate(samples):
        boxes = [(6 + column * 198, 44 + row * 284) for column in range(4)]
        shown = [sheet.crop((left, top, left + 192, top + 256)).resize((96, 128), 0) for left, top in boxes]
        known = [sample["cloth_pure"], sample["im_mask"][..., 96:], None, sample["image"][..., 96:]]
        for picture, tensor in zip(shown, known, strict=True):
            if tensor is not None:
                assert picture.tobytes() == trainer.to_picture(tensor).tobytes()
        assert shown[2].tobytes() not in {shown[1].tobytes(), shown[3].tobytes()}


def test_the_samples_of_validation_are_as_many_as_wanted_and_of_several_types(whole: Trained) -> None:
    data = whole.run.datasets["validation"]
    names = [data[row]["im_name"] for row in trainer.validation_rows(data, 2)]
    assert [sample["im_name"] for sample in whole.run.samples] == names
    assert len({sample["cloth_type"] for sample in whole.run.samples}) == 2


def test_a_checkpoint_holds_a_lora_and_its_optimizer_and_not_the_base(whole: Trained) -> None:
    files = {path.name: path.stat().st_size for path in (whole.folder / "checkpoint-4").iterdir()}
    assert set(files) == {LORA, "optimizer.bin", "scheduler.bin", "random_states_0.pkl", "manifest.json"}
    assert files["optimizer.bin"] < 3 * files[LORA]
    moments = torch.load(whole.folder / "checkpoint-4" / "optimizer.bin", weights_only=True)["state"]
    assert len(moments) == len(whole.lora())
    assert_same_lora(published(whole.lora("checkpoint-5")), whole.lora())


# ---- continuing


@pytest.fixture(scope="module")
def seen(begun: Trained, wardrobe: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """``begun``, continued to step 4 with pictures after step 3."""
    folder = copied(begun, tmp_path_factory.mktemp("seen") / "out")
    flags = ["--max_train_steps", 4, "--validation_steps", 2, "--num_validation_images", 1]
    done = train(wardrobe, folder, *SAME, *flags, "--resume_from_checkpoint", folder / "checkpoint-2")
    assert done.code == 0, done.err
    return done


def published(trained: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What is trained with alpha 8 and rank 4, as a reader that knows no alpha must find it."""
    return {name: weight * 2 if ".lora_B." in name else weight for name, weight in trained.items()}


def assert_same_lora(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_a_run_that_continues_is_the_run_that_never_stopped(whole: Trained, resumed: Trained, seen: Trained) -> None:
    assert resumed.losses == whole.losses
    assert_same_lora(resumed.lora(), whole.lora())
    assert seen.losses == whole.losses[:4]
    assert_same_lora(seen.lora(), published(whole.lora("checkpoint-4")))
    assert (resumed.run.first_step, resumed.record["resumed_from_step"]) == (2, 2)
    assert {path.name for path in resumed.folder.glob("checkpoint-*")} == {
        *("checkpoint-4", "checkpoint-5", "checkpoint-500-tmp")
    }


def test_a_finished_run_is_not_continued(whole: Trained, wardrobe: Path) -> None:
    record = (whole.folder / "run.json").read_bytes()
    done = train(wardrobe, whole.folder, *SAME, "--max_train_steps", 5, "--resume_from_checkpoint", "latest")
    assert done.code == 1
    assert "is at step 5 of 5: raise --max_train_steps" in done.problem
    assert (whole.folder / "run.json").read_bytes() == record


def test_a_run_that_was_killed_after_its_last_checkpoint_is_completed(
    begun: Trained, wardrobe: Path, tmp_path: Path
) -> None:
    """No step is left in which the script would encode its prompt, or that could be timed."""
    folder = copied(begun, tmp_path / "out")
    for name in (LORA, "README.md"):
        (folder / name).unlink()
    (folder / "run.json").write_text(json.dumps(begun.record | {"status": "running"}))
    flags = ["--max_train_steps", 2, *NO_PICTURES, "--resume_from_checkpoint", "latest"]
    done = train(wardrobe, folder, *SAME, *flags)
    assert done.code == 0, done.err
    assert_same_lora(done.lora(), begun.lora())
    said = [metadata(each) for each in (folder, begun.folder)]
    assert said[0] == said[1] and said[0]["prompt"]
    cards = [(each / "README.md").read_text() for each in (folder, begun.folder)]
    assert cards[0] == cards[1]
    assert done.record["status"] == "done"


@pytest.fixture(scope="module")
def refused(begun: Trained, wardrobe: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """``begun``, which is not continued with another LoRA."""
    folder = copied(begun, tmp_path_factory.mktemp("refused") / "out")
    flags = ["--max_train_steps", 3, *NO_PICTURES, "--resume_from_checkpoint", "latest", "--lora_rank", 2]
    return train(wardrobe, folder, *SAME, *flags)


def test_another_lora_is_not_continued(refused: Trained, begun: Trained) -> None:
    assert refused.code == 1
    assert refused.problem.endswith("holds another LoRA than these flags make: rank 4, not 2")
    assert_same_lora(refused.lora(), begun.lora())


def test_a_refused_lora_leaves_the_record_of_the_earlier_run(refused: Trained, begun: Trained) -> None:
    assert refused.record == begun.record


def test_a_fresh_run_never_lands_on_an_earlier_one(begun: Trained, wardrobe: Path, module: ModuleType) -> None:
    done = train(wardrobe, begun.folder, "--max_train_steps", 2)
    assert done.code == 1 and done.run is None
    assert "holds an earlier run (checkpoint-2)" in done.problem and done.err.count("\n") == 1


def test_a_bad_checkpoint_is_refused_before_anything_is_loaded(wardrobe: Path, tmp_path: Path) -> None:
    made = tmp_path / "ours" / "checkpoint-3"
    made.mkdir(parents=True)
    for file in (LORA, "training_state.json"):
        (made / file).touch()
    checkpoints.seal(made)
    done = train(wardrobe, tmp_path / "ours", "--resume_from_checkpoint", made)
    assert (done.code, done.transformers, done.err.count("\n")) == (1, 0, 1)
    assert "was written by train_flux_inpaint.py" in done.problem


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("out/checkpoint-3", ("optimizer.bin",), "is no checkpoint-<step> with a LoRA in --output_dir"),
        ("out/other", (LORA,), "is no checkpoint-<step> with a LoRA in --output_dir"),
        ("else/checkpoint-3", (LORA,), "is no checkpoint-<step> with a LoRA in --output_dir"),
        ("out/checkpoint-3", (LORA,), "is at step 3 of 2: raise --max_train_steps"),
    ],
)
def test_a_checkpoint_that_cannot_be_continued_is_named(
    name: str, files: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / name
    folder.mkdir(parents=True)
    for file in files:
        (folder / file).touch()
    checkpoints.seal(folder)
    settings = Namespace(output_dir=str(tmp_path / "out"), resume_from_checkpoint=str(folder), max_train_steps=2)
    with pytest.raises(ValueError, match=message) as error:
        run_module.checkpoint_of(settings)
    assert str(folder) in str(error.value)


# ---- rows


class Rows:
    """A dataset of a hundred rows, with sampling weights."""

    def __init__(self, weights: list[float] | None, final: list[float] | None = None) -> None:
        self.weights, self.final = weights, final

    def __len__(self) -> int:
        return 100

    def __getitem__(self, row: int) -> int:
        return row

    def sampling_weights(self) -> list[float] | None:
        return self.weights

    def final_sampling_weights(self) -> list[float] | None:
        return self.final


def rows_given(weights: list[float] | None, final: list[float] | None = None, **settings: Any) -> list[int]:
    """Training rows that a script gets for 150 steps of batches of 4."""
    values = {"train_batch_size": 4, "gradient_accumulation_steps": 1, "max_train_steps": 150, "seed": 3}
    values |= {"output_dir": "out", "resume_from_checkpoint": None, "num_train_epochs": 1}
    values |= {"validation_steps": 5, "checkpointing_steps": 0, "max_grad_norm": 1.0, **settings}
    run = run_module.DrivenRun(Namespace(**values), lambda *_: Rows(weights, final), {})
    rows = run.build_dataset("anywhere", "train", data_list=run_module.TRAIN_LIST)
    return [rows[place] for place in range(len(rows))]


def test_rows_are_shuffled_whole_epochs_or_balanced() -> None:
    plain = rows_given(None)
    assert sorted(plain[:100]) == sorted(plain[100:200]) == list(range(100))
    assert plain[:100] != plain[100:200]
    rare = [row < 10 for row in rows_given([1 / 10] * 10 + [1 / 90] * 90)]
    assert 240 < sum(rare) < 360
    moving = [row < 10 for row in rows_given([0] * 10 + [1] * 90, [1] * 10 + [0] * 90)]
    assert not moving[0] and moving[-1] and 50 < sum(moving[200:400]) < 150 and sum(moving[500:]) > 80
    later = rows_given([0] * 10 + [1] * 90, [1] * 10 + [0] * 90, resume_from_checkpoint="x/checkpoint-149")
    assert all(row < 10 for row in later[3:])  # those after the run, too, which no step takes


def test_rows_are_as_many_as_the_run_takes_on_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    whole = rows_given(None)
    assert len(whole) == 150 * 4 * 2
    later = rows_given(None, resume_from_checkpoint="x/checkpoint-49")
    assert later[:800] == whole[49 * 8 :][:800]
    assert len(later) == 150 * 4 * 2  # scripts count epochs by the length of a whole run
    assert len(rows_given(None, max_train_steps=None, num_train_epochs=2)) == 25 * 8


def rows_of_our_trainer(done: Trained) -> list[str]:
    """Names of the rows that our own trainer's loader gives for the same settings and data."""
    one = SimpleNamespace(process_index=0, num_processes=1, device=torch.device("cpu"))
    loader = trainer.make_loader(done.run.datasets["train"], done.run.settings, one, done.run.first_step)
    return [name for batch in loader for name in batch["im_name"]]


@pytest.mark.parametrize(("which", "count"), [("whole", 10), ("resumed", 6), ("accumulated", 4), ("further", 2)])
def test_the_rows_are_those_of_our_own_trainer(which: str, count: int, request: pytest.FixtureRequest) -> None:
    done = request.getfixturevalue(which)
    assert count <= len(done.run.names) <= count + 2  # a loader reads one batch ahead
    assert done.run.names[:count] == rows_of_our_trainer(done)


def test_a_continued_run_goes_on_at_the_next_row(whole: Trained, resumed: Trained) -> None:
    assert resumed.run.names[:6] == whole.run.names[4:]
    assert whole.run.names != sorted(whole.run.names)


# ---- accumulation, clipping, reporting


@pytest.fixture(scope="module")
def further(accumulated: Trained, wardrobe: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = copied(accumulated, tmp_path_factory.mktemp("further") / "out")
    done = train(wardrobe, folder, *ACCUMULATED.split(), "--max_train_steps", 3, "--resume_from_checkpoint", "latest")
    assert done.code == 0, done.err
    return done


def test_a_step_of_two_passes_is_one_line_with_their_mean(accumulated: Trained, further: Trained) -> None:
    passes = accumulated.run.every_loss
    assert len(passes) == 4 and passes[0] != passes[1]
    assert [step for step, _ in accumulated.losses] == [1, 2]
    assert [loss for _, loss in accumulated.losses] == pytest.approx([sum(passes[:2]) / 2, sum(passes[2:]) / 2])
    assert further.losses[:2] == accumulated.losses and [step for step, _ in further.losses] == [1, 2, 3]


def test_only_the_newest_checkpoint_is_kept_where_one_is_wanted(accumulated: Trained, further: Trained) -> None:
    assert [path.name for path in accumulated.folder.glob("*checkpoint-*")] == ["checkpoint-2"]
    assert [path.name for path in further.folder.glob("*checkpoint-*")] == ["checkpoint-3"]


def test_nothing_is_reported_where_nothing_is_wanted(accumulated: Trained) -> None:
    assert [path.name for path in (accumulated.folder / "logs").rglob("*") if "tfevents" in path.name] == []
    assert accumulated.record["arguments"]["report_to"] == "none"


# ---- what is patched, and failures


def test_the_global_arguments_are_there_while_main_runs(whole: Trained, module: ModuleType) -> None:
    assert whole.run.global_args is whole.run.script_args
    assert not hasattr(module, "args")


def test_nothing_stays_after_a_run(whole: Trained, half: Trained, module: ModuleType, before: dict[str, Any]) -> None:
    assert_nothing_stays(module, before)


@contextlib.contextmanager
def dying_at(step: int, error: BaseException) -> Iterator[None]:
    """accelerate's ``save_state`` dies half-way in the checkpoint of ``step``."""
    from accelerate import Accelerator

    save_state = Accelerator.save_state

    def dying(self: Any, output_dir: str, **kwargs: Any) -> str:
        if output_dir.endswith(f"-{step}"):
            Path(output_dir).mkdir(exist_ok=True)
            (Path(output_dir) / LORA).write_text("half")
            raise error
        return save_state(self, output_dir, **kwargs)

    with mock.patch.object(Accelerator, "save_state", dying):
        yield


def test_dying_in_a_checkpoint_costs_no_earlier_one(
    wardrobe: Path, module: ModuleType, before: dict[str, Any], tmp_path: Path
) -> None:
    flags = ["--max_train_steps", 3, "--checkpointing_steps", 1, "--checkpoints_total_limit", 1, *NO_PICTURES]
    with dying_at(2, OSError(28, "no space left")):
        done = train(wardrobe, tmp_path / "out", *flags)
    assert done.code == 1 and "no space left" in done.problem
    assert [path.name for path in done.folder.glob("checkpoint-*")] == ["checkpoint-1"]
    assert len(list((done.folder / "checkpoint-1").iterdir())) == 5
    assert done.record["status"] == "failed"
    assert not (done.folder / LORA).exists()
    assert_nothing_stays(module, before)
    again = train(wardrobe, tmp_path / "out", *flags, "--resume_from_checkpoint", "latest")
    assert again.code == 0 and again.record["status"] == "done"
    assert [step for step, _ in again.losses] == [1, 2, 3]
    assert [path.name for path in again.folder.iterdir() if "checkpoint-" in path.name] == ["checkpoint-3"]


def test_ctrl_c_leaves_nothing_patched(
    wardrobe: Path, module: ModuleType, before: dict[str, Any], tmp_path: Path
) -> None:
    with dying_at(1, KeyboardInterrupt()):
        done = train(wardrobe, tmp_path / "out", "--max_train_steps", 1, "--checkpointing_steps", 1, *NO_PICTURES)
    assert (done.code, done.out) == (130, "")
    assert done.run.global_args is not None
    assert not list(done.folder.glob("checkpoint-*"))
    assert_nothing_stays(module, before)
    flags = ["--max_train_steps", 1, *NO_PICTURES, "--resume_from_checkpoint", "latest"]  # as a queue starts it again
    again = train(wardrobe, tmp_path / "out", *flags)
    assert again.code == 0, again.err
    assert [step for step, _ in again.losses] == [1] and again.record["status"] == "done"


def test_a_loss_that_is_not_finite_stops_the_run_in_one_line(
    wardrobe: Path, module: ModuleType, before: dict[str, Any], tmp_path: Path
) -> None:
    flags = ["--max_train_steps", 3, "--checkpointing_steps", 1, "--learning_rate", "1e30", *NO_PICTURES]
    done = train(wardrobe, tmp_path / "out", *flags)
    assert done.code == 1
    assert done.problem == "the loss is not finite at step 2: lower --learning_rate"
    assert all(math.isfinite(loss) for _, loss in done.losses)
    for folder in done.folder.glob("checkpoint-*"):
        assert all(weight.isfinite().all() for weight in done.lora(folder.name).values())
    assert not (done.folder / "checkpoint-2").exists() and not (done.folder / LORA).exists()
    assert_nothing_stays(module, before)


def test_gradients_that_are_not_finite_are_never_saved(
    wardrobe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Spoiled(Recorder):
        def add_loss(self, loss: torch.Tensor) -> None:
            super().add_loss(loss)
            self.parameters[0].register_hook(lambda gradient: gradient * math.nan)

    monkeypatch.setattr(sys.modules[__name__], "Recorder", Spoiled)
    done = train(wardrobe, tmp_path / "out", "--max_train_steps", 1, "--checkpointing_steps", 1, *NO_PICTURES)
    saved = [load_file(path) for path in done.folder.rglob(LORA)]
    assert all(weight.isfinite().all() for weights in saved for weight in weights.values())
    assert done.code == 1


@pytest.mark.parametrize(
    ("main", "message"),
    [
        (lambda args: None, "has ended without taking a step"),
        (lambda args: 1 / 0, "ZeroDivisionError: division by zero (--debug shows the traceback)"),
    ],
)
def test_a_script_that_does_not_train_is_no_success(
    main: Callable[..., Any], message: str, wardrobe: Path, module: ModuleType, before: dict[str, Any], tmp_path: Path
) -> None:
    main.__module__ = module.__name__  # it looks names up in the script
    with mock.patch.object(module, "main", main):
        done = train(wardrobe, tmp_path / "out", "--max_train_steps", 1)
    assert done.code == 1 and done.problem.endswith(message)
    assert not (tmp_path / "out" / LORA).exists()
    assert_nothing_stays(module, before)


# ---- scripts of other kinds


def test_shares_of_types_are_refused_where_the_order_is_the_scripts(wardrobe: Path, tmp_path: Path) -> None:
    for flag in ("--cloth_type_shares", "--final_cloth_type_shares"):
        done = train(wardrobe, tmp_path / "out", flag, "1,1,1", script=SCRIPTS / "native_lora.py")
        assert done.code == 2 and flag in done.err and not (tmp_path / "out").exists()


def test_a_script_with_a_lora_of_its_own_trains_it_itself(wardrobe: Path, tmp_path: Path) -> None:
    done = train(wardrobe, tmp_path / "out", "--max_train_steps", 3, script=SCRIPTS / "native_lora.py")
    assert done.code == 0, done.err
    assert done.run is None
    assert set(done.lora()) == {"transformer.to_q.lora_A.weight", "transformer.to_q.lora_B.weight"}
    assert done.out == f"\n{SCRIPTS / 'native_lora.py'} has ended; what it has written is in {tmp_path / 'out'}\n"


def test_the_least_of_a_script_runs_with_our_rows(wardrobe: Path, tmp_path: Path) -> None:
    text = """
import argparse
class VitonHDTestDataset: pass
def parse_args(input_args=None):
    parser = argparse.ArgumentParser()
    for name in ("dataroot", "output_dir"):
        parser.add_argument("--" + name)
    return parser.parse_args(input_args)
def main(args):
    rows = VitonHDTestDataset(dataroot_path=args.dataroot, phase="train", order="paired", size=(128, 96), data_list="x")
    assert rows[0]["image"].shape == (3, 128, 192)
    print(len(rows))
"""
    script = tmp_path / "least_script.py"
    script.write_text(text, "utf-8")
    done = train(wardrobe, tmp_path / "out", script=script)
    assert done.code == 0, done.err
    rows, *closing = done.out.splitlines()
    assert int(rows) > 10
    assert closing == ["", f"{script} has ended; what it has written is in {tmp_path / 'out'}"]
    assert "without effect in this script: " in done.err and "--max_train_steps " in done.err


def test_pictures_are_drawn_without_dropout(tmp_path: Path) -> None:
    model, modes = torch.nn.Dropout(0.5), []

    class Pipeline:
        transformer, vae = model, SimpleNamespace(decode=None, dtype=torch.float32)

        def to(self, _: torch.device) -> Pipeline:
            return self

        def __call__(self, **_: Any) -> SimpleNamespace:
            modes.append(model.training)
            return SimpleNamespace(images=[])

    settings = Namespace(num_inference_steps=1, guidance_scale=1.0, max_sequence_length=8, seed=0)
    alone = SimpleNamespace(device=torch.device("cpu"), is_main_process=True)
    run: Any = SimpleNamespace(model=model, folder=tmp_path, settings=settings, accelerator=alone)
    drawing = pipeline_module.PipelineOnDemand(run, "base")
    vars(drawing)["pipeline"] = Pipeline()
    drawing()
    assert modes == [False] and model.training


# ---- as a user types it

NOTING = """
import json, os, sys
import torch
from deepfashion_training import train_deepfashion_lora as wrapper
from deepfashion_training.upstream.driven_run import DrivenRun

add_loss = DrivenRun.add_loss
def noting(self, loss):
    with open(sys.argv[1] + os.environ["RANK"], "a") as file:
        state = torch.get_rng_state().float().pow(2).sum().item()
        file.write(json.dumps([os.environ["WORLD_SIZE"], state, loss.item()]) + "\\n")
    add_loss(self, loss)
DrivenRun.add_loss = noting
sys.exit(wrapper.main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.long
def test_two_ranks_continue_one_lora_with_noise_of_their_own(begun: Trained, wardrobe: Path, tmp_path: Path) -> None:
    code, out = tmp_path / "noting.py", copied(begun, tmp_path / "out")
    code.write_text(NOTING, "utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE")}
    environment |= {"HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", code]
    command += [tmp_path / "rank", "--preset", "quick_test", "--embedded", "--upstream", SCRIPT, "--output_dir", out]
    command += [*SMALL, *SAME, "--train_batch_size", "1", "--checkpointing_steps", "1", "--dataset_name", wardrobe]
    command += [*NO_PICTURES, "--max_train_steps", "4", "--resume_from_checkpoint", "latest"]
    process = subprocess.Popen(
        list(map(str, command)), cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        said, error = process.communicate(timeout=150)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its ranks
        pytest.fail(f"the ranks wait for each other: {process.communicate()[1][-1000:]}")
    assert process.returncode == 0, error
    run = json.loads((out / "run.json").read_text("utf-8"))
    assert (run["world_size"], run["step"], run["resumed_from_step"], run["status"]) == (2, 4, 2, "done")
    assert [path.name for path in out.glob("*.safetensors")] == [LORA] and said.count("LoRA  ") == 1
    assert {path.name for path in out.iterdir() if "checkpoint-" in path.name} == {"checkpoint-3", "checkpoint-4"}
    one, other = (
        [json.loads(line) for line in (tmp_path / f"rank{rank}").read_text("utf-8").splitlines()] for rank in (0, 1)
    )
    assert len(one) == len(other) == 2
    assert {world for world, _, _ in one + other} == {"2"}
    assert all(mine[1] != yours[1] for mine, yours in zip(one, other, strict=True))
    lines = [json.loads(line) for line in (out / "logs" / "losses.jsonl").read_text("utf-8").splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    means = [(mine[2] + yours[2]) / 2 for mine, yours in zip(one, other, strict=True)]
    assert [line["loss"] for line in lines[2:]] == pytest.approx(means)
    first, last = begun.lora(), load_file(out / LORA)
    assert all(not torch.equal(first[name], last[name]) for name in first)
