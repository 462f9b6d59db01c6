"""Which arguments a training script gives to its dataset, and which keys it reads from a batch, told from its text.

Only what is certain counts: what ``main`` does in any case, itself or in functions that it calls by name, with plain
variables and loops over a ``DataLoader`` of the dataset. All else is left to the run, where a missing key is named too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

from deepfashion_training.upstream.reading import Function, OwnFile, ScriptText, bound, called, own_nodes

#: The keys of a sample.
SAMPLE_KEYS = (
    "image", "im_mask", "inpaint_mask", "cloth_pure", "cloth_mask", "c_name", "im_name", "caption_cloth", "cloth_type"
)  # fmt: skip
#: The arguments of its dataset.
DATASET_ARGUMENTS = ("dataroot_path", "phase", "order", "size", "data_list")
#: Contexts that swallow no error.
_CONTEXTS = frozenset({"accumulate", "no_grad", "inference_mode", "autocast"})
#: Statements that run whole, and parts of them that need not run.
_PLAIN = (ast.Expr, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Return)
_UNSURE = (ast.Lambda, ast.IfExp, ast.BoolOp, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)

Holds = dict[str, str | None]
"""What variables hold: ``dataset``, a ``loader`` of it, a ``batch``, or something unclear (None)."""


class DatasetUse:
    """What the script ``text`` certainly does with the class ``dataset``."""

    def __init__(self, text: ScriptText, dataset: str) -> None:
        self.text, self.dataset = text, dataset
        self.foreign_arguments: list[str] = []
        """Arguments that it gives to its dataset and that ours does not take."""
        self._read, self._put = list[str](), set[str]()
        self._unclear = False  # whether a batch is used in a way that may put any key into it
        self._seen = list[tuple[Function, Holds]]()
        self._home = text.main[0] if text.main else None
        if text.main:
            self._follow(*text.main, {})

    @property
    def foreign_keys(self) -> list[str]:
        """Keys that it reads from a batch, and that are neither in a sample nor put there by the script itself."""
        known = {*SAMPLE_KEYS, *self._put}
        return [] if self._unclear else [key for key in dict.fromkeys(self._read) if key not in known]

    def _follow(self, file: OwnFile, function: Function, given: Holds) -> None:
        """Note what a function does that certainly runs, with what its arguments hold."""
        if (function, given) in self._seen:
            return
        self._seen.append((function, given))
        holds = self._variables(file, function, given)
        certain = {id(node) for node in _certain(function.body, holds)}
        uses, clear = set[int](), set[int]()  # where a batch stands, and where no unknown key can get into it
        for node in ast.walk(function):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and holds.get(node.id) == "batch":
                uses.add(id(node))
            elif isinstance(node, ast.Assign) and _holds(node.targets[0], holds) == "batch":  # an alias
                clear.add(id(node.value))
            elif isinstance(node, ast.Call) and id(node) in certain:
                clear |= self._call(node, file, holds)
            elif (
                isinstance(node, ast.Subscript) and _holds(node.value, holds) == "batch" and (key := _text(node.slice))
            ):
                clear.add(id(node.value))
                self._put |= {key} if isinstance(node.ctx, ast.Store) else set()
                self._read += [key] if id(node) in certain else []
        self._unclear |= not uses <= clear

    def _variables(self, file: OwnFile, function: Function, given: Holds) -> Holds:
        """What the variables of a function hold: unclear where they get more than one kind of thing."""
        holds: Holds = {node.arg: given.get(node.arg) for node in ast.walk(function.args) if isinstance(node, ast.arg)}
        local = bound(function.body).items()
        holds |= {name: None for name, nodes in local if not isinstance(nodes[0], ast.Name)}  # imports and functions
        gets: dict[int, str | None] = {}
        for node in own_nodes(function):
            if isinstance(node, ast.For):
                gets[id(_loop(node)[0])] = "batch" if _over_batches(node, holds) else None
            elif isinstance(node, ast.Assign):
                gets[id(node.targets[-1])] = self._kind(node.value, file, holds)
                if _is_prepare(node):
                    gets |= {id(each): _holds(each, holds) for each in ast.walk(node.targets[0])}
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                kind, before = gets.get(id(node)), holds.get(node.id)
                self._unclear |= before == "batch" != kind  # it may be the same one, and have other keys now
                holds[node.id] = kind if holds.get(node.id, kind) == kind else None
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):  # loader.collate_fn = ...
                holds |= {node.value.id: None} if isinstance(node.value, ast.Name) else {}
        return holds

    def _kind(self, value: ast.expr, file: OwnFile, holds: Holds) -> str | None:
        if not isinstance(value, ast.Call):
            return _holds(value, holds)
        if self._is_dataset(value, file, holds):
            return "dataset"
        imports = [] if "DataLoader" in holds else file.bound.get("DataLoader", [])
        modules = {getattr(node, "module", None) for node in imports}  # None for a class or function
        names = {"torch.utils.data.DataLoader", *(["DataLoader"] if modules == {"torch.utils.data"} else [])}
        named = {key.arg: key.value for key in value.keywords}
        data = value.args[0] if value.args else named.get("dataset")
        plain = len(value.args) <= 6 and "collate_fn" not in named and None not in named
        return "loader" if ast.unparse(value.func) in names and plain and _holds(data, holds) == "dataset" else None

    def _is_dataset(self, call: ast.Call, file: OwnFile, holds: Holds) -> bool:
        """Whether a call builds the dataset by the name that is replaced."""
        name = call.func.id if isinstance(call.func, ast.Name) else None
        return name == self.dataset and name not in holds and file is self._home

    def _call(self, call: ast.Call, file: OwnFile, holds: Holds) -> set[int]:
        """Look at a call that certainly runs; the arguments that are followed into a function of the script."""
        name = call.func.id if isinstance(call.func, ast.Name) else ""
        own, function = (self.text.definition(name, file) if name not in holds else None) or (None, None)
        if any(isinstance(each, ast.Starred) for each in call.args) or not all(key.arg for key in call.keywords):
            return set()
        if self._is_dataset(call, file, holds):
            foreign = [str(key.arg) for key in call.keywords if key.arg not in DATASET_ARGUMENTS]
            foreign += [f"a value without a name: {ast.unparse(each)}" for each in call.args[len(DATASET_ARGUMENTS) :]]
            self.foreign_arguments += [each for each in foreign if each not in self.foreign_arguments]
        if own is None or not isinstance(function, ast.FunctionDef) or function.decorator_list:
            return set()
        if any(isinstance(node, (ast.Yield, ast.YieldFrom)) for node in own_nodes(function)):  # a call runs nothing
            return set()
        names = [node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)]
        given = dict(zip(names, call.args, strict=False)) | {str(key.arg): key.value for key in call.keywords}
        self._follow(own, function, {word: kind for word, value in given.items() if (kind := _holds(value, holds))})
        return {id(value) for word, value in given.items() if word in names}


def _certain(nodes: Iterable[ast.AST], holds: Holds, within: bool = False) -> Iterator[ast.AST]:
    """The nodes that run in any case, unless the run fails before; ``within`` a loop over batches."""
    for node in nodes:
        yield node
        inside: Iterable[ast.AST] = []
        batches = isinstance(node, ast.For) and _over_batches(node, holds)
        if isinstance(node, ast.For):  # any other loop need not run once, but one that counts epochs does
            runs = batches or ("range(" in ast.unparse(node.iter) and not within)
            inside = [node.iter, *node.body] if runs else [node.iter]
        elif isinstance(node, ast.With):
            contexts = [item.context_expr for item in node.items]
            safe = all(isinstance(each, ast.Call) and called(each) in _CONTEXTS for each in contexts)
            inside = node.body if safe else []
        elif isinstance(node, _PLAIN) or not isinstance(node, (ast.stmt, *_UNSURE)):
            inside = ast.iter_child_nodes(node)
        yield from _certain(inside, holds, within or batches)
        if isinstance(node, ast.stmt) and _may_leave(node):
            return


def _may_leave(statement: ast.stmt) -> bool:
    """Whether what comes after a statement need not run; a loop's own ``break`` and ``continue`` stay in it."""
    loops = isinstance(statement, (ast.For, ast.While))
    jumps = ast.Return if loops else (ast.Return, ast.Break, ast.Continue)
    nodes = own_nodes(statement) if not isinstance(statement, ast.FunctionDef) else ()
    return any(isinstance(node, jumps) for node in nodes)


