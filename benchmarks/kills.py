"""Kill a training run at random moments and continue it: does the end equal that of the run that nothing disturbed?

    python benchmarks/kills.py [--kills 50] [--seed 0]

A small run saves a checkpoint after every step. SIGKILL comes after a random time, the run is continued with
``--resume_from_checkpoint latest``, and so on until the kills are used up; then it may end. After each kill every
folder that is called a checkpoint has to be whole. In the end losses, LoRA and the last checkpoint's state have to be
those of the undisturbed run, bit for bit. Exit 1 where anything differs. Minutes for 50 kills on two cores.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

FLAGS = (
    "--height 128 --width 96 --max_sequence_length 8 --lora_rank 4 --train_batch_size 1 "
    "--gradient_accumulation_steps 2 --max_train_steps {steps} --lr_scheduler cosine --learning_rate 1e-2 "
    "--checkpointing_steps 1 --checkpoints_total_limit 2 --validation_steps 0 --report_to none "
    "--dataloader_num_workers 0"
)


def train(flags: list[str]) -> None:
    """The trainer's ``main`` in a process of its own, without its progress."""
    import torch

    import train_flux_inpaint as trainer

    torch.set_num_threads(1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    trainer.main(trainer.parse_args(flags))


def ended(folder: Path) -> dict[str, Any]:
    """What has to be the same in the end."""
    from safetensors.torch import load_file

    from training_run.checkpoints import checkpoints_in
    from training_run.state import read_state

    state = read_state(checkpoints_in(folder)[-1])
    names = ("step", "rows_seen", "optimizer", "lr_scheduler", "ranks", "moved", "data")
    losses = (folder / "logs" / "losses.jsonl").read_text("utf-8")
    return {name: state[name] for name in names} | {
        "lora": load_file(next(folder.glob("*.safetensors"))),
        "losses": losses,
    }


def same(ours: Any, theirs: Any) -> bool:
    """Equal bit for bit, tensors too."""
    import torch

    if isinstance(ours, torch.Tensor):
        return isinstance(theirs, torch.Tensor) and ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return isinstance(theirs, dict) and ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list):
        return isinstance(theirs, list) and len(ours) == len(theirs) and all(map(same, ours, theirs))
    return bool(ours == theirs)


def killed_and_continued(flags: list[str], folder: Path, kills: int, seed: int, seconds: float) -> list[str]:
    """Kill the run that ``flags`` make ``kills`` times within ``seconds`` each; returns when each came, to be read."""
    from training_run.checkpoints import checkpoints_in, verify

    draw, told = random.Random(seed), []
    context = multiprocessing.get_context("fork")  # what the parent has imported need not be imported again
    for number in range(kills):
        process = context.Process(target=train, args=([*flags, "--resume_from_checkpoint", "latest"],))
        process.start()
        delay = draw.uniform(0, seconds)
        time.sleep(delay)
        process.kill()
        process.join()
        found = checkpoints_in(folder) if folder.is_dir() else []
        for checkpoint in found:
            verify(checkpoint)
        drafts = [path.name for path in folder.glob(".*ing-*")] if folder.is_dir() else []
        told.append(f"kill {number + 1} after {delay:.2f} s: {found[-1].name if found else 'no checkpoint'} {drafts}")
        if process.exitcode == 0:  # it was quicker: begin again
            shutil.rmtree(folder)
            told[-1] += ", and it had ended: begun again"
        elif process.exitcode != -9:
            raise SystemExit(f"{told[-1]}: ended with {process.exitcode} by itself")
    return told


def main(argv: list[str] | None = None) -> int:
    """Run the check; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="how often the run is killed")
    parser.add_argument("--steps", type=int, default=120, help="steps of the run")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    args = parser.parse_args(argv)
    from deepfashion_training.embedded import TINY_FLUX_FILL
    from deepfashion_training.embedded.make.tops_folder import write_tops_folder

    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        write_tops_folder(work / "tops", 7, 2)
        models = ("--pretrained_model_name_or_path", "--pretrained_inpaint_model_name_or_path")
        flags = FLAGS.format(steps=args.steps).split() + [
            word for name in models for word in (name, str(TINY_FLUX_FILL))
        ]
        flags += ["--dataroot", str(work / "tops"), "--output_dir"]
        context, began = multiprocessing.get_context("fork"), time.monotonic()
        import train_flux_inpaint  # noqa: F401  # once, for all processes

        straight = context.Process(target=train, args=([*flags, str(work / "straight")],))
        straight.start()
        straight.join()
        if straight.exitcode:
            raise SystemExit(f"the undisturbed run ended with {straight.exitcode}")
        seconds = min(8.0, (time.monotonic() - began) / 3)
        folder = work / "killed"
        for line in killed_and_continued([*flags, str(folder)], folder, args.kills, args.seed, seconds):
            print(line)
        last = context.Process(target=train, args=([*flags, str(folder), "--resume_from_checkpoint", "latest"],))
        last.start()
        last.join()
        if last.exitcode:
            raise SystemExit(f"the last continuation ended with {last.exitcode}")
        wanted, got = ended(work / "straight"), ended(folder)
        wrong = [name for name in wanted if not same(got[name], wanted[name])]
    print(
        f"{args.kills} kills of a run of {args.steps} steps: "
        + (f"different: {', '.join(wrong)}" if wrong else "equal")
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
