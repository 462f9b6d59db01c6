"""What a training script's source says, read without running it: its modules, names and arguments.

A script is one file and its siblings: the modules in its folder that it imports, as ``python script.py`` would find
them. ``driver/uses.py`` asks which packages they use.
"""

from __future__ import annotations

import ast
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from pathlib import Path

#: Folders that are on ``sys.path`` because a command of this package runs, not because something is installed there.
_OWN_FOLDER = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Source:
    """A script and the modules of its folder that it imports, parsed.

    ``siblings`` has dotted module names, also of modules that only another sibling or a function imports. The script
    itself goes by the empty name.
    """

    path: Path
    tree: ast.Module
    siblings: dict[str, ast.Module]
    files: dict[str, Path]

    @property
    def folder(self) -> Path:
        """Where the script and its siblings lie."""
        return self.path.parent

    @property
    def top_names(self) -> frozenset[str]:
        """Top-level names of the siblings."""
        return frozenset(name.partition(".")[0] for name in self.siblings)

    @property
    def trees(self) -> dict[str, ast.Module]:
        """The script, by the empty name, and its siblings."""
        return {"": self.tree, **self.siblings}

    def shown(self, module: str) -> str:
        """File of a module as people call it: relative to the script's folder."""
        return (self.files[module] if module else self.path).relative_to(self.folder).as_posix()

    def package(self, module: str) -> str:
        """What relative imports of a module start from."""
        is_package = module and self.files[module].name == "__init__.py"
        return module if is_package else module.rpartition(".")[0]


def read_source(path: str | Path) -> Source:
    """Parse the script at ``path`` and its siblings. Raises ``SyntaxError``, with the file, for what does not parse."""
    file = Path(path).resolve()
    source = Source(file, _parse(file), {}, {})
    queue, ours = [""], {}
    while queue:
        module = queue.pop()
        for name in sorted(_imported(source.trees[module], source.package(module))):
            top = name.partition(".")[0]
            if top not in ours:
                ours[top] = _is_sibling(file.parent, top)
            if ours[top]:
                queue += _add(source, name)
    return source


def module_names(source: Source, module: str = "") -> set[str]:
    """Names that importing the script, or one of its siblings, binds; those of ``if __name__ == "__main__"`` do not."""
    tree = source.trees[module]
    names = bound_names(tree)
    for statement, _ in executed(tree.body):
        if isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*":
            origin = absolute(statement, source.package(module))
            if origin != module and origin in source.siblings:
                names |= {name for name in module_names(source, origin) if not name.startswith("_")}
    return names


def attributes_read(source: Source, name: str | None = "args") -> set[str]:
    """Every ``X`` of ``args.X`` and ``getattr(args, "X")`` that script and siblings read outside ``parse_args``.

    Without a ``name`` the ``X`` of any object counts, also of ``x["X"]`` and ``x.get("X")``: functions give their
    arguments names of their own, and some make a mapping of them.
    """
    found: set[str] = set()
    queue: list[ast.AST] = list(source.trees.values())
    while queue:
        node = queue.pop()
        if isinstance(node, ast.FunctionDef) and node.name == "parse_args":
            continue
        queue += ast.iter_child_nodes(node)
        if isinstance(node, ast.AugAssign):  # a store to the syntax tree, but it reads too
            node = node.target
        elif isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            continue
        match node:
            case ast.Attribute(value=ast.Name(id=of), attr=attribute) if name in (None, of):
                found.add(attribute)
            case ast.Call(func=ast.Name(id="getattr"), args=[ast.Name(id=of), ast.Constant(value=str(attribute)), *_]):
                if name in (None, of):
                    found.add(attribute)
            case ast.Subscript(slice=ast.Constant(value=str(attribute))) if name is None:
                found.add(attribute)
            case ast.Call(func=ast.Attribute(attr="get"), args=[ast.Constant(value=str(attribute)), *_]) if (
                name is None
            ):
                found.add(attribute)
    return found


