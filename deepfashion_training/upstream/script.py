"""Load a third-party training script by path, check its contract, patch it, run it, restore it.

Such a script is any Python file with module-level ``VitonHDTestDataset``, ``parse_args(input_args=None)`` and
``main(args)``, its siblings beside it. Its bytes are never changed, and every name that was patched is the original
again afterwards. A script that trains no LoRA by itself becomes a ``DrivenScript``, which gives it one to train.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import logging
import sys
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from deepfashion_training.upstream.arguments import Translation, UnknownFlagError, settings_of, translate
from deepfashion_training.upstream.imports import HARMLESS, ScriptImports, is_missing, pip_command
from deepfashion_training.upstream.inspection import (
    CONTRACT,
    SEAMS,
    imported_packages,
    lora_call,
    module_names,
    parse,
    table,
)
from deepfashion_training.upstream.patching import patched
from training_run.checkpoints import checkpoints_in
from training_run.stopping import StoppedError, Stopping

logger = logging.getLogger(__name__)

#: The project's own trainer, which ``--upstream`` replaces by another script.
DEFAULT_SCRIPT = Path(__file__).resolve().parents[2] / "train_flux_inpaint.py"
_TRANSFORMER = "pretrained_inpaint_model_name_or_path"


class UpstreamError(ValueError):
    """A script that cannot be driven; the message is one line that names the script and what is wrong with it."""


@dataclass(frozen=True)
class LoadedScript:
    """A script that was imported, and what it can import."""

    module: ModuleType
    imports: ScriptImports


_loaded: dict[Path, LoadedScript] = {}


def load_script(path: str | Path) -> ModuleType:
    """Module of the script at ``path``, imported once, with the names of the contract. Siblings are in its folder.

    Raises ``UpstreamError`` when there is no such file, it does not compile, a name of the contract is missing (before
    it runs), it needs packages that are not installed, or its module level fails. Nothing of it stays behind then.
    """
    # First of all, because a folder that comes first on the path may have a script of the same name.
    trainer = importlib.import_module(DEFAULT_SCRIPT.stem)
    file = Path(path).resolve()
    if file == DEFAULT_SCRIPT:
        return trainer
    if file not in _loaded:
        names = set(module_names(_parsed(path)))
        if "*" not in names:
            _refuse(path, missing_names(names))
        _loaded[file] = _execute(path)
    module = _loaded[file].module
    _refuse(path, missing_names(vars(module)) or unusable_names(module))
    return module


def _parsed(path: str | Path) -> ast.Module:
    file = Path(path).resolve()
    if not file.is_file() or file.suffix != ".py":
        raise UpstreamError(f"--upstream {path}: no Python file there")
    try:
        return parse(file)
    except SyntaxError as error:
        raise UpstreamError(_not_python(path, error)) from error


def _not_python(path: str | Path, error: SyntaxError) -> str:
    return f"--upstream {path}: {Path(error.filename or path).name} line {error.lineno} is no valid Python: {error.msg}"


def missing_names(names: Collection[str]) -> list[str]:
    """What is missing of the contract among ``names``, and which name may have been meant."""
    faults = []
    for name in CONTRACT:
        near = difflib.get_close_matches(name, set(names) - {name}, n=1, cutoff=0.7)
        if name not in names:
            faults.append(f"no {name} (is it {near[0]}?)" if near else f"no {name}")
    return faults


def unusable_names(module: ModuleType) -> list[str]:
    """What of the contract a module has in a form that cannot be called with one argument."""
    faults = []
    for name in ("parse_args", "main"):
        found = getattr(module, name)
        try:
            inspect.signature(found).bind([])
        except TypeError:
            signature = inspect.signature(found) if callable(found) else ""
            faults.append(f"{name}{signature} does not take one argument")
    return faults


def _refuse(path: str | Path, faults: list[str]) -> None:
    if faults:
        raise UpstreamError(f"--upstream {path} is no training script that can be driven: {', '.join(faults)}")


def _execute(path: str | Path) -> LoadedScript:
    """Run the module level of a script."""
    file = Path(path).resolve()
    name = f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # given: it is a .py file
    module, imports = importlib.util.module_from_spec(spec), ScriptImports(file)
    sys.modules[name] = module  # before it runs, as the import system does: dataclasses look their module up
    try:
        with imports.installed(), one_line_errors():
            spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise UpstreamError(f"--upstream {path} {_load_problem(error, imports)}") from error
    if "wandb" in imports.stubs:
        vars(module).setdefault("wandb", imports.stubs["wandb"])  # skipped by `if is_wandb_available():`
    return LoadedScript(module, imports)


def _load_problem(error: BaseException, imports: ScriptImports) -> str:
    if isinstance(error, SyntaxError):
        return f"imports {Path(error.filename or '').name}, whose line {error.lineno} is no valid Python: {error.msg}"
    package = str(getattr(error, "name", None)).partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and not list(imports.folder.glob(f"{package}*")) and is_missing(package):
        others = [name for name in imported_packages(imports.files) if name not in HARMLESS and is_missing(name)]
        return f"needs packages that are not installed: {pip_command({package, *others})}"
    said = f"failed while it was loaded: {type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, (SystemExit, UnknownFlagError)):
        said += ' (what it does beside its functions belongs under if __name__ == "__main__")'
    return said


def open_script(path: str | Path) -> Script:
    """The script at ``path``, loaded and checked; one that trains no LoRA by itself comes with one to train.

    Raises ``UpstreamError`` for a script that does not load, breaks the contract, or can be given no LoRA.
    """
    module = load_script(path)
    known = _known(module)
    if known is None or lora_call(known.imports.files):
        return module
    lacking = [name for name in SEAMS if not hasattr(module, name)]
    if not lacking:
        return DrivenScript(known)
    if "FluxTransformer2DModel" in inspect.getsource(module):
        raise UpstreamError(
            f"--upstream {path} trains no LoRA and cannot be given one: no {', '.join(lacking)} at module level"
        )
    return module


def inspect_script(path: str | Path) -> tuple[str, str | None]:
    """The table of ``--upstream_check`` for the script at ``path``, and why it cannot be driven, None where it can.

    Raises ``UpstreamError`` where there is nothing to make a table of: no such file, no valid Python.
    """
    names, problem = set(module_names(_parsed(path))), None
    try:
        script: Script | None = open_script(path)
    except UpstreamError as error:
        script, problem = None, str(error)
    known = _loaded.get(Path(path).resolve())
    files = known.imports.files if known is not None else [Path(path).resolve()]
    names |= set(vars(known.module)) if known is not None else set()
    rows = [(name, "found" if name in names else "MISSING", what) for name, what in CONTRACT.items()]
    if script is None:
        rows.append(("LoRA", "-", "the script cannot be driven"))
    elif isinstance(script, DrivenScript):
        rows.append(("LoRA", "adapter", "it trains none: its transformer gets one, the only weights that it can train"))
    elif call := lora_call(files):
        rows.append(("LoRA", "its own", f"it makes one ({call}): only the dataset is replaced"))
    else:
        rows.append(("LoRA", "none", "it makes none and has no FluxTransformer2DModel: only the dataset is replaced"))
    for package in filter(is_missing, imported_packages(files)):
        why = HARMLESS.get(package)
        rows.append((package, "stub" if why else "MISSING", f"not installed, {why or pip_command([package])}"))
    return table(rows), problem


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


def one_line_errors() -> contextlib.AbstractContextManager[None]:
    """Inside the block argparse raises ``UnknownFlagError`` where it would print its whole usage and exit."""

    def refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
        raise UnknownFlagError(message)

    return patched(argparse.ArgumentParser, error=refuse)


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
    ``DrivenScript`` every argument of our trainer is there, for any other those that it has itself. Raises
    ``UnknownFlagError``.
    """
    defaults: dict[str, Any] = {}
    if isinstance(script, DrivenScript):  # its own defaults are not those of a LoRA for our base
        defaults = {name: ours.get_default(name) for name in ("pretrained_model_name_or_path", _TRANSFORMER, "seed")}
    elif (Path(given.get(_TRANSFORMER, "")) / "transformer" / "config.json").is_file():
        given = {**given, _TRANSFORMER: str(Path(given[_TRANSFORMER]) / "transformer")}  # others look at the root alone
    layers = {**defaults, **from_preset, **given}
    adapter, theirs = isinstance(script, DrivenScript), script_parser(script) or ours
    translation = translate(theirs, layers, from_user, handed_on, adapter=adapter)
    known_already = {*defaults, *given}
    translation.lost = [flag for flag in translation.lost if flag.split()[0][2:] not in known_already]
    if "--instance_data_dir" in theirs._option_string_actions and "--dataset_name" not in " ".join(handed_on):
        translation.tokens.append(f"--instance_data_dir={given['dataroot']}")  # it wants one of the two
    with importable(script):
        if isinstance(script, DrivenScript):
            args = script.adopt(ours, translation)
        else:
            args = script.parse_args(translation.tokens)
    if translation.lost and not adapter:
        logger.warning("unknown to %s and without effect: %s", script.__file__, ", ".join(translation.lost))
    if "wandb" in str(getattr(args, "report_to", "")) and is_missing("wandb"):
        raise UpstreamError(f"--report_to {args.report_to} needs the package wandb: {pip_command(['wandb'])}")
    return args


