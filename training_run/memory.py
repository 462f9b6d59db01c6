"""Memory of a training step, worked out in seconds without a GPU and without weights.

Steps of shallow models with blocks of the real size are traced with fake tensors, which have shapes and storages and
hold nothing. All double blocks of a model keep the same, and so do all single blocks, so a few traces give a model of
any depth. What CUDA does otherwise than a CPU is emulated: under autocast, norms compute in fp32.
"""

from __future__ import annotations

import argparse
import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch._functorch.config
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training_run.flops import FLUX_FILL
from training_run.quantization import layers_of_blocks
from training_run.speed import recompute, recomputed_by, spread

#: The VAE of FLUX.1.
FLUX_VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 16,
    "use_quant_conv": False, "use_post_quant_conv": False,
}  # fmt: skip
#: Bytes of a frozen weight: nf4 has 4 bits and a scale in fp32 for every 64 weights.
WEIGHT_BYTES = {"nf4": 0.5 + 4 / 64, "int8": 1.0, "fp8": 1.0}
#: The text encoder T5-XXL of FLUX.1 in bf16: 24 layers, and 32,128 words, of width 4,096 (4.762e9 weights).
T5_BYTES = 2 * (24 * (4 * 4096 * 4096 + 3 * 4096 * 10240 + 2 * 4096) + 32128 * 4096 + 32 * 64 + 4096)
#: Depths of the shallow models: one, the same with a double block more, and with a single block more.
_SHAPES = ((1, 1), (2, 1), (1, 2))

#: Lets what the arguments ask for of a transformer be trained, and returns it.
MakeTrainable = Callable[[Any, argparse.Namespace], list[torch.nn.Parameter]]


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step on one GPU by what holds them; pairs are of a double and of a single block."""

    blocks: tuple[int, int]  # in the model
    weights: int  # of transformer and VAE
    parameters: int  # weights that are trained, their number
    trained: int  # these in fp32, their gradients and state_bytes
    kept: tuple[int, int]  # activations of a block that keeps them for the backward pass
    inputs: tuple[int, int]  # and of one that is recomputed
    work: int  # of the step beside that, when no block is recomputed
    work_recomputing: int  # when some are
    encoding: int  # of the VAE before the step; 0 with cached latents

    def peak(self, recomputed: int) -> int:
        """Most bytes at a time when so many blocks, spread evenly over the model, are recomputed.

        It is what ``torch.cuda.max_memory_allocated`` shows; CUDA itself takes up to a GiB more.
        """
        chosen = spread(sum(self.blocks), recomputed)
        of_double = sum(number < self.blocks[0] for number in chosen)
        activations = max(self.work, self.work_recomputing) if recomputed else self.work
        for kind, count in enumerate((of_double, recomputed - of_double)):
            activations += count * self.inputs[kind] + (self.blocks[kind] - count) * self.kept[kind]
        return self.weights + self.trained + max(activations, self.encoding)

    def fewest_recomputed(self, budget: float) -> int | None:
        """The smallest number of recomputed blocks whose ``peak`` is at most ``budget`` bytes; None where none is."""
        return next((count for count in range(sum(self.blocks) + 1) if self.peak(count) <= budget), None)

    def least(self, setting: int | str) -> int:
        """Bytes at the peak when ``--gradient_checkpointing`` recomputes what it can."""
        blocks = sum(self.blocks)
        return self.peak(blocks if setting == "auto" else recomputed_by(int(setting), blocks))

    def recomputed(self, setting: int | str, budget: float) -> int | None:
        """How many blocks ``--gradient_checkpointing`` recomputes with ``budget`` bytes; None where they do not fit."""
        if setting == "auto":
            return self.fewest_recomputed(budget)
        count = recomputed_by(int(setting), sum(self.blocks))
        return count if self.peak(count) <= budget else None


def predict(
    args: argparse.Namespace, make_trainable: MakeTrainable, config: Mapping[str, Any] = FLUX_FILL
) -> StepMemory:
    """Memory of a step that trains as ``args`` say, in mixed precision bf16 or in fp32.

    ``make_trainable`` is the trainer's own, ``config`` the transformer's. What a compiled block keeps is what
    PyTorch's partitioner decides; what it works with meanwhile is taken to be that of the block as it is, which is
    more.
    """
    depths = [{**config, "num_layers": double, "num_single_layers": single} for double, single in _SHAPES]
    traced = [trace_step(args, make_trainable, depth) for depth in depths]
    blocks = (config["num_layers"], config["num_single_layers"])
    peak, frozen, trained = (_Linear.through([getattr(step, name) for step in traced]) for name in TracedStep._fields)
    recomputing = _Linear.through([trace_step(args, make_trainable, depth, recomputed=3).peak for depth in depths])
    parameters = trained.at(blocks)
    encoder, encoding = (0, 0) if args.cache_latents else _encoding(args)
    return StepMemory(
        blocks=blocks,
        weights=frozen.at(blocks) + encoder,
        parameters=parameters,
        trained=parameters * (4 + 4 + state_bytes(args)),
        kept=saved_by_blocks(args, make_trainable, config) if args.compile_blocks else peak.of_block,
        inputs=recomputing.of_block,
        work=peak.rest,
        work_recomputing=recomputing.rest,
        encoding=encoding,
    )


def state_bytes(args: argparse.Namespace) -> int:
    """Bytes that a trained weight takes beside itself and its gradient: the optimizer's, and its average in fp32."""
    return optimizer_bytes(args) + (4 if args.ema_decay else 0)