def changes_path(source: Source) -> bool:
    """Whether the script or a sibling mentions ``sys.path``, so that nobody can tell beforehand what it imports."""
    mentions = (node for tree in source.trees.values() for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return any(node.attr == "path" and isinstance(node.value, ast.Name) and node.value.id == "sys" for node in mentions)


def executed(body: list[ast.stmt], guarded: bool = False) -> Iterator[tuple[ast.stmt, bool]]:
    """Statements that importing a module runs, and whether each is under an ``if`` or a ``try`` with a handler.

    Statements inside compound ones come after them; what functions, classes and ``if __name__ == "__main__"`` hold is
    not among them.
    """
    for statement in body:
        if _is_main_guard(statement):
            yield from executed(getattr(statement, "orelse", []), guarded)
            continue
        yield statement, guarded
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        handlers = getattr(statement, "handlers", [])
        inner = guarded or isinstance(statement, ast.If) or bool(handlers) or _suppresses(statement)
        for part in ("body", "orelse", "finalbody"):
            yield from executed(getattr(statement, part, []), inner)
        for branch in [*handlers, *getattr(statement, "cases", [])]:
            yield from executed(branch.body, True)


def bound_names(tree: ast.Module) -> set[str]:
    """Names that importing a module binds, those of star imports left out."""
    names: set[str] = set()
    for statement, _ in executed(tree.body):
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(statement.name)
        elif isinstance(statement, (ast.Import, ast.ImportFrom)):
            names |= set(bindings(statement, "")) - {"*"}
        elif not isinstance(statement, ast.AnnAssign) or statement.value is not None:
            stored = (node for node in _own(statement) if isinstance(node, ast.Name))
            names |= {node.id for node in stored if isinstance(node.ctx, ast.Store)}
    return names


def bindings(statement: ast.Import | ast.ImportFrom, package: str) -> dict[str, str]:
    """What an import statement in ``package`` binds: name to dotted path, ``*`` to the module of a star import."""
    if isinstance(statement, ast.Import):
        return {
            alias.asname or alias.name.partition(".")[0]: alias.name if alias.asname else alias.name.partition(".")[0]
            for alias in statement.names
        }
    origin = absolute(statement, package)
    if statement.names[0].name == "*":
        return {"*": origin}
    return {alias.asname or alias.name: f"{origin}.{alias.name}".strip(".") for alias in statement.names}


def absolute(statement: ast.ImportFrom, package: str) -> str:
    """Dotted name of the module that ``from ... import`` in ``package`` names; empty when it leads out."""
    if not statement.level:
        return statement.module or ""
    parts = package.split(".") if package else []
    if statement.level > len(parts):
        return ""
    return ".".join([*parts[: len(parts) - statement.level + 1], *filter(None, [statement.module])])


def modules_of(statement: ast.Import | ast.ImportFrom, package: str) -> set[str]:
    """Dotted names that an import statement imports or, for ``from a import b``, may import."""
    if isinstance(statement, ast.Import):
        return {alias.name for alias in statement.names}
    return {absolute(statement, package), *bindings(statement, package).values()} - {""}


def _parse(file: Path) -> ast.Module:
    try:
        with warnings.catch_warnings():  # those of the source are shown when it runs
            warnings.simplefilter("ignore")
            return ast.parse(file.read_bytes(), filename=str(file))
    except SyntaxError as error:
        if error.filename is None:  # null bytes, or an encoding that there is not
            raise SyntaxError(error.msg, (str(file), 1, None, None)) from error
        raise
    except ValueError as error:  # null bytes, to some versions of Python
        raise SyntaxError(str(error), (str(file), 1, None, None)) from error


def _imported(tree: ast.Module, package: str) -> set[str]:
    """Modules that a module imports anywhere, also by ``import_module("literal")``."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import() | ast.ImportFrom():
                names |= modules_of(node, package)
            case ast.Call(func=ast.Name(id=call) | ast.Attribute(attr=call), args=[ast.Constant(value=str(name)), *_]):
                if call == "import_module" and not name.startswith("."):
                    names.add(name)
    return names


def _add(source: Source, name: str) -> list[str]:
    """Parse the modules that importing ``name`` runs and are not known yet; returns their names."""
    added: list[str] = []
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        module = ".".join(parts[:length])
        parent = source.siblings.get(".".join(parts[: length - 1]))
        if module in source.siblings:
            continue
        if parent is not None and length == len(parts) and parts[-1] in _defined(parent):
            break  # from package import function, with a module of the same name beside it
        file = _file(source.folder, module)
        if file is None:
            break
        if file.suffix == ".py":
            source.siblings[module] = _parse(file)
            source.files[module] = file
            added.append(module)
    return added


def _defined(tree: ast.Module) -> set[str]:
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {statement.name for statement, _ in executed(tree.body) if isinstance(statement, definitions)}


def _file(folder: Path, module: str) -> Path | None:
    """File of a module below ``folder``, the folder itself for a package without ``__init__.py``, or None."""
    found: Path | None = None
    for part in module.split("."):
        if found is not None and found.suffix == ".py" and found.name != "__init__.py":
            return None
        package = folder / part
        candidates = (package / "__init__.py", folder / f"{part}.py")
        found = next((file for file in candidates if file.is_file()), package if package.is_dir() else None)
        if found is None:
            return None
        folder = package
    return found


def _is_sibling(folder: Path, top: str) -> bool:
    """Whether ``python script.py`` would find the top-level module ``top`` in the script's folder."""
    if BuiltinImporter.find_spec(top) or FrozenImporter.find_spec(top):
        return False
    file = _file(folder, top)
    if file is None or file.suffix == ".py":
        return file is not None
    others = [entry for entry in sys.path if Path(entry or os.curdir).resolve() not in (folder, _OWN_FOLDER)]
    regular = PathFinder.find_spec(top, others)  # wins over a folder without __init__.py, wherever it is on the path
    return regular is None or regular.origin is None


def _is_main_guard(statement: ast.stmt) -> bool:
    match statement:
        case ast.If(test=ast.Compare(left=ast.Name(id="__name__"), ops=[ast.Eq()])):
            return True
        case ast.If(test=ast.Compare(ops=[ast.Eq()], comparators=[ast.Name(id="__name__")])):
            return True
    return False


def _suppresses(statement: ast.stmt) -> bool:
    """Whether it is ``with suppress(...)``."""
    calls = (item.context_expr for item in getattr(statement, "items", []))
    functions = (call.func for call in calls if isinstance(call, ast.Call))
    return any("suppress" in (getattr(func, "id", ""), getattr(func, "attr", "")) for func in functions)


def _own(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes below a statement that belong to it and to its scope."""
    scopes = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.stmt, ast.ExceptHandler, ast.match_case, *scopes)):
            yield child
            yield from _own(child)
