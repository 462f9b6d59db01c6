"""What a training script's text tells before anything of it runs: its names, its own files, what ``main`` reaches.

So a script that cannot be driven is told so whatever is not installed.
"""

from __future__ import annotations

import ast
import contextlib
import symtable
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
_DEFINED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
#: By the first of these a name can be looked up that stands nowhere in the text, by the others one that is a text.
_ANY_NAME, _NAMED = frozenset({"globals", "eval", "exec"}), frozenset({"vars", "getattr"})


class OwnFile:
    """A file of a script's own, read but not run. Raises ``SyntaxError`` or ``ValueError`` for what is no Python."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.source = source = path.read_bytes()
        self.tree = ast.parse(source, str(path))
        self.tables = dict[tuple[str, int], symtable.SymbolTable]()
        """Tables of functions by their name and line."""
        waiting = [symtable.symtable(source, str(path), "exec")]  # type: ignore[arg-type]  # bytes, as their cookie says
        while waiting:
            table = waiting.pop()
            self.tables.setdefault((table.get_name(), table.get_lineno()), table)
            waiting += table.get_children()
        main_only = ast.dump(ast.parse("__name__ == '__main__'", mode="eval").body)
        self.body = [
            node for node in self.tree.body if not (isinstance(node, ast.If) and ast.dump(node.test) == main_only)
        ]
        """Its statements, without those that only run when it is no import."""

    def imports(self) -> Iterator[tuple[str, ast.Import | ast.ImportFrom]]:
        """Dotted names of all modules that it imports, wherever; relative ones begin with their dots."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((alias.name, node) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                module = "." * node.level + (node.module or "")
                yield module, node
                yield from ((f"{module}.{alias.name}" if node.module else module + alias.name, node)
                            for alias in node.names)  # fmt: skip

    def bound(self) -> dict[str, list[ast.AST]]:
        """The names of its module level, each with the statements that bind it."""
        found: dict[str, list[ast.AST]] = {}
        waiting: list[ast.AST] = list(self.body)
        while waiting:
            node = waiting.pop(0)
            names: list[str] = []
            if isinstance(node, _DEFINED):
                names = [node.name]
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.asname or alias.name.partition(".")[0] for alias in node.names]
            elif isinstance(node, ast.Name):
                names = [node.id] if isinstance(node.ctx, ast.Store) else []
            for name in names:
                found.setdefault(name, []).append(node)
            if not isinstance(node, (*_DEFINED, ast.Lambda)):
                waiting += ast.iter_child_nodes(node)
        return found


