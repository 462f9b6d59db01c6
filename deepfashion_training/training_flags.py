"""Flags of the training wrapper, and which of them cannot stand together."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from deepfashion_training.cli import WrongUseError, garment_types, number

HUB_DATASET = "SaffalPoosh/deepFashion-with-masks"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise WrongUseError(message)


def build_parser() -> argparse.ArgumentParser:
    """Parser of the wrapper's own flags."""
    parser = _Parser(
        prog="train_deepfashion_lora.py",
        description="Train a try-on LoRA for upper-body, lower-body and full-body garments.",
        epilog="Every other flag goes to the training script: python train_flux_inpaint.py --help lists them.",
        allow_abbrev=False,
    )
    add = parser.add_argument_group("run").add_argument
    add("--preset", default="full", metavar="NAME|FILE", help="quick_test, full, h100, low_vram, or a YAML file")
    add("--upstream", metavar="PATH", help="training script to drive (default: the project's train_flux_inpaint.py)")
    add("--upstream-check", metavar="PATH", help="say how a training script can be driven, and train nothing")
    add("--embedded", action="store_true", help="small model and drawn wardrobe: no network, no GPU, no account")
    add("--check", action="store_true", help="check arguments, models, disk and data, and train nothing")
    add("--debug", action="store_true", help="show the traceback of an error")
    add = parser.add_argument_group("data").add_argument
    add("--dataset_name", metavar="SRC", help=f"Hub id, parquet folder or save_to_disk folder (default: {HUB_DATASET})")
    add("--dataset_revision", help="branch, tag or commit of a Hub dataset")
    add("--pairs_dir", metavar="DIR", help="where pairs made from a raw dataset are kept (default: outputs/pairs/NAME)")
    add("--prepare_limit", type=int, metavar="N", help="make pairs from this many raw rows, of all garment types")
    add("--train_split", default="train", help="split to train on")
    add("--validation_split", default="validation", help="split for validation; made from the train split if missing")
    add("--validation_fraction", type=float, default=0.05, help="share of people held out when it has to be made")
    add("--max_train_samples", type=int, help="train on this many rows, of all garment types")
    add("--max_validation_samples", type=int, help="validate on this many rows, of all garment types")
    add("--cloth_types", type=garment_types, default="upper,lower,full", metavar="LIST", help="garment types to use")
    switch = argparse.BooleanOptionalAction
    add("--balance_cloth_types", action=switch, default=False, help="draw every garment type equally often")
    add(
        "--resize_mode", choices=["pad", "stretch"], default="pad", help="pad keeps the aspect, stretch fills the frame"
    )
    add("--max_bad_rows", type=float, default=0.01, help="share of unreadable rows above which the run stops")
    add = parser.add_argument_group("afterwards").add_argument
    add(
        "--evaluate_samples",
        type=number(int, 0),
        default=0,
        metavar="N",
        help="in the end compare LoRA and base on N held-out rows, garment types in proportion (0: do not)",
    )
    add = parser.add_argument_group("beforehand").add_argument
    add(
        "--plan",
        action="store_true",
        help="say what the run will take in time, memory, disk and money, from measured "
        "steps where there is a GPU, and train nothing",
    )
    add("--gpu_hour_price", type=number(float, 0), metavar="X", help="with --plan: the price of a GPU hour")
    # Their names in the run are not their flags': a script with flags of these names would upload all it has written.
    add = parser.add_argument_group("hub").add_argument
    add("--push_to_hub", dest="publish", action="store_true", help="upload LoRA, model card and pictures at the end")
    add("--hub_model_id", dest="publish_as", metavar="OWNER/NAME", help="where to (default: YOU/NAME of --output_dir)")
    add("--hub_private", dest="publish_private", action="store_true", help="make the repository a private one")
    return parser


def refuse_planning(own: argparse.Namespace) -> None:
    """Raise ``WrongUseError`` for flags about planning that cannot mean anything in this run."""
    from deepfashion_training.upstream import script as upstream

    if own.gpu_hour_price is not None and not own.plan:
        raise WrongUseError("--gpu_hour_price does nothing without --plan")
    if own.plan and own.publish:
        raise WrongUseError("--push_to_hub: --plan trains nothing to upload: leave out one of the two")
    if own.plan and own.upstream and Path(own.upstream).resolve() != upstream.DEFAULT_SCRIPT:
        raise WrongUseError("--plan measures the project's own trainer: leave out --upstream")


def refuse_publishing(args: argparse.Namespace) -> None:
    """Raise ``WrongUseError`` for flags about publishing that cannot mean anything in this run."""
    if not args.publish and (args.publish_as or args.publish_private):
        raise WrongUseError("--hub_model_id and --hub_private do nothing without --push_to_hub")
    if args.publish and args.embedded:
        raise WrongUseError("--push_to_hub: what the small embedded model has learned dresses nobody: leave it out")
    if args.publish and getattr(args, "train_base_model", False):
        raise WrongUseError("--push_to_hub uploads LoRAs, and --train_base_model trains none: leave out one of the two")