def optimizer_bytes(args: argparse.Namespace) -> int:
    """Bytes of the optimizer's state for a trained weight: AdamW has two moments, Muon one, Prodigy four figures."""
    return 2 if args.use_8bit_adam else {"adamw": 8, "muon": 4, "prodigy": 16}[args.optimizer]


class TracedStep(NamedTuple):
    """What ``trace_step`` counts."""

    peak: int  # most bytes of activations at a time
    frozen: int  # bytes of frozen weights
    trained: int  # trained weights, their number


@dataclass(frozen=True)
class _Linear:
    """A figure of a model as a sum over its blocks."""

    of_block: tuple[int, int]  # what a double and a single block add
    rest: int

    @classmethod
    def through(cls, figures: Sequence[int]) -> _Linear:
        """From the figures of the models of ``_SHAPES``."""
        one, with_double, with_single = figures
        double, single = with_double - one, with_single - one
        return cls((double, single), one - double - single)

    def at(self, blocks: tuple[int, int]) -> int:
        """The figure of a model of so many double and single blocks."""
        return self.rest + blocks[0] * self.of_block[0] + blocks[1] * self.of_block[1]


@contextlib.contextmanager
def fake_blocks(
    args: argparse.Namespace, make_trainable: MakeTrainable, config: Mapping[str, Any] = FLUX_FILL
) -> Iterator[list[tuple[torch.nn.Module, dict[str, Any]]]]:
    """A double and a single block without content, each with what it is called with; ``FakeTensorMode`` is on."""
    tokens = args.height // 16 * (2 * args.width // 16)
    words, dtype = args.max_sequence_length, _dtype(args)
    model = _on_meta(args, make_trainable, {**config, "num_layers": 1, "num_single_layers": 1})
    with FakeTensorMode(allow_non_fake_inputs=True):
        _make_fake(model)
        rotary = model.pos_embed(torch.empty(tokens + words, 3))
        found = []
        for block in (model.transformer_blocks[0], model.single_transformer_blocks[0]):
            inputs: dict[str, Any] = {"image_rotary_emb": rotary}
            for name, count in {"hidden_states": tokens, "encoder_hidden_states": words}.items():
                size = (args.train_batch_size, count, model.inner_dim)
                inputs[name] = torch.empty(size, dtype=dtype, requires_grad=True)
            inputs["temb"] = torch.empty(args.train_batch_size, model.inner_dim, dtype=dtype)
            found.append((block, inputs))
        yield found


@contextlib.contextmanager
def autocast_as_on_cuda(args: argparse.Namespace) -> Iterator[None]:
    """Autocast of ``--mixed_precision`` as CUDA has it."""
    dtype = _dtype(args)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32), as_on_cuda():
        yield


