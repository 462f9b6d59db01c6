"""Load a third-party training script by path, check its contract, patch it, run it, restore it.

Such a script is any Python file with module-level ``VitonHDTestDataset``, ``parse_args(input_args=None)`` and
``main(args)``, its siblings beside it. Its bytes are never changed, and every name that was patched is the original
again afterwards. A script that trains no LoRA by itself gets one to train.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.util
import inspect
import logging
import symtable
import sys
from collections.abc import Collection
from functools import cache, partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

from diffusers import FluxFillPipeline
from diffusers.utils import logging as diffusers_logging

# At the top, because the folder of a script, which may have a file of this name, comes first on the path later.
from deepfashion_training.upstream.accelerator import DrivenAccelerator
from deepfashion_training.upstream.adapter import AdapterTransformer
from deepfashion_training.upstream.driven_run import DrivenRun, checkpoint_of
from deepfashion_training.upstream.imports import ScriptImports, is_missing
from deepfashion_training.upstream.pipeline import PipelineOnDemand
from training_run.output_dir import refuse_earlier_run
from training_run.stopping import StoppedError, Stopping

logger = logging.getLogger(__name__)

#: Packages whose name for pip is another than that of the import.
PIP_NAMES = {"PIL": "Pillow", "skimage": "scikit-image", "sklearn": "scikit-learn", "yaml": "PyYAML"}
#: What every script must have.
CONTRACT = ("VitonHDTestDataset", "parse_args", "main")
#: Names that are replaced so that a script that trains no LoRA trains one.
REPLACED = ("FluxTransformer2DModel", "FluxFillPipeline", "Accelerator")
#: Calls by which a script makes a LoRA of its own.
LORA_CALLS = frozenset({"add_adapter", "get_peft_model", "inject_adapter_in_model", "LoraConfig"})


class UpstreamError(ValueError):
    """A script that cannot be driven; the message is one line that names the script and what is wrong with it."""


class Script:
    """A third-party script: its ``module``, and whether it trains no LoRA by itself and so ``gets_lora``."""

    def __init__(self, module: ModuleType, imports: ScriptImports, gets_lora: bool) -> None:
        self.module, self.imports, self.gets_lora = module, imports, gets_lora
        if gets_lora:
            lora = "trains no LoRA: its transformer gets one, the only weights that it can train; see docs/upstream.md"
        else:
            lora = "trains in its own way: only its dataset is replaced"
        self.notes = [f"{imports.file} {lora}"]
        if imports.used:
            self.notes.append(f"  stubs for packages that are not installed: {', '.join(sorted(imports.used))}")


# ---- loading and checking


def open_script(path: str | Path) -> Script:
    """The script at ``path``, loaded and checked.

    Raises ``UpstreamError`` when there is no such file, it does not compile, a name of the contract is missing (before
    it runs), its module level fails, or it can be given no LoRA.
    """
    file = Path(path).resolve()
    if not file.is_file() or file.suffix != ".py":
        raise UpstreamError(f"--upstream {path}: no Python file there")
    try:
        source = file.read_text(encoding="utf-8")
        symbols = symtable.symtable(source, str(file), "exec").get_symbols()
    except (SyntaxError, ValueError) as error:
        raise UpstreamError(f"--upstream {path} is no valid Python: {error}") from error
    names = {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}
    if "import *" not in source:
        _check_names(path, names)
    module, imports = _imported(file)
    _check_names(path, vars(module).keys())
    for name in ("parse_args", "main"):
        try:
            inspect.signature(getattr(module, name)).bind([])
        except TypeError as error:
            raise UpstreamError(f"--upstream {path} cannot be driven: {name} does not take one argument") from error
    if any(map(_makes_lora, imports.files)):
        return Script(module, imports, gets_lora=False)
    lacking = [name for name in REPLACED if not hasattr(module, name)]
    if lacking and "FluxTransformer2DModel" in source:
        raise UpstreamError(
            f"--upstream {path} trains no LoRA and cannot be given one: no {', '.join(lacking)} at module level"
        )
    return Script(module, imports, gets_lora=not lacking)


def _check_names(path: str | Path, names: Collection[str]) -> None:
    if missing := [name for name in CONTRACT if name not in names]:
        raise UpstreamError(f"--upstream {path} cannot be driven: no {', no '.join(missing)}")


@cache
def _imported(file: Path) -> tuple[ModuleType, ScriptImports]:
    """Run the module level of a script, once. Raises ``UpstreamError`` when it fails; nothing of it stays then."""
    name = f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # given: it is a .py file
    module, imports = importlib.util.module_from_spec(spec), ScriptImports(file)
    sys.modules[name] = module  # before it runs, as the import system does: dataclasses look their module up
    try:
        with imports.importable():
            spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        said = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if isinstance(error, ModuleNotFoundError) and error.name and "." not in error.name:
            said += f"; install it: pip install {PIP_NAMES.get(error.name, error.name)}"
        raise UpstreamError(f"--upstream {file} failed while it was loaded: {said}") from error
    return module, imports


def _makes_lora(file: Path) -> bool:
    calls = (node.func for node in ast.walk(ast.parse(file.read_bytes())) if isinstance(node, ast.Call))
    return any(getattr(called, "attr", getattr(called, "id", None)) in LORA_CALLS for called in calls)


def check_before(script: ModuleType | Script, args: argparse.Namespace) -> None:
    """Raise ``ValueError`` for an earlier run in the way, or an unusable checkpoint.

    Of a script that trains in its own way nothing is known beforehand. ``script`` is our own trainer or another one.
    """
    if isinstance(script, Script) and not script.gets_lora:
        return
    refuse_earlier_run(args)
    if isinstance(script, Script) and args.resume_from_checkpoint != "latest":  # which is looked for in the run
        checkpoint_of(args)


# ---- running


def train(script: ModuleType | Script, args: argparse.Namespace, dataset: Any) -> None:
    """Call the ``main`` of ``script``, our own trainer or another one, with our ``dataset`` in the place of its own.

    A script that gets a LoRA leaves what our own trainer leaves in the output directory. Raises ``ValueError`` for what
    the user can fix, and whatever the script raises; every name is the original again then.
    """
    if isinstance(script, ModuleType):
        with mock.patch.object(script, "VitonHDTestDataset", dataset):
            script.main(args)
    elif script.gets_lora:
        _train_lora(script, args, dataset)
    else:
        _call(script, args, {"VitonHDTestDataset": dataset})


def _call(script: Script, args: argparse.Namespace, replacements: dict[str, Any]) -> None:
    """``main`` with names of the script replaced; ``ValueError`` when it leaves by ``sys.exit`` with an error."""
    module = script.module
    # A global that some functions read, and that is set under __main__ only.
    patches = mock.patch.multiple(module, create=True, args=args, **replacements)
    with script.imports.importable(), patches:
        try:
            module.main(args)
        except StoppedError:  # by a signal, after saving
            raise
        except SystemExit as stop:
            if stop.code not in (None, 0):
                raise ValueError(f"{module.__file__} has stopped itself: {stop.code}") from stop


def _train_lora(script: Script, settings: argparse.Namespace, dataset: Any) -> None:
    """Train through a script that gets a LoRA."""
    found = checkpoint_of(settings)
    settings.resume_from_checkpoint = str(found) if found else None
    file = script.imports.file
    facts = {"script": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "lora": "adapter"}
    run, status = DrivenRun(settings, dataset, facts), "failed"
    quiet = mock.patch.object(diffusers_logging, "set_verbosity_info", diffusers_logging.set_verbosity_warning)
    try:
        with quiet, Stopping() as run.stopping:
            _call(script, run.script_args, _replacements(script.module, run))
            run.finish()
        status = "done"
    except StoppedError as stopped:
        status = f"stopped by {stopped}"
        logger.info("Stopped at step %d; --resume_from_checkpoint latest continues", run.step)
        raise
    finally:
        run.end(status)


def _replacements(module: ModuleType, run: DrivenRun) -> dict[str, Any]:
    """Names of a script that gets a LoRA, and what they are while ``run`` lasts."""
    names = {
        "VitonHDTestDataset": run.build_dataset,
        "FluxTransformer2DModel": type("AdapterTransformer", (AdapterTransformer,), {"run": run}),
        "FluxFillPipeline": type("Pipeline", (FluxFillPipeline,), {"from_pretrained": partial(PipelineOnDemand, run)}),
        "Accelerator": type("DrivenAccelerator", (DrivenAccelerator,), {"run": run}),
        "print": lambda *values, **_: logger.debug(" ".join(map(str, values))),  # a line for every weight
    }
    if callable(encode_prompt := getattr(module, "encode_prompt", None)):
        names["encode_prompt"] = run.noting_prompts(encode_prompt)
    if is_missing("wandb"):  # whose settings are made all the same
        names["wandb"] = SimpleNamespace(Settings=dict)
    return names
