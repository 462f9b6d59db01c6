"""The one place that monkey-patches: load a training script by path, check its contract, patch it, restore it.

An upstream script is any Python file with module-level ``VitonHDTestDataset``, ``parse_args(input_args=None)`` and
``main(args)``. Its bytes are never changed, and every name that was patched is the original again afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

#: The project's own trainer, which ``--upstream`` replaces by another script.
DEFAULT_SCRIPT = Path(__file__).resolve().parents[1] / "train_flux_inpaint.py"


class UpstreamError(ValueError):
    """A script that cannot be driven; the message is one line that names the script and what is wrong with it."""


def load_script(path: str | Path) -> ModuleType:
    """Module of the script at ``path``, imported under its own name where that is free.

    A script that is imported already is not run a second time. Raises ``UpstreamError`` when there is no such file,
    when it does not compile, or when running its module level fails.
    """
    file = Path(path).resolve()
    if not file.is_file() or file.suffix != ".py":
        raise UpstreamError(f"--upstream {path}: no Python file there")
    loaded = sys.modules.get(file.stem)
    if loaded is not None and getattr(loaded, "__file__", None) and Path(str(loaded.__file__)).resolve() == file:
        return loaded
    name = file.stem if loaded is None else f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # given: it is a .py file
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs, as the import system does: dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UpstreamError(f"--upstream {path}: line {error.lineno} is no valid Python: {error.msg}") from error
    except ModuleNotFoundError as error:
        raise UpstreamError(f"--upstream {path} needs the package {error.name}, which is not installed") from error
    except (Exception, SystemExit) as error:
        raise UpstreamError(f"--upstream {path} failed while it was loaded: {type(error).__name__}: {error}") from error
    finally:
        if not hasattr(module, "main"):
            sys.modules.pop(name, None)
    return module


def check_contract(module: ModuleType) -> None:
    """Raise ``UpstreamError`` that names everything in which ``module`` is not an upstream script."""
    wrong = []
    for name, example in (("VitonHDTestDataset", None), ("parse_args", [[]]), ("main", [argparse.Namespace()])):
        found = getattr(module, name, None)
        if not callable(found):
            wrong.append(f"no {name}")
        elif example is not None:
            try:
                inspect.signature(found).bind(*example)
            except TypeError:
                wrong.append(f"{name}{inspect.signature(found)} does not take one argument")
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

    with patched(argparse.ArgumentParser, parse_args=stop, parse_known_args=stop), contextlib.suppress(SystemExit):
        try:
            module.parse_args([])
        except _ParserSeenError as seen:
            return seen.parser
    return None


@contextlib.contextmanager
def patched(target: Any, **replacements: Any) -> Iterator[None]:
    """Replace attributes of a module or class while the block runs, and put the originals back however it ends."""
    originals = {name: getattr(target, name) for name in replacements}
    try:
        for name, replacement in replacements.items():
            setattr(target, name, replacement)
        yield
    finally:
        for name, original in originals.items():
            setattr(target, name, original)
