"""Train a try-on LoRA on garment/person pairs: load the training script, swap its dataset, call its main.

    accelerate launch deepfashion_training/train_deepfashion_lora.py --preset quick_test --embedded

Where its arguments come from, says ``run_arguments.py``. Exit codes: 0 done, 1 failed, 2 wrong use, 143 stopped by
SIGTERM or SIGHUP and 130 by Ctrl-C, after saving a checkpoint.
"""

# Nothing heavy is imported up here, so that a command line is answered at once.
from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import os
import re
import shlex
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

if __name__ == "__main__":  # run by path: the package is found from here, and its folders do not become top-level names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from deepfashion_training.cli import describe, run_command
from deepfashion_training.garment_types import parse_cloth_types
from deepfashion_training.run_arguments import (
    HUB_DATASET,
    REPOSITORY,
    SHARES,
    WHICH_ROWS,
    each_source,
    from_anywhere,
    names_of,
    parse,
    smaller_steps,
)
from training_run.processes import launched_processes, process_state

#: Seconds that another process than the first waits before it says what went wrong.
OTHERS_WAIT = 15.0


# ---- before training


def check(args: argparse.Namespace, script: Any) -> None:
    """Raise ``ValueError`` for anything that would stop the run later and can be known before models are loaded.

    All of it is said together. Where there is nothing, ``--check`` prints a line for every check.
    """
    from deepfashion_training.preflight import Preflight
    from training_run.hub import is_hub_id, local_path

    pairs = []
    for one in each_source(args):
        raw = one.dataset_name == HUB_DATASET  # of another dataset on the Hub it is known when it is loaded
        if not is_hub_id(one.dataset_name) and not draws_wardrobe(one) and local_path(one.dataset_name).is_dir():
            with contextlib.suppress(ValueError):  # which the check of the data says
                raw = needs_preparation(one)
        pairs += [pairs_dir(one, preparation_settings(one))] if raw else []
    lines = Preflight(args, script, lambda: "; ".join(map(check_data, each_source(args))), pairs).run()
    if args.check:
        sys.stdout.write("".join(f"{line}\n" for line in lines))


def check_data(args: argparse.Namespace) -> str:
    """What is known of the rows before a run; raises ``ValueError`` for rows that cannot be trained on."""
    from training_run.hub import is_hub_id

    if draws_wardrobe(args):
        return "drawn for this run"
    if is_hub_id(args.dataset_name):
        return f"{args.dataset_name}, whose rows are read when the run starts"
    if not needs_preparation(args):
        check_rows(args)
        return f"{args.dataset_name}: garment/person pairs"
    from deepfashion_training.preparation.make_pairs import check_source

    settings = preparation_settings(args)
    folder = pairs_dir(args, settings)
    check_source(args.dataset_name, folder, settings, revision=args.dataset_revision)
    return f"{args.dataset_name}: raw rows, of which pairs are made in {folder}"


def check_rows(args: argparse.Namespace) -> None:
    """Raise ``ValueError`` for documented rows that cannot be trained on, as far as a look at some of them tells."""
    from deepfashion_training.deepfashion_dataset import DeepFashionDataset

    DeepFashionDataset(args.dataset_name, "train", options=dataset_options(args)).check_masks()


def dataset_options(args: argparse.Namespace) -> Any:
    """The ``DatasetOptions`` that the flags ask for; raises ``ValueError`` for a value out of range."""
    from deepfashion_training.deepfashion_dataset import DatasetOptions

    same = "train_split validation_split validation_fraction max_train_samples max_validation_samples".split()
    same += ["balance_cloth_types", *SHARES, "resize_mode", "max_bad_rows"]
    return DatasetOptions(
        cloth_types=parse_cloth_types(args.cloth_types),
        ledger_dir=str(Path(args.output_dir) / "logs"),
        revision=args.dataset_revision,
        **{name: getattr(args, name) for name in same},
    )


def draws_wardrobe(args: argparse.Namespace) -> bool:
    """Whether the rows are drawn for this run, into its output directory."""
    return args.embedded and args.dataset_name == str(Path(args.output_dir) / "wardrobe")


