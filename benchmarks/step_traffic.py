"""Count what FLUX.1-Fill does in a training step of one 768x1152 pair, without a GPU and without weights.

    python benchmarks/step_traffic.py [--json F]

A double and a single block of the real size go forward and backward with tensors that have a shape and no content,
as diffusers and peft make them and as the trainer does, as they are and compiled, and the VAE encodes. Counted are
kernels, and the bytes that they read and write: of products (matrices, attention, convolutions), and of all others,
which only move bytes. Autocast is as
on CUDA; an RMS norm is made of several kernels, as on a CPU, where CUDA has one. What a compiled block does is what
PyTorch's compiler plans for a CPU; on CUDA it joins alike.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from torch._guards import detect_fake_mode
from torch._inductor import compile_fx, debug, graph
from torch._inductor.virtualized import V
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python benchmarks/...` has only this folder there
from benchmarks.predict_memory import as_peft_makes_it, trainer
from training_run.flops import FLUX_FILL
from training_run.memory import FLUX_VAE, autocast_as_on_cuda, fake_blocks, fake_vae

PRODUCTS = ("mm", "addmm", "bmm", "_scaled_dot_product", "convolution")
BLOCKS = (FLUX_FILL["num_layers"], FLUX_FILL["num_single_layers"])


class Traffic(TorchDispatchMode):
    """Counts kernels and bytes of ``products`` and ``others`` that run while it is on, or that ``plan`` plans."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def _add(self, product: bool, moved: int) -> None:
        kind = "products" if product else "others"
        self.kernels[kind] += 1
        self.bytes[kind] += moved

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        storages = {each.untyped_storage()._cdata for each in given}
        outputs = [each for each in tree_leaves(made) if isinstance(each, torch.Tensor)]
        name = func._schema.name.removeprefix("aten::")
        viewed = not func._schema.is_mutable and all(each.untyped_storage()._cdata in storages for each in outputs)
        if outputs and not viewed and not name.startswith(("empty", "new_empty")):
            self._add(name.startswith(PRODUCTS), sum(each.nbytes for each in (*given, *outputs)))
        return made

    def plan(self, module: Any, inputs: Any, **_: Any) -> Any:
        """An inner compiler that counts what would run, and runs nothing."""
        compile_fx.record_original_output_strides(module)
        planned = graph.GraphLowering(module)
        context = debug.DebugContext()
        with V.set_fake_mode(detect_fake_mode(inputs)), V.set_graph_handler(planned), V.set_debug_handler(context):
            planned.run(*inputs)
            planned._update_scheduler()
            for node in planned.scheduler.nodes:
                self._add(node.is_extern() or node.is_template(), node.get_read_write_buffers_sizes())
        return compile_fx.make_boxed_func(module.forward)


def compiled_by(traffic: Traffic, module: Any) -> Any:
    """``module``, which counts when it is called what its compiled form would do."""
    torch._dynamo.reset()
    backend = functools.partial(compile_fx.compile_fx, inner_compile=traffic.plan)
    return torch.compile(module, backend=backend, fullgraph=True, dynamic=False)


def count_encoding(compiled: bool, config: Mapping[str, Any] = FLUX_VAE) -> Traffic:
    """Of the VAE's encoder on one pair; the step encodes two, the pair and the masked pair."""
    traffic = Traffic()
    args = trainer.parse_args(["--dataroot=.", "--mixed_precision=bf16"])
    with fake_vae(args, config) as (vae, pair), contextlib.nullcontext() if compiled else traffic:
        (compiled_by(traffic, vae.encoder) if compiled else vae.encoder)(pair)
    return traffic


def count(make_trainable: Any, compiled: bool, config: Mapping[str, Any] = FLUX_FILL) -> list[Traffic]:
    """Of a double and a single block."""
    args = trainer.parse_args(["--dataroot=.", "--mixed_precision=bf16"])
    found = []
    with fake_blocks(args, make_trainable, config) as blocks:
        for block, inputs in blocks:
            traffic = Traffic()
            called = compiled_by(traffic, block) if compiled else block
            with contextlib.nullcontext() if compiled else traffic:
                with autocast_as_on_cuda(args):
                    made = called(**inputs)
                torch.autograd.backward(made, [torch.empty_like(each) for each in made])
            found.append(traffic)
    return found


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--json", type=Path, metavar="F", help="also write the figures to F")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []

    def tell(how: str, part: str, traffic: Traffic, times: int) -> None:
        """A line, and a row of the file; ``times`` a step does it."""
        rows.append({"how": how, "part": part, "kernels": dict(traffic.kernels), "gb": {}, "gb_of_step": {}})
        cells = [f"{how:30}{part:10}"]
        for kind in ("products", "others"):
            rows[-1]["gb"][kind] = gb = traffic.bytes[kind] / 1e9
            rows[-1]["gb_of_step"][kind] = times * gb
            cells.append(f"{traffic.kernels[kind]:>8} kernels{gb:>7.2f} GB{times * gb:>6.0f} GB a step")
        print("".join(cells))

    print(f"{'':40}{'products':>36}{'others':>36}")
    for compiled in (False, True):
        for whose, make_trainable in {
            "diffusers with peft": as_peft_makes_it,
            "trainer": trainer.make_trainable,
        }.items():
            two = count(make_trainable, compiled)
            for part, traffic, times in zip(("double", "single"), two, BLOCKS, strict=True):
                tell(f"{whose}{', compiled' * compiled}", part, traffic, times)
        tell(f"VAE{', compiled' * compiled}", "encoder", count_encoding(compiled), 2)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
