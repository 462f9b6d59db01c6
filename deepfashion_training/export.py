"""A LoRA in the formats that other tools load.

    python -m deepfashion_training.export --lora DIR --format kohya|peft|fused --output F

``kohya`` is one .safetensors for ComfyUI and kohya's sd-scripts, ``peft`` a folder for ``PeftModel.from_pretrained``,
``fused`` a folder with the transformer that has the LoRA added in. Exit codes: 0 done, 1 failed, 2 wrong use, 130
stopped by Ctrl-C.
"""

# Nothing heavy is imported up here, so that --help answers at once.
from __future__ import annotations

import argparse
import sys
from fnmatch import fnmatch
from pathlib import Path

from deepfashion_training.cli import FlagParser, number, quiet_libraries, run_command

FORMATS = ("kohya", "peft", "fused")
#: Files of an earlier export, which --overwrite may replace. A folder with others is left alone.
_FILES = {
    "peft": ("adapter_config.json", "adapter_model.safetensors"),
    "fused": ("config.json", "diffusion_pytorch_model*.safetensors", "diffusion_pytorch_model.safetensors.index.json"),
}


def build_parser() -> FlagParser:
    """The command line."""
    parser = FlagParser("export", "Write a LoRA in the formats that other tools load.")
    add = parser.add_argument
    add("--lora", metavar="LORA", required=True, help="output folder of a training, LoRA file, or Hub id")
    add("--format", choices=FORMATS, required=True, help="kohya is for ComfyUI too; fused is the base with the LoRA in")
    add("--output", metavar="F", required=True, help="a .safetensors file for kohya, a folder for peft and fused")
    add("--lora_scale", type=number(float), default=1.0, metavar="X", help="multiplies what the LoRA changes")
    add("--base", metavar="BASE", help="fused: transformer, folder or Hub id; by default the one it was trained on")
    add("--dtype", choices=("bf16", "fp16", "fp32"), help="fused: precision; by default as the base is stored")
    add("--overwrite", action="store_true", help="replace an earlier export")
    return parser


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags in ``argv``; ``WrongUseError`` for some that do not go together."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.format != "fused" and (args.base or args.dtype):
        parser.error(f"{'--base' if args.base else '--dtype'} goes with --format fused, not {args.format}")
    if args.format == "kohya" and not args.output.endswith(".safetensors"):
        parser.error(f"--output {args.output}: --format kohya writes one file, whose name ends in .safetensors")
    return args


def export(args: argparse.Namespace) -> None:
    """Write ``--lora`` to ``--output`` in a format, and say how to use it.

    Everything that can be refused is refused before anything is written; then the output appears whole or not at all.
    Raises ``ValueError``, one line, for a LoRA that is not there or that the format cannot hold, and for an output
    that must not be replaced.
    """
    quiet_libraries()
    from deepfashion_training.models import lora_files
    from deepfashion_training.models.access import check_writable
    from training_run.atomic import replacing

    target = Path(args.output).expanduser().resolve()
    source = lora_files.find_lora(args.lora)
    _check_target(target, args.format, source, args.overwrite)
    check_writable(target.parent)
    original = lora_files.read_lora(source)
    scaled = original.scaled(args.lora_scale)
    if args.format == "kohya":
        with replacing(target) as draft:
            lora_files.write_kohya(scaled, draft)
        use = f'ComfyUI (models/loras), kohya --network_weights, or pipeline.load_lora_weights("{target}")'
    elif args.format == "peft":
        with replacing(target) as draft:
            lora_files.write_peft(scaled, draft)
        use = f'PeftModel.from_pretrained(transformer, "{target}")'
        if scaled.config.use_dora:
            use += "; other tools ignore the magnitudes of a DoRA: export it with --format fused for them"
    else:
        named = args.base or original.metadata.get("transformer")
        if not named:
            raise ValueError(f"--lora {source} does not say which transformer it was trained on: name it with --base")
        transformer = lora_files.find_transformer(named)
        if target == transformer or target in transformer.parents or transformer in target.parents:
            raise ValueError(f"--output {target} and the base {transformer} lie in one another: name another folder")
        lora_files.check_fits(scaled, str(transformer))
        precision = lora_files.DTYPES[args.dtype] if args.dtype else lora_files.stored_dtype(transformer)
        with replacing(target) as draft:
            lora_files.write_fused(scaled, transformer, precision, draft)
        pipeline = original.metadata.get("base_model", "black-forest-labs/FLUX.1-Fill-dev")
        use = f'FluxFillPipeline.from_pretrained("{pipeline}", transformer=FluxTransformer2DModel.from_pretrained('
        use += f'"{target}", torch_dtype={precision}))'
    sys.stdout.write(f"written: {target} (rank {scaled.config.r}, {len(scaled.layers)} layers), load it with {use}\n")


def _check_target(target: Path, kind: str, source: Path, overwrite: bool) -> None:
    """Raise ``ValueError`` where writing to ``target`` would replace the LoRA, or something unasked."""
    if target == source or target in source.parents:
        raise ValueError(f"--output {target} would replace the LoRA {source}: name another")
    if not target.exists():
        return
    if target.is_dir() == (kind == "kohya"):
        raise ValueError(f"--output {target} is a {'folder' if target.is_dir() else 'file'}: name another")
    names = sorted(path.name for path in target.iterdir()) if target.is_dir() else []
    if other := [name for name in names if not any(fnmatch(name, pattern) for pattern in _FILES[kind])]:
        raise ValueError(f"--output {target} holds other files ({other[0]}): name a new or empty folder")
    if not overwrite and (names or target.is_file()):
        raise ValueError(f"--output {target} exists: name another, or replace it with --overwrite")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command("export", argv, lambda words: export(parse(words)), stopped="nothing was written")


if __name__ == "__main__":
    sys.exit(main())
