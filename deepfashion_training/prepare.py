"""Turn a dataset's rows into garment/person pairs worth training on, once, with a report to look at.

    python -m deepfashion_training.prepare --dataset_name SRC --output_dir OUT

``OUT`` loads with ``datasets.load_dataset(OUT)``, unless ``--format`` asks for the folders of another dataset. A run
that is stopped continues when the same command is given again. Exit codes: 0 done, 1 failed, 2 wrong use, 130
stopped by Ctrl-C, 143 by SIGTERM or SIGHUP.
"""

# Nothing heavy is imported up here, so that --help answers at once.
from __future__ import annotations

import argparse
import dataclasses
import sys
from typing import TYPE_CHECKING

from deepfashion_training.cli import FlagParser, WrongUseError, number, quiet_libraries, run_command
from training_run.cores import usable_cores

if TYPE_CHECKING:
    from deepfashion_training.preparation.pair_plan import Settings


def build_parser() -> FlagParser:
    """The command line."""
    from deepfashion_training.images.masks import MASK_POLICIES
    from deepfashion_training.images.quality import Gates
    from deepfashion_training.preparation.pair_plan import FORMATS, MASK_POLARITIES, Settings

    about = "Turn a dataset's rows into garment/person pairs, with a report to look at."
    parser = FlagParser("prepare", about)
    switch = argparse.BooleanOptionalAction
    add = parser.add_argument_group("rows").add_argument
    add(
        "--dataset_name",
        metavar="SRC",
        required=True,
        help="Hub id, or folder: parquet, save_to_disk, VITON-HD, DressCode, or pictures with metadata.jsonl or .csv",
    )
    add("--dataset_revision", help="branch, tag or commit of a Hub dataset")
    add("--column", metavar="LIST", help="columns with other names, as in image=photo,cloth=product")
    add("--category_type", metavar="LIST", help="garment types of categories, as in Denim=lower,Suiting=upper")
    add("--limit", type=int, metavar="N", help="take N rows: whole people, garment types in turn (default: all)")
    add("--mask_polarity", choices=MASK_POLARITIES, default="auto", help="the colour that means repaint")
    add = parser.add_argument_group("pairs").add_argument
    sources = ",".join(Settings.garment_sources)
    add("--garment_sources", metavar="LIST", default=sources, help="where garment pictures come from, best first")
    add("--max_same_photo_share", type=float, default=0.25, help="at most this share of a split's pairs is same_photo")
    add("--same_photo_in_evaluation", action=switch, default=False, help="allow same_photo in validation and test too")
    add("--mask_policy", choices=MASK_POLICIES, default="agnostic", help="relaxed varies the masks of the train split")
    add("--parser", metavar="MODEL", help="human parsing model, or none (default: a SegFormer where there is a GPU)")
    add("--parser_revision", help="branch, tag or commit of the parser")
    add("--mine_lower_body", action=switch, help="lower-body pairs from rows of tops, too (default: with a parser)")
    add("--validation_share", type=float, default=0.05, help="share of the people whose pairs are the validation split")
    add("--test_share", type=float, default=0.05, help="share of the people whose pairs are the test split")
    add("--seed", type=int, default=0, help="seed of splits, samples and variations")
    add = parser.add_argument_group("gates").add_argument
    for gate in dataclasses.fields(Gates):
        add(f"--{gate.name}", type=type(gate.default), default=gate.default, help=gate.metadata["help"])
    add = parser.add_argument_group("run").add_argument
    add("--output_dir", metavar="OUT", required=True, help="folder to write: new, empty, or an earlier result")
    add("--format", choices=FORMATS, default="parquet", help="parquet, or the folders and lists of another dataset")
    add("--overwrite", action="store_true", help="replace an earlier result that differs")
    add("--num_proc", type=number(int, 1), default=usable_cores(), help="processes")
    return parser


def settings_of(args: argparse.Namespace) -> Settings:
    """What the flags ask for; raises ``ValueError`` for a value out of range."""
    from deepfashion_training.garment_types import parse_cloth_type
    from deepfashion_training.images.quality import Gates
    from deepfashion_training.preparation.pair_plan import Settings, named_values

    parser = chosen_parser(args.parser)
    given = {
        **vars(args),
        "columns": named_values(args.column),
        "category_types": {name: parse_cloth_type(kind) for name, kind in named_values(args.category_type).items()},
        "garment_sources": tuple(name.strip() for name in args.garment_sources.split(",")),
        "parser": parser,
        "mine_lower_body": parser is not None if args.mine_lower_body is None else args.mine_lower_body,
        "gates": Gates(**{gate.name: getattr(args, gate.name) for gate in dataclasses.fields(Gates)}),
    }
    return Settings(**{setting.name: given[setting.name] for setting in dataclasses.fields(Settings)})


def chosen_parser(named: str | None) -> str | None:
    """The parser's name: what was named, nothing for ``none``, the default where a GPU can run it."""
    if named is None:
        from deepfashion_training.models.human_parser import default_human_parser

        return default_human_parser()
    return None if named.lower() == "none" else named


def work(argv: list[str]) -> None:
    """The whole command."""
    args = build_parser().parse_args(argv)
    quiet_libraries()
    from deepfashion_training.preparation.account import closing_lines
    from deepfashion_training.preparation.make_pairs import prepare
    from training_run.guards import gpu_fault

    if args.parser is None and (fault := gpu_fault()):  # else pairs would be made without a parser, and nobody told
        raise ValueError(f"{fault}, or say with --parser what to do without: none, or a model to run on the CPU")
    try:
        settings = settings_of(args)
    except ValueError as error:
        raise WrongUseError(str(error)) from error
    folder, facts, made = prepare(
        args.dataset_name,
        args.output_dir,
        settings,
        revision=args.dataset_revision,
        num_proc=args.num_proc,
        overwrite=args.overwrite,
        form=args.format,
        say=lambda line: sys.stderr.write(f"{line}\n"),
    )
    sys.stdout.write(closing_lines(folder, facts, made=made))


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command("prepare", argv, work, "the same command continues where it stopped")


if __name__ == "__main__":
    sys.exit(main())
