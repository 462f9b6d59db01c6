"""What training scripts of this family do that a LoRA run cannot use, and what is done about each from outside."""

from __future__ import annotations

import ast
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from deepfashion_training.upstream.driven_run import NEVER, TRAIN_LIST, VALIDATION_LIST, VERIFICATION_LIST


@dataclass(frozen=True)
class Quirk:
    """One habit of a script: how it is seen in the source, and the line that says what is done about it."""

    name: str
    seen: Callable[[list[ast.AST]], bool]
    habit: str
    mended: str


def _calls(nodes: list[ast.AST], name: str) -> Iterator[ast.Call]:
    """Calls of a function or method called ``name``."""
    for node in nodes:
        if isinstance(node, ast.Call):
            called = node.func
            found = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", None)
            if found == name:
                yield node


def _keywords(nodes: list[ast.AST], call: str) -> list[dict[str | None, ast.expr]]:
    return [{keyword.arg: keyword.value for keyword in node.keywords} for node in _calls(nodes, call)]


def _constant(value: ast.expr | None) -> object:
    return value.value if isinstance(value, ast.Constant) else None


def _flag(nodes: list[ast.AST], flag: str) -> bool:
    """Whether a parser has ``--flag``, added by a call or listed as a word for one."""
    words = (node.value.split() for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return any(word.removeprefix("--") == flag for found in words for word in found)


def _global_args(nodes: list[ast.AST]) -> bool:
    for function in (node for node in nodes if isinstance(node, ast.FunctionDef)):
        every = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        inside = [node for node in ast.walk(function) if isinstance(node, ast.Name) and node.id == "args"]
        own = any(argument.arg == "args" for argument in every) or function.args.vararg is not None
        own = own or any(isinstance(node.ctx, ast.Store) for node in inside)
        enclosed = any(
            function is not other and function in ast.walk(other)
            for other in nodes
            if isinstance(other, ast.FunctionDef) and any(argument.arg == "args" for argument in other.args.args)
        )
        if inside and not own and not enclosed:
            return True
    return False


def _remainder_of(nodes: list[ast.AST], argument: str) -> list[object]:
    """The numbers that ``x % args.<argument>`` is compared with."""
    found = []
    for node in nodes:
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.BinOp) and isinstance(node.left.op, ast.Mod):
            divisor = node.left.right
            if isinstance(divisor, ast.Attribute) and divisor.attr == argument:
                found.append(_constant(node.comparators[0]))
    return found


def _unshuffled(nodes: list[ast.AST]) -> bool:
    return any(
        _constant(keywords.get("shuffle")) is not True and not {"sampler", "batch_sampler"} & set(keywords)
        for keywords in _keywords(nodes, "DataLoader")
    )


def _fixed_drawing(nodes: list[ast.AST]) -> bool:
    fixed = ("num_inference_steps", "guidance_scale")
    return any(
        isinstance(_constant(keyword.value), (int, float))
        for node in nodes
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg in fixed
    )


def _deletes_first(nodes: list[ast.AST]) -> bool:
    removed = [node.lineno for node in _calls(nodes, "rmtree")]
    saved = [node.lineno for node in _calls(nodes, "save_state")]
    return bool(removed and saved) and min(removed) < max(saved)


