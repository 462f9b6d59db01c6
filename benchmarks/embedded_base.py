"""How well the small base dresses drawn people that it never saw, by garment type, with and without a LoRA.

    python benchmarks/embedded_base.py [--lora FOLDER] [--people 80] [--seeds 79 80 81] [--json F]

Figures are those of ``evaluate`` with its defaults, by its own code, on people of seeds that nothing is trained on:
mean CIEDE2000 of the garment and 1-SSIM over the area to repaint. Over patterned garments comes how much of the pattern
is there (see ``pattern_kept``). Beside them are a grey fill, the photo through the VAE, and results for another
person's garment of the same type. Last is what the LoRA changed, by seed, with mean and range over the seeds.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a command, from anywhere

from deepfashion_training.cli import number, quiet_libraries
from deepfashion_training.embedded.make.make_base import PAINTED_SEED, PAIRS_SEED
from deepfashion_training.embedded.make.top_rows import FORMER_TOPS_SEEDS, TOPS_SEED
from deepfashion_training.embedded.rows import RowSpec, documented_specs, split_of_pids
from deepfashion_training.embedded.wardrobe import OWN_SEED, write_wardrobe
from deepfashion_training.evaluate import alone, arguments
from deepfashion_training.evaluation.draw_cases import draw_missing
from deepfashion_training.evaluation.evaluation_plan import EvaluationPlan, make_plan
from deepfashion_training.evaluation.measure_cases import measure, read_result
from deepfashion_training.garment_types import TYPE_NAMES
from deepfashion_training.inference.choice import choose
from deepfashion_training.inference.dress import picture_of
from deepfashion_training.inference.records import save_picture

#: People to choose by. Those of other seeds are for telling how good the choice is.
SEED = 424242
#: Seeds of the people that something is trained on.
TRAINED_ON = {OWN_SEED: "the wardrobe of --embedded"}
TRAINED_ON |= dict.fromkeys((PAIRS_SEED, PAINTED_SEED), "the small VAE")
TRAINED_ON |= dict.fromkeys((*FORMER_TOPS_SEEDS, TOPS_SEED), "the small base")
#: Figures of a result by garment type that are better when they are lower, and all of them.
ERRORS = {"dssim_masked": "1-SSIM", "ciede2000_masked": "CIEDE2000"}
FIGURES = {**ERRORS, "patterns": "pattern kept"}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
#: Pictures that are drawn at once: with more, a picture takes no less time.
BATCH = 16
#: The patterns that are measured, by group. The others are rare, or do not repeat.
PATTERNS = {
    **dict.fromkeys(("horizontal", "vertical", "diagonal"), "stripes"),
    **dict.fromkeys(("check", "plaid"), "checks"),
    "dots": "dots",
}
#: Standard deviation in pixels of the blur whose difference to a picture is its high-pass picture, and how far a
#: pattern may lie beside the truth's.
BLUR, REACH = 3.0, 3


def unseen_seed(text: str) -> int:
    """A seed of people that nothing is trained on. For argparse."""
    seed = int(number(int, 0)(text))
    if seed in TRAINED_ON:
        raise argparse.ArgumentTypeError(f"{seed} draws the people that {TRAINED_ON[seed]} learns from: take another")
    return seed


def pattern_kept(picture: np.ndarray, truth: np.ndarray, area: np.ndarray) -> float:
    """How much of the truth's pattern a picture has, at most 1: both [h,w,3] of any scale, ``area`` bool [h,w].

    The correlation in ``area`` of their high-pass pictures (what a blur of ``BLUR`` takes away), at the best of all
    shifts of up to ``REACH`` pixels to each side. The best of 49 shifts lies above 0 for pictures that have nothing in
    common, so a figure has to be read beside that of another garment. A pattern that is only paler counts as whole.
    """
    pair = (values.astype(float) for values in (picture, truth))
    one, other = (values - ndimage.gaussian_filter(values, (BLUR, BLUR, 0)) for values in pair)
    wanted, best = other[area] - other[area].mean(), 0.0
    rows, columns = np.nonzero(area)
    for down in range(-REACH, REACH + 1):
        for right in range(-REACH, REACH + 1):
            found = one[(rows + down) % area.shape[0], (columns + right) % area.shape[1]]
            found = found - found.mean()
            size = np.sqrt((found**2).sum() * (wanted**2).sum())
            best = max(best, float((found * wanted).sum() / size)) if size else best
    return best


def save_references(plan: EvaluationPlan) -> list[str]:
    """Save what results are to be seen beside, as if models had drawn it; returns the names of these."""
    vae = AutoencoderKL.from_pretrained(plan.choice.recipe.pipeline, subfolder="vae")
    width = plan.choice.recipe.width
    for case in plan.sets[0]:
        sample, box = plan.cases.sample(case)
        coded = vae.decode(vae.encode(sample["image"][None]).latent_dist.mean).sample[0].clamp(-1, 1)
        for name, pair in (("grey fill", sample["im_mask"]), ("photo through the VAE", coded)):
            picture = picture_of((pair[..., width:] + 1) / 2).crop(box.edges)
            save_picture(picture, plan.picture(name, case), {"row": case.row})
    return ["grey fill", "photo through the VAE"]


def in_other_garments(plan: EvaluationPlan, *names: str) -> EvaluationPlan:
    """The models ``names`` on the same people in garments of others, measured against the photos all the same."""
    cases = [replace(case, unpaired=False) for case in plan.cases.unpaired]
    return replace(
        plan, folder=plan.folder / "others", drawing={name: plan.drawing[name] for name in names}, sets=[cases]
    )


def _by_type(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Means of the rows of one result by garment type; of patterns also the number of garments."""
    found: dict[str, dict[str, Any]] = {}
    for kind in TYPE_NAMES.values():
        own = [row for row in rows if row["type"] == kind]
        figures = {
            "dssim_masked": 1 - float(np.mean([row["figures"]["ssim_masked"] for row in own])),
            "ciede2000_masked": float(np.mean([row["figures"]["ciede2000_masked"] for row in own])),
        }
        found[kind] = {name: round(value, 5) for name, value in figures.items()}
        for name in ("patterns", *dict.fromkeys(PATTERNS.values())):
            kept = [row["kept"] for row in own if row["pattern"] and name in ("patterns", row["pattern"])]
            if kept:
                found[kind][name] = {"kept": round(float(np.mean(kept)), 4), "n": len(kept)}
    return found