class ScriptText:
    """The text of the script at ``path`` and of the files of its own that it imports."""

    def __init__(self, path: Path) -> None:
        self.script = OwnFile(path)
        self.files = {path: self.script}
        waiting = [self.script]
        while waiting:
            importing = waiting.pop()
            for module, _ in importing.imports():
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

    # ---- names

    @cached_property
    def names(self) -> set[str] | None:
        """The names of the script's module level; None where a star import makes them unknown."""
        return self._names(self.script, ())

    def _names(self, file: OwnFile, above: tuple[OwnFile, ...]) -> set[str] | None:
        bound = file.bound()
        for star in bound.pop("*", []):
            assert isinstance(star, ast.ImportFrom)
            found = self._file_of("." * star.level + (star.module or ""), file.path)
            if found not in self.files or self.files[found] in above:
                return None
            more = self._names(self.files[found], (*above, file))
            if more is None:
                return None
            bound |= {name: [] for name in more}
        return set(bound)

    def definition(self, name: str, file: OwnFile | None = None) -> tuple[OwnFile, Function] | None:
        """The function that ``name`` is at the script's module level, wherever it is written; None if unclear."""
        file = file or self.script
        bound = file.bound()
        nodes = bound.get(name) or bound.get("*", [])
        if len(nodes) != 1:
            return None
        node = nodes[0]
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return file, node
        if not isinstance(node, ast.ImportFrom):
            return None
        found = self._file_of("." * node.level + (node.module or ""), file.path)
        there = next((alias.name for alias in node.names if name in (alias.asname, alias.name)), name)
        return self.definition(there, self.files[found]) if found in self.files and found != file.path else None

    def dataset_classes(self) -> list[str]:
        """Names of the script's module level that look like its own dataset's class."""
        found = []
        for name, nodes in self.script.bound().items():
            for node in nodes:
                if isinstance(node, ast.ClassDef):
                    likely = any(ast.unparse(base).endswith("Dataset") for base in node.bases) or name.endswith(
                        "Dataset"
                    )
                elif isinstance(node, ast.ImportFrom):
                    home = self._file_of("." * node.level + (node.module or ""), self.script.path)
                    likely = name.endswith("Dataset") and home in self.files
                else:
                    likely = False
                found += [name] if likely else []
        return found

    # ---- what main reaches

    @cached_property
    def main(self) -> tuple[OwnFile, Function] | None:
        """``main``, and the file whose names it looks up; None where that is unclear."""
        return self.definition("main")

    def reached(self, dataset: str) -> list[tuple[OwnFile, ast.AST]]:
        """Functions and classes by whose names ``main`` may come to them, itself first; not those of ``dataset``.

        Too many rather than too few: a name stands for all that have it. Functions that are only handed to a
        ``register_..._hook`` are not among them: they read checkpoints.
        """
        if self.main is None:
            return []
        named: dict[str, list[tuple[OwnFile, ast.AST]]] = {}
        for file in self.files.values():
            for node in ast.walk(file.tree):
                if isinstance(node, _DEFINED):
                    named.setdefault(node.name, []).append((file, node))
            for name, nodes in file.bound().items():
                named.setdefault(name, []).extend((file, node) for node in self._assignments(file, nodes))
        found: list[tuple[OwnFile, ast.AST]] = []
        waiting: list[tuple[OwnFile, ast.AST]] = [self.main]
        while waiting:
            place = waiting.pop()
            if place in found:
                continue
            found.append(place)
            for name in identifiers(place[1]) - {dataset}:
                waiting += named.get(name, [])
        return found

    @staticmethod
    def _assignments(file: OwnFile, nodes: list[ast.AST]) -> Iterator[ast.AST]:
        names = {id(node) for node in nodes if isinstance(node, ast.Name)}
        for statement in ast.walk(file.tree) if names else ():
            if isinstance(statement, (ast.Assign, ast.AnnAssign)) and names & {
                id(node) for node in ast.walk(statement)
            }:
                yield statement

    def looks_up(self, name: str, dataset: str) -> bool:
        """Whether what ``main`` reaches may look ``name`` up where a replacement is seen: in its own file's globals."""
        if self.main is None:
            return True
        home = self.main[0]
        for file, place in self.reached(dataset):
            if file is not home or not isinstance(place, (*_DEFINED, ast.Lambda)):
                continue
            for function in functions_in(place):
                plain = loaded(function)
                if plain & _ANY_NAME or (plain & _NAMED and name in _texts(function)):
                    return True
                if name not in plain:
                    continue
                table = file.tables.get((function.name, function.lineno))
                if table is None or name not in table.get_identifiers() or table.lookup(name).is_global():
                    return True
        return False


def functions_in(place: ast.AST) -> list[Function]:
    """A function itself; of a class its methods."""
    if isinstance(place, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return [place]
    return [node for node in ast.walk(place) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def own_nodes(place: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run with a function, class or statement: not its annotations, nor functions inside it."""
    waiting: list[ast.AST] = [*place.body] if isinstance(place, _DEFINED) else [place]
    waiting += place.bases if isinstance(place, ast.ClassDef) else []
    while waiting:
        node = waiting.pop(0)
        yield node
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            waiting += [*node.decorator_list, *node.args.defaults, *(part for part in node.args.kw_defaults if part)]
            waiting += node.body if isinstance(place, ast.ClassDef) else []
        elif isinstance(node, ast.AnnAssign):
            waiting += [part for part in (node.target, node.value) if part is not None]
        elif isinstance(node, ast.Call) and called(node).startswith("register_") and called(node).endswith("_hook"):
            waiting.append(node.func)
        elif isinstance(node, ast.Call) and called(node) in ("isinstance", "issubclass"):
            waiting += node.args[:1]
        else:
            waiting += ast.iter_child_nodes(node)


def called(call: ast.Call) -> str:
    """The last part of the name that is called."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


def loaded(place: ast.AST) -> set[str]:
    """Plain names that are looked up."""
    return {node.id for node in own_nodes(place) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def identifiers(place: ast.AST) -> set[str]:
    """Names and attributes that are looked up, and texts, by which something may be looked up."""
    return {getattr(node, "attr", getattr(node, "id", "")) for node in own_nodes(place)} | _texts(place)


def _texts(place: ast.AST) -> set[str]:
    return {node.value for node in own_nodes(place) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
