"""Settle on a GPU, within minutes and without any download, what only a GPU can settle; exit 1 when something fails.

    python benchmarks/gpu_check.py [--size tiny|full] [--minutes 9] [--json F]

The checks run one after another, most important first, each in a process and under a time limit of its own. Table and
JSON grow with each of them, so that a run that was cut off still tells. ``full`` takes models of FLUX.1-Fill's size
with random weights, ``tiny`` the embedded one, also on a CPU, where it leaves out by name what only a GPU shows.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # `python benchmarks/gpu_check.py` has only this folder on its path
#: Import names of what every check needs.
NEEDED = "torch diffusers transformers accelerate peft safetensors huggingface_hub numpy PIL psutil tqdm yaml".split()
if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
    sys.exit(f"gpu_check: these packages are missing: {', '.join(missing)}; pip install -r requirements.txt")
os.environ["HF_HUB_OFFLINE"] = "1"
# All checks are forked from this process, which imports the libraries once. CUDA must not begin in it, as it would not
# work in any of them. So PyTorch asks the driver's own library whether there is a GPU.
os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"

from deepfashion_training.cli import describe, load_preset, quiet_libraries  # noqa: E402


def capability(_: Any = None) -> tuple[int, int]:
    """Compute capability of the first GPU, as ``torch.cuda.get_device_capability`` has it, without CUDA."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader", "--id=0"]
    major, _, minor = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().partition(".")
    return int(major), int(minor)


import torch  # noqa: E402

with mock.patch.object(torch.cuda, "get_device_capability", capability):  # bitsandbytes asks while it is imported
    quiet_libraries()  # imports diffusers, which imports bitsandbytes where it is there
    if importlib.util.find_spec("bitsandbytes"):
        importlib.import_module("bitsandbytes")

import psutil  # noqa: E402
from torch.utils.data import default_collate  # noqa: E402

import train_flux_inpaint as trainer  # noqa: E402
from benchmarks.train_step import EMBEDDED, NoiseRows, random_models, transformer_config  # noqa: E402
from deepfashion_training import run_arguments, tryon  # noqa: E402
from training_run import guards, speed  # noqa: E402
from training_run.atomic import write_file  # noqa: E402
from training_run.flags import QUANTIZED_BY, number  # noqa: E402
from training_run.flops import FLUX_FILL, matmul_ceiling, useful_flops  # noqa: E402
from training_run.memory import predict  # noqa: E402
from training_run.record import package_versions  # noqa: E402
from training_run.sheets import to_picture  # noqa: E402
from training_run.stopping import Stopping, TerminatedError, end_with_parent, terminable  # noqa: E402
from training_run.transfer import bytes_of_pair  # noqa: E402

GIB = 2**30
#: Optimizer steps by size; the first one also starts workers, compiles and chooses kernels, and is not counted.
STEPS = {"tiny": 2, "full": 3}
#: Columns of the table: name, result, seconds, and the rest of 100.
TABLE = "{:<12}{:<11}{:>5}  "
WIDTH = 100
#: Flags of a preset that a CPU does without here.
GPU_FLAGS = {"compile_blocks", "quantize_base", "use_8bit_adam"}
#: Less than so many seconds are not enough for any check.
SHORTEST = 5.0


# ---------------------------------------------------------------------------------------- a check, and how it is run


class CannotRunError(Exception):
    """This machine cannot run a check, and why."""


@dataclass(frozen=True)
class Trial:
    """What a check gets: the size of its models, an empty folder, and what the checks before it have found by name."""

    size: str
    folder: Path
    known: dict[str, dict[str, Any]] = field(default_factory=dict)

    def note(self, **facts: Any) -> None:
        """Keep facts, also when the check is cut short; ``said`` is the line for people."""
        with (self.folder / "facts.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(facts) + "\n")

    def noted(self) -> dict[str, Any]:
        """All facts so far."""
        path, facts = self.folder / "facts.jsonl", dict[str, Any]()
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            with contextlib.suppress(ValueError):  # the last line of a process that was killed
                facts |= json.loads(line)
        return facts


@dataclass(frozen=True)
class Check:
    """A check: it holds unless ``work`` raises. ``limit`` is in seconds, ``needs`` names packages beside the usual."""

    name: str
    limit: float
    work: Callable[[Trial], None]
    needs: tuple[str, ...] = ()


def in_its_process(check: Check, trial: Trial) -> None:
    """Work on a check, note how it ended, and write what is printed meanwhile to the log in its folder."""
    os.setsid()  # so that it ends with all that it has started
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)
    end_with_parent()
    log = (trial.folder / "log.txt").open("w", buffering=1, encoding="utf-8")
    for stream in (1, 2):  # for what is written by processes that this one starts
        os.dup2(log.fileno(), stream)
    sys.stdout = sys.stderr = log
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        if absent := [package for package in check.needs if importlib.util.find_spec(package) is None]:
            raise CannotRunError(f"the package {absent[0]} is missing")
        check.work(trial)
        trial.note(result="holds")
    except CannotRunError as error:
        trial.note(result="cannot run", why=str(error))
    except Exception as error:
        traceback.print_exc()
        trial.note(result="FAILS", why=describe(error))


