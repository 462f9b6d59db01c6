"""Whether somebody who sees the pictures for the first time finds the LoRA's: a sheet without names, and its key.

    python benchmarks/blind.py --lora outputs/quick_test --output_dir D [--people 8] [--seed 17]
    python benchmarks/blind.py --output_dir D --answers 3 1 4 ...

The first command draws people that nothing was trained on in trousers, skirts, dresses and jumpsuits. A line of
``sheet.png`` is a garment and, in an order drawn for it, four people as try-on gives them: by the base and by the LoRA,
each in this garment and in another person's of the same type. Whoever looks says of each line which of 1 to 4 wears the
garment best; the second command counts how often that was the LoRA's. Chance finds a quarter. Show the sheet alone:
``key.json`` beside it says what is what.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a command, from anywhere

from benchmarks.embedded_base import DEVICE, drawn_people, in_other_garments, unseen_seed
from deepfashion_training.cli import WrongUseError, number, quiet_libraries, run_command
from deepfashion_training.evaluate import alone
from deepfashion_training.evaluation.draw_cases import draw_missing
from deepfashion_training.evaluation.measure_cases import read_result
from deepfashion_training.garment_types import UPPER
from deepfashion_training.images.paste import repainted

SHEET, KEY = "sheet.png", "key.json"
#: What the four pictures of a line are; the last one is to be found.
RESULTS = ("base, other garment", "base", "LoRA, other garment", "LoRA")
#: Width and height of a picture of the sheet, and the space around it, in pixels.
_TILE, _GAP = (216, 288), 14


def lines(lora: Path, people: int, seed: int) -> Iterator[tuple[str, list[Image.Image]]]:
    """The type, and garment and ``RESULTS``, of ``people`` of lower and full body each.

    Raises ``ValueError`` for a LoRA that does not fit the small base.
    """
    with drawn_people(lora, people, seed) as (plan, _):
        others = in_other_garments(plan, *plan.drawing)
        draw_missing(others, alone(DEVICE))
        other_of = {case.row: case for case in others.sets[0]}
        for case in plan.cases.paired:
            if case.cloth_type == UPPER:
                continue
            truth, other = plan.cases.truth(case), other_of[case.row]
            drawn = [some.picture(name, one) for name in plan.drawing for some, one in ((others, other), (plan, case))]
            photo = Image.fromarray(truth.photo)
            results = [repainted(photo, Image.fromarray(read_result(file)), truth.mask) for file in drawn]
            yield case.type_name, [plan.cases.garment(case), *results]


def sheet_of(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """The pictures of each row beside each other, the first one apart, numbers over the others."""
    across, down = _TILE[0] + _GAP, _TILE[1] + 3 * _GAP
    sheet = Image.new("RGB", (across * 5 + 5 * _GAP, down * len(rows) + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(22)
    for line, pictures in enumerate(rows):
        top = _GAP + line * down
        for place, picture in enumerate(pictures):
            left = 3 * _GAP + place * across + (_GAP if place else 0)
            draw.text((left, top), str(place) if place else f"line {line + 1}", "black", font)
            sheet.paste(ImageOps.pad(picture.convert("RGB"), _TILE, color="white"), (left, top + 2 * _GAP))
    return sheet


def found(key: Sequence[Sequence[str]], answers: Sequence[int]) -> str:
    """What ``answers``, a number from 1 to 4 for each line of the key, found, and how likely chance finds as much."""
    named = [order[answer - 1] for order, answer in zip(key, answers, strict=True)]
    hits, count = named.count(RESULTS[-1]), len(named)
    chance = sum(math.comb(count, k) * 3 ** (count - k) for k in range(hits, count + 1)) / 4**count
    others = Counter(name for name in named if name != RESULTS[-1]).most_common()
    instead = ", ".join(f"{name} {times}" for name, times in others) or "none"
    return f"the LoRA's found in {hits} of {count} lines (by chance with p = {chance:.2g}); instead: {instead}"


def count_answers(folder: Path, answers: Sequence[int]) -> None:
    """Say what ``answers`` to the sheet in ``folder`` found. Raises ``WrongUseError`` where they do not fit it."""
    if not (folder / KEY).is_file():
        raise WrongUseError(f"--output_dir {folder} has no {KEY}: draw a sheet there with --lora")
    key = json.loads((folder / KEY).read_text("utf-8"))
    if len(key) != len(answers):
        raise WrongUseError(f"--answers: {len(answers)} for the {len(key)} lines of {folder / SHEET}")
    sys.stdout.write(found(key, answers) + "\n")


def draw_sheet(lora: Path, people: int, seed: int, folder: Path) -> None:
    """Write sheet and key to ``folder``, the lines of lower body first."""
    quiet_libraries()
    rng, shown, key = np.random.default_rng(seed), [], []
    for _, (garment, *results) in sorted(lines(lora, people, seed), key=lambda line: line[0] != "lower"):
        order = rng.permutation(len(RESULTS)).tolist()
        shown.append([garment, *(results[place] for place in order)])
        key.append([RESULTS[place] for place in order])
    folder.mkdir(parents=True, exist_ok=True)
    sheet_of(shown).save(folder / SHEET)
    (folder / KEY).write_text(json.dumps(key, indent=1), "utf-8")
    sys.stdout.write(f"{folder / SHEET}: say of each line which of 1 to 4 wears the garment best\n")


def work(argv: list[str]) -> None:
    """The whole command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--output_dir", type=Path, required=True, help=f"folder of {SHEET} and {KEY}")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--lora", type=Path, help="folder of a LoRA: draw a sheet")
    task.add_argument("--answers", type=int, nargs="+", choices=(1, 2, 3, 4), help="one for each line: count")
    parser.add_argument("--people", type=number(int, 2), help="with --lora: people of each type (default: 8)")
    parser.add_argument("--seed", type=unseen_seed, help="with --lora: of the people (default: 17)")
    args = parser.parse_args(argv)
    if args.lora:
        draw_sheet(args.lora, args.people or 8, 17 if args.seed is None else args.seed, args.output_dir)
    elif args.people is not None or args.seed is not None:
        raise WrongUseError("--people and --seed are for drawing a sheet, and do nothing beside --answers")
    else:
        count_answers(args.output_dir, args.answers)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command("blind", argv, work, "there is no sheet")


if __name__ == "__main__":
    sys.exit(main())