def figures_of(plan: EvaluationPlan, specs: Sequence[RowSpec]) -> dict[str, dict[str, Any]]:
    """The pictures of ``plan``, which are drawn, measured: figures by name in ``plan.drawing`` and garment type.

    ``n`` are the people of each type that could be measured.
    """
    measured = measure(plan, None, plan.sets[0], torch.device("cpu"))
    rows = iter(measured.rows)
    for case in measured.cases:
        truth, spec = plan.cases.truth(case), specs[plan.cases.rows.provenance(case.row, "source_row")]
        pattern = PATTERNS.get(spec.garment().pattern.kind)
        for name in plan.drawing:
            row = next(rows)
            row["pattern"] = pattern
            if pattern:
                row["kept"] = pattern_kept(read_result(plan.picture(name, case)), truth.photo, truth.garment_area)
    found: dict[str, dict[str, Any]] = {"n": dict(Counter(case.type_name for case in measured.cases))}
    return found | {name: _by_type([row for row in measured.rows if row["model"] == name]) for name in plan.drawing}


@contextlib.contextmanager
def drawn_people(lora: Path | None, people: int, seed: int) -> Iterator[tuple[EvaluationPlan, list[RowSpec]]]:
    """``people`` of each type, dressed by base and LoRA as ``evaluate`` does it, and what their rows show.

    The pictures are there as long as the context is. Raises ``ValueError`` for a LoRA that does not fit the small base.
    """
    pids = next(count for count in itertools.count(people) if split_of_pids(3 * count, seed).count("train") >= people)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        flags = arguments(
            lora=[str(lora)] if lora else None, embedded=True, dataset_name=f"{folder}/people", split="train",
            limit=3 * people, batch_size=BATCH, parser="none", dino_model="none", extras=False,
            output_dir=Path(folder, "own"),
        )  # fmt: skip
        write_wardrobe(flags.dataset_name, rows=3 * pids, seed=seed, size=choose(flags).drawing().size)
        plan = make_plan(flags, alone(DEVICE))
        plan = replace(plan, sets=[plan.cases.paired])
        draw_missing(plan, alone(DEVICE))
        yield plan, list(documented_specs(3 * pids, seed))


