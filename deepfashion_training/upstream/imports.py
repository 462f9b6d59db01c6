"""What a third-party script can import: the files beside it, and stubs for packages that are not needed here.

Only the script's own files see a stub: another library that asks whether the package is installed gets the true answer.
So stubs never enter ``sys.modules``; ``__import__`` is replaced while the script runs.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

#: Packages that a script of this family can do without: its dataset is replaced, and of deepspeed and wandb it only
#: asks whether they are in use.
HARMLESS = ("cv2", "deepspeed", "pandas", "torchvision", "wandb")


def is_missing(name: str) -> bool:
    """Whether no package ``name`` is installed. A folder ``wandb``, such as runs leave behind, is none."""
    spec = importlib.util.find_spec(name)
    return spec is None or spec.origin is None


class StubType(type):
    """Type of stubs: classes with stubs as attributes, which raise ``ImportError`` when they are called."""

    path: str

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_"):  # what pickle, copy, inspect and typing look for
            raise AttributeError(f"{cls.path} has no {name}: its package is not installed")
        setattr(cls, name, make_stub(f"{cls.path}.{name}"))
        return vars(cls)[name]

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Raise ``ImportError``."""
        raise ImportError(f"{cls.path} is used, but its package is not installed")


def make_stub(path: str) -> StubType:
    """A stub for the package, module, class or function at a dotted ``path``."""
    return StubType(path.rpartition(".")[2], (), {"path": path})


class ScriptImports:
    """The files beside the script ``file`` that it imports, and stubs for packages; those ``used`` are noted."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.stubs = {name: make_stub(name) for name in HARMLESS if is_missing(name)}
        self.used: set[str] = set()
        self.siblings: dict[str, ModuleType] = {}

    @property
    def files(self) -> list[Path]:
        """The script and the files beside it that it has imported."""
        return [self.file, *(Path(str(module.__file__)) for module in self.siblings.values())]

    @contextlib.contextmanager
    def importable(self) -> Iterator[None]:
        """The script's folder is first on the path in the block; afterwards path and ``sys.modules`` are as before.

        Entering again brings the very same siblings back.
        """
        path, before = list(sys.path), set(sys.modules)
        sys.path.insert(0, str(self.file.parent))
        for name, module in self.siblings.items():
            sys.modules.setdefault(name, module)
        true_import = builtins.__import__

        def import_(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
            top, *parts = name.split(".")
            if level or top not in self.stubs or not self._is_own(globals or {}):
                return true_import(name, globals, locals, fromlist or (), level)
            self.used.add(top)
            return functools.reduce(getattr, parts if fromlist else [], self.stubs[top])

        try:
            with mock.patch.object(builtins, "__import__", import_):
                yield
        finally:
            sys.path[:] = path
            new = [name for name in set(sys.modules) - before if self._is_own(vars(sys.modules[name]))]
            self.siblings |= {name: sys.modules.pop(name) for name in new}

    def _is_own(self, namespace: Mapping[str, object]) -> bool:
        """Whether a module's file is one of the script's; a virtual environment may lie in its folder."""
        file = Path(str(namespace.get("__file__")))
        return file.is_relative_to(self.file.parent) and "site-packages" not in file.parts
