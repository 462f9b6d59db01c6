"""What can be said of a training script before anything is trained: the table of ``--upstream-check``."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Sequence
from typing import Literal

from deepfashion_training.upstream.quirks import quirks_of, reads_global_args
from deepfashion_training.upstream.source import Source, module_names

#: What every script must have, and what for.
CONTRACT = {
    "VitonHDTestDataset": "replaced by our garment/person pairs",
    "parse_args": "gets the arguments in the script's own words",
    "main": "trains",
}
#: Names without which no LoRA goes through a script that trains none, and what takes their place.
SEAMS = {
    "FluxTransformer2DModel": "replaced: the frozen base, with a LoRA as its only parameters",
    "FluxFillPipeline": "replaced: draws validation pictures, saves the LoRA",
    "Accelerator": "replaced: curves, complete checkpoints, seeds of ranks",
}
#: Names that scripts of this family have; a run gets on without them.
FAMILY = {
    "encode_prompt": "watched: its prompt goes into the LoRA's metadata",
    "load_text_encoders": "left alone; a global `args` that it reads is there",
    "prepare_fill_with_mask": "left alone",
    "encode_images_to_latents": "left alone",
}
#: Calls by which a script makes a LoRA of its own.
_LORA_CALLS = frozenset({"add_adapter", "get_peft_model", "inject_adapter_in_model", "LoraConfig"})

LoraKind = Literal["native", "adapter", "none"]


def lora_kind(source: Source) -> LoraKind:
    """How a LoRA comes out of a script: it makes one itself, we give it one to train, or it is left to its own ways.

    Raises ``ValueError`` for a script that trains a transformer without the names that must be replaced.
    """
    if lora_call(source):
        return "native"
    names = module_names(source)
    lacking = [name for name in SEAMS if name not in names]
    if not lacking:
        return "adapter"
    if "FluxTransformer2DModel" in names or _mentions(source, "FluxTransformer2DModel"):
        raise ValueError(
            f"{source.path} trains no LoRA and cannot be given one: it has no {', '.join(lacking)} at module level"
        )
    return "none"


def lora_call(source: Source) -> str | None:
    """Where the script or a sibling first calls what makes a LoRA: "train.py line 5: add_adapter", else None."""
    for module, tree in source.trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = node.func
                name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
                if name in _LORA_CALLS:
                    return f"{source.shown(module)} line {node.lineno}: {name}"
    return None


def _mentions(source: Source, name: str) -> bool:
    return any(isinstance(node, ast.Attribute) and node.attr == name for node in ast.walk(source.tree))


def table(
    source: Source, faults: dict[str, str], needed: Sequence[str], stand_ins: dict[str, str], pip_command: str
) -> str:
    """The table for ``source`` as text of 120 columns.

    ``faults`` are names that the loaded script has in another form than is wanted, ``needed`` missing packages that it
    cannot do without, ``stand_ins`` those that it can, and why.
    """
    names = module_names(source)
    contract = []
    for name, what in CONTRACT.items():
        state = "found" if name in names else "MISSING"
        contract.append((name, "UNUSABLE" if name in faults and name in names else state, faults.get(name, what)))
    lora, quirks = [("", *_lora_row(source))], []
    if lora[0][1] in ("by adapter", "IMPOSSIBLE"):
        lora += [(name, "found" if name in names else "MISSING", what) for name, what in SEAMS.items()]
        lora += [(name, "found" if name in names else "absent", what) for name, what in FAMILY.items()]
        seen = quirks_of(list(source.trees.values()))
        quirks = [(quirk.name, "handled", f"{quirk.habit}: {quirk.mended}") for quirk in seen]
    elif reads_global_args(source.tree):
        quirks = [("global args", "handled", "functions read a global `args`: set while main runs")]
    packages = [(name, "MISSING", pip_command) for name in needed]
    packages += [(name, "stand-in", why) for name, why in stand_ins.items()]
    sections = {"contract": contract, "LoRA": lora, "packages": packages or [("", "all there", "")], "quirks": quirks}
    return _aligned({title: rows for title, rows in sections.items() if rows})


def _lora_row(source: Source) -> tuple[str, str]:
    """How a LoRA comes out of the script, in a word and in a sentence."""
    try:
        kind = lora_kind(source)
    except ValueError as error:
        return "IMPOSSIBLE", str(error)
    return {
        "native": ("native", f"the script makes its own ({lora_call(source)}): only the dataset is replaced"),
        "adapter": ("by adapter", "it trains none itself: its transformer gives it a LoRA to train, and nothing else"),
        "none": (
            "its own",
            "it neither makes one nor has a FluxTransformer2DModel to replace: it trains what it trains",
        ),
    }[kind]


def _aligned(sections: dict[str, list[tuple[str, str, str]]]) -> str:
    rows = [row for section in sections.values() for row in section]
    left, middle = (max(len(row[column]) for row in rows) + 2 for column in (0, 1))
    left = max(left + 2, *(len(title) + 2 for title in sections))
    lines = []
    for title, section in sections.items():
        if section[0][0]:
            lines.append(title)
        for name, state, remark in section:
            wrapped = textwrap.wrap(remark, 120 - left - middle) or [""]
            lines.append(f"{f'  {name}' if name else title:<{left}}{state:<{middle}}{wrapped[0]}".rstrip())
            lines += [" " * (left + middle) + line for line in wrapped[1:]]
    return "\n".join(lines) + "\n"
