"""One recipe of training against another in the miniature: several seeds of each, all else equal, with intervals.

    python benchmarks/compare_recipes.py --recipe plain="" --recipe keep="--mask_loss_weight 4" [--seeds 0 1 2]
        [--steps N] [--people 90] [--jobs 2] [--work_dir D] [--json F]

A recipe is flags over ``--quick-test --embedded``. Each trains a LoRA at every seed, on one drawn wardrobe and its
encoded rows, by ``train_deepfashion_lora.py`` in a process of one thread. ``embedded_base.py`` measures it on people of
a seed that nothing is trained on. A run that is complete in ``--work_dir`` is used again, one that was stopped goes on.

Printed as Markdown: what each recipe changed of the base, mean over seeds; the difference to the first recipe, paired
by seed, with its 95% t interval; better or worse only where the whole interval lies on one side; and the tops' loss
beside half of the first recipe's. docs/recipe.md says how to read it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a command, from anywhere

from benchmarks import embedded_base
from benchmarks.embedded_base import ERRORS, FIGURES, SEED, change, shown, unseen_seed, value
from deepfashion_training import train_deepfashion_lora
from deepfashion_training.cli import WrongUseError, number, run_command
from deepfashion_training.embedded.wardrobe import draw_wardrobe
from deepfashion_training.evaluate import alone
from deepfashion_training.garment_types import TYPE_NAMES
from deepfashion_training.run_arguments import REPOSITORY, build_parser, parse, typed_only
from training_run.atomic import write_file
from training_run.cores import ON_CPU
from training_run.flags import SEED as TRAINING_SEED
from training_run.stopping import LAUNCHER

#: What every run has beside its recipe: no picture and no comparison of its own, and it goes on where it stopped.
ALWAYS = {"validation_steps": 0, "evaluate_samples": 0, "resume_from_checkpoint": "latest"}
#: What else is the same for all: people of another size would be other people.
SAME = {"latents_dir", "height", "width", "revision", "inpaint_revision", "variant"}
SAME |= {"pretrained_model_name_or_path", "pretrained_inpaint_model_name_or_path"}
#: Seeds without which nothing is said of differences: the interval of two is 12.7 standard errors to each side.
FEWEST_SEEDS, LEVEL = 3, 0.95


def recipe(text: str) -> tuple[str, list[str]]:
    """Name and flags of ``NAME=FLAGS``. For argparse."""
    name, equals, flags = text.partition("=")
    if not equals or not re.fullmatch(r"\w[\w.+-]*", name):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FLAGS, such as plain= or soft='--learning_rate 1e-3'")
    try:
        return name, shlex.split(flags)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"the flags of {name} cannot be read ({error})") from None


def words_of(name: str, flags: Sequence[str], ours: Mapping[str, Any], latents_dir: Path) -> list[str]:
    """The command line of a recipe's run, with ``ours`` from this command.

    Raises ``WrongUseError`` for flags that a run does not know, that are not a recipe's, or that train no LoRA.
    """
    try:
        parser = build_parser()
        taken = parser.given(flags)[0].keys() & (typed_only(parser) | ours.keys() | SAME)
        for flag in (action.option_strings[0] for action in parser._actions if action.dest in taken):
            parser.error(f"{flag} is not for a recipe: it is the same for all of them, or no flag of training")
        words = ["--quick-test", "--embedded", *flags]
        words += [word for flag, value in ours.items() for word in (f"--{flag}", str(value))]
        args = parse(words, load=False)[0]
        if args.train_base_model:
            parser.error("--train_base_model trains no LoRA")
    except WrongUseError as error:
        raise WrongUseError(f"--recipe {name}: {error}") from error
    return words + (["--latents_dir", str(latents_dir)] if args.cache_latents else [])


def runs_of(args: argparse.Namespace) -> dict[tuple[str, int], list[str]]:
    """The command line of every run by recipe and seed. Raises ``WrongUseError`` for what cannot be compared."""
    recipes = dict(args.recipe)
    if len(recipes) < 2 or len(recipes) < len(args.recipe):
        raise WrongUseError("--recipe: at least two are compared, each with a name of its own")
    if len(set(args.seeds)) < len(args.seeds):
        raise WrongUseError("--seeds: a seed that is there twice says nothing new")
    work = args.work_dir.absolute()
    ours = {**ALWAYS, "dataset_name": work / "wardrobe"}
    if args.steps:
        ours["max_train_steps"] = args.steps
    runs = {}
    for seed in args.seeds:  # the first seed of all recipes comes first: a recipe that fails does so early
        for name, flags in recipes.items():
            own = ours | {"seed": seed, "output_dir": work / f"{name}-seed{seed}"}
            runs[name, seed] = words_of(name, flags, own, work / "latents")
    known = work / "recipes.json"
    before = json.loads(known.read_text("utf-8")) if known.exists() else {}
    for name, flags in recipes.items():
        if before.get(name, flags) != flags:
            said = shlex.join(before[name])
            raise WrongUseError(f"--recipe {name} is {said!r} in --work_dir {work}: take another name, or folder")
    work.mkdir(parents=True, exist_ok=True)
    write_file(known, json.dumps(before | recipes, indent=1))
    return runs


def call(command: Sequence[Any], sink: IO[str], stop: threading.Event) -> int:
    """Run a Python command in one thread and return its exit code; once ``stop`` is set, send it SIGTERM."""
    environment = {**os.environ, **({} if torch.cuda.is_available() else ON_CPU), LAUNCHER: str(os.getpid())}
    child = subprocess.Popen(
        [sys.executable, *map(str, command)], stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT,
        env=environment, start_new_session=True,
    )  # fmt: skip  # (in a session of its own: Ctrl-C comes through here, and once)
    while child.poll() is None:
        if stop.wait(0.2):
            child.terminate()
            child.wait()
    return child.returncode


def train_and_judge(
    name: str, seed: int, words: Sequence[str], args: argparse.Namespace, stop: threading.Event
) -> dict[str, Any]:
    """Train a LoRA, unless it is there, and measure it; what both say goes to a file beside the run."""
    folder = args.work_dir.absolute() / f"{name}-seed{seed}"
    log, judged = folder.with_name(f"{folder.name}.log"), folder / "judged.json"
    about = ["--people", args.people, "--seeds", args.people_seed, "--no-beside", "--json", judged]
    with log.open("w", encoding="utf-8") as sink:
        for command in ([train_deepfashion_lora.__file__, *words], [embedded_base.__file__, "--lora", folder, *about]):
            if code := call(command, sink, stop):
                said = (log.read_text("utf-8", errors="replace").strip().splitlines() or ["nothing"])[-1]
                raise ValueError(f"--recipe {name}, seed {seed}, ended with {code}: {said} ({log})")
    found: dict[str, Any] = json.loads(judged.read_text("utf-8"))[str(args.people_seed)]
    return found


def judge_all(runs: Mapping[tuple[str, int], Sequence[str]], args: argparse.Namespace) -> dict[tuple[str, int], Any]:
    """``train_and_judge`` of every run, ``--jobs`` at once; the first that fails, and a signal, stops the others."""
    began, judged, stop = time.monotonic(), {}, threading.Event()
    with ThreadPoolExecutor(args.jobs) as pool:
        futures = {pool.submit(train_and_judge, *run, words, args, stop): run for run, words in runs.items()}
        try:
            for future in as_completed(futures):
                name, seed = futures[future]
                judged[name, seed] = future.result()
                minutes = (time.monotonic() - began) / 60
                sys.stderr.write(f"{len(judged)} of {len(runs)}, {minutes:.0f} min: {name}, seed {seed}\n")
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return judged


def difference(values: Sequence[float] | np.ndarray, below: str, above: str) -> dict[str, Any]:
    """The mean of ``values``, one of each seed, its 95% t interval, and the word for an interval on one side of 0.

    The verdict is ``open`` for an interval that holds 0. There is neither for fewer than ``FEWEST_SEEDS`` values.
    """
    found: dict[str, Any] = {"mean": float(np.mean(values)), "interval": None, "verdict": ""}
    if len(values) >= FEWEST_SEEDS:
        half = stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * stats.sem(values)
        low, high = found["interval"] = [float(found["mean"] + side * half) for side in (-1, 1)]
        found["verdict"] = below if high < 0 else above if low > 0 else "open"
    return found


def compare(judged: Mapping[tuple[str, int], Any], names: Sequence[str], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each garment type and figure: ``base``, and by recipe ``changes`` by seed and ``differences``.

    Changes are from the base as the first recipe draws it, since one that draws it worse gains nothing by that.
    Differences are to the first recipe. In the rows of tops' errors ``losses`` has by recipe the ``difference`` of a
    loss to half of the first one's, and the ``share`` of its mean loss. Where the first one loses nothing in the mean,
    half of its loss is 0, and there is no share.
    """
    rows: list[dict[str, Any]] = []
    first = judged[names[0], seeds[0]]
    judged = {run: {**found, "base": first["base"]} for run, found in judged.items()}
    for kind in TYPE_NAMES.values():
        for figure in FIGURES:
            base = value(first, "base", kind, figure)
            if math.isnan(base):  # none of so few people wears a pattern
                continue
            of = {name: np.array([change(judged[name, seed], kind, figure) for seed in seeds]) for name in names}
            words = ("worse", "better") if figure == "patterns" else ("better", "worse")
            row = {"type": kind, "figure": figure, "base": base}
            row["changes"] = {name: values.tolist() for name, values in of.items()}
            row["differences"] = {name: difference(of[name] - of[names[0]], *words) for name in names[1:]}
            lost = float(of[names[0]].mean())
            if kind == "upper" and figure in ERRORS:
                half = of[names[0]] / 2 if lost > 0 else 0
                row["losses"] = {
                    name: {
                        "share": float(of[name].mean() / lost) if lost > 0 else None,
                        "difference": difference(of[name] - half, "at most half", "more than half"),
                    }
                    for name in names[1:]
                }
            rows.append(row)
    return rows


