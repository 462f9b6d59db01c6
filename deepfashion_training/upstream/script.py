"""Load a third-party training script by path, check its contract, patch it, run it, restore it.

Such a script is any Python file with module-level ``VitonHDTestDataset``, or another class that the user names,
``parse_args(input_args=None)`` and ``main(args)``, its siblings beside it. Its bytes are never changed, and every name
that was patched is the original again afterwards. A script that trains no LoRA by itself gets one to train.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.util
import inspect
import logging
import re
import sys
import traceback
from collections.abc import Collection, Sequence
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
from deepfashion_training.upstream.batch_keys import DATASET_ARGUMENTS, SAMPLE_KEYS, DatasetUse
from deepfashion_training.upstream.driven_run import DrivenRun, checkpoint_of
from deepfashion_training.upstream.imports import ScriptImports, advice, is_missing
from deepfashion_training.upstream.pipeline import PipelineOnDemand
from deepfashion_training.upstream.reading import ScriptText
from training_run.output_dir import refuse_earlier_run
from training_run.stopping import StoppedError, Stopping

logger = logging.getLogger(__name__)

#: What every script must have, beside its dataset.
CONTRACT = ("parse_args", "main")
#: What runs nothing when it is called.
NO_FUNCTIONS = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)
#: How a script of this family calls its dataset.
DATASET_CLASS = "VitonHDTestDataset"
#: Names that are replaced so that a script that trains no LoRA trains one.
REPLACED = ("FluxTransformer2DModel", "FluxFillPipeline", "Accelerator")
#: Calls by which a script makes a LoRA of its own.
LORA_CALLS = frozenset({"add_adapter", "get_peft_model", "inject_adapter_in_model", "LoraConfig"})


class UpstreamError(ValueError):
    """A script that cannot be driven; the message is one line that names the script and what is wrong with it."""


class Script:
    """A third-party script: its ``module``, the class ``dataset`` that is replaced, and whether it ``gets_lora``.

    It gets one when it trains none by itself.
    """

    def __init__(self, module: ModuleType, imports: ScriptImports, dataset: str) -> None:
        self.module, self.imports, self.dataset = module, imports, dataset
        name = module.main.__module__
        self.home = imports.siblings.get(name) or sys.modules.get(name, module)
        """The module that ``main`` looks names up in: where it comes from another file, that file's."""
        makes_lora = any(_makes_lora(ast.parse(file.read_bytes())) for file in imports.files)
        lacking = _lacking(imports.file.read_bytes(), vars(self.home).keys())
        if lacking and not makes_lora:
            raise UpstreamError(f"trains no LoRA and cannot be given one: no {', '.join(lacking)} at module level")
        self.gets_lora = not makes_lora and all(hasattr(self.home, name) for name in REPLACED)
        if self.gets_lora:
            lora = "trains no LoRA: its transformer gets one, the only weights that it can train; see docs/upstream.md"
        else:
            lora = "trains in its own way: only its dataset is replaced"
        self.notes = [f"{imports.file} {lora}"]
        if imports.used:
            self.notes.append(f"  stubs for packages that are not installed: {', '.join(sorted(imports.used))}")


# ---- loading and checking


def open_script(path: str | Path, dataset: str | None = None) -> Script:
    """The script at ``path``, loaded and checked; ``dataset`` is its dataset's class, else ``VitonHDTestDataset``.

    Raises ``UpstreamError`` when there is no such file or it does not compile; when, before it runs, its text tells
    that it cannot be driven; when its module level fails, or it can be given no LoRA.
    """
    file = Path(path).resolve()
    if not file.is_file() or file.suffix != ".py":
        raise UpstreamError(f"--upstream {path}: no Python file there")
    try:
        text = ScriptText(file)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UpstreamError(f"--upstream {path} is no valid Python: {error}") from error
    try:
        check_text(text, dataset or DATASET_CLASS)
        module, imports = _imported(file)
        _check_names(text, vars(module).keys(), dataset or DATASET_CLASS)
        for name in CONTRACT:
            try:
                inspect.signature(getattr(module, name)).bind([])
            except TypeError as error:
                raise UpstreamError(f"cannot be driven: {name} does not take one argument") from error
            if any(is_none(getattr(module, name)) for is_none in NO_FUNCTIONS):
                raise UpstreamError(
                    f"cannot be driven: {name} is a coroutine or a generator, and does nothing when called"
                )
        return Script(module, imports, dataset or DATASET_CLASS)
    except UpstreamError as error:
        raise UpstreamError(f"--upstream {path} {error}") from error.__cause__


