"""A LoRA in the formats that other tools load.

    python -m deepfashion_training.export --lora DIR --format kohya|peft|fused --output F

``kohya`` is one .safetensors for ComfyUI and kohya's sd-scripts, ``peft`` a folder for ``PeftModel.from_pretrained``,
``fused`` the transformer that has the LoRA added in: a folder, or with ``--single_file`` one file for ComfyUI. A
``LORA`` of another tool is read, too, so that this converts one format into another. Exit codes: 0 done, 1 failed,
2 wrong use, 130 stopped by Ctrl-C, 143 by SIGTERM or SIGHUP.
"""

# Nothing heavy is imported up here, so that --help answers at once.
from __future__ import annotations

import argparse
import json
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from deepfashion_training.cli import FlagParser, LoraFlag, lora_scales, number, quiet_libraries, run_command

if TYPE_CHECKING:
    import torch

    from training_run.lora_formats import LoraFile

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
    add("--lora", action=LoraFlag, metavar="LORA", required=True, help="folder or file of any usual format, or Hub id")
    add("--format", choices=FORMATS, required=True, help="kohya is for ComfyUI too; fused is the base with the LoRA in")
    add("--output", metavar="F", required=True, help="a .safetensors for kohya and --single_file, else a folder")
    add("--lora_scale", action=LoraFlag, type=number(float), metavar="X", help="multiplies its update (default: 1)")
    add("--base", metavar="BASE", help="fused: transformer, folder or Hub id; by default the one it was trained on")
    add("--single_file", action="store_true", help="fused: one file with the names that ComfyUI loads")
    add("--dtype", choices=("bf16", "fp16", "fp32"), help="fused, kohya: precision (default: as it is stored)")
    add("--overwrite", action="store_true", help="replace an earlier export")
    return parser


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags in ``argv``; ``WrongUseError`` for some that do not go together."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if len(args.lora) > 1:
        parser.error(
            f"--lora {args.lora[1]}: one LoRA is written; to join two, write the first with --format fused, and give "
            "what comes out to the second as --base"
        )
    if args.format != "fused" and (args.base or args.single_file):
        parser.error(f"{'--base' if args.base else '--single_file'} goes with --format fused, not {args.format}")
    if args.format == "peft" and args.dtype:
        parser.error("--dtype goes with --format fused or kohya, not peft")
    if _is_file(args) and not args.output.endswith(".safetensors"):
        what = "--single_file" if args.single_file else "--format kohya"
        parser.error(f"--output {args.output}: {what} writes one file, whose name ends in .safetensors")
    return args


def _is_file(args: argparse.Namespace) -> bool:
    return args.format == "kohya" or bool(args.single_file)


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
    from training_run.hub import local_path
    from training_run.lora_formats import find_lora, read_lora

    target = local_path(args.output).resolve()
    path = _in_python(target)
    source = find_lora(args.lora[0])
    _check_target(target, args.format, source.resolve(), _is_file(args), args.overwrite)
    check_writable(target.parent)
    lora = read_lora(source).scaled(*lora_scales(args))
    precision = lora_files.DTYPES[args.dtype] if args.dtype else None
    if args.format == "fused":
        use = _export_fused(args, lora, precision, target)
    elif args.format == "kohya":
        with replacing(target) as draft:
            lora_files.write_kohya(lora, draft, precision)
        use = f"ComfyUI (models/loras), or pipeline.load_lora_weights({path}); "
        use += "kohya's networks/flux_merge_lora.py adds it to a model, sd-scripts itself does not draw with Fill"
    else:
        with replacing(target) as draft:
            lora_files.write_peft(lora, draft)
        use = f"PeftModel.from_pretrained(transformer, {path})"
        if lora.config.use_dora:
            use += "; other tools ignore the magnitudes of a DoRA: export it with --format fused for them"
    sys.stdout.write("".join(f"note: {note}\n" for note in lora.notes))
    sys.stdout.write(f"written: {target} (rank {lora.ranks}, {len(lora.layers)} layers), load it with {use}\n")


def _export_fused(args: argparse.Namespace, lora: LoraFile, precision: torch.dtype | None, target: Path) -> str:
    """Write the base with the LoRA in it to ``target``; returns what loads it. Raises ``ValueError`` as ``export``."""
    from deepfashion_training.models import lora_files
    from training_run.atomic import replacing
    from training_run.lora_formats import fitted

    named = args.base or lora.metadata.get("transformer")
    if not named:
        raise ValueError(f"--lora {lora.path} does not say which transformer it was trained on: name it with --base")
    transformer = lora_files.find_transformer(named)
    if target == transformer or target in transformer.parents or transformer in target.parents:
        raise ValueError(f"--output {target} and the base {transformer} lie in one another: name another folder")
    lora = fitted(lora, str(transformer))
    precision = precision or lora_files.stored_dtype(transformer)
    write = lora_files.write_single_file if args.single_file else lora_files.write_fused
    with replacing(target) as draft:
        write(lora, transformer, precision, draft)
    pipeline = lora.metadata.get("base_model", "black-forest-labs/FLUX.1-Fill-dev")
    path = _in_python(target)
    if args.single_file:
        loading = f'from_single_file({path}, config="{pipeline}", subfolder="transformer", torch_dtype={precision})'
        return f"ComfyUI (models/diffusion_models), or FluxTransformer2DModel.{loading}"
    loading = f"from_pretrained({path}, torch_dtype={precision})"
    return f'FluxFillPipeline.from_pretrained("{pipeline}", transformer=FluxTransformer2DModel.{loading})'


def _in_python(path: Path) -> str:
    """``path`` as one writes it in Python."""
    return json.dumps(str(path), ensure_ascii=False)


def _check_target(target: Path, kind: str, source: Path, is_file: bool, overwrite: bool) -> None:
    """Raise ``ValueError`` where writing to ``target`` would replace the LoRA, or something unasked."""
    from training_run.not_data import is_left_behind

    if target == source or target in source.parents:
        raise ValueError(f"--output {target} would replace the LoRA {source}: name another")
    if not target.exists():
        return
    if target.is_dir() == is_file:
        raise ValueError(f"--output {target} is a {'folder' if target.is_dir() else 'file'}: name another")
    names = sorted(path.name for path in target.iterdir() if not is_left_behind(path)) if target.is_dir() else []
    if other := [name for name in names if not any(fnmatch(name, pattern) for pattern in _FILES[kind])]:
        raise ValueError(f"--output {target} holds other files ({other[0]}): name a new or empty folder")
    if not overwrite and (names or target.is_file()):
        raise ValueError(f"--output {target} exists: name another, or replace it with --overwrite")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command("export", argv, lambda words: export(parse(words)), stopped="nothing was written")


if __name__ == "__main__":
    sys.exit(main())
