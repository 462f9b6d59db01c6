"""Measure a training step of ``train_flux_inpaint.py`` beside the floor, in one process on one device.

    python benchmarks/train_step.py --size tiny|cpu|full [--json F]

Variants take turns, step by step, on the same LoRA'd FLUX-Fill transformer with random weights: ``bare``, the forward
pass, mean squared error, backward pass and AdamW that no loop can do without; ``trainer``, the trainer's own
loop on a batch that is encoded already; ``trainer_cached``, all of a step with ``--cache_latents``, data included;
``trainer_cached_compiled`` with ``--compile_blocks``; and ``plain``, as diffusers' scripts train. ``README.md`` in this
folder holds the arithmetic and says how to read the figures.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import random
import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

# `python benchmarks/train_step.py` has only this folder on its path
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import training_run  # noqa: F401  (first, as torch reads what it sets when it is loaded)

# isort: split
import numpy as np
import psutil
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from safetensors.torch import save_file
from torch.utils.data import Dataset, default_collate

import train_flux_inpaint as trainer
from training_run import guards, quantization, speed
from training_run.flags import COUNT, QUANTIZED_BY, SIDE, SWITCH, recompute_stride
from training_run.flops import FLUX_FILL, matmul_ceiling, seconds, useful_flops
from training_run.memory import FLUX_VAE
from training_run.record import package_versions

ROOT = Path(__file__).resolve().parents[1]

#: The pipeline that ships with the project, on any machine.
EMBEDDED = ROOT / "deepfashion_training" / "embedded" / "tiny_flux_fill"

#: Settings of FLUX.1-Fill-dev's VAE, without those that equal the class's defaults.
FLUX_FILL_VAE: dict[str, Any] = {**FLUX_VAE, "sample_size": 1024, "scaling_factor": 0.3611, "shift_factor": 0.1159}


@dataclass(frozen=True)
class Size:
    """A model and the pairs it is measured on, with defaults of the flags."""

    transformer: dict[str, Any] | None  # what FluxTransformer2DModel is built from; None: as the embedded one
    height: int  # of one picture in pixels; a pair is twice as wide
    width: int
    text_tokens: int
    steps: int  # timed steps of each variant


SIZES = {
    "tiny": Size(None, 64, 48, 32, 20),
    # 60M parameters. Text is a seventh of the tokens, as it is of FLUX.1-Fill's at 768x576.
    "cpu": Size(
        {**FLUX_FILL, "num_layers": 3, "num_single_layers": 7, "num_attention_heads": 8, "attention_head_dim": 64,
         "axes_dims_rope": (8, 28, 28)}, 256, 192, 64, 30,
    ),
    "full": Size(FLUX_FILL, 768, 576, 512, 10),
}  # fmt: skip
WARM_UP = 2


def parse_args(input_args: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments of the benchmark, with what the size and the device decide filled in. Wrong use exits with code 2."""
    parser = argparse.ArgumentParser(description="Measure a training step beside the floor.", allow_abbrev=False)
    add = parser.add_argument
    add("--size", choices=SIZES, required=True, help="model and pictures; full is FLUX.1-Fill's and needs a CUDA GPU")
    add("--steps", type=COUNT, help="timed steps of each variant (default: by size)")
    add("--batch_size", type=COUNT, default=1, help="pairs per step")
    add("--height", type=SIDE, help="height of one picture in pixels, a multiple of 16 (default: by size)")
    add("--width", type=SIDE, help="width of one picture, a multiple of 16; a pair is twice as wide")
    add("--mixed_precision", choices=["no", "bf16"], help="as the trainer's (default: bf16 on CUDA, no elsewhere)")
    add("--gradient_checkpointing", nargs="?", const=1, default=0, type=recompute_stride, metavar="auto|none|N",
        help="as the trainer's; recomputation is not useful work")  # fmt: skip
    add("--attention_backend", default="native", metavar="NAME", help="as the trainer's")
    add("--quantize_base", choices=list(QUANTIZED_BY), help="as the trainer's, under all variants")
    add("--compile_blocks", action=SWITCH, default=False, help="also time a variant with compiled blocks")
    add("--json", type=Path, metavar="F", help="also write the figures to F")
    args = parser.parse_args(input_args)
    size = SIZES[args.size]
    args.steps, args.text_tokens = args.steps or size.steps, size.text_tokens
    args.height, args.width = args.height or size.height, args.width or size.width
    args.mixed_precision = args.mixed_precision or ("bf16" if torch.cuda.is_available() else "no")
    return args


