"""Dress a person in a garment, or a CSV of them, with or without a LoRA.

    python -m deepfashion_training.tryon --person P --garment G --garment_type lower --lora outputs/full --output O

Size, prompt, guidance and steps are those that the LoRA was trained with. The result has the person's own size. Exit
codes: 0 done, 1 failed, 2 wrong use, 130 stopped by Ctrl-C.
"""

# Nothing heavy is imported up here, so that --help answers at once.
from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepfashion_training.cli import FlagParser, number, run_command
from deepfashion_training.inference.choice import add_drawing_flags, add_model_flags, choose

if TYPE_CHECKING:
    from deepfashion_training.inference.choice import ModelChoice
    from deepfashion_training.inference.dress import DrawingSettings
    from deepfashion_training.inference.requests import Ready, TryOnRequest
    from deepfashion_training.models.fill import FillModel
    from deepfashion_training.models.human_parser import HumanParser

#: Suffixes of a single result; another --output is a folder.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = FlagParser("tryon", "Dress a person in a garment, or a CSV of them, with or without a LoRA.")
    add = parser.add_argument_group("pictures").add_argument
    add("--person", type=Path, metavar="P", help="photo of the person")
    add("--garment", type=Path, metavar="G", help="picture of the garment")
    add("--mask", type=Path, metavar="M", help="area to repaint, white, on the person's photo")
    add("--garment_type", choices=("upper", "lower", "full"), help="without a mask, make one for this type")
    add("--parser", metavar="MODEL", help="human parser, folder or Hub id (default: mattmdjaga/segformer_b2_clothes)")
    add("--caption", default="", help="text of the garment, for a LoRA that was trained with captions")
    add("--batch", type=Path, metavar="CSV", help="columns person, garment and mask, garment_type, caption, output")
    add_model_flags(parser)
    add_drawing_flags(parser)
    add = parser.add_argument_group("output").add_argument
    add("--output", type=Path, required=True, metavar="O", help="picture (.png, .jpg, .webp) or folder")
    add("--num_images", type=number(int, 1, 10_000), default=1, metavar="N", help="pictures of seed, seed + 1, ... (1)")
    add(
        "--repaint",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="paste the result into the photo through a feathered mask, beyond which nothing changes (on)",
    )
    add("--save_pair", action="store_true", help="also write the pair as the model drew it, as <name>-pair.png")
    add("--save_mask", action="store_true", help="also write the mask, without its seam, as <name>-mask.png")
    add("--overwrite", action="store_true", help="replace pictures that are there")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


