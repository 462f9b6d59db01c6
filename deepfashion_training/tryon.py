"""Dress a person in a garment, or a CSV of them, with or without a LoRA.

    python -m deepfashion_training.tryon --person P --garment G --garment_type lower --lora outputs/full --output O

Size, prompt and guidance are those that the LoRA was trained with. The result has the person's own size. Exit codes:
0 done, 1 failed, 2 wrong use, 130 stopped by Ctrl-C.
"""

# Nothing heavy is imported up here, so that --help answers at once.
from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepfashion_training.console.endings import run_command
from deepfashion_training.console.flags import FlagParser, number
from deepfashion_training.dressing.choice import add_drawing_flags, add_model_flags, choose

if TYPE_CHECKING:
    from deepfashion_training.dressing.choice import Choice
    from deepfashion_training.dressing.dress import Look
    from deepfashion_training.dressing.wishes import Ready, Wish
    from deepfashion_training.models.fill import FillModel
    from deepfashion_training.models.parser import Parser

#: Suffixes of a single result; another --output is a folder.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = FlagParser("tryon", "Dress a person in a garment, or a CSV of them, with or without a LoRA.")
    add = parser.add_argument_group("pictures").add_argument
    add("--person", type=Path, metavar="P", help="photo of the person")
    add("--garment", type=Path, metavar="G", help="picture of the garment")
    add("--mask", type=Path, metavar="M", help="area to repaint, white, on the person's photo")
    add("--garment_type", choices=("upper", "lower", "full"), help="make the mask for this type with the human parser")
    add("--parser", metavar="MODEL", help="human parser, folder or Hub id (default: mattmdjaga/segformer_b2_clothes)")
    add("--caption", default="", help="text of the garment, for a LoRA that was trained with captions")
    add("--batch", type=Path, metavar="CSV", help="columns person, garment and mask, garment_type, caption, output")
    add_model_flags(parser)
    add_drawing_flags(parser)
    add = parser.add_argument_group("output").add_argument
    add("--output", type=Path, required=True, metavar="O", help="picture (.png, .jpg, .webp) or folder")
    add("--num_images", type=number(int, 1), default=1, metavar="N", help="pictures of seed, seed + 1, ... (1)")
    add(
        "--repaint",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="paste the result into the photo through a feathered mask, beyond which nothing changes (on)",
    )
    add("--save_pair", action="store_true", help="also write the pair as the model drew it, as <name>-pair.png")
    add("--save_mask", action="store_true", help="also write the area that was repainted, as <name>-mask.png")
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


def wishes_of(args: argparse.Namespace) -> list[Wish]:
    """What is to be drawn; ``ValueError`` for pictures that are not there or cannot be used."""
    from deepfashion_training.dressing.pictures import check_header
    from deepfashion_training.dressing.wishes import Wish, read_wishes
    from deepfashion_training.pairs.garment_types import parse_cloth_type

    cloth_type = parse_cloth_type(args.garment_type) if args.garment_type else None
    if args.batch is not None:
        return read_wishes(args.batch, args.output, cloth_type)
    output = args.output
    if output.suffix.lower() not in SUFFIXES:
        output = output / f"{args.person.stem}-{args.garment.stem}.png"
    wish = Wish(args.person, args.garment, args.mask, cloth_type, args.caption, output)
    for what, path in wish.files().items():
        check_header(path, f"--{what}")
    return [wish]


def targets(wish: Wish, args: argparse.Namespace) -> dict[int, Path]:
    """Where the picture of each seed goes; the seed is in the name where there are several."""
    seeds = range(args.seed, args.seed + args.num_images)
    if len(seeds) == 1:
        return {args.seed: wish.output}
    return {seed: wish.output.with_stem(f"{wish.output.stem}-{seed}") for seed in seeds}


def find_parser(named: str | None, embedded: bool) -> str:
    """The human parser that makes masks, once it is known to be there: ``named``, or the usual one."""
    from deepfashion_training.models.parser import DEFAULT_PARSER, check_parser

    if named is None and embedded:
        from deepfashion_training.embedded.make_parser import DRAWN_PARSER

        return str(DRAWN_PARSER)
    check_parser(named or DEFAULT_PARSER)
    return named or DEFAULT_PARSER


def tryon(args: argparse.Namespace) -> None:
    """Draw what the flags ask for. Raises ``ValueError``, one line, where it can before models are loaded."""
    from deepfashion_training.dressing.wishes import make_ready
    from deepfashion_training.models.access import check_writable
    from deepfashion_training.models.parser import load_parser

    wishes = wishes_of(args)
    needs_parser = any(wish.mask is None for wish in wishes)
    parser = find_parser(args.parser, args.embedded) if needs_parser else None
    choice = choose(args)
    look = choice.look(args.steps, repaint=args.repaint)
    check_writable(wishes[0].output.parent, "--output")
    settings = _settings(choice, look, parser)
    left = _left(wishes, settings, args)
    sys.stderr.write("".join(f"{line}\n" for line in _opening_lines(choice, look, args)))
    if not left:
        sys.stdout.write(f"all {len(wishes)} rows are drawn already: {args.output}\n")
        return
    if len(left) < len(wishes):
        sys.stderr.write(f"going on  {len(wishes) - len(left)} of {len(wishes)} rows are drawn already\n")
    parsing = load_parser(parser) if parser is not None else None
    if args.batch is None:
        ready = make_ready(left[0], parsing)  # what can fail comes before the large model
        model = choice.load([choice.recipe.prompt_of(args.caption)])
        sys.stdout.write("".join(f"{path}\n" for path in _draw(Drawing(model, look, choice, settings, args), ready)))
    else:
        model = choice.load([choice.recipe.prompt_of(wish.caption) for wish in left])
        _draw_rows(Drawing(model, look, choice, settings, args), left, parsing)


