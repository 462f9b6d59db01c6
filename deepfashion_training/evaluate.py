"""What a LoRA changed, by garment type, beside its base: the same people, the same noise, with and without it.

    python -m deepfashion_training.evaluate --data PAIRS --split test --lora outputs/full --output_dir REPORT

Writes metrics.json, metrics.csv, pictures/, report.html and before_after.png. A run that is stopped goes on where it
stopped when the same command is given again (without --overwrite). On several GPUs, of which all draw and the first
measures: ``accelerate launch -m deepfashion_training.evaluate ...``. Exit codes: 0 done, 1 failed, 2 wrong use, 130
stopped by Ctrl-C.
"""

# Nothing heavy is imported up here, so that --help answers at once.
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepfashion_training.cli import FlagParser, number, run_command
from deepfashion_training.garment_types import type_list
from deepfashion_training.inference.choice import add_drawing_flags, add_model_flags

if TYPE_CHECKING:
    from deepfashion_training.evaluation.cases import Case
    from deepfashion_training.evaluation.draw_cases import Setting
    from deepfashion_training.evaluation.evaluation_plan import Plan
    from deepfashion_training.evaluation.measure_cases import Instruments, Measured

#: How long processes wait for one another: the slowest of them may have hours of pictures left.
_PATIENCE = timedelta(days=2)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = FlagParser("evaluate", "Say by garment type what a LoRA changed: base and LoRA from the same noise.")
    switch = argparse.BooleanOptionalAction
    add = parser.add_argument_group("data").add_argument
    add("--data", metavar="PAIRS", help="pairs of prepare: parquet folder, save_to_disk folder or Hub id")
    add("--data_revision", help="branch, tag or commit of a Hub dataset")
    add("--split", default="test", help="split to evaluate on (test)")
    add(
        "--limit",
        type=number(int, 1),
        metavar="N",
        help="rows, types in proportion (default: as the training's own comparison)",
    )
    add(
        "--cloth_types",
        type=type_list,
        default="upper,lower,full",
        metavar="LIST",
        help="garment types (upper,lower,full)",
    )
    add("--parser", metavar="MODEL", help="human parser that finds the worn garment, or none (default: on a GPU)")
    add_model_flags(parser)
    add("--against", metavar="LORA", help="another LoRA, at scale 1, to compare with in place of the bare base")
    add_drawing_flags(parser, guidance=False)
    add = parser.add_argument_group("evaluation").add_argument
    scale: dict[str, Any] = {"type": number(float, 0), "nargs": "+", "metavar": "X"}
    add("--guidance_scale", **scale, help="one, or several to find the best of (default: the LoRA's)")
    add("--unpaired", action=switch, default=True, help="also try on garments of other people (on)")
    add("--repaint", action=switch, default=False, help="paste results into the photos before measuring (off)")
    add("--batch_size", type=number(int, 1), default=1, metavar="N", help="pictures that are drawn at once (1)")
    add("--dino_model", metavar="MODEL", help="DINOv2, folder or Hub id, or none (facebook/dinov2-base)")
    add("--extras", action=switch, default=True, help="LPIPS, FID and KID, where they can be had (on)")
    add("--bootstrap_rounds", type=number(int, 100), default=1000, metavar="N", help="rounds of the intervals (1000)")
    add = parser.add_argument_group("output").add_argument
    add("--output_dir", type=Path, required=True, metavar="REPORT", help="folder of the report")
    add("--overwrite", action="store_true", help="replace an earlier evaluation in --output_dir")
    add("--push_to_hub", action="store_true", help="upload the LoRA with its card, which then has the figures")
    add("--hub_model_id", metavar="OWNER/NAME", help="where to (default: YOU/NAME of the LoRA's folder)")
    add("--hub_private", action="store_true", help="make the repository a private one")
    add("--debug", action="store_true", help="show the traceback of an error")
    return parser


@dataclass(frozen=True)
class Alone:
    """Stands for accelerate's state where this process evaluates by itself, whatever others are or were there."""

    device: Any
    is_main_process = True
    process_index = 0
    num_processes = 1

    def wait_for_everyone(self) -> None:
        """Nobody is waited for."""


