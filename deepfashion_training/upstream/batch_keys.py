"""Which keys of a sample a training script certainly reads, told from its text.

Only what is certain counts: a key read where a loop over a ``DataLoader`` of the script's dataset comes by in any case,
through aliases, constants and functions of its own. What a condition guards, and what cannot be followed, does not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

from deepfashion_training.upstream.reading import Function, OwnFile, ScriptText, called, functions_in, own_nodes

#: The keys of a sample.
SAMPLE_KEYS = (
    "image", "im_mask", "inpaint_mask", "cloth_pure", "cloth_mask", "c_name", "im_name", "caption_cloth", "cloth_type"
)  # fmt: skip
#: The arguments of its dataset.
DATASET_ARGUMENTS = ("dataroot_path", "phase", "order", "size", "data_list")
#: Calls that hand on what their first argument is, as far as its keys go.
_SAME = frozenset(
    {"tqdm", "iter", "Subset", "skip_first_batches", "prepare", "prepare_data_loader", "dict", "deepcopy"}
)
#: What a variable may hold: the dataset, a loader of it, a loader through a function of the script, one sample or a
#: batch of them, a list of samples.
DATASET, LOADER, COLLATED, BATCH, SAMPLES = "dataset", "loader", "collated", "batch", "samples"

Binding = tuple[str, ast.expr | None]
"""How a variable gets its value: ``is`` an expression, an ``element`` of one, or unknown (``?``)."""


class DatasetUse:
    """How the script ``text`` uses the class ``dataset``."""

    def __init__(self, text: ScriptText, dataset: str) -> None:
        self.text, self.dataset = text, dataset
        places = text.reached(dataset)
        nodes = [(file, node) for file, place in places for node in functions_in(place)]
        self.functions: dict[int, tuple[OwnFile, Function]] = {id(node): (file, node) for file, node in nodes}
        self.by_name: dict[str, list[Function]] = {}
        for _, node in nodes:
            if node not in self.by_name.setdefault(node.name, []):
                self.by_name[node.name].append(node)
        self.enclosing = {
            id(inner): outer
            for _, outer in nodes
            for inner in own_nodes(outer)
            if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef))
        }
        self.bindings: dict[tuple[int, str], list[Binding]] = {}
        for _, node in nodes:
            self._bind(node)
        self._asked: set[tuple[int, str]] = set()

    # ---- what it answers

    def foreign_keys(self) -> list[str]:
        """Keys that the script certainly reads from a sample or batch, and that are neither there nor put there."""
        if self.dataset not in self._called_plainly:
            return []
        read: list[str] = []
        for function in self._certain:
            for node in certain_nodes(function):
                read += self._keys_read(node, function)
        if not read or self._written is None:
            return []
        return [key for key in dict.fromkeys(read) if key not in {*SAMPLE_KEYS, *self._written}]

    def foreign_arguments(self) -> list[str]:
        """Arguments that the script gives to its dataset and that ours does not take."""
        found: list[str] = []
        for function in self._certain:
            for node in certain_nodes(function):
                if not isinstance(node, ast.Call) or not self._is_dataset(node.func):
                    continue
                if any(isinstance(word, ast.Starred) for word in node.args) or any(
                    not key.arg for key in node.keywords
                ):
                    continue
                given = [*DATASET_ARGUMENTS[: len(node.args)], *(str(key.arg) for key in node.keywords)]
                found += [name for name in given if name not in DATASET_ARGUMENTS]
                found += [
                    f"a value without a name: {ast.unparse(word)}" for word in node.args[len(DATASET_ARGUMENTS) :]
                ]
        return list(dict.fromkeys(found))

    # ---- functions

    def _is_dataset(self, function: ast.expr) -> bool:
        return isinstance(function, ast.Name) and function.id == self.dataset

    @cached_property
    def _called_plainly(self) -> set[str]:
        calls = (
            node for _, place in self.functions.values() for node in own_nodes(place) if isinstance(node, ast.Call)
        )
        return {node.func.id for node in calls if isinstance(node.func, ast.Name)}

    def _own(self, function: ast.expr) -> Function | None:
        """The script's function that an expression names, where only one has the name."""
        nodes = self.by_name.get(function.id, []) if isinstance(function, ast.Name) else []
        return nodes[0] if len(nodes) == 1 else None

    @cached_property
    def _certain(self) -> list[Function]:
        """Functions that a run comes by in any case: ``main``, what it calls without a condition, and so on."""
        found: list[Function] = []
        waiting = [self.text.main[1]] if self.text.main else []
        while waiting:
            function = waiting.pop(0)
            if function in found:
                continue
            found.append(function)
            for node in certain_nodes(function):
                if isinstance(node, ast.Call):
                    collate = next((key.value for key in node.keywords if key.arg == "collate_fn"), None)
                    named = [node.func, *([collate] if collate and self._kind(node, function) == COLLATED else [])]
                    waiting += [own for own in map(self._own, named) if own is not None]
        return found

    # ---- variables

    def _bind(self, function: Function) -> None:
        """Note how each variable of ``function``, and each argument of what it calls, gets its value."""
        for node in own_nodes(function):
            if isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    self._assign(function, target, node.value)
            elif isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
                self._iterate(function, node.target, node.iter)
            elif isinstance(node, ast.Call):
                self._bind_arguments(node)
            elif isinstance(node, (ast.With, ast.AsyncWith)):
                for item in node.items:
                    self._assign(function, item.optional_vars, None)
            elif isinstance(node, ast.AugAssign):
                self._assign(function, node.target, None)
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                for alias in node.names:
                    self._note(function, (alias.asname or alias.name).partition(".")[0], ("?", None))

    def _note(self, function: Function, name: str, binding: Binding) -> None:
        self.bindings.setdefault((id(function), name), []).append(binding)

    def _assign(self, function: Function, target: ast.AST | None, value: ast.expr | None) -> None:
        if isinstance(target, ast.Name):
            self._note(function, target.id, ("is", value) if value is not None else ("?", None))
        elif isinstance(target, (ast.Tuple, ast.List)):
            values: list[ast.expr] = []
            if isinstance(value, (ast.Tuple, ast.List)):
                values = value.elts
            elif isinstance(value, ast.Call) and called(value) == "prepare":
                values = value.args
            elif isinstance(value, ast.Call) and (own := self._own(value.func)) and len(_returned(own)) == 1:
                (result,) = _returned(own)
                values = result.elts if isinstance(result, ast.Tuple) else []
            same = len(values) == len(target.elts) and not any(isinstance(part, ast.Starred) for part in values)
            for place, part in enumerate(target.elts):
                self._assign(function, part, values[place] if same else None)

    def _iterate(self, function: Function, target: ast.expr, iterable: ast.expr) -> None:
        while isinstance(iterable, ast.Call) and called(iterable) == "tqdm" and iterable.args:
            iterable = iterable.args[0]
        parts = target.elts if isinstance(target, ast.Tuple) else []
        if isinstance(iterable, ast.Call) and called(iterable) == "enumerate" and len(parts) == 2 and iterable.args:
            self._assign(function, parts[0], None)
            self._iterate(function, parts[1], iterable.args[0])
        elif isinstance(iterable, ast.Call) and called(iterable) == "zip" and len(parts) == len(iterable.args):
            for part, each in zip(parts, iterable.args, strict=True):
                self._iterate(function, part, each)
        elif isinstance(target, ast.Name):
            self._note(function, target.id, ("element", iterable))
        else:
            self._assign(function, target, None)

    def _bind_arguments(self, call: ast.Call) -> None:
        """Arguments of a function of the script, from a call of it; unknown where it is handed on uncalled."""
        for value in (*call.args, *(key.value for key in call.keywords)):
            if own := self._own(value):
                first = own.args.args[0].arg if own.args.args else ""
                collates = any(key.arg == "collate_fn" and key.value is value for key in call.keywords)
                binding: Binding = ("samples", call) if collates else ("?", None)
                for argument in own.args.args:
                    self._note(own, argument.arg, binding if argument.arg == first else ("?", None))
        own = self._own(call.func)
        if own is None:
            return
        names = [argument.arg for argument in own.args.args]
        starred = any(isinstance(word, ast.Starred) for word in call.args) or any(not key.arg for key in call.keywords)
        given: dict[str, ast.expr] = {} if starred else dict(zip(names, call.args, strict=False))
        given |= {key.arg: key.value for key in call.keywords if key.arg}
        for name in {*names, *(argument.arg for argument in own.args.kwonlyargs)}:
            self._note(own, name, ("is", given[name]) if name in given else ("?", None))

    def _scope(self, name: str, function: Function | None) -> Function | None:
        """The function whose variable ``name`` is, seen from ``function``; None for a global."""
        while function is not None:
            arguments = {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}
            if (id(function), name) in self.bindings or name in arguments:
                return function
            function = self.enclosing.get(id(function))
        return None

    def _kind_of_name(self, name: str, function: Function) -> str | None:
        scope = self._scope(name, function)
        key = (id(scope), name)
        if scope is None or key in self._asked:
            return "same" if key in self._asked else None
        self._asked.add(key)
        try:
            # An argument is seen from the function that gives it, a variable from its own: both have its scope around.
            kinds = {self._kind_of_binding(how, value, scope) for how, value in self.bindings.get(key, [("?", None)])}
        finally:
            self._asked.discard(key)
        return _joined(kinds)

    def _kind_of_binding(self, how: str, value: ast.expr | None, scope: Function) -> str | None:
        if value is None:
            return None
        seen_from = self._home.get(id(value), scope)
        kind = self._kind(value, seen_from)
        if how == "samples":
            return SAMPLES if kind == COLLATED else None
        return _element(kind) if how == "element" else kind

    @cached_property
    def _home(self) -> dict[int, Function]:
        """The function that each expression stands in."""
        return {id(node): function for _, function in self.functions.values() for node in own_nodes(function)}

    def _kind(self, value: ast.expr, function: Function) -> str | None:
        """What an expression in ``function`` is, or None where that is unclear."""
        if isinstance(value, ast.Name):
            return self._kind_of_name(value.id, function)
        if isinstance(value, ast.Call):
            return self._kind_of_call(value, function)
        if isinstance(value, ast.Subscript):
            return _element(self._kind(value.value, function), DATASET, SAMPLES)
        if isinstance(value, ast.IfExp):
            return _joined({self._kind(value.body, function), self._kind(value.orelse, function)})
        if isinstance(value, ast.NamedExpr):
            return self._kind(value.value, function)
        if (
            isinstance(value, ast.DictComp) and len(value.generators) == 1
        ):  # {key: value.to(device) for ... in x.items()}
            items, target = value.generators[0].iter, value.generators[0].target
            if (isinstance(items, ast.Call) and isinstance(items.func, ast.Attribute) and items.func.attr == "items"
                    and isinstance(target, ast.Tuple) and ast.dump(value.key).split("ctx")[0]
                    == ast.dump(target.elts[0]).split("ctx")[0] and not value.generators[0].ifs):  # fmt: skip
                return self._kind(items.func.value, function)
        return None

    def _kind_of_call(self, call: ast.Call, function: Function) -> str | None:
        name = called(call)
        if self._is_dataset(call.func):
            return DATASET
        first = call.args[0] if call.args else None
        if name == "DataLoader":
            data = first or next((key.value for key in call.keywords if key.arg == "dataset"), None)
            if data is None or self._kind(data, function) != DATASET:
                return None
            collate = [key.value for key in call.keywords if key.arg == "collate_fn" and not _is_none(key.value)]
            return COLLATED if collate else LOADER
        if name == "copy" and isinstance(call.func, ast.Attribute) and first is None:
            return self._kind(call.func.value, function)
        if own := self._own(call.func):
            return self._kind_of_result(own)
        if first is None:
            return None
        if name == "ConcatDataset" and isinstance(first, (ast.List, ast.Tuple)):
            return _joined({self._kind(each, function) for each in first.elts})
        if name == "next":
            return _element(self._kind(first, function))
        many = len(call.args) > (1 if name == "prepare" else 2)
        return self._kind(first, function) if name in _SAME and not many else None

    def _kind_of_result(self, function: Function) -> str | None:
        """What a function of the script returns."""
        key = (id(function), "return")  # no variable's name
        if key in self._asked:
            return "same"
        self._asked.add(key)
        try:
            returns = _returned(function)
            return _joined({self._kind(value, function) if value is not None else None for value in returns})
        finally:
            self._asked.discard(key)

    # ---- keys

    def _keys_read(self, node: ast.AST, function: Function) -> list[str]:
        """Keys that an expression reads from a batch or sample."""
        if not isinstance(node, ast.Subscript) or not isinstance(node.ctx, ast.Load):
            return []
        return self._texts(node.slice, function) if self._kind(node.value, function) == BATCH else []

    def _texts(self, key: ast.expr, function: Function) -> list[str]:
        """The texts that ``key`` is, one after the other; none where that is unclear."""
        if isinstance(key, ast.Constant):
            return [key.value] if isinstance(key.value, str) else []
        if not isinstance(key, ast.Name):
            return []
        scope = self._scope(key.id, function)
        if scope is None:
            file = self.functions[id(function)][0]
            nodes = file.bound().get(key.id, [])
            bindings: list[Binding] = [
                ("is", node.value) for node in file.body if isinstance(node, ast.Assign) and nodes == node.targets
            ]
        else:
            bindings = self.bindings.get((id(scope), key.id), [])
        if len(bindings) != 1 or bindings[0][1] is None:
            return []
        how, value = bindings[0]
        values = value.elts if how == "element" and isinstance(value, (ast.Tuple, ast.List)) else [value]
        texts = [each.value for each in values if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        return texts if len(texts) == len(values) and (how == "is" or len(values) > 1) else []

    @cached_property
    def _written(self) -> set[str] | None:
        """Keys that the script may put into a batch by itself; None where that is unclear."""
        found: set[str] = set()
        for _, function in self.functions.values():
            if function.name == "__getitem__":  # a dataset around ours would be none that is known here
                continue
            for node in own_nodes(function):
                if isinstance(node, ast.Assign):
                    read = {ast.unparse(part) for part in ast.walk(node.value) if isinstance(part, ast.Subscript)}
                    put = [each for each in node.targets if isinstance(each, ast.Subscript)]
                    for target in (
                        each for each in put if ast.unparse(each) not in read
                    ):  # not x["a"] = x["a"].to(...)
                        if isinstance(target.slice, ast.Constant):
                            found.add(str(target.slice.value))
                        elif self._kind(target.value, function) == BATCH:
                            return None
                elif isinstance(node, ast.Dict):
                    found |= {str(key.value) for key in node.keys if isinstance(key, ast.Constant)}
                elif isinstance(node, ast.Call) and called(node) in ("update", "setdefault", "dict"):
                    if self._is_changed_unseen(node, function):
                        return None
                    found |= {str(key.arg) for key in node.keywords}
                    found |= {str(word.value) for word in node.args[:1] if isinstance(word, ast.Constant)}
        return found

    def _is_changed_unseen(self, call: ast.Call, function: Function) -> bool:
        """Whether a call puts keys into a batch that do not stand in it."""
        changes = isinstance(call.func, ast.Attribute) and self._kind(call.func.value, function) == BATCH
        plain = all(isinstance(word, (ast.Constant, ast.Dict)) for word in call.args[:1])
        return changes and (not plain or any(not key.arg for key in call.keywords))


def _returned(function: Function) -> list[ast.expr | None]:
    return [node.value for node in own_nodes(function) if isinstance(node, ast.Return)]


def certain_nodes(function: Function) -> Iterator[ast.AST]:
    """The nodes that a run of ``function`` comes by in any case, unless it ends or fails before."""

    def through(statements: Iterable[ast.AST]) -> Iterator[ast.AST]:
        for node in statements:
            yield node
            yield from through(_certain_children(node))
            if isinstance(node, (ast.Return, ast.Raise, ast.Continue, ast.Break)):
                return

    return through(function.body)


def _certain_children(node: ast.AST) -> Sequence[ast.AST]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
        return []
    if isinstance(node, (ast.If, ast.IfExp)):
        return [node.test]
    if isinstance(node, ast.BoolOp):
        return node.values[:1]
    if isinstance(node, ast.Compare):
        return [node.left, *node.comparators[:1]]
    if isinstance(node, ast.Match):
        return [node.subject]
    if isinstance(node, (ast.For, ast.AsyncFor)):
        return [node.iter, *node.body]
    if isinstance(node, ast.While):
        return [node.test, *node.body]
    if isinstance(node, ast.Try):
        caught = {ast.unparse(handler.type) if handler.type else "" for handler in node.handlers}
        return (
            []
            if any(not name or "KeyError" in name or "Lookup" in name or "Exception" in name for name in caught)
            else node.body
        )
    if isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)):
        inner = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        guarded = any(each.ifs for each in node.generators)
        return [node.generators[0].iter, *([] if guarded else inner)]
    return list(ast.iter_child_nodes(node))


def _joined(kinds: set[str | None]) -> str | None:
    """What a value is that may be any of these; a variable that gets its own value again does not count."""
    rest = kinds - {"same"}
    return next(iter(rest)) if len(rest) == 1 else None


def _element(kind: str | None, *only: str) -> str | None:
    return BATCH if kind in (only or (DATASET, LOADER, SAMPLES)) else None


def _is_none(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is None