def transformer_config(size: str) -> dict[str, Any]:
    """What ``FluxTransformer2DModel`` of that size is built from."""
    config = SIZES[size].transformer or FluxTransformer2DModel.load_config(EMBEDDED, subfolder="transformer")
    return {name: value for name, value in config.items() if not name.startswith("_")}


def random_transformer(
    config: dict[str, Any], device: torch.device | str, dtype: torch.dtype
) -> FluxTransformer2DModel:
    """A transformer of ``config`` with PyTorch's own random weights, made on ``device`` in ``dtype``."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return FluxTransformer2DModel(**config)
    finally:
        torch.set_default_dtype(usual)


def quantized_transformer(config: dict[str, Any], kind: str, device: torch.device, dtype: torch.dtype) -> Any:
    """A transformer held as ``kind`` of ``--quantize_base``, from no file.

    All double blocks have the same random weights, and so have all single blocks: no more of them is ever there
    unquantized, so that it is made where only the quantized model fits.
    """
    weights = random_transformer({**config, "num_layers": 1, "num_single_layers": 1}, device, dtype).state_dict()
    model = random_transformer(config, "meta", dtype)
    named = {name: weights[re.sub(r"blocks\.\d+", "blocks.0", name)] for name in model.state_dict()}
    model.load_state_dict(named, assign=True)
    quantization.quantize(model, kind, device)
    return model


@contextlib.contextmanager
def random_models(config: dict[str, Any], base: Path | None = None) -> Iterator[Path]:
    """While it lasts the trainer loads a transformer of ``config``, and embeddings of prompts, that are random.

    Both are made in memory, the transformer on the GPU where there is one. Yields the pipeline to name: ``base``, or a
    folder with a VAE of FLUX's size, random too. Nothing is downloaded.
    """

    def load_transformer(args: argparse.Namespace, dtype: torch.dtype, device: torch.device | None = None) -> Any:
        quickly = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if args.quantize_base:
            return quantized_transformer(config, args.quantize_base, quickly, dtype)
        return random_transformer(config, quickly, dtype).to(device or "cpu")

    def encode_prompts(
        args: argparse.Namespace, prompts: list[str], device: torch.device, dtype: torch.dtype, hidden: bool = True
    ) -> trainer.PromptTable:
        embeds = torch.randn(len(prompts), args.max_sequence_length, config["joint_attention_dim"], dtype=dtype)
        return trainer.PromptTable(
            prompts, embeds, torch.randn(len(prompts), config["pooled_projection_dim"]).to(dtype)
        )

    with tempfile.TemporaryDirectory(prefix="random_models-") as folder, contextlib.ExitStack() as patches:
        for made in (load_transformer, encode_prompts):
            patches.enter_context(mock.patch.object(trainer, made.__name__, made))
        if base is None:
            shutil.copy(EMBEDDED / "model_index.json", folder)
            shutil.copytree(EMBEDDED / "scheduler", f"{folder}/scheduler")
            AutoencoderKL(**FLUX_FILL_VAE).to(torch.bfloat16).save_pretrained(f"{folder}/vae")
            random_transformer(config, "meta", torch.bfloat16).save_config(f"{folder}/transformer")
            save_file({}, f"{folder}/transformer/diffusion_pytorch_model.safetensors")  # that it is there is looked at
        yield base or Path(folder)


def trainer_args(args: argparse.Namespace, pipeline: Path, output: Path) -> argparse.Namespace:
    """The trainer's arguments, as a user would type them; what is not named keeps the trainer's default."""
    flags = {
        "dataroot": output, "pretrained_model_name_or_path": pipeline, "output_dir": output,
        "pretrained_inpaint_model_name_or_path": pipeline,
        "train_batch_size": args.batch_size, "height": args.height, "width": args.width,
        "max_sequence_length": args.text_tokens, "mixed_precision": args.mixed_precision,
        "max_train_steps": 2 * (args.steps + WARM_UP), "report_to": "none",
        "attention_backend": args.attention_backend, "quantize_base": args.quantize_base,
        "gradient_checkpointing": args.gradient_checkpointing or "none",
    }  # fmt: skip
    return trainer.parse_args([f"--{name}={value}" for name, value in flags.items() if value is not None])


@contextlib.contextmanager
def trainer_run(args: argparse.Namespace) -> Iterator[trainer.Run]:
    """The trainer's ``Run`` over models with random weights, made here and gone afterwards."""
    models = random_models(transformer_config(args.size), None if args.size == "full" else EMBEDDED)
    with tempfile.TemporaryDirectory(prefix="train_step-") as output, models as pipeline:
        options = trainer_args(args, pipeline, Path(output))
        guards.check_packages(options)
        accelerator, dtype = trainer.start(options), trainer.DTYPES[options.mixed_precision]
        prompts = trainer.encode_prompts(options, [options.instance_prompt], accelerator.device, dtype)
        yield trainer.Run(options, accelerator, prompts)


