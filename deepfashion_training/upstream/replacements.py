"""What takes the place of which name in a script that trains no LoRA by itself."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from argparse import Namespace
from collections.abc import Callable
from types import ModuleType
from typing import Any

from deepfashion_training.upstream.accelerator import accelerator_class
from deepfashion_training.upstream.adapter import adapter_class
from deepfashion_training.upstream.driven_run import DrivenRun
from deepfashion_training.upstream.pipeline import pipeline_class


def replacements(module: ModuleType, run: DrivenRun, args: Namespace) -> dict[str, Any]:
    """Names of ``module`` and what they are while ``run`` lasts; ``args`` and ``print`` may be new to it."""
    names: dict[str, Any] = {
        "VitonHDTestDataset": run.build_dataset,
        "FluxTransformer2DModel": adapter_class(run),
        "FluxFillPipeline": pipeline_class(run),
        "Accelerator": accelerator_class(run),
        "args": args,
        "print": _keeping_prints(run),
    }
    if callable(getattr(module, "encode_prompt", None)):
        names["encode_prompt"] = _noting_prompts(module.encode_prompt, run)
    return names


def _noting_prompts(encode_prompt: Callable[..., Any], run: DrivenRun) -> Callable[..., Any]:
    """``encode_prompt`` that tells ``run`` which prompt the script trains with."""
    signature = inspect.signature(encode_prompt)

    @functools.wraps(encode_prompt)
    def noting(*args: Any, **kwargs: Any) -> Any:
        given, encoded = signature.bind(*args, **kwargs).arguments, encode_prompt(*args, **kwargs)
        for name in ("prompt", "prompts"):
            if name in given:
                run.note_prompt(given[name], encoded)
        return encoded

    return noting


def _keeping_prints(run: DrivenRun) -> Callable[..., None]:
    """``print`` that keeps for ``run`` what would go to the terminal."""

    def keep(*values: Any, file: Any = None, **form: Any) -> None:
        if file is None or file is sys.stdout:
            run.note_print(*values)
        else:
            print(*values, file=file, **form)

    return keep


def quiet_libraries() -> list[tuple[Any, dict[str, Any]]]:
    """What to patch so that a script does not make the libraries chatty: modules, and names in them."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    modeling = logging.getLogger("diffusers.models.modeling_utils")  # it warns of an empty list of modules
    return [
        (diffusers_logging, {"set_verbosity_info": _nothing}),
        # transformers warns when a script looks up a text encoder's class by its bare configuration
        (transformers_logging, {"set_verbosity_warning": transformers_logging.set_verbosity_error}),
        (modeling, {"filters": [*modeling.filters, lambda record: "float32: []" not in record.getMessage()]}),
    ]


def _nothing() -> None:
    pass