def outcome(check: Check, trial: Trial, seconds: float, method: str = "fork") -> dict[str, Any]:
    """Run a check for at most its limit, and at most the ``seconds`` that are left; its row of the report.

    ``result`` is holds, FAILS, cannot run, or no time where the seconds were too few. However it ends, all
    processes that it has started end with it.
    """
    context: Any = multiprocessing.get_context(method)
    limit, began = min(check.limit, seconds), time.monotonic()
    if limit < SHORTEST:
        return row_of(check, {"result": "no time", "why": "no time left"}, 0.0)
    process = context.Process(target=in_its_process, args=(check, trial))
    process.start()
    try:
        process.join(limit)
        late = process.is_alive()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
    facts = trial.noted()
    if late and limit < check.limit:
        facts |= {"result": "no time", "why": f"cut off after {limit:.0f} s, as the minutes were over"}
    elif late:
        facts |= {"result": "FAILS", "why": f"took longer than its {limit:.0f} s"}
    elif "result" not in facts:
        facts |= {"result": "FAILS", "why": f"its process ended with code {process.exitcode}"}
    log = trial.folder / "log.txt"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    row = row_of(check, facts, time.monotonic() - began)
    return row if row["result"] == "holds" else row | {"log": lines[-40:]}


def row_of(check: Check, facts: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What the report says of a check."""
    heads = {"result": "", "why": "", "said": "", "left_out": []}
    row = {"name": check.name, "seconds": round(seconds, 1), "limit_s": check.limit}
    row |= {name: facts.get(name, value) for name, value in heads.items()}
    return row | {"facts": {name: value for name, value in facts.items() if name not in heads}}


def table_row(row: dict[str, Any]) -> str:
    """A row for people, at most ``WIDTH`` columns wide."""
    left_out = f"left out: {', '.join(row['left_out'])}" if row["left_out"] else ""
    text = "; ".join(part for part in (row["why"], row["said"], left_out) if part)
    head = TABLE.format(row["name"], row["result"], f"{row['seconds']:.0f}")
    return textwrap.fill(text or "-", WIDTH, initial_indent=head, subsequent_indent=" " * len(head))


def settle(checks: Sequence[Check], size: str, minutes: float, write: Callable[[list[dict[str, Any]]], None]) -> int:
    """Run the checks until the minutes are over; ``write`` gets all rows after each. Returns the exit code.

    When the first one, of the machine, does not hold, the others are not begun.
    """
    end, rows, known, method = (
        time.monotonic() + 60 * minutes,
        list[dict[str, Any]](),
        dict[str, dict[str, Any]](),
        "fork",
    )
    print(TABLE.format("check", "result", "s").rstrip())
    for check in checks:
        while True:
            with tempfile.TemporaryDirectory(prefix="gpu_check-", ignore_cleanup_errors=True) as folder:
                row = outcome(check, Trial(size, Path(folder), known), end - time.monotonic(), method)
            if method == "spawn" or not row["facts"].get("forked_too_late"):
                break
            method = "spawn"  # an import has begun CUDA in this process after all
        rows.append(row)
        known[check.name] = row["facts"] | {"result": row["result"]}
        print(table_row(row), flush=True)
        write(rows)
        if rows[0]["result"] != "holds":
            break
    failed = [row["name"] for row in rows if row["result"] == "FAILS"]
    unsettled = [row["name"] for row in rows if row["result"] in ("cannot run", "no time")]
    print(f"\n{len(rows) - len(failed) - len(unsettled)} of {len(checks)} checks hold", end="")
    print(f"; not settled: {', '.join(unsettled)}" if unsettled else "", end="")
    print(f"; these FAIL: {', '.join(failed)}" if failed else "", flush=True)
    return 1 if failed or rows[0]["result"] != "holds" else 0


# ------------------------------------------------------------------------------------------------------- the checks


def require(condition: bool, otherwise: str) -> None:
    """Raise ``ValueError``, which is how a check says that something does not hold."""
    if not condition:
        raise ValueError(otherwise)


def machine(trial: Trial) -> None:
    """Find out what the other checks run on."""
    if getattr(torch._C, "_cuda_isInBadFork", bool)():
        return trial.note(forked_too_late=True)
    if trial.size == "full":
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:  # its words tell a driver that is too old from no GPU at all
            raise ValueError(f"--size full needs a CUDA GPU ({error}); --size tiny runs on a CPU") from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    memory = torch.cuda.mem_get_info() if device.type == "cuda" else ()
    free, total = (amount / GIB for amount in memory or (0, 0))
    trial.note(device=name, memory_gib=total, free_gib=free, cuda=torch.version.cuda, versions=package_versions())
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    ceiling = matmul_ceiling(device, dtype)
    shown = f", {free:.1f} of {total:.1f} GiB free" if memory else ""
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}"
    trial.note(ceiling_tflops=ceiling, said=f"{name}{shown}; best matmul {ceiling:.3g} TFLOP/s; {versions}")
    if device.type == "cuda" and free < 0.9 * total:
        trial.note(said=f"{trial.noted()['said']}; ANOTHER PROCESS HOLDS {total - free:.1f} GiB")


def on_gpu() -> bool:
    """Whether this process sees a GPU."""
    return torch.cuda.is_available()


def no_gpu(*facts: str) -> list[str]:
    """What a check leaves out without a GPU."""
    return [] if on_gpu() else [f"{', '.join(facts)} (no GPU)"]


def training(trial: Trial, *words: object, small: bool = False) -> argparse.Namespace:
    """Arguments of a training of the embedded model, as the training command reads ``words``.

    It writes no checkpoints or pictures unless asked. ``small`` pictures are those of ``tiny``. Without a GPU what
    needs one is left out.
    """
    given = f"--output_dir {trial.folder}/run --checkpointing_steps 0 --validation_steps 0 --report_to none".split()
    if trial.size == "tiny" or small:
        given += "--height 64 --width 48 --max_sequence_length 32 --dataloader_num_workers 0".split()
    if not on_gpu():
        given += "--mixed_precision no --no-use_8bit_adam --no-compile_blocks".split()
    args, _ = run_arguments.parse([*given, *map(str, words)], load=False)
    if not on_gpu() and args.quantize_base == "nf4":
        args.quantize_base = None
    for name in run_arguments.MODELS:
        setattr(args, name, str(EMBEDDED))
    return args


def do_without(args: argparse.Namespace) -> list[str]:
    """Switch off compilation without a compiler, and workers without shared memory; returns what is off, and why."""
    lacking, without = [], {"compile_blocks": False, "dataloader_num_workers": 0}
    for flag, value in without.items():
        try:
            if flag == "compile_blocks":
                guards.check_compiler(args)
            else:
                guards.check_shared_memory(args, bytes_of_pair(args.height, args.width))
        except ValueError as error:
            setattr(args, flag, value)
            lacking.append(f"--{flag} ({error})")
    return lacking


@contextlib.contextmanager
def models(trial: Trial, args: argparse.Namespace) -> Iterator[None]:
    """While it lasts the trainer has rows of noise, and ``full`` has models of FLUX's size, which ``args`` name."""
    with mock.patch.object(trainer, "VitonHDTestDataset", NoiseRows), contextlib.ExitStack() as made:
        if trial.size == "full":
            pipeline = made.enter_context(random_models(FLUX_FILL))
            for name in run_arguments.MODELS:
                setattr(args, name, str(pipeline))
        yield


def trained(args: argparse.Namespace) -> dict[str, Any]:
    """What ``run.json`` says after training as ``args`` say."""
    trainer.main(args)
    return dict(json.loads(Path(args.output_dir, "run.json").read_text(encoding="utf-8")))


def preset_step(trial: Trial, name: str, flags: Sequence[str] = (), beside: str | None = None) -> None:
    """Whether steps of a preset fit, what memory they take and how fast they are, also ``beside`` another check."""
    need, card = load_preset(name).gpu_memory_gib or 0.0, trial.known["machine"]["memory_gib"]
    if trial.size == "full" and "--quantize_base" not in flags and need > card:
        raise CannotRunError(f"the preset needs a GPU of {need:g} GiB, and this one has {card:.1f}")
    args = training(trial, "--preset", name, "--max_train_steps", STEPS[trial.size], *flags)
    lacking = do_without(args)
    if (package := QUANTIZED_BY.get(args.quantize_base)) and importlib.util.find_spec(package) is None:
        raise CannotRunError(f"the package {package} is missing")
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as beside_it:
        # Begun before anything that a forked process cannot use again, and at work while the models are made.
        predicting = beside_it.submit(predict, args, trainer.make_trainable, config_of(trial)) if on_gpu() else None
        with models(trial, args):
            run = trained(args)
        memory = predicting.result() if predicting else None
    facts = {name: run[name] for name in ("seconds_per_step", "pairs_per_second")}
    facts["first_step_s"] = run["last_step_seconds"][0]
    said = f"{facts['seconds_per_step']:.3g} s/step, {facts['pairs_per_second']:.3g} pairs/s"
    if args.compile_blocks:
        said += f"; first step {facts['first_step_s']:.0f} s"
    if memory:
        blocks, recomputed = sum(memory.blocks), run.get("recomputed_blocks")
        if recomputed is None:
            recomputed = speed.recomputed_by(args.gradient_checkpointing, blocks)
        share = tflop_of(trial, args) * run["pairs_per_second"] / trial.known["machine"]["ceiling_tflops"]
        facts |= {"share_of_ceiling": share, "recomputed_blocks": recomputed}
        facts |= {"peak_gib": run["peak_gpu_memory_gib"], "predicted_gib": memory.peak(recomputed) / GIB}
        said += f", {share:.0%} of the ceiling; peak {facts['peak_gib']:.2f} GiB, predicted "
        said += f"{facts['predicted_gib']:.2f}; {recomputed} of {blocks} blocks recomputed"
    if other := trial.known.get(beside or "", {}).get("pairs_per_second"):
        facts["times_other"] = run["pairs_per_second"] / other
        said += f"; {facts['times_other']:.2f} times the pairs/s of {beside}"
    asked = [flag for flag, value in load_preset(name).flags.items() if flag in GPU_FLAGS and value != "false"]
    unseen = [f"--{flag}" for flag in asked if f"--no-{flag}" not in flags]
    trial.note(**facts, said=said, left_out=no_gpu("memory", "share of the ceiling", *unseen) + lacking)
    if trial.size == "full":
        apart = facts["peak_gib"] / facts["predicted_gib"] - 1
        require(abs(apart) <= 0.1, f"the peak differs from the prediction by {apart:+.0%}, more than 10%")
        require(beside != "h100" or facts.get("times_other", 0) < 1, "h100 is no faster than plain")


def config_of(trial: Trial) -> dict[str, Any]:
    """What the transformer of a trial is built from."""
    return FLUX_FILL if trial.size == "full" else transformer_config("tiny")


def tflop_of(trial: Trial, args: argparse.Namespace) -> float:
    """Useful TFLOP of a pair."""
    tokens = args.height // 16 * (2 * args.width // 16)
    return useful_flops(config_of(trial), tokens, args.max_sequence_length, args.lora_rank).step / 1e12


def quantized(trial: Trial, kind: str) -> None:
    """A step of quick_test over a base of 4 or 8 bits, beside the one over bf16."""
    if kind == "nf4" and not on_gpu():
        raise CannotRunError("nf4 needs a CUDA GPU, and none is visible")
    preset_step(trial, "quick_test", ["--quantize_base", kind], beside="quick_test")


def compiled(trial: Trial) -> None:
    """Compiled and recomputed blocks give loss and gradient of the plain ones, and compile once for each use.

    Blocks of the model's width, few of them. The difference of gradients is that of their norms over all weights.
    """
    shallow = (
        {**FLUX_FILL, "num_layers": 2, "num_single_layers": 2} if trial.size == "full" else transformer_config("tiny")
    )
    args = training(trial, "--preset", "quick_test", "--gradient_checkpointing", "none", "--max_train_steps", 1)
    with random_models(shallow, EMBEDDED), mock.patch.object(trainer, "VitonHDTestDataset", NoiseRows):
        run, _ = trainer.build_run(args, trainer.start(args), Stopping())
        for parameter in run.parameters:  # B is zero at the start, and then half of the gradients are
            torch.nn.init.normal_(parameter, std=0.02)
        first, second = (run.encode(default_collate([run.rows[row]]), row) for row in (0, 1))
        plain, plain_loss = gradient(run, first)
        speed.recompute(run.model, len(run.model.transformer_blocks) + len(run.model.single_transformer_blocks))
        speed.compile_blocks(run.model)
        if not on_gpu():  # the same graphs, without minutes in g++
            run.model.compile_repeated_blocks(fullgraph=True, dynamic=False, backend="aot_eager_decomp_partition")
        began = time.perf_counter()
        found, loss = gradient(run, first)
        speed.recompute(run.model, 0)
        gradient(run, first)
        look(run, first)
        took = time.perf_counter() - began
        with torch.compiler.set_stance("fail_on_recompile"):
            gradient(run, second)
            look(run, second)
    apart, losses_apart = float((found - plain).norm() / plain.norm()), abs(loss - plain_loss) / plain_loss
    bounds = (1e-2, 5e-2) if args.mixed_precision == "bf16" else (1e-4, 1e-3)
    said = f"loss differs by {losses_apart:.1e} of {bounds[0]:g}, gradient by {apart:.1e} of {bounds[1]:g}"
    trial.note(loss_differs=losses_apart, gradient_differs=apart, first_step_s=took)
    trial.note(said=f"{said}; compiled in {took:.0f} s, and not again", left_out=no_gpu("its kernels"))
    require(losses_apart <= bounds[0] and apart <= bounds[1], "compiled blocks compute something else")


def gradient(run: trainer.Run, batch: trainer.FillBatch) -> tuple[torch.Tensor, float]:
    """Gradient of all that is trained, in one vector, and the loss; none stays behind."""
    loss, _ = run.loss_of(batch)
    run.accelerator.backward(loss)
    found = torch.cat([parameter.grad.flatten() for parameter in run.parameters if parameter.grad is not None])
    run.optimizer.zero_grad()
    return found, float(loss.detach())


def look(run: trainer.Run, batch: trainer.FillBatch) -> None:
    """A forward pass as for a validation picture, between two steps."""
    run.model.eval()
    with torch.no_grad():
        run.loss_of(batch)
    run.model.train()


class Awaited:
    """A result on the GPU that the step may wait for; counts in ``waits`` how often it does."""

    waits = 0

    def __init__(self, result: torch.Tensor, mode: Callable[[str], None]) -> None:
        self.result = result
        self.mode = mode

    def tolist(self) -> Any:
        """As a tensor's."""
        Awaited.waits += 1
        self.mode("default")
        found = self.result.tolist()
        self.mode("error")
        return found

    def __float__(self) -> float:
        return float(self.tolist())


def waits(trial: Trial) -> None:
    """The trainer's loop waits for the GPU once a step: for the losses and the norm of the gradient.

    Any other synchronisation between encoding a batch and the end of the optimizer's step is an error. The first step
    may wait.
    """
    mode: Callable[[str], None] = torch.cuda.set_sync_debug_mode if on_gpu() else lambda _: None
    for cached in ("--no-cache_latents", "--cache_latents"):
        args = training(trial, "--preset", "quick_test", "--max_train_steps", STEPS[trial.size], cached, small=True)
        args.output_dir = f"{trial.folder}/{cached}"
        with mock.patch.object(trainer, "VitonHDTestDataset", NoiseRows):
            run, record = trainer.build_run(args, trainer.start(args), Stopping())
        watch(run, mode)
        Awaited.waits = 0
        trainer.train(run, record)
        reads = Awaited.waits / run.step
        require(reads == 2, f"a step reads {reads:g} results, and should 2")
    trial.note(said="two results read a step, with and without cached latents")
    trial.note(left_out=no_gpu("any other wait"))


def watch(run: trainer.Run, mode: Callable[[str], None]) -> None:
    """Let nothing in a step of ``run`` wait for the GPU, from the second step on, but for what is ``Awaited``."""
    encode, step = run.encode, run.optimizer_step
    reduce, clip = run.accelerator.reduce, run.accelerator.clip_grad_norm_

    def watched_encode(*inputs: Any) -> trainer.FillBatch:
        mode("error" if run.step else "default")
        return encode(*inputs)

    def watched_step(*inputs: Any) -> bool:
        mode("error" if run.step else "default")
        try:
            return step(*inputs)
        finally:
            mode("default")

    changes = {"encode": watched_encode, "optimizer_step": watched_step}
    vars(run).update(changes)
    vars(run.accelerator).update(
        reduce=lambda *inputs: Awaited(reduce(*inputs), mode),
        clip_grad_norm_=lambda *inputs: Awaited(clip(*inputs), mode),
    )


def losses_of(args: argparse.Namespace) -> list[float]:
    """Loss of each step that a run has logged."""
    lines = Path(args.output_dir, "logs", "losses.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


#: Four steps of the embedded model, in two checks.
FOUR_STEPS = "--preset quick_test --max_train_steps 4 --gradient_accumulation_steps 1 --lr_warmup_steps 1".split()


def resume(trial: Trial) -> None:
    """Two steps, a checkpoint and two steps more are four steps: the same losses."""
    with mock.patch.object(trainer, "VitonHDTestDataset", NoiseRows):
        whole = training(trial, *FOUR_STEPS, "--checkpointing_steps", 2, small=True)
        trained(whole)
        straight = losses_of(whole)
        trial.note(losses=straight)
        checkpoint = f"{whole.output_dir}/checkpoint-2"
        again = training(trial, *FOUR_STEPS, "--resume_from_checkpoint", checkpoint, small=True)
        again.output_dir = f"{trial.folder}/again"
        trained(again)
    apart = max(abs(one - other) / one for one, other in zip(losses_of(again), straight[2:], strict=True))
    # Backward passes add up in another order each time on a GPU; on a CPU nothing changes.
    bound = 1e-3 if on_gpu() else 0.0
    trial.note(losses_differ=apart, said=f"losses after resuming differ by {apart:.1e} of {bound:g}")
    require(apart <= bound, "a run that was resumed goes on otherwise")


def fp16(trial: Trial) -> None:
    """Training in fp16: the gradient scaler finds its scale, and the first loss is that of bf16."""
    if not on_gpu():
        raise CannotRunError("fp16 needs a CUDA GPU, and none is visible")
    args = training(trial, *FOUR_STEPS, "--mixed_precision", "fp16", small=True)
    with mock.patch.object(trainer, "VitonHDTestDataset", NoiseRows):
        run = trained(args)
    losses, others = losses_of(args), trial.known.get("resume", {}).get("losses")
    said = f"{run['skipped_steps']} of 4 losses not finite"
    if others:
        apart = abs(losses[0] - others[0]) / others[0]
        said += f"; the first loss differs from that in bf16 by {apart:.1e} of 0.05"
    trial.note(losses=losses, said=said)
    require(run["skipped_steps"] == 0, "losses are not finite in fp16")
    require(not others or apart <= 0.05, "fp16 computes something else than bf16")


def pictures(trial: Trial) -> None:
    """Validation pictures at the preset's full size, before and after a step."""
    drawn: list[Any] = []
    draw = trainer.Run.draw_results

    def kept(run: trainer.Run) -> list[Any]:
        drawn.extend(found := draw(run))
        return found

    words = "--validation_steps 1 --num_validation_images 1 --num_inference_steps 4 --gradient_accumulation_steps 1 "
    words += "--no-compile_blocks --dataloader_num_workers 0"
    args = training(trial, "--preset", "full", "--max_train_steps", 1, *words.split())
    with models(trial, args), mock.patch.object(trainer.Run, "draw_results", kept):
        run = trained(args)
    sheets = sorted(path.name for path in Path(args.output_dir, "validation").glob("*.png"))
    peak = run.get("peak_gpu_memory_gib")
    said = f"{args.height}x{args.width}, 4 denoising steps" + (f"; peak {peak:.1f} GiB" if peak else "")
    trial.note(peak_gib=peak, said=said, left_out=no_gpu("memory"))
    require(sheets == ["step-0.png", "step-1.png"], f"the pictures are {sheets}")
    require(all(low < high for picture in drawn for low, high in picture.getextrema()), "a picture has one colour")


def tryon_offload(trial: Trial) -> None:
    """``tryon --offload``: the transformer stays in main memory, and the picture is drawn."""
    size = (768, 576) if trial.size == "full" else (128, 96)
    sample, folder = NoiseRows(size)[0], trial.folder
    to_picture(sample["image"][..., size[1] :]).save(folder / "person.png")
    to_picture(sample["cloth_pure"]).save(folder / "garment.png")
    to_picture(sample["inpaint_mask"][..., size[1] :].expand(3, -1, -1) * 2 - 1).save(folder / "mask.png")
    words = [f"--{name}={folder}/{name}.png" for name in ("person", "garment", "mask")]
    words += [f"--output={folder}/result.png", "--num_inference_steps=4", *(["--offload"] if on_gpu() else [])]
    with contextlib.ExitStack() as made:
        if trial.size == "full":
            require_memory(30)
            pipeline = made.enter_context(random_models(FLUX_FILL))
            words += [f"--pipeline={pipeline}", f"--base={pipeline}"]
            load = trainer.load_transformer
            made.enter_context(mock.patch.object(trainer, "load_transformer", lambda *inputs: to_host(load(*inputs))))
        code = tryon.main([*words, *([] if trial.size == "full" else ["--embedded"]), "--debug"])
    require(code == 0 and (folder / "result.png").is_file(), f"tryon ended with exit code {code}")
    host = psutil.Process().memory_info().rss / GIB
    if on_gpu():
        peak = torch.cuda.max_memory_allocated() / GIB
        trial.note(peak_gib=peak, host_gib=host, said=f"peak {peak:.1f} GiB; main memory {host:.1f} GiB")
    else:
        trial.note(said="drawn without --offload", left_out=no_gpu("--offload"))


def require_memory(gib: float) -> None:
    """Raise ``CannotRunError`` when less main memory is free."""
    free = psutil.virtual_memory().available / GIB
    if free < gib:
        raise CannotRunError(f"{gib:.0f} GiB of main memory are needed, and {free:.0f} are free")


def to_host(model: Any) -> Any:
    """A model that was made on the GPU as one that was loaded to main memory; the GPU forgets that it was there."""
    model.to("cpu")
    speed.free_memory()
    if on_gpu():
        torch.cuda.reset_peak_memory_stats()
    return model


def gpu_tests(trial: Trial) -> None:
    """The tests that need a GPU."""
    if not on_gpu():
        raise CannotRunError("these tests need a CUDA GPU, and none is visible")
    files = [str(path) for path in sorted(ROOT.glob("tests/test_*.py")) if "pytest.mark.gpu" in path.read_text("utf-8")]
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-m", "gpu", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout)
    trial.note(said=done.stdout.strip().splitlines()[-1].strip("= "))
    require(done.returncode == 0, "some of the gpu tests fail")


PLAIN = "--gradient_checkpointing=1 --no-compile_blocks --no-cache_latents".split()
#: Most important first. Limits are two to three times what an H100 should take, which is an estimate.
CHECKS = [
    Check("machine", 60, machine),
    Check("quick_test", 90, functools.partial(preset_step, name="quick_test")),
    Check("full", 180, functools.partial(preset_step, name="full")),
    Check("low_vram", 90, functools.partial(preset_step, name="low_vram")),
    Check("h100", 240, functools.partial(preset_step, name="h100")),
    Check("plain", 90, functools.partial(preset_step, name="h100", flags=PLAIN, beside="h100")),
    Check("nf4", 75, functools.partial(quantized, kind="nf4")),
    Check("int8", 75, functools.partial(quantized, kind="int8")),
    Check("compile", 90, compiled),
    Check("waits", 45, waits),
    Check("resume", 60, resume),
    Check("pictures", 75, pictures),
    Check("tryon", 90, tryon_offload),
    Check("fp16", 45, fp16),
    Check("gpu tests", 90, gpu_tests, ("pytest",)),
]


def main(input_args: Sequence[str] | None = None) -> int:
    """Run the checks; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--size", choices=["tiny", "full"], default="full", help="of the models; full needs a CUDA GPU (default: full)")
    add("--minutes", type=number(float, 0, above=True), default=9.0, help="for all checks together (default: 9)")
    add("--json", type=Path, metavar="F", help="write what is known to F, after every check")
    args = parser.parse_args(input_args)

    def write(rows: list[dict[str, Any]]) -> None:
        pending = [check.name for check in CHECKS[len(rows) :]]
        report = {"size": args.size, "minutes": args.minutes, "checks": rows, "pending": pending}
        if args.json:
            write_file(args.json, json.dumps(report, indent=2) + "\n")

    write([])
    try:
        with terminable():  # so that the check at work ends too
            return settle(CHECKS, args.size, args.minutes, write)
    except TerminatedError:
        return 143


if __name__ == "__main__":
    sys.exit(main())
