"""Guards of a training step and of what it writes: each test breaks what one guard checks."""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from conftest import forget_accelerator
from PIL import Image
from safetensors.torch import load_file

import train_flux_inpaint as tfi
from deepfashion_training import prepare
from deepfashion_training.models.lora_files import stored_dtype
from training_run import bases, guards
from training_run.state import read_state

SHORT = "--max_train_steps 3 --checkpointing_steps 1 --validation_steps 0 --report_to none --train_batch_size 1".split()


def run(args: argparse.Namespace) -> Path:
    forget_accelerator()
    try:
        tfi.main(args)
    finally:
        forget_accelerator()
    return Path(args.output_dir)


def test_one_step_that_is_not_finite_is_left_out_and_named(tiny_args, monkeypatch, caplog):
    loss_of, calls = tfi.flow_matching_loss, []

    def sometimes_broken(prediction: torch.Tensor, *rest: object) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(1)
        loss, regions = loss_of(prediction, *rest)
        return (loss * float("inf"), regions) if len(calls) == 2 else (loss, regions)

    monkeypatch.setattr(tfi, "flow_matching_loss", sometimes_broken)
    folder = run(tiny_args(*SHORT))
    facts = json.loads((folder / "run.json").read_text())
    assert (facts["status"], facts["skipped_steps"]) == ("done", 1)
    lines = [json.loads(line) for line in (folder / "logs" / "losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 3]  # no reading of step 2
    skipped = json.loads((folder / "logs" / "skipped.jsonl").read_text())
    assert skipped["step"] == 2 and skipped["loss"] == "inf" and skipped["rows"][0].endswith(".jpg")
    assert "Skipping" in caplog.text and skipped["rows"][0] in caplog.text
    weights = [load_file(folder / f"checkpoint-{step}" / tfi.LORA_FILE) for step in (1, 2, 3)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[1][name], weights[2][name]) for name in weights[0])


def test_no_step_is_left_out_when_none_may_be(tiny_args, monkeypatch):
    loss_of = tfi.flow_matching_loss
    monkeypatch.setattr(tfi, "flow_matching_loss", lambda *rest: (loss_of(*rest)[0] * float("nan"), loss_of(*rest)[1]))
    with pytest.raises(ValueError, match=r"not finite at step 1: .*--max_skipped_steps is 0"):
        run(tiny_args(*SHORT, "--max_skipped_steps", 0))


def test_a_run_that_took_no_step_is_not_done(tiny_args):
    """A loss that overflows: fewer steps than may be skipped, and every one of them is."""
    args = tiny_args(*SHORT, "--mask_loss_weight", 1e39, "--learning_rate", 1e-3)
    told = r"no step was taken.*logs/skipped\.jsonl.*--learning_rate"
    with pytest.raises(ValueError, match=told):
        run(args)
    folder = Path(args.output_dir)
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"
    assert not (folder / tfi.LORA_FILE).exists()
    args.resume_from_checkpoint = "latest"  # whose steps are all taken
    with pytest.raises(ValueError, match=told):
        run(args)
    assert not (folder / tfi.LORA_FILE).exists()


def scaled(monkeypatch: pytest.MonkeyPatch, scale: float, backoff: float) -> None:
    """Let runs scale gradients as in fp16, which a CPU has not: here in fp32, so that ``scale`` has to be large."""
    start = tfi.start

    def with_scaler(args: argparse.Namespace) -> tfi.Accelerator:
        accelerator = start(args)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, backoff_factor=backoff)
        return accelerator

    monkeypatch.setattr(tfi, "start", with_scaler)


def test_a_scaler_that_leaves_out_steps_until_it_has_found_its_scale_is_borne(tiny_args, monkeypatch):
    scaled(monkeypatch, 2.0**127, 2.0**-120)
    flags = [*SHORT, "--mask_loss_weight", 1000, "--max_skipped_steps", 0, "--lr_scheduler", "cosine"]
    folder = run(tiny_args(*flags))
    assert json.loads((folder / "run.json").read_text())["status"] == "done"
    weights = [load_file(folder / f"checkpoint-{step}" / tfi.LORA_FILE) for step in (1, 2, 3)]
    assert not any(weights[0][name].any() for name in weights[0] if ".lora_B." in name)  # the first was left out
    assert any(not torch.equal(weights[1][name], weights[2][name]) for name in weights[0])
    states = [read_state(folder / f"checkpoint-{step}") for step in (1, 2, 3)]
    assert [state["moved"] for state in states] == [False, True, True]
    assert [state["lr_scheduler"]["last_epoch"] for state in states] == [0, 1, 2]  # the schedule waits


