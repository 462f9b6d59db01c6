"""Which packages a training script needs: those that the code which runs with our dataset uses by name."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from deepfashion_training.upstream.source import Source, absolute, bindings, executed, modules_of

#: What the wrapper puts its own dataset in place of.
REPLACED = frozenset({"VitonHDTestDataset"})

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class PackageUse:
    """A third-party package that a script imports.

    ``used_by`` says where code that runs uses it (``"src/masks.py prepare: rearrange"``), sorted; ``guarded`` that
    every import of it is under an ``if`` or a ``try``, so that the script copes without it.
    """

    used_by: tuple[str, ...]
    guarded: bool


def packages(source: Source, replaced: frozenset[str] = REPLACED) -> dict[str, PackageUse]:
    """Every third-party package that the script or a sibling imports at module level, and what uses it.

    Code that runs is module level, ``main``, ``parse_args`` and, by name, what these refer to; the classes and
    functions named in ``replaced`` do not. Classes that only ``isinstance`` asks about are not used.
    """
    reach = _Reach(source, replaced)
    reach.run("", guarded=False)
    for name in ("main", "parse_args"):
        reach.follow("", [name], f"{source.shown('')} {name}")
    guards: dict[str, list[bool]] = defaultdict(list)
    for module, module_guarded in reach.ran.items():
        for statement, guarded in executed(source.trees[module].body):
            for name in third_party(source, module, statement):
                guards[name].append(guarded or module_guarded)
    return {name: PackageUse(tuple(sorted(reach.uses[name])), all(guards[name])) for name in sorted(guards)}


def third_party(source: Source, module: str, statement: ast.stmt) -> set[str]:
    """Packages that an import statement of ``module`` names and that are neither siblings nor in the library."""
    if isinstance(statement, ast.Import):
        names = {alias.name for alias in statement.names}
    elif isinstance(statement, ast.ImportFrom):
        names = {absolute(statement, source.package(module))}
    else:
        return set()
    known = {"", "__future__", *source.top_names, *sys.stdlib_module_names}
    return {name.partition(".")[0] for name in names} - known


class _Reach:
    """Follows names from unit to unit; a unit is a function or class at module level, or module level itself."""

    def __init__(self, source: Source, replaced: frozenset[str]) -> None:
        self.source = source
        self.replaced = replaced
        self.uses: dict[str, set[str]] = defaultdict(set)
        self.ran: dict[str, bool] = {}  # modules whose module level runs, and whether only where the script copes
        self.seen: set[int] = set()
        self.tables: dict[str, dict[str, list[str | _Definition]]] = {}

    def run(self, module: str, guarded: bool) -> None:
        """Module level of ``module`` runs, and that of what it imports."""
        first, known = module not in self.ran, self.ran.get(module, True)
        if not first and known <= guarded:
            return
        self.ran[module] = guarded
        visitor = _Visitor(self, module, f"{self.source.shown(module)} module level")
        for statement, inner in executed(self.source.trees[module].body):
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                self.imports(module, statement, guarded or inner)
                if isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*" and first:
                    for name in third_party(self.source, module, statement):
                        self.uses[name].add(f"{visitor.unit}: *")
            elif first:
                for node in _at_import(statement):
                    visitor.visit(node)

    def imports(self, module: str, statement: ast.Import | ast.ImportFrom, guarded: bool) -> None:
        """The siblings that an import statement of ``module`` names run."""
        for name in modules_of(statement, self.source.package(module)):
            parts = name.split(".")
            for length in range(1, len(parts) + 1):
                if (sibling := ".".join(parts[:length])) in self.source.siblings:
                    self.run(sibling, guarded)

    def follow(self, module: str, chain: list[str], by: str, seen: frozenset[str] = frozenset()) -> None:
        """``by`` uses the name ``chain[0]`` of ``module``, and attributes of it."""
        name = chain[0]
        if name in self.replaced or module in seen:
            return
        table = self._table(module)
        for entry in table.get(name, ()):
            if isinstance(entry, str):
                self.follow_path(entry.split(".") + chain[1:], by, name, seen | {module})
            elif id(entry) not in self.seen:
                self.seen.add(id(entry))
                _Visitor(self, module, f"{self.source.shown(module)} {name}").visit(entry)
        if name not in table:
            for origin in table.get("*", ()):
                if isinstance(origin, str) and origin in self.source.siblings:
                    self.follow(origin, chain, by, seen | {module})

    def follow_path(self, path: list[str], by: str, name: str, seen: frozenset[str] = frozenset()) -> None:
        """``by`` uses, by ``name``, what lies at a dotted path: a member of a sibling, or something of a package."""
        if path[0] not in self.source.top_names:
            self.uses[path[0]].add(f"{by}: {name}")
            return
        for length in range(len(path) - 1, 0, -1):
            if (module := ".".join(path[:length])) in self.source.siblings:
                self.follow(module, path[length:], by, seen)
                return

    def _table(self, module: str) -> dict[str, list[str | _Definition]]:
        """What each name of a module may be: definitions, dotted paths of imports."""
        if module not in self.tables:
            table = self.tables[module] = defaultdict(list)
            for statement, _ in executed(self.source.trees[module].body):
                if isinstance(statement, (*_FUNCTIONS, ast.ClassDef)):
                    table[statement.name].append(statement)
                elif isinstance(statement, (ast.Import, ast.ImportFrom)):
                    for name, path in bindings(statement, self.source.package(module)).items():
                        table[name] += [path] if path else []
        return self.tables[module]


class _Visitor(ast.NodeVisitor):
    """Reports the names that one unit uses; annotations and names that are local to a function are none."""

    def __init__(self, reach: _Reach, module: str, unit: str) -> None:
        self.reach, self.module, self.unit = reach, module, unit
        #: Local names of the functions around, the innermost last; of imported ones the dotted path.
        self.scopes: list[dict[str, str | None]] = []

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self._use([node.id])

    def visit_Attribute(self, node: ast.Attribute) -> None:
        chain: list[str] = []
        base: ast.expr = node
        while isinstance(base, ast.Attribute):
            chain.insert(0, base.attr)
            base = base.value
        if isinstance(base, ast.Name):
            self._use([base.id, *chain])
        else:
            self.visit(base)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id == "isinstance" and len(node.args) == 2:
            self.visit(node.args[0])
            for part in _alternatives(node.args[1]):
                if not isinstance(part, (ast.Name, ast.Attribute)):
                    self.visit(part)
        else:
            self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        for part in filter(None, (node.target, node.value)):
            self.visit(part)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for part in [*node.decorator_list, *node.bases, *node.keywords, *node.body]:
            self.visit(part)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        for outer in _outside(node):
            self.visit(outer)
        body: list[ast.stmt | ast.expr] = [*node.body] if isinstance(node.body, list) else [node.body]
        self.scopes.append(_locals(node.args, body))
        for part in body:
            self.visit(part)
        self.scopes.pop()

    visit_AsyncFunctionDef = visit_Lambda = visit_FunctionDef

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        self.reach.imports(self.module, node, guarded=False)
        if self.scopes:
            self.scopes[-1] |= bindings(node, self.reach.source.package(self.module))

    visit_ImportFrom = visit_Import

    def _use(self, chain: list[str]) -> None:
        for scope in reversed(self.scopes):
            if chain[0] in scope:
                path = (scope[chain[0]] or "").split(".")
                if path[0] in self.reach.source.top_names:  # a package imported here is no concern of module level
                    self.reach.follow_path(path + chain[1:], self.unit, chain[0])
                return
        self.reach.follow(self.module, chain, self.unit)


def _at_import(statement: ast.stmt) -> Iterator[ast.AST]:
    """What of a statement runs when its module is imported, statements inside it left out; no annotations."""
    if isinstance(statement, _FUNCTIONS):
        yield from _outside(statement)
    elif isinstance(statement, ast.ClassDef):
        yield from [*statement.decorator_list, *statement.bases, *statement.keywords]
        for inner, _ in executed(statement.body):
            yield from _at_import(inner)
    elif isinstance(statement, ast.AnnAssign):
        yield from filter(None, (statement.target, statement.value))
    else:
        for child in ast.iter_child_nodes(statement):
            if isinstance(child, ast.ExceptHandler):
                yield from filter(None, [child.type])
            elif not isinstance(child, (ast.stmt, ast.match_case)):
                yield child


def _outside(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> list[ast.expr]:
    """Decorators and default values: what runs where a function is defined."""
    defaults = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
    return [*getattr(node, "decorator_list", []), *defaults]


def _locals(arguments: ast.arguments, body: list[ast.stmt | ast.expr]) -> dict[str, str | None]:
    """Names that are local to a function; those of ``global`` are not."""
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    names = {argument.arg for argument in every if argument is not None}
    outside: set[str] = set()
    queue: list[ast.AST] = list(body)
    while queue:
        node = queue.pop()
        if isinstance(node, (ast.Global, ast.Nonlocal)):
            outside |= set(node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            continue  # the name of a nested function may stand for one of module level: followed, to be safe
        if not isinstance(node, ast.Lambda):
            queue += ast.iter_child_nodes(node)
    return dict.fromkeys(names - outside)


def _alternatives(node: ast.expr) -> Iterator[ast.expr]:
    """Classes of ``isinstance(x, (A, B))`` and ``isinstance(x, A | B)``."""
    if isinstance(node, ast.Tuple):
        for part in node.elts:
            yield from _alternatives(part)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        yield from _alternatives(node.left)
        yield from _alternatives(node.right)
    else:
        yield node