def _cell(found: Mapping[str, Any], figure: str) -> str:
    """A difference as it stands in the table."""
    ends = ", ".join(shown(end, figure, "") for end in found["interval"] or ())
    return shown(found["mean"], figure, "") + (f" [{ends}] {found['verdict']}" if ends else "")


def table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """``rows`` of ``compare`` as Markdown; changes of errors in percent, their differences in percentage points."""
    apart = [f"{name} - {names[0]}" for name in names[1:]]
    lines = ["| | base | " + " | ".join([*names, *apart]) + " |", "|---" * (1 + 2 * len(names)) + "|"]
    for row in rows:
        figure = row["figure"]
        cells = [f"{row['type']}, {FIGURES[figure]}", f"{row['base']:.3g}"]
        cells += [shown(float(np.mean(row["changes"][name])), figure) for name in names]
        cells += [_cell(row["differences"][name], figure) for name in names[1:]]
        lines.append(f"| {' | '.join(cells)} |")
        if losses := row.get("losses"):
            shares = [losses[name]["share"] for name in names[1:]]
            of_first = "none" if None in shares else "100%"
            cells = [f"loss, and less half of {names[0]}'s", "", of_first]
            cells += ["" if share is None else f"{share:.0%}" for share in shares]
            cells += [_cell(losses[name]["difference"], figure) for name in names[1:]]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def build_argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    about = "a recipe, such as soft='--learning_rate 1e-3'; the first one is what the others are compared with"
    add("--recipe", type=recipe, action="append", required=True, metavar="NAME=FLAGS", help=about)
    add("--seeds", type=TRAINING_SEED, nargs="+", default=[0, 1, 2], help="seeds of training (default: 0 1 2)")
    add("--steps", type=number(int, 1), help="optimizer steps of every run (default: the preset's, or the recipe's)")
    add("--people", type=number(int, 2), default=90, help="people of each type (default: %(default)s)")
    add("--people_seed", type=unseen_seed, default=SEED, help="which people (default: %(default)s)")
    add("--jobs", type=number(int, 1), default=2, help="runs at once, each with one thread (default: %(default)s)")
    about = "wardrobe, encoded rows and runs (default: outputs/recipes); a changed base or trainer wants another"
    add("--work_dir", type=Path, default=REPOSITORY / "outputs" / "recipes", help=about)
    add("--json", type=Path, help="write all figures here")
    return parser


