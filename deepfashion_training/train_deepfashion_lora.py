"""Train a try-on LoRA on garment/person pairs: load the upstream script, swap its dataset, call its main.

    accelerate launch deepfashion_training/train_deepfashion_lora.py --preset quick_test --embedded

Flags that are not listed here go to the training script. A value is taken from the command line, else from the
preset, else from the script's own default. Exit codes: 0 done, 1 failed, 2 wrong use, 143 stopped by SIGTERM and 130 by
Ctrl-C, both after saving a checkpoint.
"""

# Nothing heavy is imported up here, so that --help answers at once.
from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import logging
import math
import os
import re
import shlex
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepfashion_training.upstream import script as upstream

REPOSITORY = Path(__file__).resolve().parents[1]
#: Flags of the launcher that choose a preset for a whole run; "no flag" is what it does without one.
PRESET_FLAGS = {"no flag": "full", "--h100": "h100", "--low-vram": "low_vram"}
LAUNCHER_FLAGS = ("--quick-test", "--h100", "--low-vram", "--dry-run")
MODELS = ("pretrained_model_name_or_path", "pretrained_inpaint_model_name_or_path")
LORA = "pytorch_lora_weights.safetensors"
#: Seconds that another process than the first waits before it says what went wrong.
OTHERS_WAIT = 5.0

if __name__ == "__main__":  # run by path: the package is found from here, and its folders do not become top-level names
    sys.path[0] = str(REPOSITORY)

from deepfashion_training.cli import (  # noqa: E402
    WrongUseError,
    as_typed,
    gpu_memory_of,
    load_preset,
    refuse_booleans,
)
from deepfashion_training.training_flags import (  # noqa: E402
    HUB_DATASET,
    build_parser,
    refuse_planning,
    refuse_publishing,
)


def launched_processes() -> int:
    """How many processes train: those that a launcher has started together, else this one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _typed(flag: str, tokens: list[str]) -> bool:
    return any(token.split("=")[0] == flag for token in tokens)


def _options(parser: argparse.ArgumentParser) -> list[str]:
    """Flags that ``parser`` knows, with their dashes."""
    return [option for option in parser._option_string_actions if option.startswith("--")]


def resolve(argv: list[str]) -> tuple[argparse.Namespace, upstream.Script]:
    """Arguments of the run, the wrapper's own among them, and the script that is to train with them.

    Raises ``WrongUseError`` for a flag that nobody knows, naming the nearest one that somebody does.
    """
    from deepfashion_training.upstream import script as upstream

    parser = build_parser()
    first, _ = parser.parse_known_args(argv)
    refuse_planning(first)
    flags = load_preset(first.preset)
    if first.embedded:
        flags |= load_preset("embedded")
        # A step has as many pairs, or hardly more, however many processes share it, and so teaches the same.
        flags["train_batch_size"] = math.ceil(flags["train_batch_size"] / launched_processes())
    script = upstream.open_script(first.upstream or upstream.DEFAULT_SCRIPT, _report_to(flags, argv))
    trainer_parser = upstream.script_parser(upstream.load_script(upstream.DEFAULT_SCRIPT))
    assert trainer_parser is not None  # given: our trainer uses argparse
    refuse_booleans(first.preset, load_preset(first.preset), (parser, trainer_parser))
    own_flags = {flag: value for flag, value in flags.items() if f"--{flag}" in _options(parser)}
    own, for_script = parser.parse_known_args([*as_typed(own_flags), *argv])
    own.dataset_name = own.dataset_name or (None if own.embedded else HUB_DATASET)
    own.output_dir = _output_dir(own, for_script)
    own.dataset_name = own.dataset_name or str(own.output_dir / "wardrobe")

    preset = {flag: value for flag, value in flags.items() if flag not in own_flags}
    if _typed("--num_train_epochs", for_script) and not _typed("--max_train_steps", for_script):
        preset.pop("max_train_steps", None)  # the trainer lets steps win over epochs, the user wins over the preset
    given = {"output_dir": str(own.output_dir), "dataroot": own.dataset_name}
    if own.embedded:
        from deepfashion_training.embedded import TINY_FLUX_FILL

        given |= dict.fromkeys(MODELS, str(TINY_FLUX_FILL))
    args = _parse(script, as_typed(preset), given, for_script, _options(parser))
    try:
        dataset_options(own)
    except ValueError as error:  # its message begins with the name of the option
        raise WrongUseError(f"--{error}") from error
    for name in MODELS:  # seen from elsewhere, a folder named from here would look like a repository on the Hub
        if (folder := getattr(args, name, None)) and Path(folder).is_dir():
            setattr(args, name, str(Path(folder).absolute()))
    for name, value in vars(own).items():
        setattr(args, name, str(value) if isinstance(value, Path) else value)
    refuse_publishing(args)
    if args.plan and args.train_base_model:
        raise WrongUseError(
            "--plan counts the work of a LoRA, and --train_base_model trains none: leave out one of them"
        )
    return args, script


def _report_to(flags: dict[str, Any], argv: list[str]) -> str:
    """Where curves will go, as far as it is said before the script's own parser is there."""
    seen = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    seen.add_argument("--report_to", nargs="?", default=flags.get("report_to") or "tensorboard")
    return str(seen.parse_known_args(argv)[0].report_to)


