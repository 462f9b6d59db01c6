"""``--shard_base``: the frozen base over two ranks gives the run that both would have with all of it, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train_flux_inpaint as tfi

FLAGS = (
    "--max_train_steps 3 --learning_rate 1e-2 --checkpointing_steps 2 --report_to none --logging_steps 1 "
    "--validation_steps 3 --num_validation_images 2 --train_batch_size 2 --gradient_checkpointing 2"
).split()
#: Runs the trainer, and says how much of the base each rank holds: bytes of its weights there, and of all of them.
SCRIPT = """
import os
import signal
import sys
import accelerate
import train_flux_inpaint as tfi
from training_run import speed

shard = speed.shard_frozen
def told(transformer, accelerator):
    shard(transformer, accelerator)
    frozen = [p for p in transformer.parameters() if not p.requires_grad]
    here = sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in frozen)
    whole = sum(p.numel() for p in frozen)
    open(f"{sys.argv[1]}/{accelerator.process_index}", "w").write(f"{here} {whole}")
speed.shard_frozen = told

if "GPUS" in os.environ:  # what accelerate does with several GPUs; DDP gets no device ids
    accelerate.Accelerator.multi_device = property(lambda self: True)

class SomeTops(tfi.VitonHDTestDataset):
    def cloth_types(self):
        return [1 if row < 3 else 2 for row in range(len(self))]
    def __getitem__(self, row):
        return {**super().__getitem__(row), "cloth_type": self.cloth_types()[row]}
if "TOPS" in os.environ:
    tfi.VitonHDTestDataset = SomeTops

interrupt, calls = tfi.Run.interrupt, []
def told_to_stop(run, pipeline, *rest):
    calls.append(run.step)
    if os.environ.get("STOPS") == str(run.accelerator.process_index) and len(calls) == 3:
        os.kill(os.getpid(), signal.SIGTERM)
    return interrupt(run, pipeline, *rest)
tfi.Run.interrupt = told_to_stop
tfi.main(tfi.parse_args(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def two_ranks(tiny_flags, tmp_path_factory):
    home = tmp_path_factory.mktemp("shards")
    script = home / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    settings = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    settings["PYTHONPATH"] = str(Path(tfi.__file__).parent)

    def run(name: str, *more: object, stops: str = "", **variables: str) -> Path:
        held = home / f"{name}-held"
        held.mkdir()
        flags = tiny_flags(*FLAGS, *more, "--output_dir", home / name)
        done = subprocess.run(
            [*command, str(held), *map(str, flags)], env={**settings, "STOPS": stops, **variables},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == (1 if stops else 0), done.stderr[-4000:]  # torchrun's own code for a stopped rank
        return home / name

    return run


@pytest.fixture(scope="module")
def split(two_ranks) -> Path:
    return two_ranks("split", "--shard_base")


def same(one: Path, other: Path) -> None:
    last = [(folder / "logs" / "losses.jsonl").read_text().splitlines()[-1] for folder in (one, other)]
    assert last[0] == last[1] and json.loads(last[0])["step"] == 3
    assert (one / "validation" / "step-3.png").read_bytes() == (other / "validation" / "step-3.png").read_bytes()
    ours, theirs = (load_file(folder / tfi.LORA_FILE) for folder in (one, other))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.long
def test_two_ranks_train_the_same_lora_with_half_of_the_base_each(two_ranks, split):
    same(split, two_ranks("whole"))
    for rank in "01":
        here, whole = map(int, (split.parent / "split-held" / rank).read_text().split())
        assert 0.49 < here / whole < 0.51
    assert json.loads((split / "run.json").read_text())["world_size"] == 2


@pytest.mark.long
def test_ranks_ask_the_base_together_also_where_one_has_no_row_for_it(two_ranks):
    """In step 1 rank 0 has rows 3 and 4, and tops are 0 to 2: with half of the base it has to help rank 1 all the same.

    Without --shard_base it does not, so the same result also says that a row that helps counts nothing.
    """
    flags = ["--prior_loss_weight", 50]
    split, whole = two_ranks("split-prior", *flags, "--shard_base", TOPS=""), two_ranks("prior", *flags, TOPS="")
    same(split, whole)
    lines = [json.loads(line) for line in (whole / "logs" / "losses.jsonl").read_text().splitlines()]
    assert lines[0]["loss_prior"] < 1e-9  # rounding: rows alone, and in a batch
    assert min(line["loss_prior"] for line in lines[1:]) > 1e-3


@pytest.mark.long
def test_on_several_gpus_accelerate_takes_it_too(two_ranks, split):
    """It refuses a base that is split before DDP sees it, but not where processes run on CPUs."""
    same(two_ranks("gpus", "--shard_base", GPUS="", ACCELERATE_BYPASS_DEVICE_MAP="true"), split)


@pytest.mark.long
def test_a_split_run_is_continued_bit_for_bit(two_ranks, split):
    checkpoint = split / "checkpoint-2"
    same(two_ranks("again", "--shard_base", "--resume_from_checkpoint", checkpoint), split)


@pytest.mark.long
@pytest.mark.parametrize("rank", ["0", "1"])
def test_ranks_that_draw_together_stop_together(two_ranks, rank):
    """A signal to one of them between two denoising steps: neither waits for the other for ever."""
    drawn = ["--num_inference_steps", 6, "--validation_steps", 1]
    folder = two_ranks(f"stopped-{rank}", "--shard_base", *drawn, stops=rank)
    assert json.loads((folder / "run.json").read_text())["status"] == "stopped by SIGTERM"
    assert not (folder / "validation" / "step-0.png").exists()


def test_one_process_has_nobody_to_share_with(tiny_args):
    with pytest.raises(ValueError, match="--shard_base splits the base over several processes"):
        tfi.main(tiny_args(*FLAGS, "--shard_base"))


@pytest.mark.parametrize(
    "flags",
    [["--train_base_model"], ["--quantize_base", "int8"], ["--compile_blocks"], ["--gradient_checkpointing", "auto"]],
)
def test_what_needs_the_whole_base_is_refused(flags, tiny_flags, capsys):
    with pytest.raises(SystemExit) as exit_:
        tfi.parse_args([str(flag) for flag in tiny_flags("--shard_base", *flags)])
    told = capsys.readouterr().err
    assert exit_.value.code == 2 and "--shard_base" in told and flags[0] in told