class NoiseRows(Dataset[dict[str, Any]]):
    """Four rows of noise as the trainer's datasets give them, with a mask as a garment's; ``size`` is of one picture.

    Built as those are, and always the same.
    """

    def __init__(self, size: tuple[int, int], **_: Any) -> None:
        self.size = size

    def __len__(self) -> int:
        return 4

    def __getitem__(self, row: int) -> dict[str, Any]:
        height, width = self.size
        mask = torch.zeros(1, height, 2 * width)
        mask[:, height // 4 : 3 * height // 4, 5 * width // 4 : 7 * width // 4] = 1
        image = torch.rand(3, height, 2 * width, generator=torch.Generator().manual_seed(row)) * 2 - 1
        cloth = {"cloth_pure": image[..., :width], "cloth_mask": torch.ones(1, height, width)}
        names = {"c_name": f"{row}", "im_name": f"{row}", "caption_cloth": "", "cloth_type": 2}
        return {"image": image, "im_mask": image * (1 - mask), "inpaint_mask": mask, **cloth, **names}


def bare_step(run: trainer.Run, inputs: dict[str, Any], target: torch.Tensor) -> torch.Tensor:
    """The least that a loop must do with the trainer's model and optimizer; accelerate takes no part in it.

    Forward pass on ``inputs``, loss against the packed velocity ``target``, backward pass, update; no
    clipping. Returns the loss, on the device.
    """
    optimizer = getattr(run.optimizer, "optimizer", run.optimizer)  # torch's own, inside accelerate's
    device, bf16 = run.accelerator.device.type, run.args.mixed_precision == "bf16"
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        # The class's own forward: accelerate has put a wrapper in the place of the instance's.
        prediction = FluxTransformer2DModel.forward(run.model, **inputs)[0]
    loss = torch.nn.functional.mse_loss(prediction.float(), target)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def bare_inputs(run: trainer.Run, batch: trainer.FillBatch) -> tuple[dict[str, Any], torch.Tensor]:
    """What ``bare_step`` gets for ``batch``, all made before the clock starts."""
    inputs = trainer.transformer_inputs(batch, run.args.guidance_scale, run.takes_guidance)
    return inputs, trainer.pack_latents(batch.noise.float() - batch.latents.float())


def take_step(run: trainer.Run, batch: trainer.FillBatch) -> torch.Tensor:
    """A step on an encoded batch, in the words of the loop in ``trainer.train``; returns the loss."""
    with run.accelerator.accumulate(run.transformer):
        loss, regions = run.loss_of(batch)
        run.accelerator.backward(loss)
    sums = torch.cat([regions, torch.stack([loss.detach(), torch.ones_like(loss)])[None]])
    norm = run.accelerator.clip_grad_norm_(run.parameters, run.args.max_grad_norm or torch.inf)
    run.optimizer_step(run.accelerator.reduce(sums, "sum").tolist(), float(norm), batch.names)
    return loss.detach()


def compiled_calls(run: trainer.Run) -> dict[torch.nn.Module, Any]:
    """How each repeated block is called when it is compiled."""
    speed.compile_blocks(run.model)
    kinds = run.model._repeated_blocks
    blocks = [module for module in run.model.modules() if type(module).__name__ in kinds]
    return {block: block._compiled_call_impl for block in blocks}


def measure(run: trainer.Run, args: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, float], float]:
    """Time all variants in turn, in an order drawn for each round, so that disturbances and neighbours meet all alike.

    Returns by variant the seconds of every step, those of the first warm-up step first, and the highest memory in GiB;
    and the seconds of encoding a batch. Raises ``ValueError`` when a loss is not finite: nothing that was timed would
    be training then.
    """
    device, vae, rows = run.accelerator.device, run.vae, NoiseRows((args.height, args.width))
    samples = default_collate([rows[0]] * args.batch_size)
    encode_s = statistics.median([seconds(lambda: run.encode(samples, 0), device) for _ in range(6)][1:])
    blocks = len(run.model.transformer_blocks) + len(run.model.single_transformer_blocks)
    if run.args.gradient_checkpointing == "auto":
        run.rows = rows
        recomputed = run.fit_memory()
    else:
        recomputed = speed.recomputed_by(run.args.gradient_checkpointing, blocks)
    batches = [run.encode(samples, number) for number in range(6)]
    inputs = [bare_inputs(run, batch) for batch in batches]
    latents = {"latents_dir": str(run.folder / "latents"), "dataloader_num_workers": 0}
    options = argparse.Namespace(**{**vars(run.args), **latents})
    cached_rows, _ = trainer.cache_latents(options, rows, run.accelerator)
    cached = iter(trainer.make_loader(cached_rows, options, run.accelerator, 0))
    compiled = compiled_calls(run) if args.compile_blocks else {}
    steps: dict[str, Callable[[int], torch.Tensor]] = {
        "plain": lambda number: take_step(run, run.encode(samples, number)),
        "bare": lambda number: bare_step(run, *inputs[number % 6]),
        "trainer": lambda number: take_step(run, batches[number % 6]),
        "trainer_cached": lambda number: take_step(run, run.encode(next(cached), number)),
    }
    if compiled:
        steps["trainer_cached_compiled"] = steps["trainer_cached"]
    times: dict[str, list[float]] = {name: [] for name in steps}
    peaks, losses = dict.fromkeys(steps, 0.0), dict[str, torch.Tensor]()
    for number in range(WARM_UP + args.steps):
        for name in random.Random(number).sample(sorted(steps), len(steps)):
            run.vae = None if "cached" in name else vae
            speed.recompute(run.model, blocks if name == "plain" else recomputed)
            for block, call in compiled.items():
                block._compiled_call_impl = call if "compiled" in name else None
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            times[name].append(seconds(lambda: losses.update({name: steps[name](number)}), device))  # noqa: B023
            if number >= WARM_UP:
                peaks[name] = max(peaks[name], memory_gib(device))
    for name, loss in losses.items():
        if not loss.isfinite().all():
            raise ValueError(f"the loss of the {name} variant is not finite after {args.steps} steps")
    return times, peaks, encode_s