def _parse(
    script: upstream.Script, preset: list[str], given: dict[str, str], typed: list[str], own_flags: list[str]
) -> argparse.Namespace:
    """Arguments of the run as ``script`` understands them; ``given`` are those that follow from the wrapper's flags.

    Raises ``WrongUseError`` for a flag that nobody knows, and for a typed one that this script would not read.
    """
    from deepfashion_training.upstream import script as upstream
    from deepfashion_training.upstream.arguments import UnknownFlagError

    theirs = upstream.script_parser(script)
    if theirs is None:
        return script.parse_args([*preset, *as_typed(given), *typed])
    ours = upstream.script_parser(upstream.load_script(upstream.DEFAULT_SCRIPT))
    assert ours is not None  # given: our trainer uses argparse
    known = [*own_flags, *_options(ours), *_options(theirs), *LAUNCHER_FLAGS]
    try:
        with upstream.one_line_errors():
            _refuse_unknown([ours], preset, known)
            _refuse_unknown([ours, theirs], typed, known)
            return upstream.parse_arguments(script, ours, theirs, preset, given, typed)
    except UnknownFlagError as error:
        raise WrongUseError(str(error)) from error


def _refuse_unknown(parsers: list[argparse.ArgumentParser], typed: list[str], known: list[str]) -> None:
    from deepfashion_training.upstream.arguments import explicit

    if _typed("--dataroot", typed):
        raise WrongUseError("--dataroot is the training script's name for it: use --dataset_name")
    unknown = typed
    for parser in parsers:
        unknown = explicit(parser, unknown)[1]
    if unknown:
        name = unknown[0].split("=")[0]  # without its value, which may be a token
        near = difflib.get_close_matches(name, known, n=1)
        raise WrongUseError(f"unknown argument {name}" + (f": did you mean {near[0]}?" if near else ""))


