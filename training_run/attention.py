"""Which implementation of attention a run uses: the fastest of those installed, measured at the run's own shape."""

from __future__ import annotations

import argparse
import functools
import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.logging import get_logger
from diffusers.models.attention_dispatch import attention_backend, dispatch_attention_fn

from training_run.flags import BACKENDS
from training_run.flops import seconds
from training_run.speed import free_memory

logger = get_logger(__name__)

#: How far a gradient may be from that of "native", relative to its largest value: four roundings of bfloat16.
TOLERANCE = 4 * 2**-8
REPEATS = 5


def check_installed(backend: str) -> None:
    """Raise ``ValueError`` when the package of ``--attention_backend`` is not there."""
    package = BACKENDS.get(backend, "torch")
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"--attention_backend {backend} needs the package {package}, which is not installed")


def passes(backend: str, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Result and gradients of attention over query, key and value ``inputs``, [B,N,heads,D] each."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    dtype = inputs[-1].dtype
    autocast = torch.autocast(inputs[-1].device.type, dtype, enabled=dtype != torch.float32)
    with attention_backend(backend), autocast:
        result = dispatch_attention_fn(*leaves)
    result.backward(torch.ones_like(result))
    return [result.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def measured(
    backends: Sequence[str], shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> dict[str, float | str]:
    """Seconds of a forward and a backward pass of each of ``backends``, the best of a few; else why it cannot be used.

    ``shape`` is that of query, key and value, [B,N,heads,D]. One that does not compute what "native" does is of no use.
    As in the run, in mixed precision query and key come from their norms in float32 and only values in ``dtype``.
    """
    generator = torch.Generator(device).manual_seed(0)
    query, key, value = (torch.randn(shape, generator=generator, device=device) for _ in range(3))
    inputs = [query, key, value.to(dtype)]
    reference = passes("native", inputs)
    found: dict[str, float | str] = {}
    for backend in backends:
        try:
            check_installed(backend)
            got = passes(backend, inputs)
            off = [(a - b).abs().max() / b.abs().max() for a, b in zip(got, reference, strict=True)]
            took = min(seconds(functools.partial(passes, backend, inputs), device) for _ in range(REPEATS))
        except (ImportError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            found[backend] = (str(error).strip() or type(error).__name__).splitlines()[0]
            continue
        wrong = float(torch.stack([each.float() for each in off]).max())
        # A nan is not below it either.
        found[backend] = took if wrong <= TOLERANCE else f"its result or gradient is off by {wrong:.2g}"
    return found


def shape_of(args: argparse.Namespace, config: Any) -> tuple[int, int, int, int]:
    """Shape of queries in a forward pass, [B,N,heads,D]: a token of a pair is 16x16 pixels, and texts have theirs."""
    tokens = args.height // 16 * (2 * args.width // 16) + args.max_sequence_length
    return args.train_batch_size, tokens, config.num_attention_heads, config.attention_head_dim


def choose_backend(
    transformer: Any, wanted: str, shape: tuple[int, int, int, int], dtype: torch.dtype, accelerator: Any
) -> str:
    """Let ``transformer`` use ``wanted``, or with "auto" the fastest for ``shape`` [B,N,heads,D]; returns its name.

    All ranks take the same one. Without a GPU "auto" is "native". Raises ``ValueError`` for one that cannot be used.
    """
    device = accelerator.device
    if wanted == "native" or (wanted == "auto" and device.type != "cuda"):
        return "native"  # as a transformer is loaded
    found = measured(list(BACKENDS) if wanted == "auto" else [wanted], shape, dtype, device)
    if wanted == "auto":
        seconds_here = [each if isinstance(each, float) else float("inf") for each in found.values()]
        slowest = accelerator.gather(torch.tensor([seconds_here], device=device)).max(dim=0).values.tolist()
        wanted = min(zip(slowest, found, strict=True))[1]
        free_memory()
        for name, each in found.items():
            result = f"{1000 * each:.2f} ms" if isinstance(each, float) else each
            logger.info(f"--attention_backend auto: {name}: {result}")
    elif isinstance(found[wanted], str):
        raise ValueError(f"--attention_backend {wanted} cannot be used here: {found[wanted]}")
    logger.info(f"Attention by {wanted}")
    with attention_backend("native"):  # else it would be the default of every other model in the process
        transformer.set_attention_backend(wanted)
    return wanted
