"""What a LoRA changed, by garment type, beside its base: the same people, the same noise, with and without it.

    python -m deepfashion_training.evaluate --dataset_name PAIRS --split test --lora outputs/full --output_dir REPORT

Writes metrics.json, metrics.csv, pictures/, report.html and before_after.png. A run that is stopped continues when the
same command is given again (without --overwrite). On several GPUs, where all draw and the first measures:
``accelerate launch -m deepfashion_training.evaluate ...``. Exit codes: 0 done, 1 failed, 2 wrong use, 130 stopped by
Ctrl-C, 143 by SIGTERM or SIGHUP.
"""

# Nothing heavy is imported up here, so that --help answers at once.
from __future__ import annotations

import argparse
import sys
from collections import Counter
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from deepfashion_training.cli import FlagParser, load_cards, number, quiet_libraries, run_command
from deepfashion_training.garment_types import TYPE_NAMES, type_list
from deepfashion_training.inference.choice import add_drawing_flags, add_model_flags
from training_run.lock import only_writer
from training_run.processes import process_state

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState

    from deepfashion_training.evaluation.evaluation_plan import EvaluationPlan

#: How long processes wait for one another: the slowest of them may have hours of pictures left.
_PATIENCE = timedelta(days=2)


#: Rows where ``--limit`` does not say: 60 of each type, so that a 95% interval of a mean difference reaches a quarter
#: of the differences' standard deviation to each side (1.96 / sqrt(60)). A whole test split takes hours.
LIMIT = 180


def row_limit(text: str) -> int | None:
    """A number of rows from 1, or ``all``, which is None. For argparse."""
    return None if text == "all" else int(number(int, 1)(text))


# fmt: off
def build_parser() -> FlagParser:
    """The command line."""
    parser = FlagParser("evaluate", "Say by garment type what a LoRA changed: base and LoRA from the same noise.")
    switch = argparse.BooleanOptionalAction
    add = parser.add_argument_group("data").add_argument
    add("--dataset_name", metavar="PAIRS",
        help="pairs of prepare, Hub id or folder: parquet, save_to_disk, VITON-HD, DressCode, pictures with metadata")
    add("--dataset_revision", help="branch, tag or commit of a Hub dataset")
    add("--split", default="test", help="split to evaluate on")
    add("--limit", type=row_limit, default=LIMIT, metavar="N",
        help="rows, as many of each garment type, or all (default: %(default)s, an hour on an H100 by estimate)")
    add("--cloth_types", type=type_list, default="upper,lower,full", metavar="LIST", help="garment types")
    add("--parser", metavar="MODEL", help="human parser that finds the worn garment, or none (default: on a GPU)")
    add_model_flags(parser)
    add_drawing_flags(parser)
    add = parser.add_argument_group("evaluation").add_argument
    add("--against", metavar="LORA", help="another LoRA, at scale 1, to compare with instead of the bare base")
    add("--unpaired", action=switch, default=True, help="also try on garments of other people")
    add("--repaint", action=switch, default=False, help="paste results into the photos before measuring")
    add("--batch_size", type=number(int, 1), metavar="N",
        help="pictures that are drawn at once (default: as many as fit the GPU; on a CPU one)")
    add("--dino_model", metavar="MODEL", help="DINOv2, folder or Hub id, or none (default: facebook/dinov2-base)")
    add("--extras", action=switch, default=True, help="LPIPS, FID and KID, where torchvision is installed")
    add = parser.add_argument_group("output").add_argument
    add("--output_dir", type=Path, required=True, metavar="REPORT", help="folder of the report")
    add("--overwrite", action="store_true", help="replace an earlier evaluation in --output_dir")
    add("--push_to_hub", action="store_true", help="upload the LoRA with its card, which then has the figures")
    add("--hub_model_id", metavar="OWNER/NAME", help="where to (default: YOU/NAME of the LoRA's folder)")
    add("--hub_private", action="store_true", help="make the repository a private one")
    return parser
# fmt: on


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags in ``argv``; ``WrongUseError`` for some that do not go together."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.dataset_name is None and not args.embedded:
        parser.error("--dataset_name is needed, or --embedded for drawn people")
    if args.against is not None and args.lora is None:
        parser.error("--against compares a LoRA with another one: name the first with --lora")
    if not args.push_to_hub and (args.hub_model_id or args.hub_private):
        parser.error("--hub_model_id and --hub_private go with --push_to_hub")
    return args


def arguments(**flags: Any) -> argparse.Namespace:
    """The options of a command line that gives ``flags``, which have the names that ``parse`` has for them."""
    return argparse.Namespace(**build_parser().defaults() | flags)


def alone(device: torch.device) -> Any:
    """What stands in the place of accelerate's state where this process alone draws, and measures, on ``device``."""
    return SimpleNamespace(
        device=device, is_main_process=True, process_index=0, num_processes=1,
        wait_for_everyone=lambda: None, main_process_first=nullcontext,
    )  # fmt: skip