def _over_batches(loop: ast.For, holds: Holds) -> bool:
    return _holds(_loop(loop)[1], holds) == "loader"


def _loop(loop: ast.For) -> tuple[ast.expr, ast.expr]:
    """The variable of a loop and what it goes through, without ``tqdm`` and ``enumerate``."""
    target, iterable = loop.target, loop.iter
    while isinstance(iterable, ast.Call) and called(iterable) in ("tqdm", "enumerate") and iterable.args:
        if called(iterable) == "enumerate" and isinstance(target, ast.Tuple):
            target = target.elts[-1]
        iterable = iterable.args[0]
    return target, iterable


def _is_prepare(node: ast.Assign) -> bool:
    """Whether it is ``a, b = accelerator.prepare(a, b)``."""
    call, names = node.value, ast.unparse(node.targets[0]).strip("()")
    if not isinstance(call, ast.Call) or ast.unparse(call.func) != "accelerator.prepare":
        return False
    return names == ", ".join(map(ast.unparse, call.args))


def _holds(value: ast.AST | None, holds: Holds) -> str | None:
    return holds.get(value.id) if isinstance(value, ast.Name) else None


def _text(key: ast.expr) -> str:
    return key.value if isinstance(key, ast.Constant) and isinstance(key.value, str) else ""