class DrivenScript:
    """A script that trains no LoRA by itself, with a LoRA for it to train; an upstream script like any other.

    ``parse_args`` takes the script's own words; ``adopt`` makes of them the arguments of our trainer, which ``main``
    and the checks before it take.
    """

    def __init__(self, known: LoadedScript) -> None:
        self.known, self.module, self.__file__ = known, known.module, str(known.module.__file__)
        self.VitonHDTestDataset = known.module.VitonHDTestDataset
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
        from training_run.guards import check_packages

        check_packages(settings)

    @staticmethod
    def refuse_earlier_run(settings: argparse.Namespace) -> None:
        """Raise ``ValueError`` for an output directory with another run, or a checkpoint that cannot be continued."""
        from deepfashion_training.upstream.driven_run import checkpoint_of
        from training_run.output_dir import refuse_earlier_run

        refuse_earlier_run(settings)
        if settings.resume_from_checkpoint != "latest":  # which is looked for when the run begins
            checkpoint_of(settings)

    def notes(self) -> list[str]:
        """What was adapted, a line each."""
        lines = [
            f"{self.__file__} trains no LoRA: its transformer gets one, the only weights that it can train",
            "  its known issues are worked around: rows are shuffled, checkpoints complete, pictures drawn in any "
            "precision; docs/upstream.md lists all",
        ]
        if stubbed := [name for name in imported_packages(self.known.imports.files) if is_missing(name)]:
            lines.append(f"  stubs for packages that are not installed: {', '.join(stubbed)}")
        if self.translation.lost:
            lines.append(f"  of the preset, without effect in this script: {', '.join(self.translation.lost)}")
        return lines

    def main(self, settings: argparse.Namespace) -> None:
        """Train as ``settings`` of ``adopt`` say; leaves what our own trainer leaves in the output directory.

        Raises ``ValueError`` for what the user can fix, and whatever the script raises.
        """
        from deepfashion_training.upstream.driven_run import DrivenRun, checkpoint_of
        from deepfashion_training.upstream.pipeline import draw_last
        from deepfashion_training.upstream.replacements import quiet_libraries, replacements

        found = checkpoint_of(settings)
        settings.resume_from_checkpoint = str(found) if found else None
        for name in vars(self.script_args).keys() & vars(settings).keys():
            setattr(self.script_args, name, getattr(settings, name))
        facts = {
            "script": self.__file__,
            "sha256": hashlib.sha256(Path(self.__file__).read_bytes()).hexdigest(),
            "lora": "adapter",
            "notes": [line.strip() for line in self.notes()],
        }
        run, status = DrivenRun(settings, self.script_args, self.VitonHDTestDataset, facts), "failed"
        try:
            with contextlib.ExitStack() as patches, warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*as torch tensor with value range in.*")  # as scripts do
                patches.enter_context(importable(self))
                patches.enter_context(quiet_libraries())
                patches.enter_context(patched(self.module, create=True, **replacements(self.module, run)))
                run.stopping = patches.enter_context(Stopping())
                _call(self.module, self.script_args)
                run.finish()
                draw_last(run)
            status = "done"
        except StoppedError as stopped:
            status = f"stopped by {stopped}"
            logger.info(stopped.summary(checkpoints_in(Path(settings.output_dir))))
            raise
        finally:
            run.end(status)


#: What ``open_script`` returns.
Script = ModuleType | DrivenScript


def _known(script: Script) -> LoadedScript | None:
    """What is known of a script that ``load_script`` imported; None for our own trainer."""
    return _loaded.get(Path(str(script.__file__)).resolve())


def importable(script: Script) -> contextlib.AbstractContextManager[None]:
    """Siblings of a loaded script are importable inside the block, as its functions may want."""
    known = _known(script)
    return known.imports.installed() if known is not None else contextlib.nullcontext()


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

    A third-party script finds the global ``args`` that its functions may read. Raises ``ValueError`` when it stops
    itself, and whatever it raises; everything is as before then.
    """
    if isinstance(script, DrivenScript):
        with patched(script, VitonHDTestDataset=dataset):
            script.main(args)
        return
    names = {"args": args} if _known(script) is not None else {}
    with importable(script), patched(script, create=True, VitonHDTestDataset=dataset, **names):
        _call(script, args)
