"""Does another training script learn from our pairs as our own trainer does? The loss of every step, side by side.

    python benchmarks/upstream_losses.py --upstream PATH [--steps N] [--mixed_precision no|bf16] [--rounds N]

Both train the embedded model on one drawn wardrobe with the same settings, rows, seed and LoRA. What the script draws
at random (VAE posteriors, noise, timesteps) it takes from one global generator, our trainer from one per forward
pass. So the script runs twice: with its own draws, and with its draws replayed from our generators, which
leaves rounding as the only difference. Exit 1 when the replayed losses differ by more than rounding may make. With
``--rounds`` both are timed, too, run by run in turn.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import train_flux_inpaint as trainer
from deepfashion_training import run_arguments
from deepfashion_training import train_deepfashion_lora as wrapper
from deepfashion_training.cli import quiet_libraries
from deepfashion_training.embedded.wardrobe import write_wardrobe

#: Largest difference of a step's loss that rounding may make, by precision.
TOLERANCE = {"no": 1e-5, "bf16": 2e-3}
#: What the preset has and a script does not know, as it is in a script.
PLAIN = ["--optimizer=adamw", "--mask_loss_weight=1", "--garment_loss_weight=1", "--no-cache_latents"]
PLAIN += ["--prior_loss_weight=0", "--balance_cloth_types"]


def train(flags: list[str], replay: bool = False) -> Path:
    """A run with ``flags``; the folder that it wrote."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    args, script = run_arguments.parse(flags)
    wrapper.check(args, script)
    with mock.patch.multiple(script.module, **replayed(script.module, args.seed)) if replay else nullcontext():
        wrapper.run(args, script)
    return Path(args.output_dir)


def losses_of(flags: list[str], replay: bool = False) -> list[float]:
    """Loss of every step of a run with ``flags``."""
    lines = (train(flags, replay) / "logs" / "losses.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def time_in_turn(flags: list[str], theirs: str, rounds: int, folder: str) -> None:
    """Print how fast the script, our trainer, and ours with cached latents take steps; ``rounds`` runs each, in turn.

    From one optimizer step to the next, without the first: by the clock, and in processor time, which other processes
    disturb less. Ratios are medians over the rounds.
    """
    cached = [flag for flag in PLAIN if "cache" not in flag] + [f"--latents_dir={folder}/latents"]
    ways = {"script": [theirs], "ours": PLAIN, "ours, cached latents": cached}
    took: dict[str, list[list[float]]] = {way: [] for way in ways}
    for number in range(rounds):
        for way, more in ways.items():
            ticks: list[tuple[float, float]] = []
            hook = register_optimizer_step_post_hook(
                lambda *_, ticks=ticks: ticks.append((time.perf_counter(), time.process_time()))
            )
            train([*flags, *more, f"--output_dir={folder}/{number}-{way}"])
            hook.remove()
            steps = [[b - a for a, b in zip(*pair, strict=True)] for pair in itertools.pairwise(ticks)]
            took[way].append([statistics.median(each) for each in zip(*steps, strict=True)])
    for place, clock in enumerate(("seconds", "processor seconds")):
        for way, found in took.items():
            ratio = statistics.median(a[place] / b[place] for a, b in zip(took["script"], found, strict=True))
            seconds = statistics.median(each[place] for each in found)
            print(f"{way:22}{seconds:8.3f} {clock} a step, {ratio:.2f} times as fast as the script")


def replayed(module: ModuleType, seed: int) -> dict[str, Any]:
    """Functions of a script of the ``catvton-flux`` family that draw what ``Run.encode`` of our trainer draws.

    Ours draws latents of the pair, latents of the masked pair and noise from one generator, timesteps from a second
    one with the same seed. The script draws masked pair, pair, noise and timesteps, from the global one.
    """
    names = ("prepare_fill_with_mask", "encode_images_to_latents", "compute_density_for_timestep_sampling")
    fill, encode, draw = (getattr(module, name) for name in names)
    forward, after = -1, torch.get_rng_state()

    def seed_pass() -> None:
        torch.manual_seed(trainer.seed_for(seed, 0, forward))

    def conditioning(*args: Any, **kwargs: Any) -> Any:
        nonlocal forward, after
        forward += 1
        image, vae = kwargs["image"], kwargs["vae"]
        seed_pass()
        scale = 2 ** (len(vae.config.block_out_channels) - 1)
        size = (len(image), vae.config.latent_channels, image.shape[-2] // scale, image.shape[-1] // scale)
        torch.randn(size, dtype=vae.dtype)  # what the pair will get
        found = fill(*args, **kwargs)
        after = torch.get_rng_state()
        return found

    def latents(*args: Any, **kwargs: Any) -> Any:
        seed_pass()
        found = encode(*args, **kwargs)
        torch.set_rng_state(after)  # the noise comes next
        return found

    def density(*args: Any, **kwargs: Any) -> Any:
        seed_pass()
        return draw(*args, **kwargs)

    return dict(zip(names, (conditioning, latents, density), strict=True))


def main(argv: list[str] | None = None) -> int:
    """Train three times, print the losses side by side; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None, allow_abbrev=False)
    parser.add_argument("--upstream", required=True, metavar="PATH", help="the other training script")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of each run")
    parser.add_argument("--mixed_precision", choices=list(TOLERANCE), default="no")
    parser.add_argument("--rounds", type=int, default=0, help="also time so many runs of each; 0 times none")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    args = parser.parse_args(argv)
    tolerance = TOLERANCE[args.mixed_precision]
    logging.basicConfig(level=logging.WARNING)  # before the script does
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        write_wardrobe(Path(folder) / "pairs", rows=72, seed=0, size=(128, 96), num_proc=1)
        flags = ["--preset=quick_test", "--embedded", f"--dataset_name={folder}/pairs", "--validation_steps=0"]
        flags += [f"--max_train_steps={args.steps}", "--checkpointing_steps=0", "--gradient_accumulation_steps=2"]
        flags += [f"--mixed_precision={args.mixed_precision}", f"--learning_rate={args.learning_rate}"]
        flags += ["--evaluate_samples=0", "--train_batch_size=8", "--lora_rank=32"]
        theirs = f"--upstream={args.upstream}"
        ours = losses_of([*flags, *PLAIN, f"--output_dir={folder}/ours"])
        replay = losses_of([*flags, theirs, f"--output_dir={folder}/replayed"], replay=True)
        own = losses_of([*flags, theirs, f"--output_dir={folder}/own"])
        if args.rounds:
            time_in_turn(flags, theirs, args.rounds, folder)
    print(f"{'step':>4} {'ours':>10} {'replayed':>10} {'difference':>11} {'own draws':>10}")
    for step, (a, b, c) in enumerate(zip(ours, replay, own, strict=True), start=1):
        print(f"{step:>4} {a:>10.6f} {b:>10.6f} {b - a:>+11.1e} {c:>10.6f}")
    largest = max(abs(a - b) for a, b in zip(ours, replay, strict=True))
    apart = [c - a for a, c in zip(ours, own, strict=True)]
    error = statistics.stdev(apart) / len(apart) ** 0.5
    print(f"replayed: largest difference {largest:.1e} (rounding may make {tolerance:.0e})")
    print(f"own draws: mean difference {statistics.mean(apart):+.4f}, standard error {error:.4f}")
    return 0 if largest <= tolerance else 1


if __name__ == "__main__":
    sys.exit(main())