def _output_dir(own: argparse.Namespace, for_script: list[str]) -> Path:
    """``--output_dir``, or ``outputs/<preset>`` in the repository, numbered so that no earlier run is overwritten.

    A run that continues a named checkpoint stays in that checkpoint's directory; 'latest' is looked for in the newest
    directory of the preset that has a checkpoint.
    """
    seen = argparse.ArgumentParser(allow_abbrev=False, add_help=False, exit_on_error=False)
    seen.add_argument("--output_dir", type=Path)
    seen.add_argument("--resume_from_checkpoint")
    try:
        given, _ = seen.parse_known_args(for_script)
    except argparse.ArgumentError as error:
        raise WrongUseError(str(error)) from error
    checkpoint = given.resume_from_checkpoint
    if checkpoint == "":
        raise WrongUseError("--resume_from_checkpoint is empty: name a checkpoint or 'latest', or leave the flag out")
    if given.output_dir is not None or checkpoint not in (None, "latest"):
        return given.output_dir or Path(checkpoint).resolve().parent
    name = Path(own.preset).stem
    if own.embedded and name != "quick_test":
        name += "-embedded"
    base = REPOSITORY / "outputs" / name
    number, taken = 1, []
    while (folder := base if number == 1 else base.with_name(f"{base.name}-{number}")).exists():
        taken.append(folder)
        number += 1
    begun = [earlier for earlier in taken if any(earlier.glob("checkpoint-*"))] if checkpoint else []
    return _same_on_every_rank(begun[-1] if begun else folder)


def _same_on_every_rank(folder: Path) -> Path:
    """Rank 0's choice of ``folder``, on every rank."""
    if launched_processes() == 1:
        return folder
    from accelerate.utils import broadcast_object_list

    process_state()
    return Path(broadcast_object_list([str(folder)])[0])


