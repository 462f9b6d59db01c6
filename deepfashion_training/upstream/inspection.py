"""What the source of a training script says without running it, and the table of ``--upstream_check``."""

from __future__ import annotations

import ast
import sys
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from deepfashion_training.upstream.imports import HARMLESS

#: What every script must have, and what for.
CONTRACT = {
    "VitonHDTestDataset": "replaced by our garment/person pairs",
    "parse_args": "gets the arguments in the script's own words",
    "main": "trains",
}
#: Names that are replaced so that a script that trains no LoRA trains one.
SEAMS = ("FluxTransformer2DModel", "FluxFillPipeline", "Accelerator")
#: Calls by which a script makes a LoRA of its own.
_LORA_CALLS = frozenset({"add_adapter", "get_peft_model", "inject_adapter_in_model", "LoraConfig"})


def parse(file: Path) -> ast.Module:
    """Syntax tree of a file. Raises ``SyntaxError``, with the file."""
    try:
        with warnings.catch_warnings():  # those of the source are shown when it runs
            warnings.simplefilter("ignore")
            return ast.parse(file.read_bytes(), filename=str(file))
    except (SyntaxError, ValueError) as error:
        if getattr(error, "filename", None):
            raise
        raise SyntaxError(str(error), (str(file), 1, None, None)) from error  # null bytes, or an unknown encoding


def module_names(node: ast.AST) -> Iterator[str]:
    """Names that running a module binds; ``*`` for a star import."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield child.name
            continue
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in child.names)
        elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            yield child.id
        yield from module_names(child)


def imported_packages(files: Iterable[Path]) -> list[str]:
    """Packages that a script's ``files`` import unconditionally, and harmless ones that they import anywhere."""
    names: set[str] = set()
    own: set[str] = set()
    for file in files:
        tree = parse(file)
        own |= {entry.stem for entry in file.parent.iterdir()}
        for node in ast.walk(tree):
            found: set[str] = set()
            if isinstance(node, ast.Import):
                found = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found = {str(node.module).partition(".")[0]}
            names |= found if node in tree.body else found & HARMLESS.keys()
    return sorted(names - sys.stdlib_module_names - own)


def lora_call(files: Iterable[Path]) -> str | None:
    """Where one of the files first calls what makes a LoRA: "train.py line 5: add_adapter", else None."""
    for file in files:
        for node in ast.walk(parse(file)):
            called = getattr(node, "func", None)
            name = getattr(called, "attr", getattr(called, "id", None))
            if isinstance(node, ast.Call) and name in _LORA_CALLS:
                return f"{file.name} line {node.lineno}: {name}"
    return None


def table(rows: Sequence[tuple[str, str, str]]) -> str:
    """Rows of a name, a state and a remark as text of at most 120 columns."""
    lines = []
    for name, state, remark in rows:
        first, *others = textwrap.wrap(remark, 86) or [""]
        lines += [f"{name:<20}{state:<12}{first}".rstrip(), *(f"{'':<32}{line}" for line in others)]
    return "".join(f"{line}\n" for line in lines)
