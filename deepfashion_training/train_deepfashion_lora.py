"""Train a try-on LoRA on garment/person pairs: load the training script, swap its dataset, call its main.

    accelerate launch deepfashion_training/train_deepfashion_lora.py --preset quick_test --embedded

A value is taken from the command line, else from the preset, else from the trainer's own default. Exit codes: 0 done,
1 failed, 2 wrong use, 143 stopped by SIGTERM or SIGHUP and 130 by Ctrl-C, after saving a checkpoint.
"""

# Nothing heavy is imported up here, so that a command line is answered at once.
from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import logging
import math
import os
import re
import shlex
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]

if __name__ == "__main__":  # run by path: the package is found from here, and its folders do not become top-level names
    sys.path[0] = str(REPOSITORY)

from deepfashion_training.cli import (  # noqa: E402
    FlagParser,
    RepeatedFlag,
    describe,
    load_preset,
    number,
    quiet_libraries,
    run_command,
)
from deepfashion_training.garment_types import TYPE_NAMES, parse_cloth_types, type_list  # noqa: E402
from training_run.cores import has_amx  # noqa: E402
from training_run.flags import (  # noqa: E402
    OneLineParser,
    add_trainer_flags,
    refuse_contradictions,
    refuse_other_trainers,
)

HUB_DATASET = "SaffalPoosh/deepFashion-with-masks"
#: Flags that choose a preset; without one it is ``full``.
PRESET_FLAGS = {"--quick-test": "quick_test", "--h100": "h100", "--low-vram": "low_vram"}
MODELS = ("pretrained_model_name_or_path", "pretrained_inpaint_model_name_or_path")
#: Seconds that another process than the first waits before it says what went wrong.
OTHERS_WAIT = 15.0
#: Groups of flags that are not the trainer's; those of the first three belong on the command line, not in a preset.
_TYPED_ONLY = ("options", "run", "hub")
_OWN = (*_TYPED_ONLY, "data", "afterwards")
#: Shares of garment types in what is drawn, at the first and at the last step.
_SHARES = ("cloth_type_shares", "final_cloth_type_shares")
#: Flags of ours that decide what a run is trained on: with others it is another run.
WHICH_ROWS = {"balance_cloth_types", *_SHARES, "cloth_types", "dataset_weights", "max_train_samples", "resize_mode"}
#: Flags of the trainer in whose place this command has others.
_TRAINERS_ALONE = {"dataroot", "train_data_list", "validation_data_list"}