def process_state() -> Any:
    """accelerate's state of this process, made as its ``Accelerator`` will want it: the first one made is kept."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def check(args: argparse.Namespace, script: upstream.Script) -> None:
    """Raise ``ValueError`` for anything that would stop the run later and can be known before models are loaded."""
    import torch

    from deepfashion_training.data.sources import is_hub_id
    from deepfashion_training.models import access
    from deepfashion_training.models.publish import check_push

    for name in ("check_packages", "refuse_earlier_run"):  # what our own trainer can tell beforehand
        if hasattr(script, name):
            getattr(script, name)(args)
    for name in ("revision", "inpaint_revision", "variant", "cache_dir"):
        if args.evaluate_samples and getattr(args, name, None):
            raise ValueError(
                f"--{name} and --evaluate_samples do not go together: the comparison would load the base without it; "
                "add --evaluate_samples 0"
            )
    output_dir = Path(args.output_dir)
    access.check_writable(output_dir)
    if args.publish:
        args.publish_as = check_push(args.publish_as, output_dir.resolve().name, args.publish_private)
    if (output_dir / "README.md").exists() and not (output_dir / "run.json").exists():
        raise ValueError(f"--output_dir {output_dir} has a README.md that the model card would replace: choose another")
    pipeline = getattr(args, "pretrained_model_name_or_path", None)
    check_models(args)
    if not torch.cuda.is_available() and not Path(pipeline or "").is_dir():
        raise ValueError("no CUDA GPU is visible, and a 12B model needs one: add --embedded to try it on this machine")
    if not _draws_wardrobe(args) and not is_hub_id(args.dataset_name):
        if needs_preparation(args):
            check_preparation(args)
        else:
            check_rows(args)


def check_rows(args: argparse.Namespace) -> None:
    """Raise ``ValueError`` for documented rows that cannot be trained on, as far as a look at some of them tells."""
    from deepfashion_training.deepfashion_dataset import DeepFashionDataset

    DeepFashionDataset(args.dataset_name, "train", options=dataset_options(args)).check_masks()


def check_models(args: argparse.Namespace) -> None:
    """Raise ``ValueError`` when a model of the run cannot be loaded or downloaded."""
    from deepfashion_training.models import access

    pipeline, transformer = (getattr(args, name, None) for name in MODELS)
    if pipeline and transformer:
        hub: dict[str, Any] = {
            name: getattr(args, name, None) for name in ("revision", "inpaint_revision", "cache_dir")
        }
        access.check_models(pipeline, transformer, **hub)


def plan(args: argparse.Namespace, script: upstream.Script) -> None:
    """Say what the run will take; of the run itself nothing is done, and nothing stays on the disk.

    Raises ``ValueError`` when it does not fit the GPU that is here, after all has been said. With ``--check`` only
    what would keep the plan from being made.
    """
    from deepfashion_training.upstream.plan_answer import answer, is_measured
    from training_run.forecast import steps_of
    from training_run.stopping import Stopping

    state, rows = process_state(), known_rows(args)
    if is_measured(args, state):
        check_models(args)
    if args.check:
        steps_of(args, rows, state.num_processes)
        return
    needed = {"own": gpu_memory_of(args.preset)}
    needed |= {flag: gpu_memory_of(name) for flag, name in PRESET_FLAGS.items()}

    def say(line: str) -> None:
        if state.is_main_process:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()

    with Stopping():  # a signal is an exception here, so that what was measured in is removed
        answer(args, script, state, rows, {flag: gib for flag, gib in needed.items() if gib}, say)


def known_rows(args: argparse.Namespace) -> int | None:
    """Rows to train on, where they lie here as they will be read; None for those yet to be prepared or downloaded."""
    from dataclasses import replace

    from deepfashion_training.data.sources import is_hub_id
    from deepfashion_training.deepfashion_dataset import DeepFashionDataset
    from deepfashion_training.embedded.rows import split_of_pids
    from deepfashion_training.embedded.wardrobe import OWN_ROWS

    options = replace(dataset_options(args), ledger_dir=None)
    if _draws_wardrobe(args):  # every person in a garment of each type
        people = split_of_pids(OWN_ROWS, 0).count("train")
        return min(people * len(options.cloth_types), options.max_train_samples or OWN_ROWS)
    if is_hub_id(args.dataset_name) or needs_preparation(args):
        return None
    return len(DeepFashionDataset(args.dataset_name, "train", options=options))


def needs_preparation(args: argparse.Namespace) -> bool:
    """Whether the rows are raw: not documented, but such as ``prepare`` makes pairs from."""
    from deepfashion_training.data.schema import looks_raw, missing_columns
    from deepfashion_training.data.sources import source_columns

    columns = source_columns(args.dataset_name, revision=args.dataset_revision)
    return bool(missing_columns(columns)) and looks_raw(columns)


def preparation_settings(args: argparse.Namespace) -> Any:
    """The ``Settings`` by which raw rows become pairs for a training run: those of ``prepare`` without flags."""
    from deepfashion_training.preparation.settings import Settings
    from deepfashion_training.prepare import chosen_parser

    parser = chosen_parser("none" if args.embedded else None)
    return Settings(parser=parser, mine_lower_body=parser is not None, limit=args.prepare_limit)


def check_preparation(args: argparse.Namespace) -> None:
    """Raise ``ValueError`` for what would stop the preparation, without reading a picture."""
    from deepfashion_training.prepare import check_source

    settings = preparation_settings(args)
    check_source(args.dataset_name, _pairs_dir(args, settings), settings, revision=args.dataset_revision)


def _pairs_dir(args: argparse.Namespace, settings: Any) -> Path:
    """``--pairs_dir``, or a folder in ``outputs/pairs`` named after the dataset and the settings."""
    if args.pairs_dir:
        return Path(args.pairs_dir)
    local = Path(args.dataset_name).expanduser()
    source = str(local.resolve()) if local.is_dir() else args.dataset_name
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", local.resolve().name if local.is_dir() else args.dataset_name)
    return REPOSITORY / "outputs" / "pairs" / f"{name}-{settings.key(source, args.dataset_revision or '')[:8]}"


def make_pairs(args: argparse.Namespace) -> None:
    """Turn a raw dataset into pairs, or find those of an earlier run, and let ``args.dataset_name`` name them.

    Every rank comes here: the first prepares, the others wait for it.
    """
    from deepfashion_training.prepare import closing_lines, prepare, usable_cores

    settings = preparation_settings(args)
    folder = _pairs_dir(args, settings)
    if process_state().is_main_process:
        sys.stderr.write(f"{args.dataset_name} has raw rows: making pairs in {folder}, or using those that are there\n")
    folder, facts, made = prepare(
        args.dataset_name,
        folder,
        settings,
        revision=args.dataset_revision,
        num_proc=usable_cores(),
        overwrite=args.pairs_dir is None,  # a folder of ours: its rows have changed
        wait=True,
        say=lambda line: sys.stderr.write(line + "\n"),
    )
    if process_state().is_main_process:
        sys.stderr.write(closing_lines(folder, facts, made=made))
    args.raw_dataset_name, args.dataset_name, args.dataroot = args.dataset_name, str(folder), str(folder)
    args.dataset_revision = None


def dataset_options(args: argparse.Namespace) -> Any:
    """The ``DatasetOptions`` that the flags ask for; raises ``ValueError`` for a value out of range."""
    from deepfashion_training.deepfashion_dataset import DatasetOptions
    from deepfashion_training.garment_types import parse_cloth_types

    same = "train_split validation_split validation_fraction max_train_samples max_validation_samples".split()
    same += "balance_cloth_types resize_mode max_bad_rows".split()
    return DatasetOptions(
        cloth_types=parse_cloth_types(args.cloth_types),
        ledger_dir=str(Path(args.output_dir) / "logs"),
        revision=args.dataset_revision,
        **{name: getattr(args, name) for name in same},
    )


def run(args: argparse.Namespace, script: upstream.Script) -> None:
    """Train with ``script`` on our dataset, write the model card, say where all is, compare and publish if asked.

    Raises ``ValueError`` when comparing or publishing fails; what was trained is in the output directory all the same.
    """
    from deepfashion_training.cli import describe
    from deepfashion_training.data.sources import is_hub_id
    from deepfashion_training.deepfashion_dataset import DeepFashionDataset
    from deepfashion_training.embedded.wardrobe import draw_wardrobe
    from deepfashion_training.models.access import subfolder_of_transformer
    from deepfashion_training.models.publish import push
    from deepfashion_training.reports.model_card import write_model_card
    from deepfashion_training.upstream import script as upstream
    from training_run.output_dir import is_done

    if _draws_wardrobe(args):
        draw_wardrobe(Path(args.dataset_name), process_state())
    elif needs_preparation(args):
        make_pairs(args)
    elif is_hub_id(args.dataset_name):  # others have been looked at by check
        check_rows(args)
    if isinstance(script, upstream.DrivenScript) and process_state().is_main_process:
        sys.stderr.write("".join(f"{line}\n" for line in script.notes()))
    dataset = functools.partial(DeepFashionDataset, options=dataset_options(args))
    # Other scripts need not have OWN_ARGUMENTS.
    if _is_ours(script) and is_done(args, getattr(script, "OWN_ARGUMENTS")):  # noqa: B009
        if process_state().is_main_process:
            sys.stderr.write(
                f"{args.output_dir}: all {args.max_train_steps} steps are taken; doing what comes after them\n"
            )
    else:
        begins = getattr(args, "overwrite_output_dir", False) or getattr(args, "resume_from_checkpoint", None)
        if begins and not _is_ours(script) and process_state().is_main_process:
            forget_comparison(Path(args.output_dir))  # our own trainer puts it where the weights go
        upstream.train(script, args, dataset)
    if not process_state().is_main_process:
        return
    if not (Path(args.output_dir) / "run.json").exists():  # a script of its own ways
        sys.stdout.write(f"\n{args.upstream} has ended; what it has written is in {args.output_dir}\n")
        if args.publish:
            raise ValueError("--push_to_hub: there is no run.json to write a model card from, so nothing was uploaded")
        if args.evaluate_samples:
            raise ValueError("--evaluate_samples: there is no run.json that says what was trained: compare by hand")
        return
    revision, cache_dir = getattr(args, "inpaint_revision", None), getattr(args, "cache_dir", None)
    subfolder = subfolder_of_transformer(args.pretrained_inpaint_model_name_or_path, revision, cache_dir)
    card = write_model_card(Path(args.output_dir), subfolder)
    sys.stdout.write(closing_lines(args, card))
    failed = None
    if args.evaluate_samples:
        try:
            compare_with_base(args, card.parent)
        except Exception as error:
            failed = error  # what was trained is published all the same
    if args.publish:
        sys.stdout.write(f"published {push(card.parent, args.publish_as, args.publish_private)}\n")
    if failed is not None:
        raise ValueError(
            f"the LoRA is in {card.parent}, but comparing it with its base failed: {describe(failed)}; try again with "
            f"python -m deepfashion_training.evaluate --data {shlex.quote(args.dataset_name)} "
            f"--lora {shlex.quote(str(card.parent))} --output_dir {shlex.quote(str(card.parent / 'evaluation'))}"
        ) from failed


def _is_ours(script: upstream.Script) -> bool:
    from deepfashion_training.upstream import script as upstream

    return Path(str(script.__file__)) == upstream.DEFAULT_SCRIPT


def forget_comparison(folder: Path) -> None:
    """Remove what an earlier run's LoRA was compared by: another one takes its place."""
    import shutil

    shutil.rmtree(folder / "evaluation", ignore_errors=True)
    (folder / "evaluation.json").unlink(missing_ok=True)


