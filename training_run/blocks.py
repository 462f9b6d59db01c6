"""How FLUX's blocks compute what they compute, in less time: the same weights, names and files."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from peft.tuners.lora import layer as lora
from torch.nn import functional


def in_one_precision(transformer: torch.nn.Module) -> None:
    """Let blocks compute in the precision of their inputs, bf16 or fp16, and pass over activations less often.

    Norms compute in fp32 whatever they read. Under autocast on CUDA they also give fp32: then modulation and rotation
    take twice the bytes, every layer casts back, and one that keeps its input's precision, such as that of
    bitsandbytes, turns the residual stream to fp32. The base was made in bf16 and draws so, without autocast. A
    plain LoRA over a plain frozen layer becomes part of that layer's products; others stay peft's.
    """
    for module in transformer.modules():
        for kind in (_LayerNorm, _RMSNorm):
            if type(module) is kind.__base__:
                module.__class__ = kind
        if type(module) is lora.Linear and not module.lora_variant:
            module.__class__ = _PlainLora if _is_plain(module) else _Lora
        if type(processor := getattr(module, "processor", None)) is FluxAttnProcessor:
            processor.__class__ = _Attention


def attend_in_fp32(transformer: torch.nn.Module) -> None:
    """Let blocks that are ``in_one_precision`` compute attention in fp32, and all else as before.

    On a CPU PyTorch's fused attention takes some four times as long in bf16, forwards and backwards.
    """
    for module in transformer.modules():
        if type(processor := getattr(module, "processor", None)) is _Attention:
            processor.in_fp32 = True


class _LayerNorm(torch.nn.LayerNorm):
    """As its parent, in the precision of its input."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            weight, bias = _as(hidden, self.weight), _as(hidden, self.bias)
            return functional.layer_norm(hidden, self.normalized_shape, weight, bias, self.eps)


class _RMSNorm(torch.nn.RMSNorm):
    """As its parent, in the precision of its input."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return functional.rms_norm(hidden, self.normalized_shape, _as(hidden, self.weight), self.eps)


def _as(hidden: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor | None:
    return None if weight is None else weight.to(hidden.dtype)


class _Lora(lora.Linear):
    """As its parent; the input stays as it is where autocast would cast it back."""

    def _cast_input_dtype(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return x if torch.is_autocast_enabled(x.device.type) else super()._cast_input_dtype(x, dtype)


class _PlainLora(_Lora):
    """A LoRA that ``_Products`` computes with its layer."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args or kwargs or not _joins(self):
            return super().forward(x, *args, **kwargs)
        return _products([self], x)[0]


def _is_plain(layer: lora.Linear) -> bool:
    """Whether a LoRA layer without a variant is what ``_Products`` computes: no dropout, over a plain frozen layer."""
    base, (name, *others) = layer.base_layer, layer.lora_A
    return (
        not others
        and not layer.lora_bias[name]
        and isinstance(layer.lora_dropout[name], torch.nn.Identity)
        and type(base) is torch.nn.Linear
        and type(base.weight) is torch.nn.Parameter
        and not base.weight.requires_grad
    )


def _joins(layer: Any) -> bool:
    """Whether a layer now takes part in ``_products``: its one adapter is neither merged nor switched off."""
    alone = type(layer) is _PlainLora and len(layer.lora_A) == len(layer.active_adapters) == 1
    return alone and not (layer.disable_adapters or layer.merged)


def _project(hidden: torch.Tensor, layers: Sequence[Any]) -> Sequence[torch.Tensor]:
    """What each of ``layers`` makes of ``hidden``; plain LoRAs share products."""
    return _products(layers, hidden) if all(map(_joins, layers)) else [layer(hidden) for layer in layers]


def _products(layers: Sequence[_PlainLora], hidden: torch.Tensor) -> tuple[torch.Tensor, ...]:
    scales, weights = [], []
    for layer in layers:
        (name,) = layer.lora_A
        scales.append(layer.scaling[name])
        weights += [
            layer.base_layer.weight,
            layer.base_layer.bias,
            layer.lora_A[name].weight,
            layer.lora_B[name].weight,
        ]
    return _Products.apply(hidden, scales, *weights)


