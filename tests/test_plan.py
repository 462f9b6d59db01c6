"""``--plan``: what it measures and works out, what it says, and that it leaves nothing behind."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import forget_accelerator

from deepfashion_training import plan, run_arguments
from deepfashion_training import train_deepfashion_lora as wrapper
from deepfashion_training.cli import PRESETS, WrongUseError, load_cards
from deepfashion_training.embedded.wardrobe import write_wardrobe
from deepfashion_training.plan import GIB, MeasuredRun
from training_run.flops import FLUX_FILL, useful_flops
from training_run.memory import StepMemory
from training_run.processes import process_state

ROOT = Path(__file__).resolve().parents[1]
QUICK = ["--preset", "quick_test", "--embedded", "--plan"]
FREE = 100 * GIB


def asked(*argv: str) -> argparse.Namespace:
    return run_arguments.parse([*argv, "--plan"])[0]


def measured(seconds: float, peak: float | None = 40.0) -> MeasuredRun:
    return MeasuredRun(seconds, peak, checkpoint_bytes=GIB, weights_bytes=GIB // 4)


@pytest.fixture
def own_temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go in this test."""
    folder = tmp_path / "temp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "torch"))  # which torch makes there otherwise
    return folder


# ---- measured on the CPU, through the command


@pytest.mark.slow
def test_a_plan_is_measured_and_leaves_nothing(
    own_temp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, out = [], tmp_path / "out"
    real = plan.measure

    def seen(args: argparse.Namespace, train: plan.Train, state: object) -> MeasuredRun | None:
        def also(short: argparse.Namespace, dataset: object) -> None:
            train(short, dataset)
            trained.append((short, sorted(path.name for path in Path(short.output_dir).iterdir())))

        return real(args, also, state)

    monkeypatch.setattr(plan, "measure", seen)
    argv = [*QUICK, f"--output_dir={out}", "--gpu_hour_price", "3600", "--cache_latents", "--lora_rank", "4"]
    argv += ["--mixed_precision", "no"]  # the preset's depends on the CPU, and the size of the encoded rows on it
    assert wrapper.main(argv) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == "plan speed memory time disk price choose".split()
    assert said[0] == (
        "plan      quick_test, embedded: 600 steps of 16 pairs at 128x96, 9,600 pairs in all, on the CPU"
    )
    seconds, pairs = map(float, re.findall(r"([\d.]+) s a step, ([\d.]+) pairs/s", said[1])[0])
    assert 0 < seconds < 60 and pairs == pytest.approx(16 / seconds, rel=0.01)
    assert "no GPU: not measured" in said[2]
    assert "encoded rows (97 MiB a thousand)" in said[4]
    assert float(said[5].split()[1].rstrip(",")) == pytest.approx(600 * seconds, rel=0.01)
    # The real trainer took the steps, on the user's flags but for what keeps them short, and all of it is gone.
    ((short, files),) = trained
    assert {"checkpoint-6", "latents", "pytorch_lora_weights.safetensors", "run.json"} <= set(files)
    assert (short.max_train_steps, short.lora_rank, short.train_batch_size) == (6, 4, 16)
    assert not out.exists() and list(own_temp.iterdir()) == []


@pytest.mark.long
def test_what_encoded_rows_and_checkpoints_take_is_what_they_took(
    own_temp: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    args, script = run_arguments.parse([*QUICK, f"--output_dir={tmp_path / 'out'}", "--cache_latents"])
    sizes = {}

    def train(short: argparse.Namespace, dataset: object) -> None:
        from deepfashion_training.upstream import script as upstream

        upstream.train(script, short, dataset)
        run = Path(short.output_dir)
        shards = sum(path.stat().st_size for path in run.rglob("shard-*.safetensors"))
        sizes["row"] = shards / len(dataset("/".join((short.dataroot,)), "train"))  # type: ignore[operator]
        sizes["checkpoint"] = sum(path.stat().st_size for path in (run / "checkpoint-6").rglob("*") if path.is_file())

    found = plan.measure(args, train, process_state())
    assert found is not None
    assert plan.latents_row_bytes(args) == pytest.approx(sizes["row"], rel=0.02)
    assert found.checkpoint_bytes == sizes["checkpoint"] > 2 * found.weights_bytes  # weights and Muon's moment
    assert found.peak_gib is None


@pytest.mark.long
def test_of_two_processes_one_speaks(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*torchrun, str(Path(wrapper.__file__)), *QUICK, "--output_dir", str(tmp_path / "out")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("plan      quick_test, embedded: 600 steps of 16 pairs") == 1
    assert done.stdout.count("speed     ") == 1
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("plan-*"))


@pytest.mark.slow
def test_a_run_that_fails_for_another_reason_fails_the_plan(
    own_temp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*QUICK, f"--output_dir={tmp_path / 'out'}", "--lora_target_modules", "socks"]
    assert wrapper.main(argv) == 1
    assert "--lora_target_modules: no layer named 'socks'" in capsys.readouterr().err
    assert list(own_temp.iterdir()) == []


# ---- arithmetic


def test_the_sum_of_a_measured_run() -> None:
    args = asked("--preset", "h100", "--gpu_hour_price", "2.5", "--cache_latents")
    assert plan.measured_lines(args, measured(3.6), 1, 79.0, FREE) == [
        "speed     3.6 s a step, 2.22 pairs/s",
        "memory    fits: 40.0 of 79.0 GiB at the peak, 39.0 to spare",
        "time      5.0 h; loading, validation pictures and checkpoints on top",  # 18,000 s
        # 3 are kept, and the next is written before the oldest goes; a row is 4 x 16 x 96 x 144 halves and its mask
        "disk      4.2 GiB: checkpoints 4 x 1.0 GiB, LoRA 0.2 GiB; encoded rows (1.8 GiB a thousand), models, data and "
        "pictures on top; 100.0 GiB free",
        "price     12.50, as 5.00 GPU hours at 2.5",
    ]
    assert plan.measured_lines(args, measured(3.6), 1, 79.0, GIB)[3].endswith(": too little")


def test_several_gpus_share_the_work_and_each_is_paid() -> None:
    args = asked("--preset", "h100", "--gpu_hour_price", "2")
    one, two = (plan.measured_lines(args, measured(3.6), processes, 79.0, FREE) for processes in (1, 2))
    assert "2.22 pairs/s" in one[0] and "4.44 pairs/s" in two[0] and one[2] == two[2]
    assert (one[4], two[4]) == ("price     10.00, as 5.00 GPU hours at 2", "price     20.00, as 10.00 GPU hours at 2")


@pytest.mark.parametrize(
    ("every", "limit", "minutes", "kept"),
    [(500, None, 0, 9), (500, 3, 0, 4), (500, 20, 0, 9), (0, None, 0, 0), (0, None, 30, 8), (500, 3, 30, 4)],
)
def test_checkpoints_that_lie_there_at_once(every: int, limit: int | None, minutes: float, kept: int) -> None:
    args = argparse.Namespace(checkpointing_steps=every, checkpoints_total_limit=limit, save_every_minutes=minutes)
    args.max_train_steps = 4100
    assert plan.checkpoints_kept(args, 3.6) == kept  # 4.1 h


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(12.4, "12 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (5400, "1.5 h"), (1e6, "277.8 h")],
)
def test_durations(seconds: float, said: str) -> None:
    assert plan.duration(seconds) == said


# ---- without a GPU


#: GiB of weights, of what is trained, and of what each of 57 blocks keeps at a time, by pairs at a time.
WEIGHTS, TRAINED, KEPT = 22 * GIB, GIB, GIB


def pretended(args: argparse.Namespace, make_trainable: object = None) -> StepMemory:
    """Takes the place of ``predict``, which takes seconds."""
    kept = args.train_batch_size * KEPT
    return StepMemory((19, 38), WEIGHTS, 10**6, TRAINED, (kept, kept), (0, 0), 0, 0, 0)


@pytest.mark.parametrize("preset", ["full", "h100"])
def test_an_estimate_says_that_it_is_one_and_where_it_comes_from(
    preset: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "predict", pretended)
    assert wrapper.main(["--preset", preset, "--plan", "--gpu_hour_price", "2", f"--output_dir={tmp_path / 'o'}"]) == 0
    said, error = capsys.readouterr()
    lines, cards = said.splitlines(), load_cards()
    assert error == "" and not (tmp_path / "o").exists()
    assert "no GPU is visible here and nothing was measured" in lines[1]
    rows = {card["card"]: next(line for line in lines[4:] if line.startswith(card["card"])) for card in cards}
    args = asked("--preset", preset)
    for card in cards:
        assert f"TFLOP/s, {card['ceiling_source']}" in said and card["share_source"] in said
        room = math.floor(0.95 * (card["memory_gib"] - 0.5) - 23)  # one pair at a time, and a GiB a block
        figures = rows[card["card"]].removeprefix(card["card"])
        if preset == "h100" and room > 0:  # 2 x 4 there, and half of that is kept
            assert figures.endswith("with --train_batch_size 1 --gradient_accumulation_steps 8")
        if room < 0:
            assert figures.split() == f"does not fit: 23.0 of {card['memory_gib']:.1f}".split()
            continue
        peak, _, memory, recomputed, _, _, per_step, pairs, hours, unit, price = figures.split()[:11]
        kept = min(57, room)
        assert (float(peak), float(memory), int(recomputed)) == (23.0 + kept, card["memory_gib"], 57 - kept)
        again = (57 - kept) / 57  # time follows from work and rate, price from time
        tokens = (args.height // 16) * (2 * args.width // 16) + 512
        forward = useful_flops(FLUX_FILL, tokens - 512, 512, args.lora_rank).forward * 8 / 1e12
        seconds = plan.useful_tflop(args) / card["share"] / card["ceiling_tflops"]
        more = again * forward / card["share"] / card["ceiling_tflops"]
        assert seconds + 0.97 * more <= float(per_step) * 1.005 <= (seconds + more) * 1.01
        assert float(pairs) == pytest.approx(8 / float(per_step), rel=0.02)
        assert unit == "h" and float(hours) == pytest.approx(float(per_step) * args.max_train_steps / 3600, rel=0.03)
        assert float(price) == pytest.approx(2 * float(per_step) * args.max_train_steps / 3600, rel=0.01)


def test_the_bases_own_pass_counts() -> None:
    """A forward pass without a LoRA for each pair, at most."""
    words = ("--preset", "h100", "--cloth_types", "upper,full")
    plain, held = (plan.executed_tflop(asked(*words, *more), 7) for more in ((), ("--prior_loss_weight", "1")))
    tokens = (768 // 16) * (2 * 576 // 16)
    assert held - plain == pytest.approx(8 * useful_flops(FLUX_FILL, tokens, 512, 0).forward / 1e12)


def test_estimates_agree_with_what_the_presets_say() -> None:
    rates = {card["card"]: card["share"] * card["ceiling_tflops"] for card in load_cards()}
    for preset, card in (
        ("full", "H100 80 GB"), ("full", "L40S 48 GB"), ("h100", "H100 80 GB"), ("low_vram", "RTX 4090 24 GB"),
    ):  # fmt: skip
        args = asked("--preset", preset)
        hours = plan.useful_tflop(args) / rates[card] * args.max_train_steps / 3600
        about = yaml.safe_load((PRESETS / f"{preset}.yaml").read_text())["about"]
        assert re.search(rf"\b{round(hours)} h\b", about), (preset, card, hours)


def test_batches_become_smaller_and_steps_keep_their_pairs() -> None:
    args = asked("--preset", "full", "--train_batch_size", "6", "--gradient_accumulation_steps", "2")
    assert [tuple(batch.values()) for batch in plan.smaller_batches(args)] == [(3, 4), (1, 12)]
    args.train_batch_size = 1
    assert plan.smaller_batches(args) == []


def test_where_figures_come_from() -> None:
    for card in load_cards():
        assert set(card) == {"card", "memory_gib", "ceiling_tflops", "ceiling_source", "share", "share_source"}
        assert 0 < card["share"] < 1
        for source in (card["ceiling_source"], card["share_source"]):
            assert source.startswith(("measured on ", "estimate"))


def test_a_small_model_is_measured_and_a_large_one_is_not() -> None:
    cpu, gpu = (SimpleNamespace(device=torch.device(kind)) for kind in ("cpu", "cuda"))
    assert plan.is_measured(asked("--embedded"), cpu)
    assert not plan.is_measured(asked(), cpu) and plan.is_measured(asked(), gpu)


# ---- a run that is made to fit the GPU


def of_size(args: argparse.Namespace, make_trainable: object = None, shape: object = None) -> StepMemory:
    """Takes the place of ``predict``: a GiB for 64 lines of height at least, twice that with all activations kept."""
    least = args.height * GIB // 64 + (0 if args.cache_latents else GIB // 4)
    return StepMemory((1, 1), least, 10**6, 0, (least // 2, least // 2), (0, 0), 0, 0, 0)


STEPS = [{"cache_latents": True}, {"height": 448, "width": 336}, {"height": 384, "width": 288}]


@pytest.mark.parametrize(
    ("budget", "changes", "recomputed"),
    [
        (16.5, {}, 0), (16.4, {}, 1), (8.25, {}, 2), (8.24, STEPS[0], 2), (8, STEPS[0], 2),
        (7.9, STEPS[0] | STEPS[1], 2), (6, STEPS[0] | STEPS[2], 2), (5.9, STEPS[0] | STEPS[2], None),
    ],
)  # fmt: skip
def test_the_first_step_that_fits_is_taken(
    budget: float, changes: dict, recomputed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "predict", of_size)
    args = asked("--preset", "low_vram")
    ((found, memory, count),) = plan.fit(args, STEPS, [budget * GIB], lambda *_: [])
    assert (found, count) == (changes, recomputed)
    line = plan.fit_line(args, found, memory, count, budget / 0.95 * GIB)
    assert f"{changes.get('height', 512)}x{changes.get('width', 384)}" in line
    assert ("GiB are missing" in line) == (recomputed is None) and ("cached" in line) == ("cache_latents" in changes)
    if recomputed is None:
        assert "0.1 GiB are missing" in line  # 6 GiB are 95% of 6.3, and 6.2 are free


def test_all_cards_are_answered_from_one_prediction_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(plan, "predict", lambda args, *more: seen.append(args.height) or of_size(args))
    lines = plan.card_lines(asked("--preset", "low_vram"), STEPS, lambda *_: [])
    assert [line.split(" GB")[0] for line in lines] == [card["card"].split(" GB")[0] for card in load_cards()]
    assert seen == [512] and all("512x384: " in line for line in lines)


@pytest.mark.parametrize(
    ("typed", "left"),
    [([], 4), (["--height", "768"], 1), (["--width=576"], 1), (["--no-cache_latents"], 3), (["--embedded"], 0)],
)
def test_a_typed_flag_is_not_taken_back(typed: list[str], left: int) -> None:
    assert len(run_arguments.smaller_steps(["--low-vram", *typed])) == left
    assert run_arguments.smaller_steps(["--h100", *typed]) == []


@pytest.mark.parametrize("step", ["{output_dir: x}", "{preset: h100}", "{height: 100}", "{heigth: 64}"])
def test_a_smaller_step_is_read_as_a_presets_flags_are(step: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"flags: {{}}\nsmaller: [{{cache_latents: true}}, {step}]\n")
    with pytest.raises(WrongUseError, match=step.strip("{").split(":")[0]):
        run_arguments.smaller_steps(["--preset", str(tmp_path / "mine.yaml")])


MINE = """
flags: {height: 128, width: 96, max_train_steps: 2, checkpointing_steps: 1, validation_steps: 0,
        lr_scheduler: constant, balance_cloth_types: true, gradient_checkpointing: auto}
smaller: [{cache_latents: true}, {height: 64, width: 48}]
"""


@pytest.fixture
def with_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Trains by a preset of one's own on a GPU with so many GiB free, which is pretended; run.json and stderr."""
    monkeypatch.setattr(plan, "predict", of_size)
    (tmp_path / "mine.yaml").write_text(MINE)
    write_wardrobe(tmp_path / "wardrobe", rows=12, size=(64, 48))

    def trained(gib: float, *flags: str) -> tuple[dict, str]:
        monkeypatch.setattr(plan, "free_on_gpu", lambda state: int(gib * GIB))
        forget_accelerator()
        argv = ["--preset", str(tmp_path / "mine.yaml"), "--embedded", "--train_batch_size=1", "--report_to=none"]
        argv += ["--dataset_name", str(tmp_path / "wardrobe")]
        try:
            code = wrapper.main([*argv, f"--output_dir={tmp_path / 'out'}", *flags])
        finally:
            forget_accelerator()
        error = capsys.readouterr().err
        assert code == 0, error
        return json.loads((tmp_path / "out" / "run.json").read_text())["arguments"], error

    return trained


@pytest.mark.slow
def test_a_run_fits_the_gpu_and_keeps_its_size_when_it_goes_on(with_free) -> None:
    """128 lines take 2 GiB, 64 lines one: with 2.2 free the first fit, with 1.2 the second."""
    small, said = with_free(1.2)
    assert (small["height"], small["width"], small["cache_latents"]) == (64, 48, True)
    assert "mine on this GPU: 64x48" in said and small["fitted"] in said
    on = ["--resume_from_checkpoint", "latest", "--max_train_steps"]
    more, said = with_free(100, *on, "3")  # more is free now
    assert (more["height"], more["width"], more["max_train_steps"]) == (64, 48, 3) and "checkpoint" in more["fitted"]
    less, said = with_free(0.5, *on, "4")  # and less: it says so and keeps its size
    assert less["height"] == 64 and "GiB are missing" in said


@pytest.mark.slow
def test_a_run_that_fits_stays_as_it_is_and_one_with_a_typed_size_too(with_free) -> None:
    args, said = with_free(2.4)
    assert (args["height"], args["cache_latents"]) == (128, True)  # which embedded.yaml has
    args, said = with_free(1.2, "--height=128", "--overwrite_output_dir")
    assert (args["height"], args["width"]) == (128, 96) and "0.9 GiB are missing" in said


RANKS = """
import os, sys
from deepfashion_training import plan, train_deepfashion_lora as wrapper
from tests.test_plan import of_size
plan.predict, plan.free_on_gpu = of_size, lambda state: [100, 1.2][int(os.environ["RANK"])] * 2**30
sys.exit(wrapper.main(sys.argv[1:]))
"""


@pytest.mark.long
def test_all_ranks_take_the_size_of_the_one_with_the_least_memory(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(MINE)
    (tmp_path / "ranks.py").write_text(RANKS)
    write_wardrobe(tmp_path / "wardrobe", rows=12, size=(64, 48))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    flags = ["--preset", str(tmp_path / "mine.yaml"), "--embedded", f"--output_dir={tmp_path / 'out'}"]
    flags += ["--dataset_name", str(tmp_path / "wardrobe")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = f"{ROOT}:{ROOT / 'tests'}"
    done = subprocess.run(
        [*torchrun, str(tmp_path / "ranks.py"), *flags], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "run.json").read_text())
    assert found["world_size"] == 2 and found["arguments"]["height"] == 64
    assert done.stderr.count("mine on this GPU: 64x48") == 1


# ---- a GPU that is too small, and other flags


class OutOfMemory:
    """Takes the place of ``measure``: what fits by the arguments, and how long a step takes."""

    def __init__(self, fits: Callable[[argparse.Namespace], float | None]) -> None:
        self.fits, self.asked = fits, list[argparse.Namespace]()

    def __call__(self, args: argparse.Namespace, train: object, state: object) -> MeasuredRun:
        self.asked.append(args)
        if (seconds := self.fits(args)) is None:
            library = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
            raise ValueError("the GPU's memory was too small at step 1. What lowers it: ...") from library
        return measured(seconds, peak=20.0)


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[str], str | None, OutOfMemory]]:
    """The lines and the error of a plan on a pretended RTX 4090 where steps take what ``fits`` says."""
    card = SimpleNamespace(total_memory=23.6 * GIB)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "RTX 4090")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)

    def planned(fits: Callable[[argparse.Namespace], float | None], *argv: str, processes: int = 1):
        state = SimpleNamespace(device=torch.device("cuda"), num_processes=processes, is_main_process=True)
        args, script = run_arguments.parse([*argv, "--plan"])
        stand_in, lines = OutOfMemory(fits), list[str]()
        monkeypatch.setattr(plan, "measure", stand_in)
        try:
            lines.extend(plan.answer(args, script, state))
        except ValueError as error:
            return lines, str(error), stand_in
        return lines, None, stand_in

    return planned


def test_the_fastest_flags_that_fit_are_chosen(on_a_gpu) -> None:
    def fits(args: argparse.Namespace) -> float | None:
        if args.compile_blocks:
            return 2.0 if args.train_batch_size == 1 else 2.5 if args.train_batch_size == 2 else None
        return 3.0 if args.gradient_checkpointing == "auto" else 4.0

    flags = "--gradient_checkpointing --no-compile_blocks --train_batch_size 2 --gradient_accumulation_steps 4"
    lines, error, stand_in = on_a_gpu(fits, "--preset", "full", *flags.split())
    assert error is None and len(stand_in.asked) == 5
    compiled = "--gradient_checkpointing auto --compile_blocks"
    assert lines[0].endswith("on 1 x RTX 4090") and lines[1].startswith("speed     4 s a step")
    assert lines[-5:] == [
        "tried     --gradient_checkpointing auto: 3 s a step, 20.0 GiB",
        f"tried     {compiled}: 2.5 s a step, 20.0 GiB",
        f"tried     {compiled} --train_batch_size 1 --gradient_accumulation_steps 8: 2 s a step, 20.0 GiB",
        f"tried     {compiled} --train_batch_size 4 --gradient_accumulation_steps 2: does not fit",
        f"choose    add {compiled} --train_batch_size 1 --gradient_accumulation_steps 8",
    ]
    assert {plan.pairs_per_step(args) for args in stand_in.asked} == {8}  # else steps could not be compared


def test_flags_that_are_best_as_they_are(on_a_gpu) -> None:
    lines, error, _ = on_a_gpu(lambda args: 2.0 if args.train_batch_size == 1 else 3.0, "--preset", "full")
    assert error is None and lines[-1] == "choose    the flags as they are"


def test_a_run_that_does_not_fit_is_told_what_does_and_fails(on_a_gpu) -> None:
    def fits(args: argparse.Namespace) -> float | None:
        return 9.0 if args.quantize_base == "nf4" else None

    as_before = ("--gradient_checkpointing", "--no-compile_blocks")
    lines, error, stand_in = on_a_gpu(fits, "--preset", "h100", *as_before, "--gpu_hour_price", "1")
    assert error == "the GPU's memory was too small at step 1. What lowers it: ..."
    single = "--gradient_checkpointing auto --train_batch_size 1 --gradient_accumulation_steps 8"
    nf4 = f"{single} --use_8bit_adam --quantize_base nf4"
    assert lines[1] == f"memory    does not fit as it is; this is the plan with {nf4}"
    assert lines[2].startswith("speed     9 s a step")
    assert "price     12.50, as 12.50 GPU hours at 1" in lines  # 5,000 steps of 9 s
    assert lines[-5:-1] == [
        "tried     the flags as they are: do not fit",
        "tried     --gradient_checkpointing auto: does not fit",
        f"tried     {single}: does not fit",
        f"tried     {nf4}: 9 s a step, 20.0 GiB",
    ]
    assert lines[-1] == f"choose    add {nf4}"
    assert {plan.pairs_per_step(args) for args in stand_in.asked} == {8}


def test_the_h100_preset_as_it_is_on_a_small_card(on_a_gpu) -> None:
    """4 bits are not compiled with it: nobody has, and 8 bits cannot be."""
    lines, _, stand_in = on_a_gpu(lambda args: 9.0 if args.quantize_base else None, "--preset", "h100")
    single = "--train_batch_size 1 --gradient_accumulation_steps 8"
    assert lines[-1] == f"choose    add {single} --use_8bit_adam --quantize_base nf4 --no-compile_blocks"
    assert [args.compile_blocks for args in stand_in.asked] == [True, True, False]


def test_8_bits_are_offered_nothing_that_the_trainer_refuses(on_a_gpu) -> None:
    flags = ("--no-compile_blocks", "--quantize_base", "int8")
    _, error, stand_in = on_a_gpu(lambda args: 3.0, "--preset", "h100", *flags)
    assert error is None and len(stand_in.asked) > 1
    assert not any(args.compile_blocks for args in stand_in.asked)


def test_smaller_flags_are_tried_only_until_some_fit(on_a_gpu) -> None:
    fits = lambda args: 5.0 if args.train_batch_size == 1 else None  # noqa: E731
    _, error, stand_in = on_a_gpu(fits, "--preset", "h100")
    assert error is not None and len(stand_in.asked) == 2 and stand_in.asked[-1].quantize_base is None


def test_nothing_fits(on_a_gpu) -> None:
    lines, error, stand_in = on_a_gpu(lambda args: None, "--preset", "h100", "--no-gradient_checkpointing")
    assert error is not None and len(stand_in.asked) == 4
    assert lines[-1] == "choose    nothing that was tried fits this GPU"
    assert not any(line.startswith("speed") for line in lines)


def test_a_variant_that_fails_otherwise_is_named_with_its_reason(on_a_gpu) -> None:
    def fits(args: argparse.Namespace) -> float | None:
        if args.compile_blocks:
            raise RuntimeError("no C compiler\nanywhere")
        return 4.0

    lines, error, _ = on_a_gpu(fits, "--preset", "full", "--no-compile_blocks")
    assert error is None
    assert "--compile_blocks: RuntimeError: no C compiler anywhere (--debug shows the traceback)" in lines[-3]
    assert lines[-1] == "choose    the flags as they are"


def test_on_several_gpus_the_users_flags_alone_are_measured(on_a_gpu) -> None:
    lines, error, stand_in = on_a_gpu(lambda args: 4.0, "--preset", "full", processes=2)
    assert error is None and len(stand_in.asked) == 1
    assert lines[-1] == "choose    other flags are tried on one GPU alone: CUDA_VISIBLE_DEVICES=0"
    lines, error, stand_in = on_a_gpu(lambda args: None, "--preset", "full", processes=2)
    assert error is not None and len(stand_in.asked) == 1


# ---- wrong use


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--gpu_hour_price", "2"], "--gpu_hour_price does nothing without --plan"),
        (["--plan", "--gpu_hour_price", "-1"], "-1 is not at least 0"),
        (["--plan", "--gpu_hour_price", "cheap"], "invalid float value: 'cheap'"),
        (["--plan", "--push_to_hub"], "--push_to_hub: --plan trains nothing to upload"),
        (
            ["--plan", "--upstream", "elsewhere/train.py"],
            "--plan measures the project's own trainer: leave out --upstream",
        ),
        (["--plan", "--train_base_model"], "--plan counts the work of a LoRA"),
        (["--plan", "--check"], "argument --check: not allowed with argument --plan"),
        (["--plan", "--num_train_epochs", "2"], "give --max_train_steps"),
        (["--plann"], "did you mean --plan?"),
        (["--cloth_types", "lower,full", "--prior_loss_weight", "1"], "--prior_loss_weight: --cloth_types lower,full"),
    ],
)
def test_wrong_use(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert wrapper.main([*argv, "--embedded"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_the_projects_own_trainer_may_be_named() -> None:
    assert asked("--upstream", str(ROOT / "train_flux_inpaint.py")).plan