def compare_with_base(args: argparse.Namespace, folder: Path) -> None:
    """Say by garment type what the LoRA in ``folder`` changed, on held-out people, and after a quick test of the real
    model what the full run will take. Raises ``ValueError``, one line, when that fails.
    """
    import json

    import torch

    from deepfashion_training.data.schema import check_documented
    from deepfashion_training.data.sources import open_splits
    from deepfashion_training.evaluate import evaluate_trained
    from deepfashion_training.prepare import usable_cores
    from deepfashion_training.reports.forecast import forecast
    from training_run.speed import free_memory

    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    trained = run["arguments"]  # a script of its own ways names some of them otherwise
    free_memory()
    columns = lambda found: check_documented(found, args.dataset_name)  # noqa: E731
    splits = open_splits(args.dataset_name, check_columns=columns, revision=args.dataset_revision)
    held_out = [name for name in ("test", args.validation_split) if name in splits and name != args.train_split]
    if run["weights"] != LORA:
        sys.stdout.write("compared  nothing: no LoRA was trained\n")
    elif not held_out:
        sys.stdout.write(f"compared  nothing: {args.dataset_name} has neither a split test nor a validation split\n")
    else:
        sys.stdout.flush()
        if process_state().device.type == "cpu":  # the processes that trained beside this one have left it their cores
            torch.set_num_threads(min(torch.get_num_threads() * launched_processes(), usable_cores()))
        evaluate_trained(
            folder,
            args.dataset_name,
            held_out[0],
            folder / "evaluation",
            process_state().device,
            data_revision=args.dataset_revision,
            limit=args.evaluate_samples,
            cloth_types=args.cloth_types,
            quantize_base=trained["quantize_base"],
            # The small model's pictures are judged by what is at hand: nothing is downloaded.
            **({"batch_size": 8, "parser": "none", "dino_model": "none", "no-extras": True} if args.embedded else {}),
        )
    if Path(args.preset).stem == "quick_test" and not args.embedded and run["device"] != "cpu":
        sys.stdout.write(forecast(run, load_preset("full"), "full"))