def needs_preparation(args: argparse.Namespace) -> bool:
    """Whether the rows are raw: not documented, but such as ``prepare`` makes pairs from."""
    from deepfashion_training.data.schema import looks_raw
    from deepfashion_training.data.sources import source_columns

    return looks_raw(source_columns(args.dataset_name, revision=args.dataset_revision))


def preparation_settings(args: argparse.Namespace) -> Any:
    """The ``Settings`` by which raw rows become pairs for a training run: those of ``prepare`` without flags."""
    from deepfashion_training.preparation.pair_plan import Settings
    from deepfashion_training.prepare import chosen_parser

    parser = chosen_parser("none" if args.embedded else None)
    return Settings(parser=parser, mine_lower_body=parser is not None, limit=args.prepare_limit)


def pairs_dir(args: argparse.Namespace, settings: Any) -> Path:
    """``--pairs_dir``, or a folder in ``outputs/pairs`` named after the dataset and the settings."""
    from training_run.hub import local_path

    if args.pairs_dir:
        return Path(args.pairs_dir)
    local = local_path(args.dataset_name)
    source = str(local.resolve()) if local.is_dir() else args.dataset_name
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", local.resolve().name if local.is_dir() else args.dataset_name)
    return REPOSITORY / "outputs" / "pairs" / f"{name}-{settings.key(source, args.dataset_revision or '')[:8]}"


# ---- the run


def run(args: argparse.Namespace, script: Any) -> None:
    """Prepare or draw the data, train, write the model card, compare, say where all is, and publish if asked.

    Raises ``ValueError`` when comparing or publishing fails; what was trained is in the output directory all the same.
    """
    from deepfashion_training.embedded.wardrobe import draw_wardrobe
    from training_run.hub import is_hub_id

    sources = each_source(args)
    for one in sources:
        if draws_wardrobe(one):
            draw_wardrobe(Path(one.dataset_name), process_state())
        elif needs_preparation(one):
            make_pairs(one)
        elif is_hub_id(one.dataset_name):
            check_rows(one)
    if len(sources) > 1:
        if any(hasattr(one, "raw_dataset_name") for one in sources):
            args.raw_dataset_name = args.dataset_name
        args.dataset_name = [one.dataset_name for one in sources]
        args.dataroot = args.dataset_name[0]
    split = held_out_split(sources[0]) if process_state().is_main_process else None
    train(args, script)
    if process_state().is_main_process:
        finish(args, split)


def make_pairs(args: argparse.Namespace) -> None:
    """Turn a raw dataset into pairs, or find those of an earlier run, and let ``args.dataset_name`` name them.

    Every rank comes here: the first prepares, the others wait for it.
    """
    from deepfashion_training.preparation import account
    from deepfashion_training.preparation.make_pairs import prepare
    from training_run.cores import usable_cores

    settings = preparation_settings(args)
    folder = pairs_dir(args, settings)
    say = functools.partial(process_state().print, file=sys.stderr)
    say(f"{args.dataset_name} has raw rows: making pairs in {folder}, or using those that are there")
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
    say(account.closing_lines(folder, facts, made=made).removesuffix("\n"))
    args.raw_dataset_name, args.dataset_name, args.dataroot = args.dataset_name, str(folder), str(folder)
    args.dataset_revision = None


def train(args: argparse.Namespace, script: Any) -> None:
    """Train with ``script`` on our dataset, unless all steps were taken before."""
    from deepfashion_training.deepfashion_dataset import DeepFashionDataset, mixed_dataset
    from deepfashion_training.upstream import script as upstream
    from training_run.output_dir import ROW_LEDGERS, continues, is_done

    say = functools.partial(process_state().print, file=sys.stderr)
    if not isinstance(script, ModuleType):
        say("\n".join(script.notes))
    elif is_done(args, script.OWN_ARGUMENTS | WHICH_ROWS):
        say(f"{args.output_dir}: all {args.max_train_steps} steps are taken; going on after training")
        return
    if getattr(args, "overwrite_output_dir", False) and not continues(args) and process_state().is_main_process:
        for ledger in Path(args.output_dir).glob(ROW_LEDGERS):  # of the run that goes: its rows are not this run's
            ledger.unlink()
    names, options = names_of(args), dataset_options(args)
    dataset: Any = functools.partial(DeepFashionDataset, options=options)
    if len(names) > 1:
        dataset = functools.partial(mixed_dataset, sources=names, options=options, weights=args.dataset_weights)
    upstream.train(script, args, dataset)


