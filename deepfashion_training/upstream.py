"""The one place that monkey-patches: load a training script by path, check its contract, patch it, restore it.

An upstream script is any Python file with module-level ``VitonHDTestDataset``, ``parse_args(input_args=None)`` and
``main(args)``, its siblings beside it. Its bytes are never changed, and every name that was patched is the original
again afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from deepfashion_training.driver.imports import ScriptImports, is_missing, needs, pip_command
from deepfashion_training.driver.source import Source, read_source

#: The project's own trainer, which ``--upstream`` replaces by another script.
DEFAULT_SCRIPT = Path(__file__).resolve().parents[1] / "train_flux_inpaint.py"


class UpstreamError(ValueError):
    """A script that cannot be driven; the message is one line that names the script and what is wrong with it."""


@dataclass(frozen=True)
class LoadedScript:
    """What is known of a script that was loaded: its source, and stand-ins for packages with the reason for each."""

    source: Source
    stand_ins: dict[str, str]
    imports: ScriptImports

    def importable(self) -> contextlib.AbstractContextManager[None]:
        """Its siblings are importable inside the block, the same modules each time, and gone outside."""
        return self.imports.installed()


_loaded: WeakKeyDictionary[ModuleType, LoadedScript] = WeakKeyDictionary()
_ABSENT = object()


def load_script(path: str | Path, report_to: str = "tensorboard") -> ModuleType:
    """Module of the script at ``path``, imported under its own name where that is free.

    Siblings are found in its folder; missing packages that it can do without get stand-ins, which depends on the
    tracker that it will ``report_to`` (see ``driver.imports.needs``). A script that is imported already is not run a
    second time. Raises ``UpstreamError`` when there is no such file, when it does not compile, when it needs packages
    that are not installed, or when running its module level fails; nothing of it stays behind then.
    """
    file = Path(path).resolve()
    if not file.is_file() or file.suffix != ".py":
        raise UpstreamError(f"--upstream {path}: no Python file there")
    hashed = f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    imported = next((module for name in (file.stem, hashed) if (module := _imported_from(file, name))), None)
    known = loaded(imported) if imported is not None else None
    try:
        source = known.source if known is not None else read_source(file)
    except SyntaxError as error:
        raise UpstreamError(_no_python(path, file, error)) from error
    missing, stand_ins = needs(source, report_to)
    if missing:
        raise UpstreamError(f"--upstream {path} needs packages that are not installed: {pip_command(missing)}")
    if imported is not None:
        _loaded.setdefault(imported, LoadedScript(source, {}, ScriptImports(source)))
        return imported
    # the package imports its own trainer by name, and another script may have the same one
    free = file.stem not in sys.modules and (file.stem != DEFAULT_SCRIPT.stem or file == DEFAULT_SCRIPT)
    imports = ScriptImports(source, stand_ins, elsewhere={DEFAULT_SCRIPT.stem: DEFAULT_SCRIPT})
    module = _execute(path, file, file.stem if free else hashed, imports)
    _loaded[module] = LoadedScript(source, stand_ins, imports)
    return module


def _imported_from(file: Path, name: str) -> ModuleType | None:
    module = sys.modules.get(name)
    where = getattr(module, "__file__", None)
    return module if where and Path(str(where)).resolve() == file else None


def _execute(path: str | Path, file: Path, name: str, imports: ScriptImports) -> ModuleType:
    """Run the module level of a script."""
    spec = importlib.util.spec_from_file_location(name, file, loader=imports.loader(name, file, ""))
    assert spec is not None and spec.loader is not None  # given: it is a .py file
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs, as the import system does: dataclasses look their module up
    done = False
    try:
        with imports.installed():
            spec.loader.exec_module(module)
        done = True
    except SyntaxError as error:
        raise UpstreamError(_no_python(path, file, error)) from error
    except (Exception, SystemExit) as error:
        package = (getattr(error, "name", None) or "").partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and package and is_missing(package, file.parent):
            message = f"--upstream {path} needs packages that are not installed: {pip_command([package])}"
        else:
            message = f"--upstream {path} failed while it was loaded: {type(error).__name__}: {_one_line(error)}"
        raise UpstreamError(message) from error
    finally:
        if not done:
            sys.modules.pop(name, None)
    return module


def _no_python(path: str | Path, file: Path, error: SyntaxError) -> str:
    """Says which line of which file of the script does not compile."""
    where = Path(error.filename) if error.filename else file
    inside = f"{where.relative_to(file.parent)} " if where != file and where.is_relative_to(file.parent) else ""
    return f"--upstream {path}: {inside}line {error.lineno} is no valid Python: {error.msg}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def loaded(module: ModuleType) -> LoadedScript | None:
    """What is known of a module that ``load_script`` returned, or None for any other."""
    return _loaded.get(module) if isinstance(module, ModuleType) else None


@contextlib.contextmanager
def importable(module: ModuleType) -> Iterator[None]:
    """Siblings of a loaded script are importable inside the block, as its functions may want; else nothing happens."""
    script = loaded(module)
    with script.importable() if script is not None else contextlib.nullcontext():
        yield


def check_contract(module: ModuleType) -> None:
    """Raise ``UpstreamError`` that names everything in which ``module`` is not an upstream script."""
    wrong = []
    for name, example in (("VitonHDTestDataset", None), ("parse_args", [[]]), ("main", [argparse.Namespace()])):
        found = getattr(module, name, None)
        if not callable(found):
            others = [other for other, value in vars(module).items() if callable(value) and other != name]
            near = difflib.get_close_matches(name, others, n=1, cutoff=0.7)
            wrong.append(f"no {name} (is it {near[0]}?)" if near else f"no {name}")
        elif example is not None:
            signature = inspect.signature(found)
            try:
                signature.bind(*example)
            except TypeError:
                wrong.append(f"{name}{signature} does not take one argument")
    if wrong:
        raise UpstreamError(f"{module.__file__} is no training script that can be driven: {', '.join(wrong)}")


class _ParserSeenError(Exception):
    """Carries the parser out of a script's ``parse_args``."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def script_parser(module: ModuleType) -> argparse.ArgumentParser | None:
    """The parser that ``module.parse_args`` builds, or None when it uses no argparse.

    ``parse_args`` runs up to the moment at which it would parse, so nothing is parsed or checked.
    """

    def stop(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> Any:
        raise _ParserSeenError(parser)

    stopped = patched(argparse.ArgumentParser, parse_args=stop, parse_known_args=stop)
    with importable(module), stopped, contextlib.suppress(SystemExit):
        try:
            module.parse_args([])
        except _ParserSeenError as seen:
            return seen.parser
    return None


@contextlib.contextmanager
def patched(target: Any, *, create: bool = False, **replacements: Any) -> Iterator[None]:
    """Replace attributes of a module or class while the block runs, and put the originals back however it ends.

    Raises ``AttributeError``, and replaces nothing, for a name that is not there; with ``create`` it is added instead
    and deleted afterwards. A failure while replacing, or while putting one original back, leaves no other replaced.
    """
    for name in replacements:
        if not create:
            getattr(target, name)
    with contextlib.ExitStack() as restore:
        for name, replacement in replacements.items():
            restore.callback(_put_back, target, name, _original(target, name))
            setattr(target, name, replacement)
        yield


def _original(target: Any, name: str) -> Any:
    """What ``target`` itself holds, so that a static method stays one and an inherited attribute is none."""
    if not hasattr(target, "__dict__"):
        return getattr(target, name, _ABSENT)
    return vars(target).get(name, _ABSENT)


def _put_back(target: Any, name: str, original: Any) -> None:
    if original is not _ABSENT:
        setattr(target, name, original)
    elif _original(target, name) is not _ABSENT:
        delattr(target, name)
