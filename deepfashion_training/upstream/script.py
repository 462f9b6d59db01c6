"""Load a third-party training script by path, check its contract, patch it, run it, restore it.

Such a script is any Python file with module-level ``VitonHDTestDataset``, ``parse_args(input_args=None)`` and
``main(args)``, its siblings beside it. Its bytes are never changed, and every name that was patched is the original
again afterwards. A script that trains no LoRA by itself becomes a ``DrivenScript``, which gives it one to train.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import logging
import sys
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from deepfashion_training.upstream.arguments import Translation, UnknownFlagError, settings_of, translate
from deepfashion_training.upstream.imports import HARMLESS, ImportedScript, is_missing, pip_command
from deepfashion_training.upstream.inspection import lora_call, module_names, parse
from deepfashion_training.upstream.patching import patched
from training_run.checkpoints import checkpoints_in
from training_run.stopping import StoppedError, Stopping

logger = logging.getLogger(__name__)

#: The project's own trainer, which ``--upstream`` replaces by another script.
DEFAULT_SCRIPT = Path(__file__).resolve().parents[2] / "train_flux_inpaint.py"
#: What every script must have, and what for.
CONTRACT = {
    "VitonHDTestDataset": "replaced by our garment/person pairs",
    "parse_args": "gets the arguments in the script's own words",
    "main": "trains",
}
#: Names that are replaced so that a script that trains no LoRA trains one.
REPLACED = ("FluxTransformer2DModel", "FluxFillPipeline", "Accelerator")
_TRANSFORMER = "pretrained_inpaint_model_name_or_path"


class UpstreamError(ValueError):
    """A script that cannot be driven; the message is one line that names the script and what is wrong with it.

    ``missing`` are packages that have to be installed.
    """

    def __init__(self, message: str, missing: Collection[str] = ()) -> None:
        super().__init__(message)
        self.missing = missing


_loaded: dict[Path, ImportedScript] = {}


# ---- loading and checking


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
        names = _names_in_source(path)
        if "*" not in names:
            _refuse(path, contract_faults(names))
        _loaded[file] = _execute(path, file)
    module = _loaded[file].module
    _refuse(path, contract_faults(vars(module), module))
    return module


def _names_in_source(path: str | Path) -> set[str]:
    file = Path(path)
    if not file.is_file() or file.suffix != ".py":
        raise UpstreamError(f"--upstream {path}: no Python file there")
    try:
        return set(module_names(parse(file)))
    except (SyntaxError, ValueError) as error:
        raise UpstreamError(f"--upstream {path} is no valid Python: {error}") from error


def contract_faults(names: Collection[str], module: ModuleType | None = None) -> list[str]:
    """What of the contract is missing among ``names``, or cannot be called with one argument in a ``module``."""
    faults = []
    for name in CONTRACT:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
            faults.append(f"no {name}" + (f" (is it {near[0]}?)" if near else ""))
        elif module is not None and name != "VitonHDTestDataset":
            try:
                inspect.signature(getattr(module, name)).bind([])
            except TypeError:
                faults.append(f"{name} does not take one argument")
    return faults


def _refuse(path: str | Path, faults: list[str]) -> None:
    if faults:
        raise UpstreamError(f"--upstream {path} is no training script that can be driven: {', '.join(faults)}")


def _execute(path: str | Path, file: Path) -> ImportedScript:
    """Run the module level of a script."""
    name = f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # given: it is a .py file
    module = importlib.util.module_from_spec(spec)
    script = ImportedScript(file, module)
    sys.modules[name] = module  # before it runs, as the import system does: dataclasses look their module up
    try:
        with script.importable(), one_line_errors():
            spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise _load_error(path, error, script) from error
    if "wandb" in script.stubs:
        vars(module).setdefault("wandb", script.stubs["wandb"])  # skipped by `if is_wandb_available():`
    return script


def _load_error(path: str | Path, error: BaseException, script: ImportedScript) -> UpstreamError:
    package = str(getattr(error, "name", None)).partition(".")[0]
    sibling = list(script.file.parent.glob(f"{package}*"))
    if isinstance(error, ModuleNotFoundError) and not sibling and is_missing(package):
        missing = {package, *script.missing_packages} - HARMLESS.keys()
        message = f"--upstream {path} needs packages that are not installed: {pip_command(missing)}"
        return UpstreamError(message, missing)
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return UpstreamError(f"--upstream {path} failed while it was loaded: {said}")


def open_script(path: str | Path) -> Script:
    """The script at ``path``, loaded and checked; one that trains no LoRA by itself comes with one to train.

    Raises ``UpstreamError`` for a script that does not load, breaks the contract, or can be given no LoRA.
    """
    module = load_script(path)
    known = _known(module)
    if known is None or lora_call(known.files):
        return module
    lacking = [name for name in REPLACED if not hasattr(module, name)]
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
    names, script, problem = _names_in_source(path), None, UpstreamError("")
    try:
        script = open_script(path)
    except UpstreamError as error:
        problem = error
    known = _loaded.get(Path(path).resolve())
    if known is not None:
        names |= set(vars(known.module))
    if script is None:
        lora = ("-", "the script cannot be driven")
    elif isinstance(script, DrivenScript):
        lora = ("adapter", "it trains none: its transformer gets one, the only weights that it can train")
    elif call := lora_call(known.files if known is not None else [Path(path)]):
        lora = ("its own", f"{call}; only the dataset is replaced")
    else:
        lora = ("none", "it makes none and has no FluxTransformer2DModel: only the dataset is replaced")
    rows = [(name, "found" if name in names else "MISSING", what) for name, what in CONTRACT.items()]
    rows.append(("LoRA", *lora))
    rows += [(name, "MISSING", pip_command([name])) for name in sorted(problem.missing)]
    rows += [(name, "stub", HARMLESS[name]) for name in (known.missing_packages if known is not None else ())]
    return "".join(f"{name:<20}{state:<10}{remark}\n" for name, state, remark in rows), str(problem) or None


# ---- arguments


def script_parser(script: Script) -> argparse.ArgumentParser | None:
    """The parser that ``script.parse_args`` builds, or None when it uses no argparse.

    ``parse_args`` runs up to the moment at which it would parse, so nothing is parsed or checked.
    """
    seen: list[argparse.ArgumentParser] = []

    def stop(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        seen.append(parser)
        raise SystemExit

    stopped = patched(argparse.ArgumentParser, parse_args=stop, parse_known_args=stop)
    with importable(script), stopped, contextlib.suppress(SystemExit):
        script.parse_args([])
    return seen[0] if seen else None


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
    driven = isinstance(script, DrivenScript)
    if driven:  # its own defaults are not those of a LoRA for our base
        same = ("pretrained_model_name_or_path", _TRANSFORMER, "seed")
        given = {**{name: ours.get_default(name) for name in same if name not in from_preset}, **given}
    elif (Path(given.get(_TRANSFORMER, "")) / "transformer" / "config.json").is_file():
        given = {**given, _TRANSFORMER: str(Path(given[_TRANSFORMER]) / "transformer")}  # others look at the root alone
    theirs = script_parser(script) or ours
    translation = translate(theirs, {**from_preset, **given}, from_user, handed_on, adapter=driven)
    translation.lost = [flag for flag in translation.lost if flag.split()[0][2:] not in given]
    if "--instance_data_dir" in theirs._option_string_actions and "--dataset_name" not in " ".join(handed_on):
        translation.tokens.append(f"--instance_data_dir={given['dataroot']}")  # it wants one of the two
    with importable(script):
        args = script.parse_args(translation.tokens)
    if isinstance(script, DrivenScript):
        args = script.adopt(ours, args, translation)
    elif translation.lost:
        logger.warning("unknown to %s and without effect: %s", script.__file__, ", ".join(translation.lost))
    if "wandb" in str(getattr(args, "report_to", "")) and is_missing("wandb"):
        raise UpstreamError(f"--report_to {args.report_to} needs the package wandb: {pip_command(['wandb'])}")
    return args


# ---- running


class DrivenScript:
    """A script that trains no LoRA by itself, with a LoRA for it to train; an upstream script like any other.

    ``parse_args`` takes the script's own words; ``adopt`` makes of them the arguments of our trainer, which ``main``
    and the checks before it take.
    """

    def __init__(self, known: ImportedScript) -> None:
        self.known, self.module, self.__file__ = known, known.module, str(known.file)
        self.VitonHDTestDataset = known.module.VitonHDTestDataset
        self.parse_args = known.module.parse_args
        self.script_args = argparse.Namespace()
        self.translation = Translation([], {})

    def adopt(
        self, ours: argparse.ArgumentParser, script_args: argparse.Namespace, translation: Translation
    ) -> argparse.Namespace:
        """Take what the script has parsed, and return every argument of our trainer as it holds in the run."""
        self.script_args, self.translation = script_args, translation
        return settings_of(ours, translation.settings, script_args)

    def notes(self) -> list[str]:
        """What was adapted, a line each."""
        lines = [
            f"{self.__file__} trains no LoRA: its transformer gets one, the only weights that it can train",
            "  its known issues are worked around: rows are shuffled, checkpoints complete, pictures drawn in any "
            "precision; docs/upstream.md lists all",
        ]
        if stubbed := self.known.missing_packages:
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

        found = checkpoint_of(settings)
        settings.resume_from_checkpoint = str(found) if found else None
        for name in vars(self.script_args).keys() & vars(settings).keys():
            setattr(self.script_args, name, getattr(settings, name))
        sha256 = hashlib.sha256(Path(self.__file__).read_bytes()).hexdigest()
        facts = {"script": self.__file__, "sha256": sha256, "lora": "adapter"}
        run, status = DrivenRun(settings, self.script_args, self.VitonHDTestDataset, facts), "failed"
        try:
            replaced = patched(self.module, create=True, **self._replacements(run))
            with importable(self), _quiet_libraries(), replaced, Stopping() as run.stopping:
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

    def _replacements(self, run: Any) -> dict[str, Any]:
        """Names of the script and what they are while ``run`` lasts; ``args`` and ``print`` may be new to it."""
        from deepfashion_training.upstream.accelerator import DrivenAccelerator
        from deepfashion_training.upstream.adapter import AdapterTransformer
        from deepfashion_training.upstream.pipeline import DrivenPipeline

        names = {
            "VitonHDTestDataset": run.build_dataset,
            "FluxTransformer2DModel": type("AdapterTransformer", (AdapterTransformer,), {"run": run}),
            "FluxFillPipeline": type("DrivenPipeline", (DrivenPipeline,), {"run": run}),
            "Accelerator": type("DrivenAccelerator", (DrivenAccelerator,), {"run": run}),
            "args": run.script_args,  # a global that some functions read, and that is set under __main__ only
            "print": lambda *values, **_: logger.debug(" ".join(map(str, values))),  # a line for every weight
        }
        if callable(encode_prompt := getattr(self.module, "encode_prompt", None)):
            names["encode_prompt"] = run.noting_prompts(encode_prompt)
        return names


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep a script from making diffusers verbose, and two warnings from coming with every picture."""
    from diffusers.utils import logging as of_diffusers

    modeling = logging.getLogger("diffusers.models.modeling_utils")
    without = [*modeling.filters, lambda record: "should be kept in float32: []" not in record.getMessage()]
    with (
        warnings.catch_warnings(),
        patched(modeling, filters=without),
        patched(of_diffusers, set_verbosity_info=of_diffusers.set_verbosity_warning),
    ):
        warnings.filterwarnings("ignore", message=".*as torch tensor with value range in.*")
        yield