def work(argv: list[str]) -> None:
    """The whole command."""
    args = build_argument_parser().parse_args(argv)
    runs, names = runs_of(args), [name for name, _ in args.recipe]
    if len(args.seeds) < FEWEST_SEEDS:
        sys.stderr.write(f"note: {len(args.seeds)} seeds allow no interval and no verdict; {FEWEST_SEEDS} do\n")
    draw_wardrobe(args.work_dir.absolute() / "wardrobe", alone(torch.device("cpu")))
    judged = judge_all(runs, args)
    rows = compare(judged, names, args.seeds)
    lines = ["", table(rows, names), "", *(f"{name}: `{shlex.join(flags)}`" for name, flags in args.recipe)]
    intervals = f"95% t intervals, {len(args.seeds) - 1} degrees of freedom"
    lines.append(
        f"Seeds {', '.join(map(str, args.seeds))}; {args.people} people of each type, seed {args.people_seed}; "
        f"steps: {args.steps or 'those of the preset or the recipe'}. Changes against the base; differences paired by "
        f"seed, {intervals if len(args.seeds) >= FEWEST_SEEDS else 'without intervals'}."
    )
    sys.stdout.write("\n".join([*lines, ""]))
    if args.json:
        asked = {name: getattr(args, name) for name in ("seeds", "steps", "people", "people_seed")}
        write_file(args.json, json.dumps({**asked, "recipes": dict(args.recipe), "rows": rows}, indent=1) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command("compare_recipes", argv, work, "the same command goes on where it stopped")


if __name__ == "__main__":
    sys.exit(main())
