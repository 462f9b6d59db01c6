"""The one place that monkey-patches: load a training script by path, check its contract, patch it, restore it.

An upstream script is any Python file with module-level ``VitonHDTestDataset``, ``parse_args(input_args=None)`` and
``main(args)``, its siblings beside it. Its bytes are never changed, and every name that was patched is the original
again afterwards. A script that trains no LoRA by itself is a ``DrivenScript``: ``driver/`` has what takes the place of
which of its names, this file puts it there. How a script's source is read belongs to ``driver/`` too.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import hashlib
import importlib.util
import inspect
import logging
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

from deepfashion_training.upstream.arguments import (
    FROM_OUTSIDE,
    Translation,
    UnknownFlagError,
    settings_of,
    tokens_of,
    translate,
)
from deepfashion_training.upstream.imports import ScriptImports, is_missing, needs, pip_command, says_missing
from deepfashion_training.upstream.inspection import lora_kind, table
from deepfashion_training.upstream.quirks import SETTLED, quirks_of, reads_global_args, settle
from deepfashion_training.upstream.source import Source, attributes_read, read_source
from training_run.checkpoints import checkpoints_in
from training_run.stopping import StoppedError, Stopping

logger = logging.getLogger(__name__)

#: The project's own trainer, which ``--upstream`` replaces by another script.
DEFAULT_SCRIPT = Path(__file__).resolve().parents[2] / "train_flux_inpaint.py"


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
    file = _python_file(path)
    hashed = f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    imported = next((module for name in (file.stem, hashed) if (module := _imported_from(file, name))), None)
    known = loaded(imported) if imported is not None else None
    source = known.source if known is not None else _read(path, file)
    missing, stand_ins = needs(source, report_to)
    if missing:
        raise UpstreamError(f"--upstream {path} {says_missing(missing)}")
    if imported is not None:
        _loaded.setdefault(imported, LoadedScript(source, {}, ScriptImports(source)))
        return imported
    # the package imports its own trainer by name, and another script may have the same one
    free = file.stem not in sys.modules and (file.stem != DEFAULT_SCRIPT.stem or file == DEFAULT_SCRIPT)
    imports = ScriptImports(source, stand_ins, elsewhere={DEFAULT_SCRIPT.stem: DEFAULT_SCRIPT})
    module = _execute(path, file, file.stem if free else hashed, imports)
    _loaded[module] = LoadedScript(source, stand_ins, imports)
    return module


def _python_file(path: str | Path) -> Path:
    file = Path(path).resolve()
    if not file.is_file() or file.suffix != ".py":
        raise UpstreamError(f"--upstream {path}: no Python file there")
    return file


def _read(path: str | Path, file: Path) -> Source:
    try:
        return read_source(file)
    except SyntaxError as error:
        raise UpstreamError(_no_python(path, file, error)) from error


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
        with imports.installed(), one_line_errors():
            spec.loader.exec_module(module)
        done = True
    except SyntaxError as error:
        raise UpstreamError(_no_python(path, file, error)) from error
    except (Exception, SystemExit) as error:
        package = (getattr(error, "name", None) or "").partition(".")[0]
        if isinstance(error, ModuleNotFoundError) and package and is_missing(package, file.parent):
            message = f"--upstream {path} {says_missing([package])}"
        else:
            message = f"--upstream {path} failed while it was loaded: {type(error).__name__}: {_one_line(error)}"
            if isinstance(error, (SystemExit, UnknownFlagError)):
                message += ' (what it does beside its functions belongs under if __name__ == "__main__")'
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
def importable(script: Script) -> Iterator[None]:
    """Siblings of a loaded script are importable inside the block, as its functions may want; else nothing happens."""
    known = loaded(script.module if isinstance(script, DrivenScript) else script)
    with known.importable() if known is not None else contextlib.nullcontext():
        yield


def contract_faults(module: ModuleType) -> dict[str, str]:
    """Names of the contract that ``module`` breaks, and how."""
    wrong = {}
    for name, example in (("VitonHDTestDataset", None), ("parse_args", [[]]), ("main", [argparse.Namespace()])):
        found = getattr(module, name, None)
        if not callable(found):
            others = [other for other, value in vars(module).items() if callable(value) and other != name]
            near = difflib.get_close_matches(name, others, n=1, cutoff=0.7)
            wrong[name] = f"no {name} (is it {near[0]}?)" if near else f"no {name}"
        elif example is not None:
            signature = inspect.signature(found)
            try:
                signature.bind(*example)
            except TypeError:
                wrong[name] = f"{name}{signature} does not take one argument"
    return wrong


def check_contract(module: ModuleType) -> None:
    """Raise ``UpstreamError`` that names everything in which ``module`` is not an upstream script."""
    if wrong := contract_faults(module):
        raise UpstreamError(f"{module.__file__} is no training script that can be driven: {', '.join(wrong.values())}")


class _ParserSeenError(Exception):
    """Carries the parser out of a script's ``parse_args``."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def script_parser(script: Script) -> argparse.ArgumentParser | None:
    """The parser that ``script.parse_args`` builds, or None when it uses no argparse.

    ``parse_args`` runs up to the moment at which it would parse, so nothing is parsed or checked.
    """

    def stop(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> Any:
        raise _ParserSeenError(parser)

    stopped = patched(argparse.ArgumentParser, parse_args=stop, parse_known_args=stop)
    with importable(script), stopped, contextlib.suppress(SystemExit):
        try:
            script.parse_args([])
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


class DrivenScript:
    """A script that trains no LoRA by itself, with a LoRA for it to train; an upstream script like any other.

    ``parse_args`` takes the script's own words; ``adopt`` makes of them the arguments of our trainer, which ``main``
    and the checks before it take.
    """

    def __init__(self, module: ModuleType) -> None:
        known = loaded(module)
        assert known is not None  # given: open_script loads what it drives
        self.module, self.known, self.__file__ = module, known, str(module.__file__)
        self.VitonHDTestDataset = module.VitonHDTestDataset
        self.script_args = argparse.Namespace()
        self.translation = Translation([], {})

    def parse_args(self, input_args: list[str] | None = None) -> argparse.Namespace:
        """The script's own ``parse_args``."""
        return self.module.parse_args(input_args)

    def adopt(self, ours: argparse.ArgumentParser, translation: Translation) -> argparse.Namespace:
        """Let the script parse its arguments, and return every argument of our trainer as it holds in the run."""
        self.translation = translation
        self.script_args = self.parse_args(translation.tokens)
        return settings_of(ours, translation.settings, self.script_args)

    @staticmethod
    def check_packages(settings: argparse.Namespace) -> None:
        """Raise ``ValueError`` when a flag needs a package or a device that is not there."""
        _trainer().check_packages(settings)

    @staticmethod
    def refuse_earlier_run(settings: argparse.Namespace) -> None:
        """Raise ``ValueError`` for an output directory with another run, or a checkpoint that cannot be continued."""
        from deepfashion_training.upstream.driven_run import find_checkpoint

        _trainer().refuse_earlier_run(settings)
        find_checkpoint(settings)

    def notes(self) -> list[str]:
        """What a user should know of this way of training, a line each."""
        lines = [f"{self.__file__} trains no LoRA by itself: it gets one as its transformer's only parameters"]
        lines += [f"  {quirk.habit}: {quirk.mended}" for quirk in quirks_of(list(self.known.source.trees.values()))]
        if self.known.stand_ins:
            listed = ", ".join(f"{name} ({why})" for name, why in self.known.stand_ins.items())
            lines.append(f"  stand-ins for packages that are not installed: {listed}")
        if self.translation.lost:
            lines.append(f"  of the preset, unknown to it and without effect: {', '.join(self.translation.lost)}")
        if self.translation.unread:
            lines.append(f"  taken by its parser and read by nobody: {', '.join(self.translation.unread)}")
        return lines

    def main(self, settings: argparse.Namespace) -> None:
        """Train as ``settings`` of ``adopt`` say; leaves what our own trainer leaves in the output directory.

        Raises ``ValueError`` for what the user can mend, and whatever the script raises.
        """
        from deepfashion_training.upstream.driven_run import DrivenRun, find_checkpoint
        from deepfashion_training.upstream.replacements import quiet_libraries, replacements

        wanted = settings.resume_from_checkpoint
        settings.resume_from_checkpoint = found = find_checkpoint(settings)
        if wanted is not None:
            said = f"Continuing from {found}" if found else f"No checkpoint in {settings.output_dir}: starting afresh"
            logger.info(said)
        for name in vars(self.script_args).keys() & vars(settings).keys():
            setattr(self.script_args, name, getattr(settings, name))
        settle(self.script_args, list(self.known.source.trees.values()))
        facts = {
            "script": self.__file__,
            "sha256": hashlib.sha256(Path(self.__file__).read_bytes()).hexdigest(),
            "lora": "adapter",
            "notes": [line.strip() for line in self.notes()],
        }
        run, status = DrivenRun(settings, self.script_args, self.VitonHDTestDataset, {"upstream": facts}), "failed"
        names = replacements(self.module, run, self.script_args)
        try:
            with contextlib.ExitStack() as patches, warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*as torch tensor with value range in.*")  # as scripts do
                patches.enter_context(importable(self))
                for target, quiet in quiet_libraries():
                    patches.enter_context(patched(target, **quiet))
                patches.enter_context(patched(self.module, create=True, **names))
                run.stopping = patches.enter_context(Stopping())
                _call(self.module, self.script_args)
                run.finish()
            status = "done"
        except StoppedError as stopped:
            status = f"stopped by {stopped}"
            logger.info(stopped.told(checkpoints_in(Path(settings.output_dir))))
            raise
        finally:
            run.end(status)


def _call(module: ModuleType, args: argparse.Namespace) -> None:
    """The script's ``main``, from which it may leave by ``sys.exit``; ``ValueError`` when that tells of a failure."""
    try:
        module.main(args)
    except StoppedError:  # by a signal, after saving
        raise
    except SystemExit as stop:
        if stop.code not in (None, 0):
            raise ValueError(f"{module.__file__} has stopped itself: {stop.code}") from stop


def train(script: Script, args: argparse.Namespace, dataset: Any) -> None:
    """Call the ``main`` of ``script`` with our ``dataset`` in the place of its own.

    A script that makes its LoRA itself finds the global ``args`` that it may read outside of ``main``. Raises
    ``ValueError`` when it stops itself, and whatever it raises; everything is as before then.
    """
    if isinstance(script, DrivenScript):
        with patched(script, VitonHDTestDataset=dataset):
            script.main(args)
        return
    known = loaded(script)
    names = {"args": args} if known is not None and reads_global_args(known.source.tree) else {}
    with importable(script), patched(script, create=True, VitonHDTestDataset=dataset, **names):
        _call(script, args)


_TRANSFORMER = "pretrained_inpaint_model_name_or_path"

#: What ``open_script`` returns.
Script = ModuleType | DrivenScript


def _trainer() -> Any:
    return load_script(DEFAULT_SCRIPT)


def open_script(path: str | Path, report_to: str = "tensorboard") -> Script:
    """The script at ``path``, loaded and checked; one that trains no LoRA by itself comes with one to train.

    Raises ``UpstreamError`` for a script that does not load, that is no training script, or that can be given no LoRA.
    """
    module = load_script(path, report_to)
    check_contract(module)
    known = loaded(module)
    assert known is not None  # given: it was loaded just now
    try:
        return DrivenScript(module) if lora_kind(known.source) == "adapter" else module
    except ValueError as error:
        raise UpstreamError(f"--upstream {error}") from error


def parse_arguments(
    script: Script,
    ours: argparse.ArgumentParser,
    from_preset: dict[str, Any],
    given: dict[str, Any],
    from_user: dict[str, Any],
    handed_on: list[str],
) -> argparse.Namespace:
    """Arguments of a run through a script that is not our trainer, whose parser is ``ours``, in the script's words.

    Values are by the names of our trainer's arguments: those of the preset, those ``given`` by what is known already,
    and those typed, each winning over the ones before; ``handed_on`` are tokens that only the script knows. For a
    script that is driven every argument of our trainer is there, for any other those that it has itself. Raises
    ``UnknownFlagError``.
    """
    module = script.module if isinstance(script, DrivenScript) else script
    known = loaded(module)
    assert known is not None  # given: open_script loads it
    driven = isinstance(script, DrivenScript)
    defaults = {}
    if driven:  # its own defaults are not those of a LoRA for our base
        same = ("pretrained_model_name_or_path", _TRANSFORMER, "seed")
        defaults = {name: ours.get_default(name) for name in same}
    elif (Path(given.get(_TRANSFORMER, "")) / "transformer" / "config.json").is_file():
        given = {**given, _TRANSFORMER: str(Path(given[_TRANSFORMER]) / "transformer")}  # others look at the root alone
    layers = {**defaults, **from_preset, **given}
    from_preset = {action.dest: layers[action.dest] for action in ours._actions if action.dest in layers}
    theirs = script_parser(script)
    if theirs is None:
        actions = {action.dest: action for action in ours._actions}
        values = {**from_preset, **from_user}
        tokens = [token for name, value in values.items() for token in tokens_of(actions[name], value)]
        return script.parse_args([*tokens, *handed_on])
    read = attributes_read(known.source, None) if driven else None
    outside, settled = (FROM_OUTSIDE, SETTLED) if driven else (frozenset[str](), frozenset[str]())
    translation = translate(theirs, from_preset, from_user, handed_on, read, outside, settled)
    for flags in (translation.lost, translation.unread):
        flags[:] = [flag for flag in flags if flag.split()[0].removeprefix("--") not in {*defaults, *given}]
    options = theirs._option_string_actions
    if "--instance_data_dir" in options and not any("--dataset_name" in token for token in translation.tokens):
        translation.tokens.append(f"--instance_data_dir={given['dataroot']}")
    if isinstance(script, DrivenScript):
        with importable(script):
            return script.adopt(ours, translation)
    if translation.lost:
        logger.warning("unknown to %s and without effect: %s", module.__file__, ", ".join(translation.lost))
    with importable(script):
        return script.parse_args(translation.tokens)


def one_line_errors() -> contextlib.AbstractContextManager[None]:
    """Inside the block argparse raises ``UnknownFlagError`` where it would print its whole usage and exit."""

    def refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
        raise UnknownFlagError(message)

    return patched(argparse.ArgumentParser, error=refuse)


def inspect_script(path: str | Path) -> tuple[str, str | None]:
    """The table of ``--upstream-check`` for the script at ``path``, and why it cannot be driven, None where it can.

    Raises ``UpstreamError`` where there is nothing to make a table of: no such file, no valid Python.
    """
    source = _read(path, _python_file(path))
    missing, stand_ins = needs(source)
    faults: dict[str, str] = {}
    problem = f"--upstream {path} {says_missing(missing)}" if missing else None
    if problem is None:
        try:
            faults = contract_faults(load_script(path))
            open_script(path)
        except UpstreamError as error:
            problem = str(error)
    return table(source, faults, missing, stand_ins, pip_command(missing)), problem