def finish(args: argparse.Namespace, split: str | None) -> None:
    """Write the model card, compare with the base, publish if asked, and say where all is. On rank 0 alone.

    ``split`` is that of ``held_out_split``.
    """
    from deepfashion_training.evaluate import say_picture
    from deepfashion_training.models.publish import push
    from deepfashion_training.reports.model_card import write_model_card

    folder = Path(args.output_dir).absolute()
    if not (folder / "run.json").exists():  # a script that keeps its own records
        sys.stdout.write(f"\n{args.upstream} has ended; what it has written is in {folder}\n")
        if args.publish or args.evaluate_samples:
            raise ValueError("--push_to_hub and --evaluate_samples need a run.json, and the script has written none")
        return
    write_model_card(folder)
    failed = picture = None
    if args.evaluate_samples:
        try:
            picture = compare_with_base(args, folder, split)
        except Exception as error:
            failed = error  # what was trained is published all the same
    sys.stdout.write(closing_lines(args, folder, split))
    if args.publish:
        sys.stdout.write(f"published {push(folder, args.publish_as, args.publish_private)}\n")
    say_picture(picture)
    if failed is not None:
        raise ValueError(
            f"the LoRA is in {folder}, but comparing it with its base failed: {describe(failed)}; try again with: "
            f"{evaluate_command(args, folder, split)}"
        ) from failed


def compare_with_base(args: argparse.Namespace, folder: Path, split: str | None) -> Path | None:
    """Say by garment type what the LoRA in ``folder`` changed, on the held-out people of ``split``.

    Returns where the picture of it is; None where nothing can be compared. Raises ``ValueError``, one line, when that
    fails.
    """
    import torch

    from deepfashion_training.evaluate import evaluate_trained
    from training_run.cores import usable_cores
    from training_run.output_dir import LORA_FILE
    from training_run.speed import free_memory

    if not (folder / LORA_FILE).exists():
        sys.stdout.write("compared  nothing: no LoRA was trained\n")
        return None
    free_memory()
    if split is None:
        name = names_of(args)[0]
        sys.stdout.write(f"compared  nothing: {name} has neither a split test nor a validation split\n")
        return None
    sys.stdout.flush()
    if process_state().device.type == "cpu":  # the processes that trained beside this one have left it their cores
        torch.set_num_threads(min(torch.get_num_threads() * launched_processes(), usable_cores()))
    name = names_of(args)[0]
    if len(names_of(args)) > 1:
        sys.stdout.write(f"comparing on {name}, the first --dataset_name\n")
    return evaluate_trained(
        process_state().device,
        lora=[str(folder)],
        dataset_name=name,
        dataset_revision=args.dataset_revision,
        split=split,
        limit=args.evaluate_samples,
        cloth_types=args.cloth_types,
        quantize_base=args.quantize_base,
        output_dir=folder / "evaluation",
        # The small model's pictures are judged by what is at hand: nothing is downloaded.
        **({"batch_size": 8, "parser": "none", "dino_model": "none", "extras": False} if args.embedded else {}),
    )


def held_out_split(args: argparse.Namespace) -> str | None:
    """The split to compare on: test, else that of validation; None where the data has neither."""
    from deepfashion_training.data.schema import check_documented
    from deepfashion_training.data.sources import open_splits

    splits = open_splits(args.dataset_name, check_columns=check_documented, revision=args.dataset_revision)
    found = [name for name in ("test", args.validation_split) if name in splits and name != args.train_split]
    return found[0] if found else None


def evaluate_command(args: argparse.Namespace, folder: Path, split: str | None) -> str:
    """The command that compares the LoRA in ``folder`` with its base, to be typed in any folder."""
    words = [sys.executable, "-m", "deepfashion_training.evaluate"]
    words += ["--embedded"] if args.embedded else []
    words += ["--dataset_name", from_anywhere(names_of(args)[0]), "--split", split or args.train_split]
    words += ["--dataset_revision", args.dataset_revision] if args.dataset_revision else []
    words += ["--cloth_types", args.cloth_types]
    words += ["--lora", str(folder), "--output_dir", str(folder / "evaluation")]
    words += ["--limit", str(args.evaluate_samples)] if args.evaluate_samples else []
    return f"cd {shlex.quote(str(REPOSITORY))} && {shlex.join(words)}"