def check_text(text: ScriptText, dataset: str) -> None:
    """Raise ``UpstreamError`` for a script that cannot be driven, as far as its text tells for certain."""
    if text.names is not None:
        _check_names(text, text.names, dataset)
    for name in CONTRACT:
        _, function = text.definition(name, text.script) or (None, None)
        if function is not None and not function.decorator_list and not _takes_one(function.args):
            raise UpstreamError(f"cannot be driven: {name} does not take one argument")
    faults = []
    if not text.looks_up(dataset):
        others = [name for name in text.dataset_classes() if name != dataset and text.looks_up(name)]
        faults.append(f"main never builds {dataset}{_which_dataset(others)}")
    use = DatasetUse(text, dataset)
    if arguments := use.foreign_arguments:
        faults.append(f"it gives its dataset {', '.join(arguments)}, and ours takes {', '.join(DATASET_ARGUMENTS)}")
    if keys := use.foreign_keys:
        faults.append(f"it reads {', '.join(keys)} from a batch, and a sample has {', '.join(SAMPLE_KEYS)}")
    faults += _lora_faults(text)
    if faults:
        raise UpstreamError(f"cannot be driven: {'; '.join(faults)}; see docs/upstream.md")


def _lora_faults(text: ScriptText) -> list[str]:
    """Why a script that trains no LoRA can be given none, as far as its text tells."""
    files = text.files.values()
    # A file that is found through a changed path may make a LoRA: that is known when the script is loaded.
    if text.names is None or any(_makes_lora(file.tree) or b"sys.path" in file.source for file in files):
        return []
    if lacking := _lacking(text.script.source, text.names):
        return [f"it trains no LoRA and cannot be given one: no {', '.join(lacking)} at module level"]
    if not text.names.issuperset(REPLACED):  # it has no FLUX transformer
        return []
    # A pipeline that is loaded whole brings a transformer of its own, which is none of these.
    unused = [name for name in ("FluxTransformer2DModel", "Accelerator") if not text.looks_up(name)]
    return [f"it trains no LoRA and cannot be given one, as main never makes a {name} of its own" for name in unused]


def _lacking(source: bytes, names: Collection[str]) -> list[str]:
    """What a script with a FLUX transformer lacks among ``names`` to be given a LoRA."""
    return [name for name in REPLACED if name not in names] if b"FluxTransformer2DModel" in source else []


def _takes_one(arguments: ast.arguments) -> bool:
    """Whether a function can be called with one argument and no keyword."""
    places = [*arguments.posonlyargs, *arguments.args]
    needed = len(places) - len(arguments.defaults)
    return needed <= 1 and bool(places or arguments.vararg) and all(arguments.kw_defaults)


def _check_names(text: ScriptText, names: Collection[str], dataset: str) -> None:
    if missing := [name for name in (dataset, *CONTRACT) if name not in names]:
        hint = ""
        if missing == [dataset]:
            classes = [name for name in text.dataset_classes() if name in names]
            hint = _which_dataset([name for name in classes if text.looks_up(name)] or classes)
        raise UpstreamError(f"cannot be driven: no {', no '.join(missing)}{hint}")


def _which_dataset(names: Sequence[str]) -> str:
    """The question whether one of these classes is the script's dataset, and the answer that it waits for."""
    if not names:
        return ""
    return f"; is its dataset {' or '.join(names)}? Then add --upstream_dataset {names[0]}"


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
        if isinstance(error, ImportError) and error.name:
            said += advice(error, ScriptText(file))
        raise UpstreamError(f"failed while it was loaded: {said}") from error
    return module, imports


