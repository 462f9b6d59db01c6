"""What a training script's text tells before anything of it runs: its names, its own files, what ``main`` looks up.

So a script that cannot be driven is refused before its packages are imported, whichever of them are missing.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_RUN_LATER = (*_FUNCTIONS, ast.Lambda)
#: By these a name can be looked up that stands nowhere in the text.
_ANY_NAME = frozenset({"globals", "eval", "exec"})


class OwnFile:
    """A file of a script's own, read but not run. Raises ``SyntaxError`` or ``ValueError`` for what is no Python."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.source = path.read_bytes()
        self.tree = ast.parse(self.source, str(path))
        compile(self.tree, str(path), "exec", dont_inherit=True)  # finds what parsing lets pass: return at module level
        main_only = ast.dump(ast.parse("__name__ == '__main__'", mode="eval").body)
        self.body = [
            node for node in self.tree.body if not (isinstance(node, ast.If) and ast.dump(node.test) == main_only)
        ]
        """Its statements, without those that only run when it is no import."""
        self.bound = bound(self.body)
        """The names of its module level, each with the nodes that bind it."""

    def imports(self) -> Iterator[str]:
        """Dotted names of all modules that it imports, wherever; relative ones begin with their dots."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                module = "." * node.level + (node.module or "")
                yield module
                yield from (f"{module}.{alias.name}" if node.module else module + alias.name for alias in node.names)


class ScriptText:
    """The text of the script at ``path`` and of the files of its own that it imports."""

    def __init__(self, path: Path) -> None:
        self.script = OwnFile(path)
        self.files = {path: self.script}
        waiting = [self.script]
        while waiting:
            importing = waiting.pop()
            for module in importing.imports():
                found = self._file_of(module, importing.path)
                if found is None or found in self.files:
                    continue
                with contextlib.suppress(SyntaxError, ValueError, OSError):  # which is said when it is imported
                    self.files[found] = OwnFile(found)
                    waiting.append(self.files[found])

    def _file_of(self, module: str, importing: Path) -> Path | None:
        """The file of an imported module beside the script, or None."""
        dots = len(module) - len(module.lstrip("."))
        folder = importing.parents[dots - 1] if 0 < dots <= len(importing.parents) else self.script.path.parent
        whole = folder.joinpath(*module.lstrip(".").split("."))
        return next(
            (file for file in (whole.with_name(f"{whole.name}.py"), whole / "__init__.py") if file.is_file()), None
        )

    def _imported_from(self, node: ast.ImportFrom, file: OwnFile) -> OwnFile | None:
        found = self._file_of("." * node.level + (node.module or ""), file.path)
        return self.files.get(found) if found else None

    # ---- names

    @cached_property
    def names(self) -> set[str] | None:
        """The names of the script's module level; None where a star import makes them unknown."""
        return self._names(self.script, ())

    def _names(self, file: OwnFile, above: tuple[OwnFile, ...]) -> set[str] | None:
        names = set(file.bound) - {"*"}
        for star in file.bound.get("*", []):
            found = self._imported_from(star, file) if isinstance(star, ast.ImportFrom) else None
            more = None if found is None or found in above else self._names(found, (*above, file))
            if more is None:
                return None
            names |= more
        return names

    def definition(self, name: str, file: OwnFile, above: tuple[OwnFile, ...] = ()) -> tuple[OwnFile, Function] | None:
        """The function that ``name`` is at the module level of ``file``, wherever it is written; None if unclear."""
        nodes = file.bound.get(name) or file.bound.get("*", [])
        if len(nodes) != 1 or file in above:
            return None
        (node,) = nodes
        if isinstance(node, _FUNCTIONS):
            return file, node
        found = self._imported_from(node, file) if isinstance(node, ast.ImportFrom) else None
        if found is None or not isinstance(node, ast.ImportFrom):
            return None
        there = next((alias.name for alias in node.names if name == (alias.asname or alias.name)), name)
        return self.definition(there, found, (*above, file))

    def dataset_classes(self) -> list[str]:
        """Names of the script's module level that look like its own dataset's class."""
        return [
            name for name, nodes in self.script.bound.items() if any(self._is_dataset(name, node) for node in nodes)
        ]

    def _is_dataset(self, name: str, node: ast.AST) -> bool:
        if isinstance(node, ast.ImportFrom):
            return name.endswith("Dataset") and self._imported_from(node, self.script) is not None
        names = [name, *map(ast.unparse, node.bases)] if isinstance(node, ast.ClassDef) else []
        return any(each.endswith("Dataset") for each in names)

    # ---- what main looks up

    @cached_property
    def main(self) -> tuple[OwnFile, Function] | None:
        """``main``, and the file whose names it looks up; None where that is unclear."""
        return self.definition("main", self.script)

    def looks_up(self, name: str) -> bool:
        """Whether ``main`` may look ``name`` up in its file, itself or by functions there: rather too many of them.

        A name, attribute or text stands for all functions that have it. All that a class has is among them, and
        all that is decorated or stands in a statement of the module level: it may be registered somewhere.
        """
        if self.main is None:
            return True
        home, main = self.main
        others = (file.tree for file in self.files.values() if file is not home)
        words = {_word(node) for tree in others for node in ast.walk(tree)}
        functions = [node for node in ast.walk(home.tree) if isinstance(node, _FUNCTIONS)]
        reached: list[ast.AST] = [main, *(node for node in functions if node.decorator_list and node in home.body)]
        for node in (*home.body, *(part for part in ast.walk(home.tree) if isinstance(part, ast.ClassDef))):
            if not isinstance(node, _FUNCTIONS) and getattr(node, "name", "") != name:  # not the class itself
                reached += [node, *(part for part in ast.walk(node) if isinstance(part, _RUN_LATER))]
        for place in reached:
            words |= {_word(node) for node in own_nodes(place)}
            reached += [each for each in functions if each.name in words and each not in reached]
        return any(_looks_up(place, name) for place in reached if isinstance(place, _RUN_LATER))