def memory_gib(device: torch.device) -> float:
    """Memory in GiB: the highest allocation on CUDA since the last reset, elsewhere what the process holds now."""
    used = torch.cuda.max_memory_allocated() if device.type == "cuda" else psutil.Process().memory_info().rss
    return used / 2**30


def median_ratio(trainer_s: Sequence[float], bare_s: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Median of pairwise ratios, and its 95% bootstrap interval (2,000 resamples of the pairs)."""
    ratios = np.asarray(trainer_s) / np.asarray(bare_s)
    resampled = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.percentile(np.median(resampled, axis=1), [2.5, 97.5])
    return float(np.median(ratios)), (float(low), float(high))


def benchmark(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The figures as ``--json`` writes them, and the table with its notes."""
    with trainer_run(args) as run:
        device, dtype, rank = run.accelerator.device, trainer.DTYPES[run.args.mixed_precision], run.args.lora_rank
        config, image_tokens = transformer_config(args.size), args.height * 2 * args.width // 16**2
        flops = useful_flops(config, image_tokens, args.text_tokens, rank, args.batch_size)
        parameters = sum(weight.numel() for weight in random_transformer(config, "meta", dtype).parameters())
        ceiling = matmul_ceiling(device, dtype)
        every, peaks, encode_s = measure(run, args)
        ceiling = max(ceiling, matmul_ceiling(device, dtype))  # the machine may have been busy the first time
    timed = {name: times[WARM_UP:] for name, times in every.items()}
    rows = []
    for name, times in timed.items():
        s_per_step = statistics.median(times)
        tflops = flops.step / s_per_step / 1e12
        rows.append(
            {
                "variant": name,
                "s_per_step": s_per_step,
                "pairs_per_s": args.batch_size / s_per_step,
                "tflops": tflops,
                "share_of_ceiling": tflops / ceiling,
                "peak_gib": peaks[name],
                "ratio_to_bare": median_ratio(times, timed["bare"])[0],
                "times_plain": median_ratio(timed["plain"], times)[0],
                "compile_s": every[name][0] - s_per_step if "compiled" in name else None,
            }
        )
    processor = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} thread(s)"
    settings = {name: value for name, value in vars(args).items() if name != "json"}
    settings |= {"image_tokens": image_tokens, "lora_rank": rank, "parameters": parameters}
    settings["step_tflop"] = flops.step / 1e12
    figures = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else processor,
        "ceiling_tflops": ceiling,
        "rows": rows,
        "encode_s": encode_s,
        "settings": settings,
        "versions": package_versions(),
    }
    ratio, (low, high) = median_ratio(timed["trainer"], timed["bare"])
    note = f"trainer / bare: {ratio:.3f}, the median of {args.steps} rounds (95% interval {low:.3f} to {high:.3f})"
    return figures, f"{table(figures)}\n{note}"