def test_a_scaler_that_finds_no_scale_stops_the_run(tiny_args, monkeypatch):
    scaled(monkeypatch, 2.0**127, 0.999)
    monkeypatch.setattr(tfi, "SMALLEST_SCALE", 2.0**127 * 0.9985)
    with pytest.raises(ValueError, match="overflow fp16 at any scale"):  # at the second halving
        run(tiny_args(*SHORT, "--mask_loss_weight", 1000))
    monkeypatch.undo()
    scaled(monkeypatch, 2.0**127, 0.999)
    short = tiny_args(*SHORT, "--mask_loss_weight", 1000)
    with pytest.raises(ValueError, match="no step was taken"):
        run(short)
    assert not (Path(short.output_dir) / tfi.LORA_FILE).exists()


def test_fifty_halvings_are_more_than_any_gradient_needs():
    """Of fp16's finite numbers, the largest overflows no longer at the scale that is then left."""
    assert tfi.SMALLEST_SCALE == 2.0 ** (16 - 50)
    assert torch.tensor(65504.0, dtype=torch.float64) * tfi.SMALLEST_SCALE < 1e-5


#: What a GPU's libraries say when they find no memory, as their users report it.
NO_MEMORY = {
    "allocator": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cuda": torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cublas_handle": RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    "cublaslt": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasLtMatmul( ltHandle )`"),
    "cudnn8": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cudnn9": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "cudnn_workspace": RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in"),
    "convolution": NotImplementedError("GET was unable to find an engine to execute this computation"),
    "nccl": RuntimeError("NCCL error: unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'"),
}


@pytest.mark.parametrize("kind", NO_MEMORY)
def test_too_little_gpu_memory_names_the_flags_that_lower_it(tiny_args, monkeypatch, kind):
    monkeypatch.setattr(tfi, "predict_velocity", lambda *rest: (_ for _ in ()).throw(NO_MEMORY[kind]))
    args = tiny_args(*SHORT, "--train_batch_size", 2)
    with pytest.raises(ValueError, match="memory was too small") as told:
        run(args)
    for flag in ("--train_batch_size below 2", "--gradient_checkpointing", "--mixed_precision bf16", "--use_8bit_adam"):
        assert flag in str(told.value)
    assert "\n" not in str(told.value)
    # The words of other libraries are shown, as their errors can have other causes.
    assert (str(NO_MEMORY[kind]).splitlines()[0] in str(told.value)) == (kind != "allocator")
    assert guards.is_out_of_memory(told.value)  # for who catches it later
    facts = json.loads((Path(args.output_dir) / "run.json").read_text())
    assert facts["status"] == "failed" and facts["arguments"]["train_batch_size"] == 2  # nothing changed silently


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasGemmEx( handle, opa, opb )`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa, opb )`"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. Workers are out of shared memory."),
        ValueError("out of memory"),
    ],
    ids="access not_a_handle execution shared_memory other_type".split(),
)
def test_other_errors_are_not_taken_for_too_little_memory(error):
    assert not guards.is_out_of_memory(error)


def test_the_trainer_follows_no_accelerate_config(tiny_args, monkeypatch):
    """``Accelerator`` would take another compiler or number of passes from the environment, and train otherwise."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    args = tiny_args(*SHORT)
    with pytest.raises(ValueError, match="ACCELERATE_USE_FSDP=true"):
        run(args)
    assert not Path(args.output_dir).exists()


@pytest.fixture
def unusable_gpu(tmp_path, monkeypatch) -> Callable[..., None]:
    """A machine with a GPU that PyTorch cannot use, as ``nvidia-smi`` and CUDA tell it."""

    def make(smi: str, error: str, cuda: str | None = "13.0") -> None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n{smi}\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        for name in ("CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.cuda, "init", lambda: (_ for _ in ()).throw(RuntimeError(error)))

    return make


@pytest.mark.parametrize(
    ("smi", "error", "cuda", "named"),
    [
        ("echo 550.54.15", "driver is too old (found version 12040).\nmore", "13.0", ["550.54.15", "12040", "R580"]),
        ("echo 580.65", "No CUDA GPUs are available", "13.0", ["580.65", "No CUDA GPUs are available", "--gpus all"]),
        ("echo 580.65", "Torch not compiled with CUDA enabled", None, ["without CUDA", "pip install"]),
        ("echo mismatch; exit 18", "CUDA unknown error", "13.0", ["CUDA unknown error", "mismatch"]),
    ],
)
def test_what_keeps_pytorch_from_a_gpu_is_said(unusable_gpu, monkeypatch, smi, error, cuda, named):
    unusable_gpu(smi, error, cuda)
    for missing in ("--offload needs one", guards.NO_GPU):
        with pytest.raises(ValueError) as told:
            guards.check_gpu(missing, "add --embedded")
        message = str(told.value)
        assert "\n" not in message and "visible" not in message and "--embedded" in message
        assert all(what in message for what in [*named, torch.__version__, cuda or "without CUDA"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden on purpose
    assert guards.gpu_fault() is None


def test_pairs_are_not_made_without_a_parser_because_a_driver_is_old(unusable_gpu, tmp_path, capsys):
    unusable_gpu("echo 550.54.15", "driver is too old (found version 12040)")
    assert prepare.main(["--dataset_name", str(tmp_path), "--output_dir", str(tmp_path / "pairs")]) == 1
    said = capsys.readouterr().err
    assert "12040" in said and "--parser" in said and said.count("\n") == 1


@pytest.mark.parametrize("smi", ["echo No devices were found; exit 6", ""])
def test_a_machine_without_gpus_has_no_fault(unusable_gpu, monkeypatch, smi):
    unusable_gpu(smi, "No CUDA GPUs are available")
    if not smi:
        monkeypatch.setattr(shutil, "which", lambda name: None)
    assert guards.gpu_fault() is None
    with pytest.raises(ValueError, match="visible"):
        guards.check_gpu(guards.NO_GPU, "add --embedded")


@pytest.mark.parametrize("gpu", [True, False])
def test_compiled_blocks_need_a_compiler_and_pythons_headers(tiny_args, tmp_path, monkeypatch, gpu):
    """Triton's launcher on a GPU is C, Inductor's kernels on a CPU are C++; both include Python.h."""
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    (tmp_path / "Python.h").touch()
    tools = {"clang": "/bin/clang"} if gpu else {"g++": "/bin/g++"}
    monkeypatch.setattr(shutil, "which", tools.get)
    args = tiny_args(*SHORT, "--compile_blocks")
    assert guards.check_compiler(args) in tools.values()
    monkeypatch.setenv("CC" if gpu else "CXX", "mine-14 -O2")  # which wins, there or not
    with pytest.raises(ValueError, match="mine-14"):
        guards.check_compiler(args)
    tools["mine-14"] = "/bin/mine-14"
    assert guards.check_compiler(args) == "/bin/mine-14"
    (tmp_path / "Python.h").unlink()
    with pytest.raises(ValueError, match=f"{tmp_path}/Python.h.*--no-compile_blocks") as told:
        run(args)
    assert "mine-14" not in str(told.value) and not Path(args.output_dir).exists()
    tools.clear()
    with pytest.raises(ValueError, match=f"mine-14.*{tmp_path}/Python.h"):
        guards.check_compiler(args)


def test_too_little_shared_memory_is_known_at_the_start(tiny_args, tmp_path, monkeypatch):
    """Two workers with three batches each, and the one that is read: 24 MiB."""
    flags = "--dataloader_num_workers 2 --dataloader_prefetch_factor 3 --height 768 --width 576".split()
    args = tiny_args(*SHORT, *flags)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(guards, "SHARED_MEMORY", tmp_path)
    free = [20 * 2**20]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free[0]))
    with pytest.raises(ValueError, match=r"--shm-size=.*--dataloader_num_workers 0") as told:
        run(args)
    assert str(tmp_path) in str(told.value) and not Path(args.output_dir).exists()
    pair = 10 * 2**20
    free[0] = 7 * pair
    guards.check_shared_memory(args, pair)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # ranks of one machine share it
    with pytest.raises(ValueError, match="shm"):
        guards.check_shared_memory(args, pair)
    args.dataloader_num_workers = 0
    guards.check_shared_memory(args, pair)


@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_limit_counts_where_it_is_lower_than_the_machines(tmp_path, monkeypatch, version):
    """Pages of files are free; a limit may be none, or more than the machine has."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    assert guards.available_memory(tmp_path) == 1000
    folder = tmp_path if version == 2 else tmp_path / "memory"
    folder.mkdir(exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    total = "" if version == 2 else "total_"
    (folder / "memory.stat").write_text(f"anon 5\n{total}active_file 20\n{total}inactive_file 30\n")
    (folder / names[1]).write_text("250\n")
    for limit, found in (("400\n", 400 - 250 + 50), ("5000\n", 1000), ("100\n", 0)):
        (folder / names[0]).write_text(limit)
        assert guards.available_memory(tmp_path) == found
    if version == 2:
        (folder / names[0]).write_text("max\n")
        assert guards.available_memory(tmp_path) == 1000


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder_2"])
def test_a_damaged_base_is_named_before_anything_is_made(tiny_args, tiny_flux_fill, tmp_path, part):
    base = tmp_path / "base"
    shutil.copytree(tiny_flux_fill, base)
    (file,) = (base / part).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:20_000])
    models = ("--pretrained_model_name_or_path", base, "--pretrained_inpaint_model_name_or_path", base)
    args = tiny_args(*SHORT, *models)
    with pytest.raises(ValueError, match=f"{file} is damaged or incomplete"):
        run(args)
    assert not Path(args.output_dir).exists()


@pytest.mark.parametrize("content", ["", "{", '{"a": "\xff"}', "[" * 100_000], ids="empty open latin deep".split())
def test_a_damaged_configuration_of_a_base_is_named(tiny_args, tiny_flux_fill, tmp_path, content):
    base = tmp_path / "base"
    for name in ("transformer/config.json", "tokenizer/tokenizer_config.json", "model_index.json"):
        shutil.copytree(tiny_flux_fill, base)
        (base / name).write_bytes(content.encode("latin-1"))
        models = ("--pretrained_model_name_or_path", base, "--pretrained_inpaint_model_name_or_path", base)
        with pytest.raises(ValueError, match=f"^{base / name} is damaged or incomplete [^\n]+$"):
            run(tiny_args(*SHORT, *models))
        shutil.rmtree(base)


@pytest.mark.parametrize("name", ["tokenizer/tokenizer.json", "tokenizer_2/tokenizer.json"])
def test_a_damaged_tokenizer_is_named(tiny_flux_fill, tmp_path, name):
    base = Path(shutil.copytree(tiny_flux_fill, tmp_path / "base"))
    (base / name).write_bytes((base / name).read_bytes()[:9000])
    with pytest.raises(ValueError, match=f"{base / name} is damaged"):
        bases.check_base(str(base), str(tiny_flux_fill))
    (base / name).rename(base / name.replace("tokenizer.json", ".tokenizer.json"))  # another program's
    (base / "notes").mkdir()
    (base / "notes" / "any.json").write_text("[1]")
    bases.check_base(str(base), str(tiny_flux_fill))


@pytest.mark.parametrize("part", ["vae", "text_encoder", "text_encoder_2", "transformer"])
def test_a_part_without_weights_is_named(tiny_args, tiny_flux_fill, tmp_path, part):
    base = Path(shutil.copytree(tiny_flux_fill, tmp_path / "base"))
    (file,) = (base / part).glob("*.safetensors")
    file.unlink()
    models = ["--pretrained_model_name_or_path", base, "--pretrained_inpaint_model_name_or_path", base]
    args = tiny_args(*SHORT, *models)
    with pytest.raises(ValueError, match=f"^{base / part} has no weights .*safetensors"):
        run(args)
    assert not Path(args.output_dir).exists()
    if part == "transformer":
        bases.check_base(str(base), str(tiny_flux_fill))  # another one is trained


def test_a_transformer_of_its_own_without_weights_is_named(tiny_flux_fill, tmp_path):
    alone = Path(shutil.copytree(tiny_flux_fill / "transformer", tmp_path / "alone"))
    bases.check_base(str(tiny_flux_fill), str(alone))
    next(alone.glob("*.safetensors")).unlink()
    with pytest.raises(ValueError, match=f"^{alone} has no weights"):
        bases.check_base(str(tiny_flux_fill), str(alone))


@pytest.mark.parametrize("name", ["vae/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json"])
def test_a_git_lfs_pointer_in_a_base_is_named(tiny_flux_fill, tmp_path, name):
    base = Path(shutil.copytree(tiny_flux_fill, tmp_path / "base"))
    (base / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n")
    with pytest.raises(ValueError, match=f"^{base / name} is .*git lfs pull"):
        bases.check_base(str(base), str(tiny_flux_fill))


def test_what_a_mac_leaves_beside_weights_changes_nothing(tiny_flux_fill, tmp_path):
    base = Path(shutil.copytree(tiny_flux_fill, tmp_path / "base"))
    args = argparse.Namespace(
        pretrained_model_name_or_path=str(base), pretrained_inpaint_model_name_or_path=str(base), cache_dir=None,
        revision=None, inpaint_revision=None, lora=None,
    )  # fmt: skip
    before, dtype = bases.base_facts(args), stored_dtype(base / "transformer")
    for file in [path for path in base.rglob("*") if path.is_file()]:
        file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7")
    (base / ".DS_Store").write_bytes(b"Bud1")
    bases.check_base(str(base), str(base))
    assert (bases.base_facts(args), stored_dtype(base / "transformer")) == (before, dtype)
    for weights in (base / "vae").glob("diffusion*.safetensors"):
        weights.unlink()
    with pytest.raises(ValueError, match="has no weights"):
        bases.check_base(str(base), str(base))


@pytest.mark.parametrize("revision", [None, "v2"])
def test_a_damaged_file_in_the_cache_of_the_hub_is_named(tiny_args, tmp_path, revision):
    """Of the revision that is loaded; that the other parts are not there yet is no fault."""
    commits = {None: "c0ffee", "v2": "decaf0"}
    cached = tmp_path / "models--acme--fill"
    for each, commit in commits.items():
        (cached / "refs").mkdir(parents=True, exist_ok=True)
        (cached / "refs" / (each or "main")).write_text(commit)
        (cached / "snapshots" / commit / "vae").mkdir(parents=True)
        for name in ("model_index.json", "vae/config.json"):
            (cached / "snapshots" / commit / name).write_text("{}")
    bases.check_base("acme/fill", "acme/none", revision, None, tmp_path)
    bases.check_base("acme/fill", "/no/such/folder", revision, None, tmp_path)
    damaged = cached / "snapshots" / commits[revision] / "vae" / "config.json"
    damaged.write_text("")
    args = tiny_args(*SHORT, "--pretrained_model_name_or_path", "acme/fill", "--cache_dir", tmp_path)
    args.revision = revision
    with pytest.raises(ValueError, match=f"^{damaged} is damaged or incomplete .*Hub's cache, delete it first"):
        run(args)
    other = next(each for each in commits if each != revision)
    bases.check_base("acme/fill", "acme/none", other, None, tmp_path)


@pytest.mark.parametrize("kind", ["garbage", "eps", "bomb", "short", "pointer"])
def test_a_picture_that_is_none_is_named(tmp_path, kind):
    file, sink = tmp_path / "person.jpg", io.BytesIO()
    Image.new("L", (9000, 9000)).save(sink, "PNG")  # 81 million pixels in 80 kB
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"
    whole = io.BytesIO()
    Image.effect_noise((60, 80), 50).save(whole, "PNG")
    content = {"garbage": b"garbage", "eps": eps, "bomb": sink.getvalue(), "short": whole.getvalue()[:2000]}
    content["pointer"] = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n"
    file.write_bytes(content[kind])
    why = {"bomb": "9000x9000 pixels", "short": "truncated", "pointer": "git lfs pull"}.get(kind, "none of")
    with pytest.raises(ValueError, match=f"{file}: [^\n]*{why}[^\n]*$"):
        guards.read_picture(file, "RGB")


# --------------------------------------------------------------------------------------------- the LoRA that is written


@pytest.fixture
def moved_lora(tiny_flux_fill: Path, tiny_args: Callable[..., argparse.Namespace]) -> SimpleNamespace:
    """A LoRA in memory whose B matrices have moved."""
    transformer = tfi.FluxTransformer2DModel.from_pretrained(tiny_flux_fill / "transformer")
    args = tiny_args()
    tfi.make_trainable(transformer, args)
    matrices = {name: parameter for name, parameter in transformer.named_parameters() if "lora_B" in name}
    for parameter in matrices.values():
        torch.nn.init.constant_(parameter, 0.1)
    return SimpleNamespace(transformer=transformer, args=args, matrices=matrices)


def test_a_lora_that_is_not_finite_is_not_written(moved_lora, tmp_path):
    with torch.no_grad():
        next(iter(moved_lora.matrices.values()))[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite, so nothing is saved"):
        tfi.save_lora(moved_lora.transformer, moved_lora.args, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "flags",
    [
        "--learning_rate 0",
        "--lora_alpha 0",
        "--garment_loss_weight 0 --mask_loss_weight 0 --background_loss_weight 0",
        "--lr_power 2",
        "--lr_num_cycles 3 --lr_scheduler cosine",
        "--mode_scale 0.5",
        "--latents_dir there",
        "--logit_mean 1 --weighting_scheme mode",
        "--muon_ns_steps 3 --optimizer adamw",
        "--dataloader_prefetch_factor 3 --dataloader_num_workers 0",
        "--num_train_epochs 2 --max_train_steps 4",
        "--num_validation_images 2 --validation_steps 0",
        "--lora_rank 8 --train_base_model",
    ],
)
def test_what_can_teach_nothing_or_is_read_by_nobody_is_refused_at_the_start(flags, tiny_args, capsys):
    with pytest.raises(SystemExit) as stopped:
        tiny_args(*flags.split())
    message = capsys.readouterr().err
    assert stopped.value.code == 2 and flags.split()[0] in message and message.count("\n") == 1