def saved_by_blocks(
    args: argparse.Namespace, make_trainable: MakeTrainable, config: Mapping[str, Any] = FLUX_FILL
) -> tuple[int, int]:
    """Bytes that a double and a single block save for their backward pass, also what they share with others.

    With ``--compile_blocks`` as PyTorch's partitioner decides, within ``--activation_memory_budget``.
    """
    found = []
    with fake_blocks(args, make_trainable, config) as blocks:
        for block, inputs in blocks:
            weights = {weight.untyped_storage()._cdata for weight in block.parameters()}
            sizes: dict[int, int] = {}

            def note(tensor: torch.Tensor, sizes: dict[int, int] = sizes, weights: set[int] = weights) -> torch.Tensor:
                storage = tensor.untyped_storage()
                if storage._cdata not in weights:
                    sizes[storage._cdata] = storage.nbytes()
                return tensor

            called: Callable[..., Any] = block
            if args.compile_blocks:  # what is compiled for CUDA is partitioned as this is; nothing is made to run
                torch._dynamo.reset()
                called = torch.compile(block, backend="aot_eager_decomp_partition", dynamic=False)
            with (
                torch._functorch.config.patch(activation_memory_budget=args.activation_memory_budget),
                torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
                autocast_as_on_cuda(args),
            ):
                called(**inputs)
            found.append(sum(sizes.values()))
    if args.compile_blocks:
        torch._dynamo.reset()  # a run that follows in this process begins anew
    double, single = found
    return double, single


def trace_step(
    args: argparse.Namespace, make_trainable: MakeTrainable, config: Mapping[str, Any], recomputed: int = 0
) -> TracedStep:
    """A forward and a backward pass of a model with ``config``, of which so many blocks are recomputed.

    Weights and gradients are no activations, whatever they are kept in.
    """
    model = _on_meta(args, make_trainable, config)
    with FakeTensorMode():
        _make_fake(model)
        recompute(model, recomputed)
        resident = [tensor for weight in model.parameters() for tensor in (weight, weight.grad) if tensor is not None]
        with _LiveStorages(resident) as live:
            with autocast_as_on_cuda(args):
                prediction = model(**_inputs(args, config))[0]
            loss = (prediction.float() ** 2).mean()
            del prediction
            loss.backward()
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return TracedStep(live.peak, frozen_bytes(model, args), trained)