def table(figures: dict[str, Any]) -> str:
    """The figures for people."""
    settings = figures["settings"]
    lines = [
        f"{figures['device']}: best matmul {figures['ceiling_tflops']:.3g} TFLOP/s",
        f"{settings['size']}: {settings['parameters'] / 1e6:,.1f}M parameters in {settings['mixed_precision']}; "
        f"{settings['batch_size']} pair(s) of {settings['height']}x{2 * settings['width']} pixels, "
        f"{settings['image_tokens']} + {settings['text_tokens']} tokens; {settings['step_tflop']:.4g} TFLOP a step",
        "",
        f"{'variant':<24}{'s/step':>9}{'pairs/s':>9}{'TFLOP/s':>9}{'of ceiling':>11}{'peak GiB':>9}"
        f"{'x bare':>8}{'x plain':>8}",
    ]
    for row in figures["rows"]:
        compiling = f"   compiled in {row['compile_s']:.0f} s" if row["compile_s"] else ""
        lines.append(
            f"{row['variant']:<24}{row['s_per_step']:>9.4f}{row['pairs_per_s']:>9.3f}{row['tflops']:>9.3g}"
            f"{row['share_of_ceiling']:>11.1%}{row['peak_gib']:>9.2f}{row['ratio_to_bare']:>8.3f}"
            f"{row['times_plain']:>8.2f}{compiling}"
        )
    lines += ["", f"encoding a batch (VAE, mask, noise), apart from the step: {figures['encode_s']:.4f} s"]
    return "\n".join(lines)


def main(input_args: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    args = parse_args(input_args)
    if args.size == "full" and not torch.cuda.is_available():
        raise SystemExit("error: --size full needs a CUDA GPU, and none is visible: use --size cpu")
    figures, report = benchmark(args)
    print(report)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