def evaluate_trained(lora: Path, data: str, split: str, report: Path, device: Any, **flags: Any) -> None:
    """Evaluate a LoRA that was trained just now, as the command would; ``flags`` are its options by their names.

    Other people's garments are not tried on: this is a first look. Only this process draws, as those that trained
    beside it may have ended. Raises ``ValueError``, one line.
    """
    argv = ["--data", data, "--split", split, "--lora", str(lora), "--output_dir", str(report)]
    argv += ["--no-unpaired", "--overwrite"]
    for name, value in flags.items():
        if value is True:
            argv.append(f"--{name}")
        elif value is not None and value is not False:
            argv.append(f"--{name}={value}")
    evaluate(build_parser().parse_args(argv), Alone(device))


def evaluate(args: argparse.Namespace, state: Any = None) -> None:
    """Draw, measure and report, on as many processes as were launched; the first of them measures.

    ``state`` stands for accelerate's, which is made when there is none. Raises ``ValueError``, one line, for what
    cannot be done, before models are loaded where that is possible.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    from deepfashion_training.evaluation.evaluation_plan import make_plan
    from deepfashion_training.evaluation.measure_cases import Instruments
    from deepfashion_training.evaluation.results import best_of

    state = state or PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=_PATIENCE)
    plan = make_plan(args, state)
    if state.is_main_process:
        sys.stderr.write("".join(f"{line}\n" for line in _opening_lines(plan, args)))
        instruments = Instruments(plan.dino, plan.extras, state.device)  # early: what cannot be loaded is told now
    with_unpaired = args.unpaired and bool(plan.cases.of(unpaired=True))
    artist = Artist(plan, args, state)
    paired = [plan.setting(guidance, unpaired=False) for guidance in plan.guidances]
    if len(paired) == 1:  # the usual case: all is drawn before anything is measured
        best = plan.guidances[0]
        artist.draw([*paired, *([plan.setting(best, unpaired=True)] if with_unpaired else [])])
        sweep = _measured(plan, paired, instruments) if state.is_main_process else []
    else:
        artist.draw(paired)
        sweep = _measured(plan, paired, instruments) if state.is_main_process else []
        best = _agreed(best_of(sweep)[0] if state.is_main_process else 0.0, state)
        artist.draw([plan.setting(best, unpaired=True)] if with_unpaired else [])
    if state.is_main_process:
        unpaired = _measured(plan, [plan.setting(best, unpaired=True)], instruments) if with_unpaired else []
        _report(plan, args, best, sweep, unpaired)


class Artist:
    """Draws what is missing, with a model that is loaded only if something is."""

    def __init__(self, plan: Plan, args: argparse.Namespace, state: Any) -> None:
        self.plan, self.args, self.state = plan, args, state
        self._model: Any = None

    def draw(self, settings: Sequence[Setting]) -> None:
        """Draw this process's share of ``settings``, then wait for the others."""
        from tqdm import tqdm

        from deepfashion_training.evaluation.draw_cases import draw_missing
        from deepfashion_training.evaluation.evaluation_plan import wait_for_others

        plan, share = self.plan, (self.state.process_index, self.state.num_processes)
        mine = [self._mine(one.unpaired) for one in settings]
        there = sum(one.drawn(plan.cases, cases) for one, cases in zip(settings, mine, strict=True))
        total = sum(len(one.looks) * len(cases) for one, cases in zip(settings, mine, strict=True))
        if there < total:
            of_mine = f" of the share of each of {share[1]} processes" if share[1] > 1 else ""
            if there and self.state.is_main_process:
                sys.stderr.write(f"going on  {there} of {total} pictures{of_mine} are drawn already\n")
            desc = f"drawing{of_mine and f', 1 of {share[1]} processes'}"
            with tqdm(total=total, initial=there, unit="picture", desc=desc, disable=self._silent) as bar:
                draw_missing(
                    self._loaded,
                    plan.choice.recipe,
                    plan.cases,
                    settings,
                    seed=self.args.seed,
                    batch_size=self.args.batch_size,
                    share=share,
                    drawn=bar.update,
                )
        wait_for_others(self.state)

    def _mine(self, unpaired: bool) -> list[Case]:
        from deepfashion_training.evaluation.draw_cases import share_of

        state, size = self.state, self.args.batch_size
        batches = share_of(self.plan.cases, unpaired, size, state.process_index, state.num_processes)
        return [case for batch in batches for case in batch]

    @property
    def _silent(self) -> bool | None:
        return None if self.state.is_main_process else True

    def _loaded(self) -> Any:
        if self._model is None:
            plan = self.plan
            # Of this process's own share: with captions each is a prompt, which takes 4 MB of memory.
            prompts = [
                plan.choice.recipe.prompt_of(plan.cases.caption(case, unpaired))
                for unpaired in (False, True)
                for case in self._mine(unpaired)
            ]
            others = {} if plan.against is None else {"against": plan.against}
            self._model = plan.choice.load(prompts, device=self.state.device, **others)
        return self._model