def check_upstream(path: str) -> int:
    """Print how the script at ``path`` can be driven; returns the exit code, 1 when it cannot."""
    from deepfashion_training.cli import quiet_libraries
    from deepfashion_training.upstream import script as upstream

    quiet_libraries()
    text, problem = upstream.inspect_script(path)
    sys.stdout.write(text)
    if problem:
        sys.stderr.write(f"train_deepfashion_lora: {problem}\n")
    return 1 if problem else 0


def _draws_wardrobe(args: argparse.Namespace) -> bool:
    return args.embedded and args.dataset_name == str(Path(args.output_dir) / "wardrobe")


def closing_lines(args: argparse.Namespace, card: Path) -> str:
    """Where LoRA, pictures and report of a run are, and what to run next."""
    here = Path.cwd()

    def shown(path: Path) -> str:
        return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)

    folder = card.parent.resolve()
    launcher = shown(Path(__file__).resolve().with_suffix(".sh"))
    pictures = sorted((folder / "validation").glob("step-*.png"), key=lambda path: path.stat().st_mtime)
    names = (LORA, "transformer")
    weights = next(folder / name for name in names if (folder / name).exists())
    source = getattr(args, "raw_dataset_name", args.dataset_name)
    following = "--quick-test   (on a GPU: the real model)" if args.embedded else "--h100   (the full run)"
    if source != HUB_DATASET and not _draws_wardrobe(args):
        following = f"--dataset_name {shlex.quote(source)} {following}"
    if args.upstream:
        following = f"--upstream {shlex.quote(args.upstream)} {following}"
    lines = [
        f"{'LoRA' if weights.suffix else 'weights':<9} {shown(weights)}",
        f"pictures  {shown(pictures[-1]) if pictures else f'none: --validation_steps {args.validation_steps}'}",
        f"report    {shown(folder / 'README.md')}, settings in {shown(folder / 'run.json')}",
        f"curves    tensorboard --logdir {shown(folder / 'logs')}",
        f"next      bash {launcher} {following}",
    ]
    return "\n".join(["", *lines, ""])