# fmt: off
def build_parser() -> FlagParser:
    """The flags of a training run: this command's own and the trainer's."""
    parser = FlagParser("train_deepfashion_lora", "Train a try-on LoRA for tops, trousers, skirts and dresses.")
    group = parser.add_argument_group("run")
    add = group.add_mutually_exclusive_group().add_argument
    add("--preset", default="full", metavar="NAME|FILE", help="quick_test, full, h100, low_vram, or a YAML file")
    for flag, name in PRESET_FLAGS.items():
        add(flag, action="store_const", const=name, dest="preset", help=f"short for --preset {name}")
    add = group.add_argument
    add("--embedded", action="store_true", help="small model and drawn wardrobe: no network, no GPU, no account")
    add("--upstream", metavar="PATH", help="training script to drive (default: the project's train_flux_inpaint.py)")
    add("--upstream_check", metavar="PATH", help="say how a training script can be driven, and train nothing")
    add("--upstream_dataset", metavar="NAME", help="its dataset's class, where it is not VitonHDTestDataset")
    add("--gpu_hour_price", type=number(float, 0), help="with --plan: the price of a GPU hour")
    add = group.add_mutually_exclusive_group().add_argument
    add("--check", action="store_true", help="check arguments, models, disk and data, and train nothing")
    add("--plan", action="store_true",
        help="say what the run will take in time, memory, disk and money, from measured steps where there is a GPU, "
        "and train nothing")
    add = parser.add_argument_group("data").add_argument
    add("--dataset_name", metavar="SRC", action=RepeatedFlag,
        help="Hub id, or folder: parquet, save_to_disk, VITON-HD, DressCode, or pictures with metadata.jsonl or .csv; "
        f"several, where it is repeated, are mixed (default: {HUB_DATASET})")
    add("--dataset_weights", type=weights, metavar="LIST",
        help="share of the samples from each --dataset_name, as in 2,1 (default: by rows)")
    add("--dataset_revision", help="branch, tag or commit of a Hub dataset")
    add("--pairs_dir", metavar="DIR", help="where pairs made from a raw dataset are kept (default: outputs/pairs/NAME)")
    add("--prepare_limit", type=number(int, 1), help="make pairs from this many raw rows, of all types (default: all)")
    add("--train_split", default="train", help="split to train on")
    add("--validation_split", default="validation", help="split for validation; made from the train split if missing")
    add("--validation_fraction", type=number(float, 0, 0.99, above=True), default=0.05,
        help="share of people held out to make it")
    add("--max_train_samples", type=number(int, 1), help="train on this many rows, of all garment types (default: all)")
    add("--max_validation_samples", type=number(int, 1), help="validate on this many rows, of all garment types")
    add("--cloth_types", type=type_list, default="upper,lower,full", metavar="LIST", help="garment types to use")
    add("--balance_cloth_types", action=argparse.BooleanOptionalAction, default=False,
        help="draw every garment type equally often")
    add("--cloth_type_shares", type=type_shares, metavar="LIST",
        help="draw upper, lower and full body in these shares, as in 2,1,1; 0: never")
    add("--final_cloth_type_shares", type=type_shares, metavar="LIST",
        help="shares at the last step, to which they move from those before or from equal ones")
    add("--resize_mode", choices=["pad", "stretch"], default="pad",
        help="pad keeps the aspect, stretch fills the frame")
    add("--max_bad_rows", type=number(float, 0, 1), default=0.01,
        help="share of unreadable rows above which the run stops")
    add = parser.add_argument_group("afterwards").add_argument
    add("--evaluate_samples", type=number(int, 0), default=0,
        help="in the end compare LoRA and base on this many held-out rows, as many of each garment type; 0: do not")
    # Their names in the run are not their flags': a script with flags of these names would upload all it has written.
    add = parser.add_argument_group("hub").add_argument
    add("--push_to_hub", dest="publish", action="store_true", help="upload LoRA, model card and pictures at the end")
    add("--hub_model_id", dest="publish_as", metavar="OWNER/NAME", help="where to (default: YOU/NAME of --output_dir)")
    add("--hub_private", dest="publish_private", action="store_true", help="make the repository a private one")
    add_trainer_flags(parser)
    for name in _TRAINERS_ALONE:
        parser._option_string_actions[f"--{name}"].help = argparse.SUPPRESS
    parser.set_defaults(output_dir=None)  # it follows from the preset
    return parser
# fmt: on


# ---- arguments


