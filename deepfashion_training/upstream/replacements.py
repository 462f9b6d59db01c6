"""What takes the place of which name in a script that trains no LoRA by itself."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from deepfashion_training.upstream.accelerator import DrivenAccelerator
from deepfashion_training.upstream.adapter import AdapterTransformer
from deepfashion_training.upstream.driven_run import DrivenRun
from deepfashion_training.upstream.patching import patched
from deepfashion_training.upstream.pipeline import DrivenPipeline

logger = logging.getLogger(__name__)


def replacements(module: ModuleType, run: DrivenRun) -> dict[str, Any]:
    """Names of ``module`` and what they are while ``run`` lasts; ``args`` and ``print`` may be new to it."""
    names: dict[str, Any] = {
        "VitonHDTestDataset": run.build_dataset,
        "FluxTransformer2DModel": type("AdapterTransformer", (AdapterTransformer,), {"run": run}),
        "FluxFillPipeline": type("DrivenPipeline", (DrivenPipeline,), {"run": run}),
        "Accelerator": type("DrivenAccelerator", (DrivenAccelerator,), {"run": run}),
        "args": run.script_args,  # a global that some functions read, and that is set under __main__ only
        "print": lambda *values, **_: logger.debug(" ".join(map(str, values))),  # a line for every weight
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
        if "prompt" in given:
            run.note_prompt(given["prompt"], encoded)
        return encoded

    return noting


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep a script from making the libraries verbose."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    modeling = logging.getLogger("diffusers.models.modeling_utils")  # it warns of an empty list of modules
    with (
        patched(modeling, filters=[*modeling.filters, lambda record: "float32: []" not in record.getMessage()]),
        patched(of_diffusers, set_verbosity_info=of_diffusers.set_verbosity_warning),
        patched(of_transformers, set_verbosity_warning=of_transformers.set_verbosity_error),
    ):
        yield