def check_use(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with 2 for flags that do not go together."""
    if args.batch is not None:
        if args.person or args.garment or args.mask or args.caption:
            parser.error("--batch names its pictures itself: leave out --person, --garment, --mask and --caption")
        if args.output.suffix.lower() in SUFFIXES:
            parser.error(f"--output {args.output}: --batch writes into a folder")
    elif args.person is None or args.garment is None:
        parser.error("--person and --garment are needed, or --batch")
    elif args.mask is None and args.garment_type is None:
        parser.error("--mask or --garment_type is needed, to know what to repaint")
    suffix = args.output.suffix.lower()
    if suffix not in SUFFIXES and suffix[1:].isalpha() and not args.output.is_dir():
        parser.error(f"--output {args.output}: pictures end in {', '.join(SUFFIXES)}, folders have no such ending")


def requests_of(args: argparse.Namespace) -> list[TryOnRequest]:
    """What is to be drawn; ``ValueError`` for pictures that are not there or cannot be used."""
    from deepfashion_training.garment_types import parse_cloth_type
    from deepfashion_training.inference.requests import TryOnRequest, default_name, read_requests
    from deepfashion_training.inference.result_files import check_header

    cloth_type = parse_cloth_type(args.garment_type) if args.garment_type else None
    if args.batch is not None:
        return read_requests(args.batch, args.output, cloth_type)
    output = args.output
    if output.suffix.lower() not in SUFFIXES:
        output = output / default_name(args.person, args.garment)
    request = TryOnRequest(args.person, args.garment, args.mask, cloth_type, args.caption, output)
    for what, path in request.files().items():
        check_header(path, f"--{what}")
    return [request]


def targets(request: TryOnRequest, args: argparse.Namespace) -> dict[int, dict[str, Path]]:
    """Where what is drawn from each seed goes: the ``result``, and ``pair`` and ``mask`` where they are asked for.

    The seed is in the name where there are several.
    """
    kinds = [kind for kind, wanted in (("pair", args.save_pair), ("mask", args.save_mask)) if wanted]
    found = {}
    for seed in range(args.seed, args.seed + args.num_images):
        result = request.output.with_stem(f"{request.output.stem}-{seed}") if args.num_images > 1 else request.output
        found[seed] = {kind: result.with_name(f"{result.stem}-{kind}.png") for kind in kinds} | {"result": result}
    return found


def check_targets(requests: Sequence[TryOnRequest], args: argparse.Namespace) -> None:
    """Raise ``ValueError`` where a picture would replace one that is read, or another one that is drawn."""
    from deepfashion_training.inference.requests import LONGEST_NAME

    read = {path.resolve(): what for request in requests for what, path in request.files().items()}
    drawn: set[Path] = set()
    for request in requests:
        for path in (path for files in targets(request, args).values() for path in files.values()):
            if len(path.name.encode()) > LONGEST_NAME + 20:
                raise ValueError(f"--output {path}: the file name is too long: shorten it")
            place = path.resolve()
            if place in read:
                raise ValueError(f"--output {path} would replace the {read[place]} that is read: name another")
            if place in drawn:
                raise ValueError(f"--output {path} is where two pictures would go: name one of them differently")
            if path.is_dir():
                raise ValueError(f"--output {path} is a folder: name another")
            drawn.add(place)


def find_parser(named: str | None, choice: ModelChoice) -> str:
    """The human parser that makes masks, once it is known to be there: ``named``, or the usual one.

    That of the small embedded model is the one for drawn people, whom alone it knows.
    """
    from deepfashion_training.models.fill import is_embedded
    from deepfashion_training.models.human_parser import DEFAULT_PARSER, check_human_parser

    if named is None and is_embedded(choice.recipe.transformer):
        from deepfashion_training.embedded import DRAWN_PARSER

        return str(DRAWN_PARSER)
    check_human_parser(named or DEFAULT_PARSER)
    return named or DEFAULT_PARSER


def tryon(args: argparse.Namespace) -> None:
    """Draw what the flags ask for. Raises ``ValueError``, one line, where it can before models are loaded."""
    from deepfashion_training.inference.records import check_form
    from deepfashion_training.inference.requests import make_ready
    from deepfashion_training.models.access import check_writable
    from deepfashion_training.models.human_parser import load_human_parser

    requests = requests_of(args)
    check_targets(requests, args)
    choice = choose(args)
    parser = find_parser(args.parser, choice) if any(request.mask is None for request in requests) else None
    look = choice.drawing(repaint=args.repaint)
    check_writable(requests[0].output.parent, "--output")
    settings = _settings(choice, look, parser)
    left = _left(requests, settings, args)
    lines = _opening_lines(choice, look, args, parser) + [
        f"note      {note}" for note in _notes(choice, requests, args)
    ]
    sys.stderr.write("".join(f"{line}\n" for line in lines))
    if not left:
        sys.stdout.write(f"all {len(requests)} rows are drawn already: {args.output}\n")
        return
    total, missing = len(requests) * args.num_images, sum(len(task.seeds) for task in left)
    if missing < total:
        sys.stderr.write(f"going on  {total - missing} of {total} pictures are drawn already\n")
    # Of rows that bring their masks nothing needs the parser.
    parsing = load_human_parser(parser) if parser and any(task.request.mask is None for task in left) else None
    if args.batch is None:
        ready = make_ready(left[0].request, parsing, look.size)  # what can fail comes before the large model
        check_form(left[0].request.output, ready.photo.size)
        drawing = Drawing(choice.load([choice.recipe.prompt_of(args.caption)]), look, choice, settings, args)
        with drawing.bar(left) as bar:
            written = _draw(drawing, ready, left[0].seeds, bar)
        sys.stdout.write("".join(f"{path}\n" for path in written))
    else:
        model = choice.load([choice.recipe.prompt_of(task.request.caption) for task in left])
        _draw_rows(Drawing(model, look, choice, settings, args), left, parsing)


@dataclass(frozen=True)
class Task:
    """A request and the seeds from which it is yet to be drawn."""

    request: TryOnRequest
    seeds: list[int]


@dataclass(frozen=True)
class Drawing:
    """What all pictures of a run have in common."""

    model: FillModel
    look: DrawingSettings
    choice: ModelChoice
    settings: dict[str, Any]
    args: argparse.Namespace
    #: Colour profiles of photos whose results were said to be in sRGB.
    profiles: set[str] = dataclasses.field(default_factory=set)

    def bar(self, tasks: Sequence[Task]) -> Any:
        """A progress bar over the denoising steps of ``tasks``."""
        from tqdm import tqdm

        total = self.look.num_inference_steps * sum(len(task.seeds) for task in tasks)
        return tqdm(total=total, unit="step", desc="drawing", disable=None)


def _draw(drawing: Drawing, ready: Ready, seeds: Sequence[int], bar: Any) -> list[Path]:
    """Draw one request from each of ``seeds`` and save the pictures; returns the files."""
    from PIL import Image

    from deepfashion_training.inference.dress import dress
    from deepfashion_training.inference.records import save_picture

    request, places = ready.request, targets(ready.request, drawing.args)
    if ready.profile is not None and ready.profile not in drawing.profiles:
        drawing.profiles.add(ready.profile)
        bar.write(
            f"note      {request.person.name} has the colour profile {ready.profile!r}: its result is in sRGB",
            sys.stderr,
        )
    prompt = drawing.choice.recipe.prompt_of(request.caption)
    written: list[Path] = []
    for seed in seeds:
        made = dress(
            drawing.model,
            ready.photo,
            ready.garment,
            ready.mask,
            drawing.look,
            prompt,
            seed,
            on_step=lambda _: bar.update(),
        )
        pictures = {"pair": made.pair, "mask": Image.fromarray(ready.mask * 255), "result": made.picture}
        record = _record(request, drawing.settings, seed)
        for kind, path in places[seed].items():
            save_picture(pictures[kind], path, record)
            written.append(path)
    return written


def _draw_rows(drawing: Drawing, tasks: Sequence[Task], parser: HumanParser | None) -> None:
    """Draw row by row; one that fails does not stop the others, and ends in a ``ValueError`` at the end."""
    from deepfashion_training.inference.requests import make_ready

    failed = []
    with drawing.bar(tasks) as bar:
        for task in tasks:
            try:
                _draw(drawing, make_ready(task.request, parser, drawing.look.size), task.seeds, bar)
            except (ValueError, OSError) as error:
                failed.append(f"{task.request.output.name}: {error}")
                bar.write(failed[-1], file=sys.stderr)
    sys.stdout.write(f"{len(tasks) - len(failed)} of {len(tasks)} rows drawn into {drawing.args.output}\n")
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(tasks)} rows failed, first {failed[0]}; mend them and give the same command again"
            + ("" if drawing.args.overwrite else ": what is drawn stays")
        )


def _record(request: TryOnRequest, settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """What a picture of ``request`` says of how it was made; of the parser, only where it made the mask."""
    return request.record({**settings, "seed": seed, "parser": settings["parser"] if request.mask is None else None})


def _left(requests: Sequence[TryOnRequest], settings: dict[str, Any], args: argparse.Namespace) -> list[Task]:
    """What is yet to be drawn; ``ValueError`` where a picture that is there must not be replaced."""
    from deepfashion_training.inference.records import differences, made_from

    left = []
    for request in requests:
        places = targets(request, args)
        seeds = []
        for seed, files in places.items():
            there = [] if args.overwrite else [path for path in files.values() if path.exists()]
            for path in there:
                made = made_from(path)
                # A LoRA is known by its content: where it lies may change.
                other = {**(made or {}), "lora": settings["lora"]}
                differing = differences(other, _record(request, settings, seed))
                why = f"was made with other {', '.join(differing)}"
                if made is None:
                    why = "is there and does not say how it was made"
                if args.batch is None:
                    why = "exists"
                if args.batch is None or made is None or differing:
                    raise ValueError(f"--output {path} {why}: name another, or replace it with --overwrite")
            if len(there) < len(files):
                seeds.append(seed)
        if seeds:
            left.append(Task(request, seeds))
    return left


def _settings(choice: ModelChoice, look: DrawingSettings, parser: str | None) -> dict[str, Any]:
    """What a picture's record says of how it was drawn, the same for all of them."""
    drawn = dataclasses.asdict(look)
    del drawn["lora"]  # a name inside this program
    return {**choice.described(), **drawn, "parser": parser}


def _notes(choice: ModelChoice, requests: Sequence[TryOnRequest], args: argparse.Namespace) -> list[str]:
    """What a user may not have meant, in lines for people."""
    notes = list(choice.notes)
    if not choice.recipe.use_captions and any(request.caption for request in requests):
        who = "the base" if choice.lora is None else "the LoRA"
        notes.append(f"captions are not used: {who} was trained without them")
    if args.parser is not None and all(request.mask is not None for request in requests):
        notes.append("--parser is not used: masks are given")
    if args.mask is not None and args.garment_type is not None:
        notes.append("--mask says what is repainted; --garment_type only chooses in a map of garment types")
    if args.repaint and requests[0].output.suffix.lower() in (".jpg", ".jpeg"):
        notes.append("JPEG changes every pixel a little, also beyond the mask: .png and .webp keep them")
    return notes


def _opening_lines(
    choice: ModelChoice, look: DrawingSettings, args: argparse.Namespace, parser: str | None
) -> list[str]:
    """What is about to be drawn, and with what."""
    recipe = choice.recipe
    lora = "none: the bare base" if choice.lora is None else f"{choice.lora.path}, scale {choice.lora_scale:g}"
    shown = "on: beyond the feathered mask nothing changes (--no-repaint shows all that the model drew)"
    if not look.repaint:
        shown = "off: the whole picture is as the model drew it (--repaint keeps the photo beyond the mask)"
    return [
        f"base      {recipe.transformer}",
        f"LoRA      {lora}",
        f"drawing   {recipe.height}x{recipe.width} (height x width), {look.num_inference_steps} steps, guidance "
        f"{recipe.guidance_scale:g}, seed {args.seed}",
        f"repaint   {shown}",
        *([] if parser is None else [f"masks     made with the human parser {parser}"]),
    ]


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    check_use(parser, args)
    stopped = "the same command goes on after what is drawn" if args.batch else "pictures that are complete stay"
    return run_command("tryon", lambda: tryon(args), debug=args.debug, stopped=stopped)


if __name__ == "__main__":
    sys.exit(main())