def _makes_lora(tree: ast.AST) -> bool:
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
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
        with mock.patch.object(script, DATASET_CLASS, dataset):
            script.main(args)
    elif script.gets_lora:
        _train_lora(script, args, dataset)
    else:
        built: list[Any] = []

        def building(*given: Any, **named: Any) -> Any:
            built.append(dataset(*given, **named))
            return built[-1]

        _call(script, args, {script.dataset: building})
        if not built:
            raise ValueError(
                f"{script.module.__file__} has ended and has never built {script.dataset}: whatever it did, it did "
                "without the rows of --dataset_name; see docs/upstream.md"
            )


def _call(script: Script, args: argparse.Namespace, replacements: dict[str, Any]) -> None:
    """``main`` with names of the script replaced.

    Raises ``ValueError`` when it leaves by ``sys.exit`` with an error, and for a key that a sample does not have.
    """
    module = script.module
    # A global that some functions read, and that is set under __main__ only.
    patches = mock.patch.multiple(script.home, create=True, args=args, **replacements)
    with script.imports.importable(), patches:
        try:
            module.main(args)
        except StoppedError:  # by a signal, after saving
            raise
        except SystemExit as stop:
            if stop.code not in (None, 0):
                raise ValueError(f"{module.__file__} has stopped itself: {stop.code}") from stop
        except KeyError as error:
            file, line, key = _place(error)
            if Path(file) not in script.imports.files:
                raise
            raise ValueError(
                f"{file}, line {line} looks {key} up, which is not there; a sample has {', '.join(SAMPLE_KEYS)}"
            ) from error


def _place(error: KeyError) -> tuple[str, str, str]:
    """File and line that have looked a key up, and the key; of one in a loader's process as its text says."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    text = str(error.args[0]) if error.args else ""
    if places := re.findall(r'File "(.+)", line (\d+)', text):
        return *places[-1], text.rpartition("KeyError: ")[2].strip()
    return last.filename, str(last.lineno), str(error)


def _train_lora(script: Script, settings: argparse.Namespace, dataset: Any) -> None:
    """Train through a script that gets a LoRA."""
    found = checkpoint_of(settings)
    if found:
        settings.resume_from_checkpoint = str(found)
    file = script.imports.file
    facts = {"script": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "lora": "adapter"}
    run, status = DrivenRun(settings, dataset, facts), "failed"
    quiet = mock.patch.object(diffusers_logging, "set_verbosity_info", diffusers_logging.set_verbosity_warning)
    try:
        with quiet, Stopping() as run.stopping:
            _call(script, run.script_args, _replacements(script, run))
            run.finish()
        status = "done"
    except StoppedError as stopped:
        status = f"stopped by {stopped}"
        logger.info("Stopped at step %d; --resume_from_checkpoint latest continues", run.step)
        raise
    finally:
        run.end(status)


def _replacements(script: Script, run: DrivenRun) -> dict[str, Any]:
    """Names of a script that gets a LoRA, and what they are while ``run`` lasts."""
    names = {
        script.dataset: run.build_dataset,
        "FluxTransformer2DModel": type("AdapterTransformer", (AdapterTransformer,), {"run": run}),
        "FluxFillPipeline": type("Pipeline", (FluxFillPipeline,), {"from_pretrained": partial(PipelineOnDemand, run)}),
        "Accelerator": type("DrivenAccelerator", (DrivenAccelerator,), {"run": run}),
        "print": lambda *values, **_: logger.debug(" ".join(map(str, values))),  # a line for every weight
    }
    if callable(encode_prompt := getattr(script.home, "encode_prompt", None)):
        names["encode_prompt"] = run.noting_prompts(encode_prompt)
    if is_missing("wandb"):  # whose settings are made all the same
        names["wandb"] = SimpleNamespace(Settings=dict)
    return names