def judge(lora: Path | None, people: int, seed: int = SEED, *, beside: bool = True) -> dict[str, Any]:
    """Draw and measure ``people`` of each type as ``evaluate`` does: figures by result and garment type, ``n`` by type.

    Results are ``base`` and, with a ``lora``, ``LoRA``; ``beside`` adds those to compare with. Their figures are those
    of ``ERRORS``, and ``patterns``, ``stripes``, ``checks`` and ``dots``, each ``{"kept", "n"}``. Raises ``ValueError``
    for a LoRA that does not fit the small base.
    """
    with drawn_people(lora, people, seed) as (plan, specs):
        names, others = list(plan.drawing), {}
        if beside:
            names = [*save_references(plan), *names]
            apart = in_other_garments(plan, "base")
            draw_missing(apart, alone(DEVICE))
            others = {"base, wrong garment": figures_of(apart, specs)["base"]}
        found = figures_of(replace(plan, drawing=dict.fromkeys(names, plan.drawing["base"])), specs) | others
    if "lora" in found:
        found["LoRA"] = found.pop("lora")
    return found


def value(judged: Mapping[str, Any], result: str, kind: str, figure: str) -> float:
    """A figure of ``FIGURES`` of what ``judge`` has found; NaN where nobody wears a pattern."""
    found = judged[result][kind].get(figure, {"kept": math.nan})
    return float(found["kept"] if figure == "patterns" else found)


def change(judged: Mapping[str, Any], kind: str, figure: str) -> float:
    """What a LoRA changed of the base: of errors a share of them, -0.4 being 40% less; of patterns the correlation."""
    base, lora = (value(judged, result, kind, figure) for result in ("base", "LoRA"))
    return lora - base if figure == "patterns" else lora / base - 1


def shown(changed: float, figure: str, unit: str = "%") -> str:
    """A change, or a difference of changes, as text: errors in percent."""
    return f"{changed:+.3f}" if figure == "patterns" else f"{100 * changed:+.1f}{unit}"


def spread(by_seed: Mapping[int, Mapping[str, Any]]) -> str:
    """A Markdown table of what the LoRA changed by seed of the people, with mean and range."""
    lines = ["| LoRA against base | " + " | ".join(f"seed {seed}" for seed in by_seed) + " | mean | range |"]
    lines.append("|---" * (len(by_seed) + 3) + "|")
    for kind, figure in itertools.product(TYPE_NAMES.values(), FIGURES):
        values = [change(judged, kind, figure) for judged in by_seed.values()]
        if math.isnan(sum(values)):  # none of so few people wears a pattern
            continue
        cells = [shown(each, figure) for each in (*values, float(np.mean(values)), min(values), max(values))]
        ends = " to ".join(cells[-2:])
        lines.append(f"| {kind}, {FIGURES[figure]} | {' | '.join([*cells[:-2], ends])} |")
    return "\n".join(lines)


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--lora", type=Path, help="folder of a LoRA")
    parser.add_argument("--people", type=number(int, 2), default=80, help="people of each type (default: %(default)s)")
    about = "people of these seeds, none of which anything is trained on (default: %(default)s)"
    parser.add_argument("--seeds", type=unseen_seed, nargs="+", default=[SEED], metavar="SEED", help=about)
    about = "also measure a grey fill, the photo through the VAE and other people's garments"
    parser.add_argument("--beside", action=argparse.BooleanOptionalAction, default=True, help=about)
    parser.add_argument("--json", type=Path, help="write the figures here, by seed")
    args = parser.parse_args()
    quiet_libraries()
    by_seed = {}
    for seed in dict.fromkeys(args.seeds):
        by_seed[seed] = judge(args.lora, args.people, seed, beside=args.beside)
        sys.stdout.write(f"people of seed {seed}\n")
        sys.stdout.write("".join(f"{name:<22} {json.dumps(by_type)}\n" for name, by_type in by_seed[seed].items()))
    if args.lora:
        sys.stdout.write(f"\n{spread(by_seed)}\n")
    if args.json:
        args.json.write_text(json.dumps(by_seed, indent=1), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