def _inputs(args: argparse.Namespace, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a transformer of ``config`` is called with."""
    tokens = args.height // 16 * (2 * args.width // 16)
    batch, words, dtype = args.train_batch_size, args.max_sequence_length, _dtype(args)
    return {
        "hidden_states": torch.empty(batch, tokens, config["in_channels"], dtype=dtype),
        "timestep": torch.empty(batch),
        "guidance": torch.empty(batch) if config["guidance_embeds"] else None,
        "pooled_projections": torch.empty(batch, config["pooled_projection_dim"], dtype=dtype),
        "encoder_hidden_states": torch.empty(batch, words, config["joint_attention_dim"], dtype=dtype),
        "txt_ids": torch.empty(words, 3),
        "img_ids": torch.empty(tokens, 3),
        "return_dict": False,
    }


def trace_drawing(args: argparse.Namespace, add_lora: MakeTrainable, config: Mapping[str, Any]) -> int:
    """Most bytes of activations at a time of a forward pass that keeps none; they do not grow with the blocks."""
    model = _on_meta(args, add_lora, config).eval()
    with FakeTensorMode(), torch.no_grad():
        _make_fake(model)
        with _LiveStorages(list(model.parameters())) as live:
            model(**_inputs(args, config))
    return live.peak


def decoding(args: argparse.Namespace) -> tuple[int, int]:
    """Bytes of the VAE, and most bytes that it needs while it decodes a pair."""
    with fake_vae(args) as (vae, pairs):
        size = (1, FLUX_VAE["latent_channels"], args.height // 8, args.width // 4)
        with _LiveStorages(list(vae.parameters())) as live:
            vae.decode(torch.empty(size, dtype=pairs.dtype))
    return sum(weight.nbytes for weight in vae.parameters()), live.peak


class _LiveStorages(TorchDispatchMode):
    """While it is on, counts the bytes of tensors that are made and still held by something."""

    def __init__(self, resident: list[torch.Tensor]) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in resident}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return made

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, -(-storage.nbytes() // 512) * 512  # as CUDA's allocator rounds
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@contextlib.contextmanager
def as_on_cuda() -> Iterator[None]:
    """Let norms compute in fp32 under autocast and give fp32, as autocast on CUDA does and on a CPU does not."""
    layer_norm, rms_norm = functional.layer_norm, functional.rms_norm

    def in_fp32(norm: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(picture: torch.Tensor, shape: Any, *more: Any, **named: Any) -> torch.Tensor:
            if not torch.is_autocast_enabled("cpu"):
                return norm(picture, shape, *more, **named)
            with torch.autocast("cpu", enabled=False):
                more = tuple(_float(each) for each in more)
                return norm(picture.float(), shape, *more, **{name: _float(each) for name, each in named.items()})

        return call

    functional.layer_norm, functional.rms_norm = in_fp32(layer_norm), in_fp32(rms_norm)
    try:
        yield
    finally:
        functional.layer_norm, functional.rms_norm = layer_norm, rms_norm


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) else value


def _dtype(args: argparse.Namespace) -> torch.dtype:
    """Precision of the frozen base; fp16 takes as much as bf16."""
    return torch.float32 if args.mixed_precision == "no" else torch.bfloat16


@contextlib.contextmanager
def _made_in(dtype: torch.dtype) -> Iterator[None]:
    """Let modules that are built have weights of ``dtype``."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


def _on_meta(args: argparse.Namespace, make_trainable: MakeTrainable, config: Mapping[str, Any]) -> Any:
    """A transformer without memory, whose weights the run of ``args`` trains."""
    plain = argparse.Namespace(**vars(args) | {"compile_blocks": False, "gradient_checkpointing": 0})
    with torch.device("meta"), _made_in(_dtype(args)):
        model = FluxTransformer2DModel(**config)
    for _, _, layer in layers_of_blocks(model) if args.quantize_base else ():
        layer.__class__ = _PackedLinear
    with torch.device("meta"):
        make_trainable(model, plain)
    return model.train()


def _make_fake(model: torch.nn.Module) -> None:
    """Give a model from ``_on_meta`` fake weights, and those that are trained gradients."""
    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None:
                fake = torch.nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype), weight.requires_grad)
                fake.grad = torch.empty_like(fake) if weight.requires_grad else None
                module._parameters[name] = fake


class _PackedLinear(torch.nn.Linear):
    """A linear layer whose frozen weight is unpacked for each product and never kept unpacked."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        made = _Product.apply(inputs.to(self.weight.dtype), self.weight)
        return made if self.bias is None else made + self.bias


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return inputs @ torch.empty_like(weight).t()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient @ torch.empty_like(ctx.saved_tensors[0]), None


def frozen_bytes(model: torch.nn.Module, args: argparse.Namespace) -> int:
    """Bytes of the frozen weights of ``model`` as ``--quantize_base`` keeps them."""
    found = 0.0
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            packed = name == "weight" and type(module) is _PackedLinear
            if not weight.requires_grad:
                found += weight.numel() * (WEIGHT_BYTES[args.quantize_base] if packed else weight.itemsize)
    return int(found)


@contextlib.contextmanager
def fake_vae(
    args: argparse.Namespace, config: Mapping[str, Any] = FLUX_VAE
) -> Iterator[tuple[AutoencoderKL, torch.Tensor]]:
    """A frozen VAE without content and a batch of pairs for it [B,3,H,2W]; ``FakeTensorMode`` is on."""
    dtype = _dtype(args)
    with FakeTensorMode(), torch.no_grad():
        with _made_in(dtype):
            vae = AutoencoderKL(**config)
        yield vae, torch.empty(args.train_batch_size, 3, args.height, 2 * args.width, dtype=dtype)


def _encoding(args: argparse.Namespace) -> tuple[int, int]:
    """Bytes of the VAE, and most bytes that it needs while it encodes a batch of pairs."""
    with fake_vae(args) as (vae, pairs):
        weights = list(vae.parameters())
        with _LiveStorages([*weights, pairs]) as live:
            vae.encode(pairs)
    return sum(weight.nbytes for weight in weights), live.peak + pairs.nbytes