@dataclass(frozen=True)
class Drawing:
    """What all pictures of a run have in common."""

    model: FillModel
    look: Look
    choice: Choice
    settings: dict[str, Any]
    args: argparse.Namespace

    def bar(self, wishes: int) -> Any:
        """A progress bar over the denoising steps of as many wishes."""
        from tqdm import tqdm

        return tqdm(total=wishes * self.args.num_images * self.args.steps, unit="step", desc="drawing", disable=None)


def _draw(drawing: Drawing, ready: Ready, bar: Any = None) -> list[Path]:
    """Draw and save every picture of one wish; returns the files, the results last."""
    from PIL import Image

    from deepfashion_training.dressing.dress import dress
    from deepfashion_training.dressing.records import save_picture

    args, wish = drawing.args, ready.wish
    prompt = drawing.choice.recipe.prompt_of(wish.caption)
    own = drawing.bar(1) if bar is None else contextlib.nullcontext(bar)
    written: list[Path] = []
    with own as shown:
        for seed, path in targets(wish, args).items():
            made = dress(
                drawing.model,
                ready.photo,
                ready.garment,
                ready.mask,
                drawing.look,
                prompt,
                seed,
                on_step=lambda _: shown.update(),
            )
            pictures = {path: made.picture}
            if args.save_pair:
                pictures[path.with_name(f"{path.stem}-pair.png")] = made.pair
            if args.save_mask:
                pictures[path.with_name(f"{path.stem}-mask.png")] = Image.fromarray(ready.mask * 255)
            record = wish.record({**drawing.settings, "seed": seed})
            for file, picture in reversed(pictures.items()):  # the result comes last: with it the row counts as done
                save_picture(picture, file, record)
            written += pictures
    return written


def _draw_rows(drawing: Drawing, wishes: Sequence[Wish], parser: Parser | None) -> None:
    """Draw row by row; one that fails does not stop the others, and ends in a ``ValueError`` at the end."""
    from deepfashion_training.dressing.wishes import make_ready

    failed = []
    with drawing.bar(len(wishes)) as bar:
        for wish in wishes:
            try:
                _draw(drawing, make_ready(wish, parser), bar)
            except (ValueError, OSError) as error:
                failed.append(f"{wish.output.name}: {error}")
                bar.write(failed[-1], file=sys.stderr)
    sys.stdout.write(f"{len(wishes) - len(failed)} of {len(wishes)} rows drawn into {drawing.args.output}\n")
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(wishes)} rows failed, first {failed[0]}; mend them and give the same command "
            "again: what is drawn stays"
        )


def _left(wishes: Sequence[Wish], settings: dict[str, Any], args: argparse.Namespace) -> list[Wish]:
    """The wishes without a picture yet; ``ValueError`` where a picture that is there must not be replaced."""
    from deepfashion_training.dressing.records import differences, made_from

    if args.overwrite:
        return list(wishes)
    left = []
    for wish in wishes:
        there = {seed: path for seed, path in targets(wish, args).items() if path.exists()}
        for seed, path in there.items():
            made = made_from(path)
            differing = differences(made or {}, wish.record({**settings, "seed": seed}))
            why = f"was made with other {', '.join(differing)}" if made else "is there and does not say how it was made"
            if args.batch is None:
                why = "exists"
            if args.batch is None or made is None or differing:
                raise ValueError(f"--output {path} {why}: name another, or replace it with --overwrite")
        if len(there) < args.num_images:
            left.append(wish)
    return left


def _settings(choice: Choice, look: Look, parser: str | None) -> dict[str, Any]:
    """What a picture's record says of how it was drawn, the same for all of them."""
    drawn = dataclasses.asdict(look)
    del drawn["lora"]  # a name inside this program
    return {**choice.described(), **drawn, "parser": parser}


def _opening_lines(choice: Choice, look: Look, args: argparse.Namespace) -> list[str]:
    """What is about to be drawn, and with what."""
    recipe = choice.recipe
    lora = "none: the bare base" if choice.lora is None else f"{choice.lora.path}, scale {choice.lora_scale:g}"
    shown = "on: beyond the feathered mask nothing changes (--no-repaint shows all that the model drew)"
    if not look.repaint:
        shown = "off: the whole picture is as the model drew it (--repaint keeps the photo beyond the mask)"
    lines = [
        f"base      {recipe.transformer}",
        f"LoRA      {lora}",
        f"drawing   {recipe.height}x{recipe.width} (height x width), {look.steps} steps, guidance "
        f"{recipe.guidance_scale:g}, seed {args.seed}",
        f"repaint   {shown}",
    ]
    return lines + [f"note      {note}" for note in choice.notes]


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    check_use(parser, args)
    stopped = "the same command goes on after what is drawn" if args.batch else "nothing was written"
    return run_command("tryon", lambda: tryon(args), debug=args.debug, stopped=stopped)


if __name__ == "__main__":
    sys.exit(main())
