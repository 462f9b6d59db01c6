"""How a command line becomes the arguments of a training run: its flags, the preset, and what follows from both.

A value is taken from the command line, else from the preset, else from the trainer's own default. What is done with
them is in ``train_deepfashion_lora.py``, and what needs data, models or a GPU to be known in ``preflight.py`` and
``plan.py``; the trainer's own flags are in ``training_run/flags.py``.
"""

# Nothing heavy is imported up here, so that a command line is answered at once.
from __future__ import annotations

import argparse
import itertools
import math
import os
from pathlib import Path
from typing import Any

from deepfashion_training.cli import FlagParser, RepeatedFlag, load_preset, number, quiet_libraries
from deepfashion_training.garment_types import TYPE_NAMES, parse_cloth_types, type_list
from training_run.cores import has_bf16_products
from training_run.flags import OneLineParser, add_trainer_flags, refuse_contradictions, refuse_other_trainers
from training_run.processes import launched_processes, process_state

REPOSITORY = Path(__file__).resolve().parents[1]
HUB_DATASET = "SaffalPoosh/deepFashion-with-masks"
#: Flags that choose a preset; without one it is ``full``.
PRESET_FLAGS = {"--quick-test": "quick_test", "--h100": "h100", "--low-vram": "low_vram"}
MODELS = ("pretrained_model_name_or_path", "pretrained_inpaint_model_name_or_path")
#: Groups of flags that are not the trainer's; those of the first three belong on the command line, not in a preset.
_TYPED_ONLY = ("options", "run", "hub")
_OWN = (*_TYPED_ONLY, "data", "afterwards")
#: Shares of garment types in what is drawn, at the first and at the last step.
SHARES = ("cloth_type_shares", "final_cloth_type_shares")
#: Flags of ours that decide what a run is trained on: with others it is another run.
WHICH_ROWS = {"balance_cloth_types", *SHARES, "cloth_types", "dataset_weights", "max_train_samples", "resize_mode"}
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
    if chosen.of_project and chosen.name == "embedded":  # alone it would train FLUX.1 as the small model is trained
        parser.error(
            f"--preset {typed['preset']} is no preset of its own, but the small model's: type --embedded instead"
        )
    preset = chosen.values(parser, typed_only(parser))
    follows: dict[str, Any] = {}
    ours = not typed.get("upstream") or Path(typed["upstream"]).resolve() == REPOSITORY / "train_flux_inpaint.py"
    if typed.get("embedded"):
        from deepfashion_training.embedded import TINY_FLUX_FILL

        follows = dict.fromkeys(MODELS, str(TINY_FLUX_FILL))
        embedded = load_preset("embedded")
        small = embedded.values(parser) | _not_for(typed if chosen.of_project else preset | typed, ours)
        if not chosen.of_project and not preset.keys().isdisjoint(SHARES):
            small |= dict.fromkeys(SHARES)  # a mixture is that of one preset, from its first step to its last
        preset = preset | small if chosen.of_project else small | preset  # under a file of the user's own
        # A step has as many pairs, or hardly more, however many processes share it.
        preset["train_batch_size"] = math.ceil(preset["train_batch_size"] / launched_processes())
    if "num_train_epochs" in typed:
        preset["max_train_steps"] = None  # the trainer lets steps win over epochs, the user wins over the preset
    if not typed.keys().isdisjoint({"balance_cloth_types", "cloth_type_shares"}):
        preset |= dict.fromkeys(SHARES)  # a mixture that the user begins does not move on to that of a preset
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

    It is made for our trainer, a CPU that has products in bf16, a LoRA and all garment types; the user has ``given``
    these values.
    """
    changes: dict[str, Any] = {} if ours and has_bf16_products() else {"mixed_precision": "no"}
    every_type = ",".join(TYPE_NAMES.values())
    types = given.get("cloth_types") or every_type
    if not ours or types != every_type or "balance_cloth_types" in given:
        changes |= dict.fromkeys(SHARES)
    if not ours or given.get("train_base_model") or "upper" not in types:
        changes["prior_loss_weight"] = None
    return changes


def smaller_steps(argv: list[str]) -> list[dict[str, Any]]:
    """The steps by which the preset of a command line makes a run smaller, without those that a typed flag is in.

    None for the small model over a preset of the project, which fits anywhere.
    """
    parser = build_parser()
    typed = parser.given(argv)[0]
    preset = load_preset(typed.get("preset", "full"))
    if typed.get("embedded") and preset.of_project:
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
            | dict.fromkeys(SHARES)  # which are those of all together
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
    for name in SHARES:
        if getattr(args, name) and not script.gets_lora:
            parser.error(f"--{name} does nothing here: this --upstream script chooses the order of rows itself")
    found = parse_arguments(script, ours, preset, follows, typed, rest)
    vars(found).update({name: value for name, value in vars(args).items() if name in own})
    return found, script


def _refuse_together(parser: FlagParser, args: argparse.Namespace) -> None:
    """Raise ``WrongUseError`` for flags of this command that cannot mean anything together."""
    whole_base = getattr(args, "train_base_model", False)
    for flag in SHARES:
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