#: What ``open_script`` returns.
Script = ModuleType | DrivenScript


def _known(script: Script) -> ImportedScript | None:
    """What is known of a script that ``load_script`` imported; None for our own trainer."""
    return _loaded.get(Path(str(script.__file__)).resolve())


def importable(script: Script) -> contextlib.AbstractContextManager[None]:
    """Siblings of a loaded script are importable inside the block, as its functions may want."""
    known = _known(script)
    return known.importable() if known is not None else contextlib.nullcontext()


def _call(module: ModuleType, args: argparse.Namespace) -> None:
    """The script's ``main``, from which it may leave by ``sys.exit``; ``ValueError`` when that tells of a failure."""
    try:
        module.main(args)
    except StoppedError:  # by a signal, after saving
        raise
    except SystemExit as stop:
        if stop.code not in (None, 0):
            raise ValueError(f"{module.__file__} has stopped itself: {stop.code}") from stop


def check_before(script: Script, args: argparse.Namespace) -> None:
    """Raise ``ValueError`` for a missing package or device, an earlier run in the way, or an unusable checkpoint.

    Of a script that trains its own LoRA nothing is known beforehand.
    """
    from deepfashion_training.upstream.driven_run import checkpoint_of
    from training_run.guards import check_packages
    from training_run.output_dir import refuse_earlier_run

    driven = isinstance(script, DrivenScript)
    if not driven and Path(str(script.__file__)) != DEFAULT_SCRIPT:
        return
    check_packages(args)
    refuse_earlier_run(args)
    if driven and args.resume_from_checkpoint != "latest":  # which is looked for when the run begins
        checkpoint_of(args)


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