def main(argv: list[str] | None = None) -> int:
    """Run the command with ``argv``; returns the exit code."""
    from deepfashion_training.cli import close_progress_bars, describe, quiet_libraries

    argv = sys.argv[1:] if argv is None else argv
    # Read when torch is loaded: threads that spin while they wait make a CPU step 15 times slower on a shared core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        if {"-h", "--help"} & set(argv):
            build_parser().print_help()
            return 0
        logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
        for name in ("deepfashion_training", "train_flux_inpaint", "training_run"):
            logging.getLogger(name).setLevel(logging.INFO)
        quiet_libraries()
        if (path := build_parser().parse_known_args(argv)[0].upstream_check) is not None:
            return check_upstream(path)
        args, script = resolve(argv)
        if args.plan:
            plan(args, script)
            return 0
        check(args, script)
        if not args.check:
            run(args, script)
        return 0
    except WrongUseError as error:
        sys.stderr.write(f"train_deepfashion_lora: {describe(ValueError(error))} (see --help)\n")
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        close_progress_bars()
        if os.environ.get("RANK", "0") != "0":  # what fails everywhere is said once: its end is this process's, too
            time.sleep(OTHERS_WAIT)
        if "--debug" in argv:
            traceback.print_exc()
        sys.stderr.write(f"train_deepfashion_lora: {describe(error)}\n")
        return 1


def main_under_launcher() -> int:
    """``main``, with what the launcher has to know: which processes to hand a signal to, and how each of them ends."""
    from training_run.stopping import end_with_launcher

    end_with_launcher()
    folder = os.environ.get("DEEPFASHION_LAUNCH")
    if folder is None or "--check" in sys.argv:
        return main()
    own = Path(folder) / f"pid-{os.getpid()}"
    own.touch()
    code: Any = 1
    try:
        code = main()
    except SystemExit as ending:  # argparse's, or the trainer's after a signal
        code = ending.code
        raise
    finally:
        with contextlib.suppress(OSError):  # a full disk: the launcher then has accelerate's status
            own.unlink()
            (Path(folder) / f"status-{os.environ.get('RANK', '0')}").write_text(str(code), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main_under_launcher())
