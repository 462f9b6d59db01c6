"""Count what the blocks of FLUX.1-Fill do in a training step of one 768x1152 pair, without a GPU and without weights.

    python benchmarks/step_traffic.py [--json F]

A double and a single block of the real size go forward and backward with tensors that have a shape and no content,
as diffusers and peft make them and as the trainer does, as they are and compiled. Counted are kernels, and the bytes
that they read and write: of products (matrices, attention), and of all others, which only move bytes. Autocast is as
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
from training_run.memory import autocast_as_on_cuda, fake_blocks

PRODUCTS = ("mm", "addmm", "bmm", "_scaled_dot_product")
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


def count(make_trainable: Any, compiled: bool, config: Mapping[str, Any] = FLUX_FILL) -> list[Traffic]:
    """Of a double and a single block."""
    args = trainer.parse_args(["--dataroot=.", "--mixed_precision=bf16"])
    found = []
    with fake_blocks(args, make_trainable, config) as blocks:
        for block, inputs in blocks:
            traffic = Traffic()
            called: Any = block
            if compiled:
                torch._dynamo.reset()
                backend = functools.partial(compile_fx.compile_fx, inner_compile=traffic.plan)
                called = torch.compile(block, backend=backend, fullgraph=True, dynamic=False)
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
    rows = []
    print(f"{'':30}{'kernels':>16}{'GB':>16}{'all blocks, GB':>18}")
    print(f"{'':30}{'products others':>16}{'products others':>16}{'products others':>18}")
    for compiled in (False, True):
        for whose, make_trainable in {
            "diffusers with peft": as_peft_makes_it,
            "trainer": trainer.make_trainable,
        }.items():
            how = f"{whose}{', compiled' * compiled}"
            two = count(make_trainable, compiled)
            whole = {kind: sum(n * t.bytes[kind] for n, t in zip(BLOCKS, two, strict=True)) for kind in two[0].bytes}
            for name, traffic in zip(("double", "single"), two, strict=True):
                kernels, gb = traffic.kernels, {kind: size / 1e9 for kind, size in traffic.bytes.items()}
                rows.append({"how": how, "block": name, "kernels": dict(kernels), "gb": gb})
                line = (
                    f"{how:30}{kernels['products']:>9}{kernels['others']:>7}{gb['products']:>9.2f}{gb['others']:>7.2f}"
                )
                print(f"{line}{whole['products'] / 1e9:>11.0f}{whole['others'] / 1e9:>7.0f}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