def _agreed(value: float, state: Any) -> float:
    """The first process's value, on every process."""
    if state.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return float(broadcast_object_list([value])[0])


def _measured(plan: Plan, settings: Sequence[Setting], instruments: Instruments) -> list[Measured]:
    """The pictures of ``settings``, measured.

    On one CPU core a case of 768x576 takes some 20 s, most of them in DINOv2: see benchmarks/evaluate.py.
    """
    from tqdm import tqdm

    from deepfashion_training.evaluation.measure_cases import measure

    total = sum(len(plan.cases.of(one.unpaired)) for one in settings)
    with tqdm(total=total, unit="case", desc="measuring", disable=None) as bar:
        return [measure(plan.cases, one, instruments, bar.update) for one in settings]


def _report(
    plan: Plan, args: argparse.Namespace, best: float, sweep: Sequence[Measured], unpaired: Sequence[Measured]
) -> None:
    """Write everything that people and programs read, and say where it is."""
    from deepfashion_training.evaluation import results

    facts, card = results.write_results(plan, best, sweep, unpaired, args.seed, args.bootstrap_rounds)
    sys.stdout.write(results.closing_lines(plan, facts, card))
    if plan.publish_as is not None and plan.trained_folder is not None:
        from deepfashion_training.models.publish import push

        sys.stdout.write(f"published {push(plan.trained_folder, plan.publish_as, args.hub_private)}\n")


def _opening_lines(plan: Plan, args: argparse.Namespace) -> list[str]:
    """What is about to be compared."""
    recipe, cases = plan.choice.recipe, plan.cases
    base = recipe.transformer if plan.against is None else f"{recipe.transformer} with {plan.against.path}"
    lora = "none: the base alone" if plan.choice.lora is None else str(plan.choice.lora.path)
    counts = ", ".join(f"{count} {name}" for name, count in cases.counts().items())
    repaint = "on: the photo is kept beyond the mask" if plan.settings["repaint"] else "off: all that is drawn counts"
    lines = [
        f"base      {base}",
        f"LoRA      {lora}" + (f", scale {plan.choice.lora_scale:g}" if plan.choice.lora else ""),
        f"data      {cases.source}, split {cases.split}: {counts}",
        f"drawing   {recipe.height}x{recipe.width} (height x width), {plan.settings['num_inference_steps']} steps, "
        f"guidance {', '.join(f'{guidance:g}' for guidance in plan.guidances)}, seed {plan.settings['seed']}",
        f"repaint   {repaint}",
    ]
    if plan.settings["limit"] is not None and args.limit is None:
        lines.append(f"note      {len(cases)} rows, as many as were compared after the training: --limit takes others")
    if cases.same_photo:
        lines.append(f"note      {cases.same_photo} rows whose garment was cut out of the same photo are left out")
    own = len(cases) - len(cases.of(unpaired=True))
    if own and args.unpaired:
        lines.append(f"note      {own} cases are not drawn unpaired: nobody else wears a garment of their type")
    if cases.split == "train":
        lines.append("note      a LoRA may have seen the people of this split: take test for a fair comparison")
    return lines + [f"note      {note}" for note in plan.choice.notes]


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.data is None and not args.embedded:
        parser.error("--data is needed, or --embedded for drawn people")
    if args.against is not None and args.lora is None:
        parser.error("--against compares a LoRA with another one: name the first with --lora")
    if not args.push_to_hub and (args.hub_model_id or args.hub_private):
        parser.error("--hub_model_id and --hub_private go with --push_to_hub")
    stopped = f"the same command {'without --overwrite ' if args.overwrite else ''}goes on where it stopped"
    return run_command("evaluate", lambda: evaluate(args), debug=args.debug, stopped=stopped)


if __name__ == "__main__":
    sys.exit(main())