class _Products(torch.autograd.Function):
    """Products of one input with frozen layers and with their LoRAs, whose A matrices are one matrix here.

    What peft computes, without its casts and passes over activations between products: an update is added by the
    product that makes it, and gradients to the input are summed in the same way.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, scales: list[float], *weights: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """[...,o] of each layer for ``hidden`` [...,i]; ``weights`` are weight, bias, A and B of each in turn."""
        layers = [weights[first : first + 4] for first in range(0, len(weights), 4)]
        made = []
        with torch.autocast(hidden.device.type, enabled=False):
            rows = hidden.to(layers[0][0].dtype).flatten(0, -2)
            inner = rows @ torch.cat([a for _, _, a, _ in layers]).to(rows.dtype).t()
            lows = inner.split([len(a) for _, _, a, _ in layers], 1)
            for (weight, bias, _, b), low, scale in zip(layers, lows, scales, strict=True):
                product = _plus(functional.linear(rows, weight, bias), low, (b * scale).to(rows.dtype).t())
                made.append(product.unflatten(0, hidden.shape[:-1]))
        ctx.save_for_backward(rows, inner, *weights)
        ctx.scales, ctx.dtype = scales, hidden.dtype
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Of the input and of each A and B."""
        rows, inner, *weights = ctx.saved_tensors
        layers = [weights[first : first + 4] for first in range(0, len(weights), 4)]
        ranks = [len(a) for _, _, a, _ in layers]
        parts = list(zip([each.flatten(0, -2) for each in gradients], layers, ctx.scales, strict=True))
        low = torch.cat([given @ (b * scale).to(given.dtype) for given, (_, _, _, b), scale in parts], 1)
        found: list[torch.Tensor | None] = []
        for (given, (_, _, a, b), scale), inside, to_a in zip(
            parts, inner.split(ranks, 1), (low.t() @ rows).split(ranks), strict=True
        ):
            found += [None, None, to_a.to(a.dtype), (given.t() @ inside).to(b.dtype) * scale]
        to_hidden = None
        if ctx.needs_input_grad[0]:
            to_hidden = low @ torch.cat([a for _, _, a, _ in layers]).to(low.dtype)
            for given, (weight, _, _, _), _ in parts:
                to_hidden = _plus(to_hidden, given, weight)
            to_hidden = to_hidden.unflatten(0, gradients[0].shape[:-1]).to(ctx.dtype)
        return to_hidden, None, *found


def _plus(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``total + left @ right`` for a ``total`` that nobody else needs: within the product, or left to the compiler."""
    if torch.compiler.is_compiling():  # it joins the sum with what follows, and would copy total for a product's sake
        return total + left @ right
    return total.addmm_(left, right)


class _Attention(FluxAttnProcessor):
    """As its parent; queries, keys and values share products, and are rotated in fewer passes."""

    #: Whether attention alone computes in fp32.
    in_fp32 = False

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> Any:
        """[B,T,D] of a single block, of a double block the picture's and the text's; text comes first in attention."""
        parts = [self._heads(attn, hidden_states, "to_q to_k to_v norm_q norm_k")]
        if encoder_hidden_states is not None:
            names = "add_q_proj add_k_proj add_v_proj norm_added_q norm_added_k"
            parts.insert(0, self._heads(attn, encoder_hidden_states, names))
        query, key, value = (torch.cat(each, 1) if len(each) > 1 else each[0] for each in zip(*parts, strict=True))
        del parts  # what is joined in attention would else be kept meanwhile
        if image_rotary_emb is not None:
            query, key = _Rotation.apply(query, *image_rotary_emb), _Rotation.apply(key, *image_rotary_emb)
        kind = query.dtype
        if self.in_fp32:
            query, key, value = query.float(), key.float(), value.float()
        with torch.autocast(query.device.type, enabled=False) if self.in_fp32 else contextlib.nullcontext():
            seen = dispatch_attention_fn(query, key, value, attn_mask=attention_mask, backend=self._attention_backend)
        seen = seen.flatten(2, 3).to(kind)
        if encoder_hidden_states is None:
            return seen
        words = encoder_hidden_states.shape[1]
        picture = attn.to_out[1](attn.to_out[0](seen[:, words:].contiguous()))
        return picture, attn.to_add_out(seen[:, :words].contiguous())

    @staticmethod
    def _heads(attn: Any, hidden: torch.Tensor, names: str) -> list[torch.Tensor]:
        """Queries, keys and values of ``hidden``, each [B,T,heads,width], normalised."""
        *layers, norm_q, norm_k = (getattr(attn, name) for name in names.split())
        query, key, value = (made.unflatten(-1, (-1, attn.head_dim)) for made in _project(hidden, layers))
        return [norm_q(query), norm_k(key), value]


class _Rotation(torch.autograd.Function):
    """Rotary embedding of [B,T,heads,width] in fp32: neighbours (a, b) become (a cos - b sin, b cos + a sin)."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(hidden, cos, sin)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(gradient, cos, -sin), None, None


def _rotated(hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    turned = hidden.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    half = sin[:, None, ::2]
    signed = torch.stack([-half, half], -1).flatten(-2)
    return (hidden * cos[:, None]).addcmul_(turned, signed).to(hidden.dtype)