def closing_lines(args: argparse.Namespace, folder: Path, split: str | None) -> str:
    """Where LoRA, pictures and report of a run are, and the command to type next."""
    from training_run.output_dir import LORA_FILE
    from training_run.sheets import sheets_in

    pictures = sheets_in(folder)
    is_lora = (folder / LORA_FILE).exists()
    here = shlex.quote(str(folder))
    lines = [
        f"LoRA      {here}/{LORA_FILE}" if is_lora else f"weights   {here}/transformer",
        f"pictures  {shlex.quote(str(pictures[-1])) if pictures else 'none: --validation_steps 0'}",
        f"report    {here}/README.md, settings in {here}/run.json",
        f"curves    tensorboard --logdir {here}/logs",
    ]
    if Path(args.preset).stem == "quick_test":
        lines.append(f"next      {larger_run(args)}")
    elif is_lora and args.evaluate_samples:
        demo = shlex.join([sys.executable, "-m", "deepfashion_training.demo", "--lora", str(folder)])
        lines.append(f"next      cd {shlex.quote(str(REPOSITORY))} && {demo}  # try garments on")
    elif is_lora:
        lines.append(f"next      {evaluate_command(args, folder, split)}  # what the LoRA changed")
    return "\n".join(["", *lines, ""])


def larger_run(args: argparse.Namespace) -> str:
    """The command of the larger run that a quick test was the test of, to be typed in any folder."""
    words = ["bash", str(Path(__file__).resolve().with_suffix(".sh"))]
    if args.upstream:
        words += ["--upstream", str(Path(args.upstream).absolute())]
        words += ["--upstream_dataset", args.upstream_dataset] if args.upstream_dataset else []
    named = argparse.Namespace(dataset_name=getattr(args, "raw_dataset_name", args.dataset_name))
    if named.dataset_name != HUB_DATASET and not draws_wardrobe(args):
        words += [word for name in names_of(named) for word in ("--dataset_name", from_anywhere(name))]
    if args.dataset_weights:
        words += ["--dataset_weights", ",".join(f"{weight:g}" for weight in args.dataset_weights)]
    if getattr(args, "lora", None) and not args.embedded:
        words += ["--lora", args.lora]
    preset = "--quick-test  # on a GPU: the real model" if args.embedded else "--h100  # the full run"
    return f"{shlex.join(words)} {preset}"


# ---- the command


def work(argv: list[str]) -> int:
    """The whole command; returns the exit code."""
    first = os.environ.get("RANK", "0") == "0"
    try:
        args, script = parse(argv)
        if args.upstream_check is not None:
            from deepfashion_training.upstream.script import open_script

            sys.stdout.write("\n".join(open_script(args.upstream_check, args.upstream_dataset).notes) + "\n")
            return 0
        steps = smaller_steps(argv) if isinstance(script, ModuleType) else []
        if steps:
            from deepfashion_training.plan import say_what_fits

            say_what_fits(args, script, process_state(), steps)
        if args.plan:
            from deepfashion_training.plan import plan

            plan(args, script, process_state(), steps)
            return 0
        from training_run.lock import only_writer

        writes = first and not args.check
        with only_writer(Path(args.output_dir)) if writes else contextlib.nullcontext():
            if first:
                check(args, script)
            process_state().wait_for_everyone()  # where the first fails, whoever started the others ends them
            if not args.check:
                run(args, script)
        return 0
    except KeyboardInterrupt:
        if not first:
            raise SystemExit(130) from None
        raise
    except Exception:
        if not first:  # what fails everywhere is said once: its end is this process's, too
            time.sleep(OTHERS_WAIT)
        raise


def main(argv: list[str] | None = None) -> int:
    """Run the command with ``argv``; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for name in ("deepfashion_training", "train_flux_inpaint", "training_run"):
        logging.getLogger(name).setLevel(logging.INFO)
    stopped = "the same command with --resume_from_checkpoint latest goes on from the last checkpoint"
    return run_command("train_deepfashion_lora", argv, work, stopped)


if __name__ == "__main__":
    sys.exit(main())
