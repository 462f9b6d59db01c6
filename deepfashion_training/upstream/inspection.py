"""What the source of a training script says, without running it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

#: Calls by which a script makes a LoRA of its own.
_LORA_CALLS = frozenset({"add_adapter", "get_peft_model", "inject_adapter_in_model", "LoraConfig"})


def parse(file: Path) -> ast.Module:
    """Syntax tree of a file. Raises ``SyntaxError`` or, for null bytes, ``ValueError``."""
    return ast.parse(file.read_bytes(), filename=str(file))


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


def imported_packages(files: Iterable[Path], harmless: Iterable[str]) -> list[str]:
    """Packages that a script's ``files`` import unconditionally, and ``harmless`` ones that they import anywhere."""
    names: set[str] = set()
    beside: set[str] = set()
    for file in files:
        tree = parse(file)
        beside |= {entry.stem for entry in file.parent.iterdir()}
        for node in ast.walk(tree):
            found: set[str] = set()
            if isinstance(node, ast.Import):
                found = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found = {str(node.module).partition(".")[0]}
            names |= found if node in tree.body else found & set(harmless)
    return sorted(names - sys.stdlib_module_names - beside)


def lora_call(files: Iterable[Path]) -> str | None:
    """Where one of the files first calls what makes a LoRA: "train.py line 5: add_adapter", else None."""
    for file in files:
        for node in ast.walk(parse(file)):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", None))
                if name in _LORA_CALLS:
                    return f"{file.name} line {node.lineno}: {name}"
    return None
