"""Importing a training script and its siblings: what must be installed, what a stand-in does for, and where from.

A stand-in for a package is seen by the script's own files and by nobody else: another library that asks whether the
package is installed gets the true answer. So it never enters ``sys.modules``; the files get an ``__import__`` of their
own instead.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib
import importlib.util
import re
import sys
from abc import ABCMeta
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from deepfashion_training.upstream.source import Source, bindings, changes_path, executed
from deepfashion_training.upstream.uses import packages, third_party

#: What to install for an import whose package has another name.
PIP_NAMES = {
    "PIL": "Pillow",
    "bs4": "beautifulsoup4",
    "clip": "openai-clip",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "dotenv": "python-dotenv",
    "flash_attn": "flash-attn",
    "git": "GitPython",
    "mpl_toolkits": "matplotlib",
    "pytorch_lightning": "pytorch-lightning",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
}

#: Packages that scripts of this family use.
KNOWN = frozenset("einops torchvision torchaudio pandas bitsandbytes prodigyopt xformers timm lpips scipy".split())

#: Packages that ``main`` uses and does not need, and why; see ``needs`` for wandb.
HARMLESS = {
    "deepspeed": "only asked whether a model is its engine",
    "wandb": "only settings for a tracker that is not used",
}
UNUSED = "imported, never used by main with our dataset"

#: What may be called of a stand-in: scripts make these settings whether or not the tracker is used.
_CALLABLE = frozenset({"wandb.Settings"})


def needs(source: Source, report_to: str = "tensorboard") -> tuple[list[str], dict[str, str]]:
    """Packages that must be installed before the script can run, and stand-ins: package to why one will do.

    A package that only guarded imports name is neither, unless ``main`` uses a harmless one all the same. A script
    that changes ``sys.path`` is taken to know where its packages are: nothing is said to be missing.
    """
    tracked = {"wandb", "all"} & set(re.split(r"\W+", report_to))
    missing, stand_ins = [], {}
    for name, use in packages(source).items():
        if not is_missing(name, source.folder):
            continue
        harmless = None if name == "wandb" and tracked else HARMLESS.get(name)
        if use.used_by and harmless:
            stand_ins[name] = harmless
        elif use.guarded:
            continue
        elif not use.used_by:
            stand_ins[name] = harmless or UNUSED
        elif not changes_path(source):
            missing.append(name)
    return missing, stand_ins


def is_missing(name: str, folder: Path) -> bool:
    """Whether no top-level module ``name`` is installed or lies in ``folder``.

    A mere folder of that name in ``folder`` or the working directory, such as the ``wandb`` that runs leave, is none.
    """
    try:
        spec = importlib.util.find_spec(name) or PathFinder.find_spec(name, [str(folder)])
    except ValueError:  # it is imported already, by hand
        return False
    if spec is None or spec.origin is not None:
        return spec is None
    where = {Path(location).resolve().parent for location in spec.submodule_search_locations or ()}
    return bool(where) and where <= {folder, Path.cwd()}


def pip_command(names: Iterable[str]) -> str:
    """The command that installs packages, given what they are imported as."""
    return " ".join(["pip install", *sorted({PIP_NAMES.get(name, name) for name in names})])


def says_missing(names: Iterable[str]) -> str:
    """One line on packages that are missing; one that is not known as a package may be a file that was left behind."""
    unknown = sorted(set(names) - KNOWN - set(PIP_NAMES) - set(HARMLESS))
    doubt = f" (or is {' and '.join(f'{name}.py' for name in unknown)} missing beside it?)" if unknown else ""
    return f"needs packages that are not installed: {pip_command(names)}{doubt}"


class Inert:
    """What calling a harmless stand-in gives: an object that does nothing."""


class _StandIn(ABCMeta):  # of ABCMeta, so that a stand-in and an abstract class may be bases of one class
    """Type of stand-ins: classes whose attributes are stand-ins, and that raise ``ImportError`` when called."""

    __stand_in__: str

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("_"):  # what pickle, copy, inspect and typing look for
            raise AttributeError(f"{cls.__stand_in__} has no {name}: {cls.__stand_in__.split('.')[0]} is not installed")
        return _stand_in(name, cls)

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls.__stand_in__ in _CALLABLE:
            return Inert()
        package = cls.__stand_in__.partition(".")[0]
        raise ImportError(f"{cls.__stand_in__} is used, but {package} is not installed: {pip_command([package])}")

    def __repr__(cls) -> str:
        return f"<stand-in for {cls.__stand_in__}>"


def _stand_in(name: str, parent: _StandIn | None = None) -> _StandIn:
    """The stand-in called ``name``, one and the same for the same parent."""
    if parent is not None and isinstance(vars(parent).get(name), _StandIn):
        return vars(parent)[name]
    path = f"{parent.__stand_in__}.{name}" if parent is not None else name
    itself = classmethod(lambda cls, _: cls)  # as in an annotation: Tensor[int]
    made = _StandIn(
        name, (), {"__module__": path.rpartition(".")[0], "__stand_in__": path, "__class_getitem__": itself}
    )
    if parent is not None:
        setattr(parent, name, made)
    return made


def _at(roots: Mapping[str, _StandIn], path: str) -> _StandIn:
    top, *parts = path.split(".")
    found = roots[top]
    for part in parts:
        found = _stand_in(part, found)
    return found


def _import_with(roots: Mapping[str, _StandIn], folder: Path, prefer_real: bool) -> Callable[..., Any]:
    """An ``__import__`` to which the packages in ``roots`` are stand-ins; all else goes to the true one."""

    def import_(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        top = name.partition(".")[0]
        if level or top not in roots or (prefer_real and not is_missing(top, folder)):
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        module = _at(roots, name)
        for item in fromlist or ():
            if item != "*":
                _stand_in(item, module)
        return module if fromlist else roots[top]

    return import_


class ScriptImports:
    """Imports of one script: its loader, its siblings while it runs, and its stand-ins.

    ``stand_ins`` names packages as ``needs`` gives them. ``elsewhere`` names modules of files outside the script's
    folder that stay importable though the folder, which comes first on the path, has one of the same name.
    """

    def __init__(
        self, source: Source, stand_ins: Iterable[str] = (), elsewhere: Mapping[str, Path] | None = None
    ) -> None:
        self.source = source
        self.elsewhere = {name: file for name, file in (elsewhere or {}).items() if name not in source.top_names}
        self.roots = {name: _stand_in(name) for name in stand_ins}
        self.guarded = {name for name, use in packages(source).items() if use.guarded} if self.roots else set()
        imported = {name: root for name, root in self.roots.items() if name not in self.guarded}
        self.builtins: dict[str, Any] | None = None
        if imported:
            own_import = _import_with(imported, source.folder, prefer_real=changes_path(source))
            self.builtins = vars(builtins) | {"__import__": own_import}
        self._siblings: dict[str, ModuleType] = {}
        self._path_front, self._path_back = [str(source.folder)], list[str]()

    def loader(self, name: str, file: str | Path, module: str) -> SourceFileLoader:
        """Loader of a file of the script under ``name``; ``module`` is what ``Source`` calls it."""
        return _Loader(self, name, str(file), module)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """The script's folder is first on the path and its siblings are importable; afterwards all is as before.

        Entering again brings the very same siblings back. A module of the folder that was imported before stays.
        """
        if sys.meta_path[:1] == [self]:
            yield
            return
        if not self._siblings:
            importlib.invalidate_caches()  # the files may be newer than what the import system knows of the folder
        path, entries, before = sys.path, list(sys.path), set(sys.modules)
        tops = {name.partition(".")[0] for name in self._siblings} | self.source.top_names
        taken = {top for top in tops if not self._has(top)}
        displaced = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in taken}
        rest = [entry for entry in entries if entry not in (*self._path_front, *self._path_back)]
        try:
            for name in displaced:
                del sys.modules[name]
            sys.modules.update({name: m for name, m in self._siblings.items() if name.partition(".")[0] in taken})
            sys.path[:] = [*self._path_front, *rest, *self._path_back]
            sys.meta_path.insert(0, self)
            yield
        finally:
            with contextlib.suppress(ValueError):
                sys.meta_path.remove(self)
            new = {name.partition(".")[0] for name in set(sys.modules) - before}
            taken |= {top for top in new - before if self._has(top)}  # imported by a name that no source says
            self._siblings |= {name: m for name, m in sys.modules.items() if name.partition(".")[0] in taken}
            for name in [name for name in sys.modules if name.partition(".")[0] in taken]:
                del sys.modules[name]
            sys.modules.update(displaced)
            first = next((index for index, entry in enumerate(sys.path) if entry in rest), len(sys.path))
            self._path_front = sys.path[:first]  # the script may have added to the path, and counts on it later
            self._path_back = [entry for entry in sys.path[first:] if entry not in rest]
            path[:] = entries
            sys.path = path

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """Where a sibling is, as the import system asks; None for everything else."""
        if name in self.elsewhere:
            return importlib.util.spec_from_file_location(name, self.elsewhere[name])
        if name.partition(".")[0] not in self.source.top_names:
            return None
        spec = PathFinder.find_spec(name, [str(self.source.folder)] if path is None else path)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = self.loader(name, spec.loader.path, name)
        return spec

    def _has(self, top: str) -> bool:
        """Whether ``sys.modules`` has the top-level module ``top`` of this very folder."""
        module = sys.modules.get(top)
        if module is None:
            return False
        folder = self.source.folder
        file = getattr(module, "__file__", None)
        if file:
            found = {Path(str(file)), Path(str(file)).resolve()}  # a sibling may be a link to a file elsewhere
            return not found.isdisjoint({folder / f"{top}.py", folder / top / "__init__.py"})
        return str(folder / top) in list(getattr(module, "__path__", ()))

    def bind_guarded(self, namespace: dict[str, Any], module: str) -> None:
        """Bind stand-ins to names that a guarded import left unbound and that ``main`` uses all the same."""
        tree = self.source.trees.get(module)
        for statement, _ in executed(tree.body) if tree else ():
            if third_party(self.source, module, statement) & self.guarded & self.roots.keys():
                assert isinstance(statement, (ast.Import, ast.ImportFrom))  # given: it names a package
                for name, path in bindings(statement, self.source.package(module)).items():
                    if name not in namespace and path.partition(".")[0] in self.roots:
                        namespace[name] = _at(self.roots, path)


class _Loader(SourceFileLoader):
    """Gives a file of the script its own ``__import__`` before it runs."""

    def __init__(self, imports: ScriptImports, name: str, file: str, module: str) -> None:
        super().__init__(name, file)
        self._imports, self._module = imports, module

    def exec_module(self, module: ModuleType) -> None:
        if self._imports.builtins is not None:
            vars(module)["__builtins__"] = self._imports.builtins
        super().exec_module(module)
        self._imports.bind_guarded(vars(module), self._module)
