"""Dress a person in a garment, or a CSV of them, with or without a LoRA.

    python -m deepfashion_training.tryon --person P --garment G --garment_type lower --lora outputs/full --output O

Size, prompt, guidance and steps are those that the LoRA was trained with. The result has the person's own size. Exit
codes: 0 done, 1 failed, 2 wrong use, 130 stopped by Ctrl-C, 143 by SIGTERM or SIGHUP.
"""

# Nothing heavy is imported up here, so that --help answers at once.
from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepfashion_training.cli import FlagParser, number, quiet_libraries, run_command
from deepfashion_training.garment_types import TYPE_NAMES, one_type
from deepfashion_training.inference.choice import (
    add_crop_flag,
    add_drawing_flags,
    add_model_flags,
    add_parser_flag,
    choose,
    choose_parser,
)
from training_run.lock import only_writer

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from tqdm import tqdm

    from deepfashion_training.inference.choice import ModelChoice
    from deepfashion_training.inference.dress import DrawingSettings
    from deepfashion_training.inference.requests import TryOnRequest
    from deepfashion_training.models.fill import FillModel

#: Suffixes of a single result; another --output is a folder.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def build_parser() -> FlagParser:
    """The command line."""
    parser = FlagParser("tryon", "Dress a person in a garment, or a CSV of them, with or without a LoRA.")
    group = parser.add_argument_group("pictures")
    add = group.add_argument
    add("--person", type=Path, metavar="P", help="photo of the person")
    worn: dict[str, Any] = {"action": "append", "default": None}  # one for each garment
    add("--garment", **worn, type=Path, metavar="G", help="picture of the garment; repeat it for an outfit")
    add("--mask", **worn, type=Path, metavar="M", help="area to repaint, white, on the person's photo")
    about = "without a mask, make one for upper, lower or full; in an outfit, the names of the pictures may say it"
    add("--garment_type", **worn, type=one_type, metavar="TYPE", help=about)
    add("--caption", **worn, metavar="TEXT", help="text of the garment, for a LoRA that was trained with captions")
    about = "columns person, garment and mask, garment_type, caption, output; garment_2, mask_2... for an outfit"
    add("--batch", type=Path, metavar="CSV", help=about)
    add_parser_flag(group)
    add_model_flags(parser)
    add_drawing_flags(parser)
    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--output", type=Path, required=True, metavar="O", help="picture (.png, .jpg, .webp) or folder")
    add("--num_images", type=number(int, 1, 10_000), default=1, metavar="N", help="pictures of seed, seed + 1, ...")
    switch = argparse.BooleanOptionalAction
    add("--repaint", action=switch, default=True, help="paste the result into the photo, unchanged beyond the mask")
    add_crop_flag(group)
    add("--save_pair", action="store_true", help="also write the pair as the model drew it, as <name>-pair.png")
    add("--save_mask", action="store_true", help="also write the mask, without its seam, as <name>-mask.png")
    add("--overwrite", action="store_true", help="replace existing pictures")
    return parser


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags in ``argv``; ``WrongUseError`` for some that do not go together."""
    parser = build_parser()
    args = parser.parse_args(argv)
    suffix = args.output.suffix.lower()
    if args.batch is not None:
        if args.person or args.garment or args.mask or args.caption:
            parser.error("--batch names its pictures itself: leave out --person, --garment, --mask and --caption")
        if args.garment_type and len(args.garment_type) > 1:
            parser.error("--garment_type holds for all rows of --batch: give it once")
        if suffix in SUFFIXES:
            parser.error(f"--output {args.output}: --batch writes into a folder")
    elif args.person is None or args.garment is None:
        parser.error("--person and --garment are needed, or --batch")
    elif args.mask is None and args.garment_type is None and len(args.garment) == 1:
        parser.error("--mask or --garment_type is needed, to know what to repaint")
    elif args.mask is not None and args.parser is not None:
        parser.error("--parser does nothing with --mask")
    for name in ("mask", "garment_type", "caption"):
        if (given := getattr(args, name)) and args.garment and len(given) != len(args.garment):
            parser.error(f"--{name} comes {len(given)} times and --garment {len(args.garment)} times: one for each")
    if suffix not in SUFFIXES and suffix[1:].isalpha() and not args.output.is_dir():
        parser.error(f"--output {args.output}: pictures end in {', '.join(SUFFIXES)}, folders have no such ending")
    return args


def tryon(args: argparse.Namespace) -> None:
    """Draw what the flags ask for. Raises ``ValueError``, one line, before models are loaded where that is possible."""
    quiet_libraries()
    with nullcontext() if args.batch is None else only_writer(args.output, "--output"):
        _tryon(args)


def _tryon(args: argparse.Namespace) -> None:
    from deepfashion_training.models.access import check_writable

    requests = requests_of(args)
    check_outputs(requests, args)
    choice = choose(args)
    parser = choose_parser(args.parser, choice) if any(one.mask is None for one in _garments(requests)) else None
    settings = choice.drawing(repaint=args.repaint, crop=args.crop)
    check_writable(requests[0].output.parent, "--output")
    record = choice.record(settings, parser)
    missing = _missing(requests, record, args)
    lines = choice.lines(settings, args.seed)
    if not args.crop:
        lines.append("crop      off: photos are drawn whole")
    if parser is not None:
        lines.append(f"masks     made with the human parser {parser}")
    if not choice.recipe.use_captions and any(one.caption for one in _garments(requests)):
        lines.append("note      captions are not used: the LoRA, or the bare base, was trained without them")
    found = {one.garment.name: TYPE_NAMES[one.cloth_type or 0] for one in _garments(requests) if one.type_found}
    if found:
        said = [f"{name} {kind}" for name, kind in found.items()]
        more = f" and {len(said) - 5} more" if len(said) > 5 else ""
        lines.append(f"garments  by their names: {', '.join(said[:5])}{more}")
    lines += [f"note      {note}" for note in _notes_on_colours(requests, args.repaint)]
    total, to_draw = len(requests) * args.num_images, sum(len(seeds) for _, seeds in missing)
    if to_draw < total:
        lines.append(f"kept      {total - to_draw} of {total} pictures are drawn already")
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    if missing:
        _draw_missing(missing, choice, settings, record, args)


def _garments(requests: Iterable[TryOnRequest]) -> list[TryOnRequest]:
    return [one for request in requests for one in request.outfit.values()]


def _notes_on_colours(requests: Sequence[TryOnRequest], repaint: bool) -> list[str]:
    """Where a result has not quite the values that its photo stores: other colour profiles, and JPEG."""
    from training_run.colour import profile_name
    from training_run.decoding import open_picture

    profiles: dict[str, Path] = {}
    for request in requests:
        with suppress(OSError, ValueError):  # one that cannot be opened is named when it is drawn
            if name := profile_name(open_picture(request.person.read_bytes(), decode=False)):
                profiles.setdefault(name, request.person)
    notes = [f"{path.name} has the colour profile {name!r}: its result is in sRGB" for name, path in profiles.items()]
    if repaint and requests[0].output.suffix.lower() in (".jpg", ".jpeg"):
        notes.append("JPEG changes every pixel a little, also beyond the mask: .png and .webp keep them")
    return notes


def requests_of(args: argparse.Namespace) -> list[TryOnRequest]:
    """What is to be drawn; ``ValueError`` for pictures that are missing or cannot be used."""
    from deepfashion_training.inference.picture_files import check_there
    from deepfashion_training.inference.requests import default_name, read_requests, request_of

    if args.batch is not None:
        return read_requests(args.batch, args.output, *(args.garment_type or [None]))
    output = args.output
    if output.suffix.lower() not in SUFFIXES:
        output = output / default_name(args.person, *args.garment)
    none = [None] * len(args.garment)
    each = (args.garment, args.mask or none, args.garment_type or none, args.caption or [""] * len(none))
    for what, paths in (("person", [args.person]), ("garment", args.garment), ("mask", args.mask or [])):
        for path in paths:
            check_there(path, f"--{what}")
    return [request_of(args.person, output, list(zip(*each, strict=True)))]


def outputs_of(request: TryOnRequest, args: argparse.Namespace) -> dict[int, dict[str, Path]]:
    """Files by seed: ``pair`` and ``mask`` where they are asked for, and the ``result``.

    The seed is in the name where there are several. Of an outfit's other garments they are ``pair-2``, ``mask-2``...
    """
    wanted = [kind for kind, asked in (("pair", args.save_pair), ("mask", args.save_mask)) if asked]
    kinds = [f"{kind}{end.replace('_', '-')}" for end in request.outfit for kind in wanted]
    found = {}
    for seed in range(args.seed, args.seed + args.num_images):
        output = request.output
        result = output.with_stem(f"{output.stem}-{seed}") if args.num_images > 1 else output
        found[seed] = {kind: result.with_name(f"{result.stem}-{kind}.png") for kind in kinds} | {"result": result}
    return found


def check_outputs(requests: Sequence[TryOnRequest], args: argparse.Namespace) -> None:
    """Raise ``ValueError`` where a result would replace a picture that is read, or another result.

    Names that differ in capitals alone are one file on many disks.
    """

    def place(path: Path) -> Path:
        return path.resolve().with_name(path.resolve().name.casefold())

    taken = {place(path): f"the {what} that is read" for request in requests for what, path in request.files().items()}
    for request in requests:
        for path in (path for files in outputs_of(request, args).values() for path in files.values()):
            if place(path) in taken or path.is_dir():
                raise ValueError(f"--output {path} would replace {taken.get(place(path), 'a folder')}: name another")
            taken[place(path)] = "another result"


def _missing(
    requests: Sequence[TryOnRequest], record: Mapping[str, Any], args: argparse.Namespace
) -> list[tuple[TryOnRequest, list[int]]]:
    """Requests and the seeds that are not drawn yet.

    Raises ``ValueError`` for a picture that exists, unless it is one of a batch and says that it was made in the same
    way; a LoRA's path may change then, its hash may not.
    """
    from deepfashion_training.inference.records import differences, read_record

    missing = []
    for request in requests:
        seeds = []
        for seed, files in outputs_of(request, args).items():
            existing = [] if args.overwrite else [path for path in files.values() if path.exists()]
            for path in existing:
                found = read_record(path) if args.batch is not None else None
                if found is None or differences(found, _expected(request.record(record, seed), found, args)):
                    raise ValueError(
                        f"--output {path} exists{' and was made otherwise' if args.batch is not None else ''}: name "
                        "another, or replace it with --overwrite"
                    )
            if len(existing) < len(files):
                seeds.append(seed)
        if seeds:
            missing.append((request, seeds))
    return missing


def _expected(made: dict[str, Any], found: Mapping[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """The record that a picture with the record ``found`` needs to be kept, where ``made`` says what is asked for.

    What is known only with the pictures open is taken over: of the crop whether one was wanted, False where not.
    """
    crops = {name: value for name, value in found.items() if name.startswith("crop")}
    if any((value is not False) != args.crop for value in crops.values()):
        crops = {}
    return made | {"lora": found.get("lora")} | crops


def _draw_missing(
    missing: Sequence[tuple[TryOnRequest, list[int]]],
    choice: ModelChoice,
    settings: DrawingSettings,
    record: Mapping[str, Any],
    args: argparse.Namespace,
) -> None:
    """Draw each request from its seeds and save the pictures.

    A row of a batch that fails does not stop the others, and ends in a ``ValueError`` at the end.
    """
    from tqdm import tqdm

    from deepfashion_training.inference.dress import crop_lines, crop_record
    from deepfashion_training.inference.records import save_picture
    from deepfashion_training.inference.requests import open_outfit
    from deepfashion_training.models.human_parser import load_human_parser

    parser, first, garments = None, None, _garments(request for request, _ in missing)
    if any(one.mask is None for one in garments):
        parser = load_human_parser(record["parser"])
    if args.batch is None:  # pictures that cannot be used are known before the large model is loaded
        first = open_outfit(missing[0][0], parser, settings)
    model = choice.load([choice.recipe.prompt_of(one.caption) for one in garments])
    drawn, failed = list[str](), list[str]()
    steps = settings.num_inference_steps * sum(len(seeds) * len(request.outfit) for request, seeds in missing)
    with tqdm(total=steps, unit="step", desc="drawing", disable=None) as bar:
        for request, seeds in missing:
            prompts = [choice.recipe.prompt_of(one.caption) for one in request.outfit.values()]
            try:
                photo, worn = first or open_outfit(request, parser, settings)
                masks = [mask for _, mask in worn]
                crops = crop_record(masks, settings)
                for line in crop_lines(masks, settings):
                    bar.write(line if args.batch is None else f"{line}: {request.output.name}", file=sys.stderr)
                for seed in seeds:
                    pictures = _drawn(model, photo, worn, settings, prompts, seed, bar)
                    for kind, path in outputs_of(request, args)[seed].items():
                        save_picture(pictures[kind], path, request.record(record, seed) | crops)
                        drawn.append(str(path))
            except (ValueError, OSError) as error:
                if args.batch is None:
                    raise
                failed.append(f"{request.output.name}: {error}")
                bar.write(failed[-1], file=sys.stderr)
    if args.batch is None:
        sys.stdout.write("\n".join(drawn) + "\n")
    else:
        sys.stdout.write(f"{len(missing) - len(failed)} of {len(missing)} rows drawn into {args.output}\n")
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(missing)} rows failed, first {failed[0]}; fix them and give the same command again"
        )


def _drawn(
    model: FillModel,
    photo: Image.Image,
    worn: Sequence[tuple[Image.Image, np.ndarray]],
    settings: DrawingSettings,
    prompts: Sequence[str],
    seed: int,
    bar: tqdm[Any],
) -> dict[str, Image.Image]:
    """The pictures that ``outputs_of`` names: each garment over what was drawn before, from the same seed."""
    from PIL import Image

    from deepfashion_training.inference.dress import dress

    pictures = {"result": photo}
    for place, ((garment, mask), prompt) in enumerate(zip(worn, prompts, strict=True), 1):
        end = f"-{place}" if place > 1 else ""
        pictures[f"mask{end}"] = Image.fromarray(mask * 255)
        pictures["result"], pictures[f"pair{end}"] = dress(
            model, pictures["result"], garment, mask, settings, prompt, seed, on_step=lambda _: bar.update()
        )
    return pictures


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    stopped = "pictures that are complete stay, and with --batch the same command continues"
    return run_command("tryon", argv, lambda words: tryon(parse(words)), stopped)


if __name__ == "__main__":
    sys.exit(main())