QUIRKS = (
    Quirk("global args", _global_args, "functions read a global `args`", "set while main runs"),
    Quirk(
        "data flags",
        lambda nodes: _flag(nodes, "instance_data_dir"),
        "insists on --instance_data_dir or --dataset_name",
        "gets the name of our data",
    ),
    Quirk(
        "pair lists",
        lambda nodes: _flag(nodes, "train_verification_list"),
        "wants lists of training, verification and validation pairs",
        "gets all training rows, and --num_validation_images rows for each of the other two",
    ),
    Quirk(
        "row order",
        _unshuffled,
        "reads its rows in order, and an epoch's first ones again when it continues",
        "shuffled by --seed, and continued at the next row",
    ),
    Quirk(
        "loader workers",
        lambda nodes: any("num_workers" not in keywords for keywords in _keywords(nodes, "DataLoader")),
        "loads pictures between steps",
        "--dataloader_num_workers load them",
    ),
    Quirk(
        "trainable weights",
        lambda nodes: any(isinstance(node, ast.Attribute) and node.attr == "train_base_model" for node in nodes),
        "trains base weights, of blocks that it lists, and fails without --train_base_model",
        "the flag is set, and the LoRA in every block is all that it finds to train",
    ),
    Quirk(
        "precision of what is trained",
        lambda nodes: any(
            call.args and any(keyword.arg == "dtype" for keyword in call.keywords) for call in _calls(nodes, "to")
        ),
        "casts what it trains to half precision",
        "the LoRA stays in fp32",
    ),
    Quirk(
        "validation in bf16",
        lambda nodes: any(isinstance(node, ast.keyword) and node.arg == "mask_image" for node in nodes),
        "validation hands fp32 latents to a VAE in bf16, and dies",
        "they are cast to the VAE's precision",
    ),
    Quirk(
        "validation steps",
        lambda nodes: 1 in _remainder_of(nodes, "validation_steps"),
        "validates one step after every --validation_steps; never with 1, and 0 is an error",
        "1 becomes 2, 0 means none, and the last step is drawn too",
    ),
    Quirk(
        "validation pictures",
        _fixed_drawing,
        "draws with fixed steps and guidance, and shows the pictures to wandb only",
        "--num_inference_steps and --guidance_scale hold; sheets go to validation/",
    ),
    Quirk(
        "checkpoints",
        _deletes_first,
        "deletes old checkpoints before the new one is written, and writes it in place",
        "a checkpoint gets its name when it is complete, and old ones go after that",
    ),
    Quirk(
        "noise of several ranks",
        lambda nodes: any("device_specific" not in keywords for keywords in _keywords(nodes, "set_seed")),
        "draws the same noise on every rank",
        "every rank gets a seed of its own",
    ),
    Quirk(
        "secrets",
        lambda nodes: any(
            list(_calls([value], "vars")) for k in _keywords(nodes, "init_trackers") for value in k.values()
        ),
        "hands every argument to the tracker, tokens too",
        "it gets plain values and no tokens",
    ),
    Quirk(
        "last save",
        lambda nodes: any("pipe" in ast.unparse(call.func) for call in _calls(nodes, "save_pretrained")),
        "saves the whole pipeline at the end and loads it again",
        "the LoRA is saved, and nothing is loaded",
    ),
    Quirk(
        "printing",
        lambda nodes: bool(list(_calls(nodes, "print"))),
        "prints, a line for every weight that it trains for instance",
        "what it prints goes to logs/printed.log",
    ),
)


def quirks_of(trees: list[ast.Module]) -> list[Quirk]:
    """The quirks that are seen in a script and its siblings."""
    nodes = [node for tree in trees for node in ast.walk(tree)]
    return [quirk for quirk in QUIRKS if quirk.seen(nodes)]


#: Arguments that ``settle`` decides, so that typing them would do nothing.
SETTLED = frozenset({"train_base_model", "train_data_list", "train_verification_list", "validation_data_list"})


def reads_global_args(tree: ast.Module) -> bool:
    """Whether a function of the script reads a global ``args``."""
    return _global_args(list(ast.walk(tree)))


def settle(args: Namespace, trees: list[ast.Module]) -> None:
    """Change the arguments that a script is to get, as the lines above say."""
    args.train_base_model = True
    args.train_data_list, args.train_verification_list = TRAIN_LIST, VERIFICATION_LIST
    args.validation_data_list = VALIDATION_LIST
    if 1 in _remainder_of([node for tree in trees for node in ast.walk(tree)], "validation_steps"):
        args.validation_steps = {0: 1, 1: 2}.get(args.validation_steps, args.validation_steps)
    else:
        args.validation_steps = args.validation_steps or NEVER
    args.checkpointing_steps = args.checkpointing_steps or NEVER
    args.checkpoints_total_limit = None  # old ones go when the new one is complete
    args.max_grad_norm = args.max_grad_norm or float("inf")
