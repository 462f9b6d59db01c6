"""Importing a third-party script: its siblings, and stubs for packages that it imports and does not need here.

A stub is seen by the script's own files alone: another library that asks whether the package is installed gets the
true answer. So stubs never enter ``sys.modules``; ``__import__`` is replaced while the script runs.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import importlib.util
import sys
from abc import ABCMeta
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from deepfashion_training.upstream.inspection import imported_packages
from deepfashion_training.upstream.patching import patched

#: Packages that a script of this family can do without when its dataset is replaced, and why.
HARMLESS = {
    "cv2": "used by the dataset that is replaced",
    "deepspeed": "only asked whether a model is wrapped by it",
    "pandas": "used by the dataset that is replaced",
    "torchvision": "used by the dataset that is replaced",
    "wandb": "only its settings are made, no tracker is used",
}
#: What to install for an import whose package has another name.
PIP_NAMES = {"PIL": "Pillow", "cv2": "opencv-python-headless", "skimage": "scikit-image", "sklearn": "scikit-learn"}


def is_missing(name: str) -> bool:
    """Whether no top-level module ``name`` is installed. A folder ``wandb``, such as runs leave behind, is none."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # imported by hand, without a spec
        return False
    return spec is None or (name in HARMLESS and spec.origin is None)


def pip_command(names: Iterable[str]) -> str:
    """The command that installs packages, given what they are imported as."""
    return " ".join(["pip install", *sorted({PIP_NAMES.get(name, name) for name in names})])


class StubType(ABCMeta):  # of ABCMeta, so that a stub and an abstract class may be bases of one class
    """Type of stubs: classes with stubs as attributes, which raise ``ImportError`` when they are called."""

    path: str

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_"):  # what pickle, copy, inspect and typing look for
            raise AttributeError(f"{cls.path} has no {name}: its package is not installed")
        setattr(cls, name, make_stub(f"{cls.path}.{name}"))
        return vars(cls)[name]

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Raise ``ImportError``, but for settings of wandb, which scripts make whether or not they use it."""
        if cls.path == "wandb.Settings":
            return SimpleNamespace()
        package = cls.path.partition(".")[0]
        raise ImportError(f"{cls.path} is used, but {package} is not installed: {pip_command([package])}")


def make_stub(path: str) -> StubType:
    """A stub for the package, module, class or function at a dotted ``path``."""
    return StubType(path.rpartition(".")[2], (), {"path": path})


class ImportedScript:
    """The ``module`` of the script in ``file``, and what it can import: its siblings, and ``stubs`` by package name."""

    def __init__(self, file: Path, module: ModuleType) -> None:
        self.file, self.module = file, module
        self.stubs = {name: make_stub(name) for name in HARMLESS if is_missing(name)}
        self.siblings: dict[str, ModuleType] = {}
        self._path = [str(file.parent)]

    @property
    def missing_packages(self) -> list[str]:
        """Packages that it imports and that are not installed, those with a stub among them."""
        return [name for name in imported_packages(self.files, HARMLESS) if is_missing(name)]

    @property
    def files(self) -> list[Path]:
        """Files of the script and of the siblings that it has imported."""
        return [self.file, *(Path(str(module.__file__)) for module in self.siblings.values())]

    @contextlib.contextmanager
    def importable(self) -> Iterator[None]:
        """The folder is first on the path and siblings are importable; afterwards all is as before.

        Entering again brings the very same siblings back, and what the script has added to the path.
        """
        importlib.invalidate_caches()  # the files may be newer than what the import system knows of the folder
        path, entries, before = sys.path, list(sys.path), set(sys.modules)
        path[:0] = [entry for entry in self._path if entry not in entries]
        for name, module in self.siblings.items():
            sys.modules.setdefault(name, module)
        true_import = builtins.__import__

        def import_(
            name: str,
            globals: Mapping[str, object] | None = None,
            locals: Mapping[str, object] | None = None,
            fromlist: Sequence[str] | None = (),
            level: int = 0,
        ) -> Any:
            top, *parts = name.split(".")
            if level or top not in self.stubs or not self._is_own(globals or {}):
                return true_import(name, globals, locals, fromlist or (), level)
            found: Any = self.stubs[top]
            for part in parts if fromlist else ():
                found = getattr(found, part)
            return found

        try:
            with patched(builtins, __import__=import_):
                yield
        finally:
            self._path = [entry for entry in sys.path if entry not in entries] or self._path
            path[:] = entries
            sys.path = path
            new = [name for name in set(sys.modules) - before if self._is_own(vars(sys.modules[name]))]
            self.siblings |= {name: sys.modules.pop(name) for name in new}

    def _is_own(self, namespace: Mapping[str, object]) -> bool:
        """Whether a module's file is one of the script's; a virtual environment may lie in its folder."""
        file = Path(str(namespace.get("__file__")))
        return file.is_relative_to(self.file.parent) and "site-packages" not in file.parts