def weights(text: str) -> list[float]:
    """Numbers above 0 between commas. For argparse."""
    try:
        return [number(float, 0, above=True)(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 2,1") from None


def type_shares(text: str) -> tuple[float, ...]:
    """Three numbers from 0 between commas, not all 0. For argparse."""
    try:
        found = tuple(number(float, 0)(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) != len(TYPE_NAMES) or not any(found):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of shares of upper, lower and full body, such as 2,1,1")
    return found


def parse(argv: list[str], parser: FlagParser | None = None, *, load: bool = True) -> tuple[argparse.Namespace, Any]:
    """Arguments of the run, and the script that they are for.

    Raises ``WrongUseError`` for what cannot be understood, naming the nearest flag for one that is unknown, and
    ``ValueError`` for a script that cannot be driven. Without ``load`` the script is None, and one of ``--upstream`` is
    loaded only to know its flags.
    """
    parser = parser or build_parser()
    typed, rest = parser.given(argv)
    if unread := typed.keys() & _TRAINERS_ALONE:
        parser.error(f"--{min(unread)} does nothing here: use --dataset_name")
    if not typed.get("upstream"):  # a script of others may train so; it is refused a LoRA then
        refuse_other_trainers()  # here, as accelerate's state would load DeepSpeed
    chosen = load_preset(typed.get("preset", "full"))
    preset = chosen.values(parser, typed_only(parser))
    follows: dict[str, Any] = {}
    ours = not typed.get("upstream") or Path(typed["upstream"]).resolve() == REPOSITORY / "train_flux_inpaint.py"
    if typed.get("embedded"):
        from deepfashion_training.embedded import TINY_FLUX_FILL

        follows = dict.fromkeys(MODELS, str(TINY_FLUX_FILL))
        embedded = load_preset("embedded")
        of_project = chosen.path.parent == embedded.path.parent
        small = embedded.values(parser) | _not_for(typed if of_project else preset | typed, ours)
        preset = preset | small if of_project else small | preset  # under a file of the user's own
        # A step has as many pairs, or hardly more, however many processes share it.
        preset["train_batch_size"] = math.ceil(preset["train_batch_size"] / launched_processes())
    if "num_train_epochs" in typed:
        preset["max_train_steps"] = None  # the trainer lets steps win over epochs, the user wins over the preset
    if "balance_cloth_types" in typed:
        preset["cloth_type_shares"] = None
    preset = {name: value for name, value in preset.items() if value is not None}
    if ours:
        follows |= _of_start(preset | typed, typed)
    args = argparse.Namespace(**parser.defaults() | preset | follows | typed)
    if typed.get("balance_cloth_types") and args.cloth_type_shares:
        parser.error("--balance_cloth_types is --cloth_type_shares with equal numbers: leave one of the two out")
    args.balance_cloth_types = args.balance_cloth_types and not args.cloth_type_shares
    args.output_dir = str(_output_dir(args))
    args.dataset_name = args.dataset_name or (str(Path(args.output_dir) / "wardrobe") if args.embedded else HUB_DATASET)
    args.dataroot = names_of(args)[0]
    script = None
    if args.upstream_dataset and ours and not args.upstream_check:
        parser.error("--upstream_dataset does nothing without a script of others in --upstream or --upstream_check")
    if ours:
        if rest:
            parser.refuse(rest[0])
        refuse_contradictions(parser, args, typed)
        if load:
            quiet_libraries()
            import train_flux_inpaint

            script = train_flux_inpaint
    elif args.plan:
        parser.error("--plan measures the project's own trainer: leave out --upstream")
    elif load or rest or not Path(args.upstream).is_file():
        follows |= {"output_dir": args.output_dir, "dataroot": args.dataroot}
        args, script = _for_other_script(parser, args, (preset, follows, typed), rest)
    for name in (*MODELS, "lora"):  # seen from elsewhere, a folder named from here would look like a repository
        if getattr(args, name, None):
            setattr(args, name, from_anywhere(getattr(args, name)))
    _refuse_together(parser, args)
    return args, script


def _not_for(given: dict[str, Any], ours: bool) -> dict[str, Any]:
    """What the small model's preset has otherwise where something is missing that it is made for.

    It is made for our trainer, a CPU with AMX, a LoRA and all garment types; the user has ``given`` these values.
    """
    changes: dict[str, Any] = {} if ours and has_amx() else {"mixed_precision": "no"}
    if not ours or not {"cloth_types", "balance_cloth_types"}.isdisjoint(given):
        changes["cloth_type_shares"] = None
    if not ours or given.get("train_base_model") or "upper" not in given.get("cloth_types", "upper"):
        changes["prior_loss_weight"] = None
    return changes


def smaller_steps(argv: list[str]) -> list[dict[str, Any]]:
    """The steps by which the preset of a command line makes a run smaller, without those that a typed flag is in.

    None for the small model over a preset of the project, which fits anywhere.
    """
    parser = build_parser()
    typed = parser.given(argv)[0]
    preset = load_preset(typed.get("preset", "full"))
    if typed.get("embedded") and preset.path.parent == load_preset("embedded").path.parent:
        return []
    steps = [preset.values(parser, typed_only(parser), step) for step in preset.smaller]
    return [step for step in steps if not step.keys() & typed.keys()]


def names_of(args: argparse.Namespace) -> list[str]:
    """The datasets of a run."""
    return args.dataset_name if isinstance(args.dataset_name, list) else [args.dataset_name]


def each_source(args: argparse.Namespace) -> list[argparse.Namespace]:
    """The run's arguments as they are for each of its datasets; for one dataset they themselves."""
    names = names_of(args)
    if len(names) == 1:
        return [args]
    return [
        argparse.Namespace(
            **vars(args)
            | {"dataset_name": name, "pairs_dir": args.pairs_dir and str(Path(args.pairs_dir, str(place)))}
            | dict.fromkeys(_SHARES)  # which are those of all together
        )
        for place, name in enumerate(names, start=1)
    ]


def from_anywhere(name: str) -> str:
    """A folder or file by its whole path; a Hub id as it is."""
    return str(Path(name).absolute()) if Path(name).exists() else name


def _of_start(values: dict[str, Any], typed: dict[str, Any]) -> dict[str, Any]:
    """What follows from the LoRA that ``values`` start from; nothing where they start from none."""
    if not values.get("lora") or values.get("train_base_model"):
        return {}
    quiet_libraries()
    from training_run.start_lora import settings_of_start

    return settings_of_start(values["lora"], typed)


def typed_only(parser: FlagParser) -> set[str]:
    """Names of the arguments that belong on the command line, not in a preset."""
    return _of_groups(parser, _TYPED_ONLY) | {"output_dir", *_TRAINERS_ALONE}


def _of_groups(parser: FlagParser, titles: tuple[str, ...]) -> set[str]:
    """Names of the arguments in the groups with these titles."""
    groups = [group for group in parser._action_groups if group.title in titles]
    return {action.dest for group in groups for action in group._group_actions}


def _for_other_script(
    parser: FlagParser, args: argparse.Namespace, layers: tuple[dict[str, Any], ...], rest: list[str]
) -> tuple[argparse.Namespace, Any]:
    """``args`` as the script of ``--upstream`` takes them, and that script, which may know the flags in ``rest``.

    ``layers`` are the values of the preset, those that follow from others, and those that were typed.
    """
    quiet_libraries()
    from deepfashion_training.upstream.arguments import parse_arguments, parser_of
    from deepfashion_training.upstream.script import open_script

    script, ours = open_script(args.upstream, args.upstream_dataset), OneLineParser(prog="train_flux_inpaint")
    add_trainer_flags(ours)
    parser.refuse_unknown(rest, (parser_of(script) or ours)._option_string_actions)
    own = _of_groups(parser, _OWN)
    preset, follows, typed = ({name: layer[name] for name in layer if name not in own} for layer in layers)
    if script.gets_lora:
        follows |= _of_start(preset | typed, typed)
    for name in _SHARES:
        if getattr(args, name) and not script.gets_lora:
            parser.error(f"--{name} does nothing here: this --upstream script chooses the order of rows itself")
    found = parse_arguments(script, ours, preset, follows, typed, rest)
    vars(found).update({name: value for name, value in vars(args).items() if name in own})
    return found, script


def _refuse_together(parser: FlagParser, args: argparse.Namespace) -> None:
    """Raise ``WrongUseError`` for flags of this command that cannot mean anything together."""
    whole_base = getattr(args, "train_base_model", False)
    for flag in _SHARES:
        for name, share in zip(TYPE_NAMES.values(), getattr(args, flag) or (0, 0, 0), strict=True):
            if share and name not in args.cloth_types.split(","):
                parser.error(f"--{flag} gives {name} a share, and --cloth_types leaves it out: give it 0")
    for wrong, message in (
        (args.gpu_hour_price is not None and not args.plan, "--gpu_hour_price does nothing without --plan"),
        (
            args.dataset_weights and len(args.dataset_weights) != len(names_of(args)),
            f"--dataset_weights has {len(args.dataset_weights or ())} numbers for {len(names_of(args))} --dataset_name",
        ),
        (args.dataset_weights and len(names_of(args)) == 1, "--dataset_weights weighs several --dataset_name"),
        (
            len({os.path.realpath(name) if Path(name).is_dir() else name for name in names_of(args)})
            < len(names_of(args)),
            "--dataset_name names one dataset twice: use --dataset_weights",
        ),
        (
            args.dataset_revision and len(names_of(args)) > 1,
            "--dataset_revision is that of one dataset, and --dataset_name names several",
        ),
        (
            args.final_cloth_type_shares and not (args.cloth_type_shares or args.balance_cloth_types),
            "--final_cloth_type_shares needs the shares at the first step: add --cloth_type_shares or "
            "--balance_cloth_types",
        ),
        (args.plan and args.publish, "--push_to_hub: --plan trains nothing to upload: leave out one of the two"),
        (
            getattr(args, "prior_loss_weight", 0)
            and not {str(kind) for kind in parse_cloth_types(args.cloth_types)} & {*args.prior_cloth_types.split(",")},
            f"--prior_loss_weight: --cloth_types {args.cloth_types} leaves no row of the --prior_cloth_types "
            "(default: 1, which is upper)",
        ),
        (args.plan and whole_base, "--plan counts the work of a LoRA, and --train_base_model trains none"),
        (
            args.plan and args.max_train_steps is None,
            "--plan does not count rows: give --max_train_steps in place of --num_train_epochs",
        ),
        (
            not args.publish and (args.publish_as or args.publish_private),
            "--hub_model_id and --hub_private do nothing without --push_to_hub",
        ),
        (args.publish and args.embedded, "--push_to_hub: a LoRA of the small embedded model is of no use to others"),
        (args.publish and whole_base, "--push_to_hub uploads LoRAs, and --train_base_model trains none"),
    ):
        if wrong:
            parser.error(message)


def _output_dir(args: argparse.Namespace) -> Path:
    """``--output_dir``, or ``outputs/<preset>`` in the repository, numbered so that no earlier run is overwritten.

    A run that continues a named checkpoint stays in that checkpoint's directory; 'latest' is looked for in the newest
    directory of the preset that has a checkpoint.
    """
    checkpoint = args.resume_from_checkpoint
    if args.output_dir is not None:
        return Path(args.output_dir)
    if checkpoint not in (None, "latest"):
        return Path(checkpoint).resolve().parent
    name = Path(args.preset).stem
    if args.embedded and name != "quick_test":
        name += "-embedded"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    folders = (REPOSITORY / "outputs" / name for name in names)
    begun = None
    while (folder := next(folders)).exists():
        begun = folder if any(folder.glob("checkpoint-*")) else begun
    chosen = [begun if checkpoint and begun else folder]
    if launched_processes() > 1:
        from accelerate.utils import broadcast_object_list

        process_state()
        broadcast_object_list(chosen)
    return chosen[0]


# ---- processes


def launched_processes() -> int:
    """How many processes train: those that a launcher has started together, else this one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_state() -> Any:
    """accelerate's state of this process, made as its ``Accelerator`` will want it: the first one made is kept."""
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    from training_run.stopping import RANKS_WAIT

    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=RANKS_WAIT)


# ---- before training


def say_what_fits(args: argparse.Namespace, script: Any, steps: list[dict[str, Any]]) -> None:
    """Take as many of ``steps`` as the GPU needs, and say it; without one ``--check`` says what they do for others."""
    from deepfashion_training.plan import card_lines, fit_to_gpu

    state = process_state()
    line = fit_to_gpu(args, steps, script.make_trainable, state)
    lines = [line] if line else card_lines(args, steps, script.make_trainable) if args.check else []
    state.print("\n".join(lines), end="\n" * bool(lines), file=sys.stderr)


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
    same += ["balance_cloth_types", *_SHARES, "resize_mode", "max_bad_rows"]
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

    pictures = sorted((folder / "validation").glob("step-*.png"), key=lambda path: path.stat().st_mtime)
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
            say_what_fits(args, script, steps)
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