def bound(statements: Iterable[ast.AST]) -> dict[str, list[ast.AST]]:
    """The names that statements bind where they stand, each with the nodes that do so."""
    found: dict[str, list[ast.AST]] = {}
    waiting = list(statements)
    while waiting:
        node = waiting.pop(0)
        names: list[str] = []
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            names = [node.name]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.asname or alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names = [node.id]
        for name in names:
            found.setdefault(name, []).append(node)
        if not isinstance(node, (*_RUN_LATER, ast.ClassDef)):
            waiting += ast.iter_child_nodes(node)
    return found


def own_nodes(place: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run with a function or statement, in their order: no annotations, no plain functions inside.

    Nor what an ``isinstance`` compares with, and functions that ``register_..._hook`` gets: they read checkpoints.
    """
    waiting = [place]
    while waiting:
        node = waiting.pop()
        yield node
        inside = list(ast.iter_child_nodes(node))
        if isinstance(node, _FUNCTIONS):
            inside = [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]
            inside += node.body if node is place or node.decorator_list else []
        elif isinstance(node, ast.AnnAssign):
            inside = [part for part in (node.target, node.value) if part is not None]
        elif isinstance(node, ast.Call) and called(node).startswith("register_") and called(node).endswith("_hook"):
            inside = [node.func]
        elif isinstance(node, ast.Call) and called(node) in ("isinstance", "issubclass"):
            inside = [*node.args[:1]]
        waiting += reversed(inside)


def called(call: ast.Call) -> str:
    """The last part of the name that is called."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def _word(node: ast.AST) -> object:
    """A name, an attribute or a constant."""
    if isinstance(node, ast.Constant):
        return node.value
    return getattr(node, "id", getattr(node, "attr", None))


def _looks_up(function: ast.AST, name: str) -> bool:
    """Whether a function may look the global ``name`` up by itself: not where it imports the name for itself."""
    nodes = list(own_nodes(function))
    names = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    texts = {ast.unparse(node) for node in nodes if isinstance(node, (ast.Attribute, ast.Constant))}
    if names & _ANY_NAME or texts & {repr(name), "sys.modules"}:
        return True
    imports = [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]
    return name in names and name not in bound(imports)