def evaluate_trained(device: torch.device, **flags: Any) -> Path | None:
    """Evaluate a LoRA that was trained just now, as the command would; ``flags`` are its options by their names.

    Other people's garments are not tried on: this is a first look. Only this process draws, as those that trained
    beside it may have ended. Returns and raises as ``evaluate`` does.
    """
    return evaluate(arguments(**{"unpaired": False, "overwrite": True} | flags), alone(device))


def evaluate(args: argparse.Namespace, processes: Any = None) -> Path | None:
    """Plan, draw, measure and report, on as many processes as were launched; the first of them measures.

    Returns where the picture before and after is: None without a LoRA, and on the other processes. ``processes`` takes
    the place of accelerate's state. Raises ``ValueError``, one line, for what cannot be done,
    before models are loaded where that is possible.
    """
    quiet_libraries()
    state = processes or process_state(_PATIENCE)
    with only_writer(args.output_dir) if state.is_main_process else nullcontext():
        return _evaluate(args, state)


def _evaluate(args: argparse.Namespace, state: PartialState) -> Path | None:
    """``evaluate`` on the processes ``state``, with the output directory to themselves."""
    from deepfashion_training.evaluation.draw_cases import draw_missing
    from deepfashion_training.evaluation.evaluation_plan import BEFORE_AFTER, make_plan
    from deepfashion_training.evaluation.measure_cases import measure
    from deepfashion_training.evaluation.results import write_results
    from deepfashion_training.models.features import Dino
    from deepfashion_training.models.publish import push

    plan = make_plan(args, state)
    dino = None
    if state.is_main_process:
        sys.stderr.write("".join(f"{line}\n" for line in _opening_lines(plan)))
        dino = None if plan.dino is None else Dino(plan.dino)  # early: an error comes before hours of drawing
    draw_missing(plan, state)
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    measured = [measure(plan, dino, cases, state.device) for cases in plan.sets]
    sys.stdout.write(write_results(plan, dino, measured))
    if plan.publish_as is not None and plan.trained_folder is not None:
        sys.stdout.write(f"published {push(plan.trained_folder, plan.publish_as, args.hub_private)}\n")
    return plan.folder / BEFORE_AFTER if plan.choice.loras else None


def _opening_lines(plan: EvaluationPlan) -> list[str]:
    """What is about to be compared."""
    cases = plan.cases
    types = Counter(case.cloth_type for case in cases.paired)
    counts = ", ".join(f"{types[kind]} {TYPE_NAMES[kind]}" for kind in sorted(types))
    lines = [f"data      {cases.source}, split {cases.split}: {counts}"]
    if cases.lists_unpaired:
        lines.append(f"lists     the folder's: {len(cases.paired)} paired and {len(cases.unpaired)} unpaired lines")
    lines += plan.choice.lines(plan.drawing["base"], plan.settings["seed"])
    drawn = len(plan.drawing) * sum(map(len, plan.sets))
    garments = ", in own and other garments" if len(plan.sets) > 1 else ""
    lines.append(f"pictures  {drawn} by {' and '.join(plan.drawing)}{garments}")
    if estimate := _estimate(plan, drawn):
        lines.append(f"time      {estimate}")
    if plan.against:
        lines.append(f"against   {plan.against.path}")
        lines += [f"note      {note}" for note in plan.against.notes]
    if cases.same_photo:
        lines.append(f"note      {cases.same_photo} rows whose garment was cut out of the same photo are left out")
    if cases.split == "train":
        lines.append("note      a LoRA may have seen the people of this split: take test for a fair comparison")
    return lines


def _estimate(plan: EvaluationPlan, pictures: int) -> str:
    """How long so many pictures take on the cards of ``cards.yaml``; nothing is said of another model than FLUX.1."""
    from deepfashion_training.embedded import is_embedded
    from training_run.flops import FLUX_FILL, duration, useful_flops

    if is_embedded(plan.choice.recipe.transformer):
        return ""
    drawing, tokens = plan.drawing["base"], plan.drawing["base"].size[0] // 16 * (plan.drawing["base"].size[1] // 8)
    forward = useful_flops(FLUX_FILL, tokens, plan.choice.recipe.max_sequence_length, rank=16).forward / 1e12
    work = pictures * drawing.num_inference_steps * forward
    each = (f"{duration(work / card['share'] / card['ceiling_tflops'])} on {card['card']}" for card in load_cards())
    return f"about {', '.join(each)} (estimates)"


def say_picture(picture: Path | None) -> None:
    """The last line of a comparison, if there is a ``picture`` of it."""
    if picture is not None:
        sys.stdout.write(f"picture   {picture}\n")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    stopped = "the same command, without --overwrite, continues where it stopped"
    return run_command("evaluate", argv, lambda words: say_picture(evaluate(parse(words))), stopped)


if __name__ == "__main__":
    sys.exit(main())
