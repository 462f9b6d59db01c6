"""What a third-party script can import: the files beside it, and stubs for packages that are not needed here.

Only the script's own files see a stub: another library that asks whether the package is installed gets the true answer.
So stubs never enter ``sys.modules``; ``__import__`` is replaced while the script runs.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import functools
import importlib.util
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

from deepfashion_training.upstream.reading import ScriptText

#: Packages that a script of this family can do without: its dataset is replaced, and of deepspeed and wandb it only
#: asks whether they are in use.
HARMLESS = ("cv2", "deepspeed", "pandas", "torchvision", "wandb")
#: Packages whose name for pip is another than that of the import.
PIP_NAMES = {
    "PIL": "Pillow", "bs4": "beautifulsoup4", "cleanfid": "clean-fid", "cv2": "opencv-python-headless",
    "dotenv": "python-dotenv", "git": "GitPython",
    "pkg_resources": "setuptools", "skimage": "scikit-image", "sklearn": "scikit-learn", "yaml": "PyYAML",
}  # fmt: skip
#: Names that repositories give to files of their own, and of projects that are installed from their repository alone;
#: pip knows something else by them.
NOT_PIPS = frozenset(
    "annotator apex api app apps args arguments attention base blocks catvton clip common conf config configs "
    "constants core cp_dataset data dataloader dataloaders dataset densepose detectron2 diffusion engine eval "
    "evaluation extern external flux generation helper helpers image_datasets infer inference layers ldm lib library "
    "libs loader loaders logger loss losses main mask masks metrics misc model models module modules network networks "
    "nodes openpose options parser parsers paser_helper pipeline pipelines preprocess preprocessing processing "
    "project resources runner sampling schedulers script scripts settings sgm shared source src taming task tasks "
    "test tests tool tools train trainer trainers training transformer tryon unet util utilities utils vae "
    "visualization visualizer viton vton".split()
)
#: Ends of names of files that hold what one repository needs.
_OWN_ENDS = ("_utils", "_util", "_helper", "_helpers", "_dataset", "_datasets", "_config", "_lib", "_args")


def is_missing(name: str) -> bool:
    """Whether no package ``name`` is installed. A folder ``wandb``, such as runs leave behind, is none."""
    spec = importlib.util.find_spec(name)
    return spec is None or spec.origin is None


def advice(error: ImportError, text: ScriptText) -> str:
    """What to do about a module that the script cannot import, with ``"; "`` before it; nothing where that is unclear.

    pip is named only for what is no file of the script's own repository, neither one that is there nor one that its
    name tells of.
    """
    assert error.name is not None
    top = error.name.partition(".")[0]
    if (held := _held_in(error.name, text.script.path) or _held_in(top, text.script.path)) is not None:
        folder, found = held
        if folder != text.script.path.parent:
            path = shlex.quote(str(folder))
            return f"; {top} is {found} of the script's own repository: put PYTHONPATH={path} before the command"
    wanted = ("parse_args", "main", *text.dataset_classes())  # no package has them
    nodes = [node for name in wanted for node in text.script.bound.get(name, [])]
    own = {str(node.module).partition(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
    if held is not None or top in NOT_PIPS or top in own or top.endswith(_OWN_ENDS):
        return (
            f"; {top} is no package of pip's: keep the script in its checkout, beside the files of its repository, and "
            "install what comes from elsewhere as its README says"
        )
    if not isinstance(error, ModuleNotFoundError) or "." in error.name:
        return ""
    return f"; install it: pip install {PIP_NAMES.get(top, top)}"


def checkout_of(file: Path) -> Path:
    """The root of the checkout that a script lies in; its folder where there is none, or where it is our own."""
    root = next((folder for folder in file.parents if (folder / ".git").exists()), file.parent)
    return file.parent if root == Path(__file__).resolve().parents[2] else root


def _held_in(name: str, file: Path) -> tuple[Path, Path] | None:
    """The file or folder of a module in the repository that ``file`` lies in, after the folder to find it from.

    It is looked for from the folders above ``file``, up to the root of its checkout, and from ``src`` in them.
    """
    root = checkout_of(file)
    for above in (folder for folder in file.parents if folder.is_relative_to(root)):
        for folder in (above, above / "src"):
            whole = folder.joinpath(*name.split("."))
            if (module := whole.with_name(f"{whole.name}.py")).is_file() and module != file:
                return folder, module
            if any(True for pattern in ("*.py", "*/*.py") for _ in whole.glob(pattern)):
                return folder, whole
    return None


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
    """The files of its checkout that the script ``file`` imports, and stubs for packages; those ``used`` are noted."""

    def __init__(self, file: Path) -> None:
        self.file, self.root = file, checkout_of(file)
        self.stubs = {name: make_stub(name) for name in HARMLESS if is_missing(name)}
        self.used: set[str] = set()
        self.siblings: dict[str, ModuleType] = {}

    @property
    def files(self) -> list[Path]:
        """The script and the files of its checkout that it has imported."""
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
        python = Path(sys.base_prefix)  # which may lie in a checkout, such as that of a home directory
        installed = "site-packages" in file.parts or (python.is_relative_to(self.root) and file.is_relative_to(python))
        return file.is_relative_to(self.root) and not installed
