"""A LoRA in the formats that other tools load, and the transformer that it is added to.

``training_run/lora_formats.py`` reads LoRAs and has the names of layers. A, B and scaling are as there.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from huggingface_hub import snapshot_download
from safetensors import safe_open
from safetensors.torch import save as serialize
from safetensors.torch import save_file

from training_run.bases import check_files
from training_run.hub import is_hub_id, local_path, transformer_in, why_not_loaded
from training_run.lora_formats import PEFT_WEIGHTS, SWAPPED, LoraFile, joined_layer

#: Precisions that an export can have, by their names in flags; and safetensors' names of them.
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_STORED_AS = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
#: What ``PeftModel`` expects before a layer's name.
_PEFT_PREFIX = "base_model.model"
#: diffusers' names of a transformer's weights: in one file, or in several that an index lists.
_WEIGHTS = "diffusion_pytorch_model.safetensors"
_INDEX = f"{_WEIGHTS}.index.json"


def to_kohya(lora: LoraFile) -> dict[str, torch.Tensor]:
    """Weights under the names of kohya's sd-scripts, which ComfyUI and diffusers know too.

    These name the layers of Black Forest Labs' FLUX, where q, k and v (single blocks: q, k, v and the MLP's first
    layer) are one. With hidden size D, the n LoRAs of rank r among these parts become one of rank n r: ``lora_down``
    [n r, D] stacks the A's, ``lora_up`` [3 D (7 D), n r] has the B's in the rows of their parts and zeros elsewhere.
    No lower rank holds the n updates. Tools scale by alpha over the rank of the file, so ``alpha`` is scaling x n r
    (x r for layers that stay alone) and the update is unchanged; rsLoRA is folded in that way too. No weight is
    rounded, unless the parts have different scalings, whose ratio goes into B. An MLP four times as wide as D is
    assumed where it has no LoRA.

    Raises ``ValueError`` for DoRA.
    """
    if lora.config.use_dora:
        raise ValueError("--format kohya cannot hold the magnitudes of a DoRA: use --format fused, or peft")
    weights: dict[str, torch.Tensor] = {}
    for layer in lora.layers:
        joined, parts = joined_layer(layer) or (layer, (layer,))
        name = f"lora_unet_{joined.replace('.', '_')}"
        if f"{name}.alpha" in weights:
            continue
        scaling, hidden = lora.scaling(layer), lora.weights[f"{layer}.lora_A.weight"].shape[1]
        downs, ups = [], []
        for part in parts:
            up = lora.weights.get(f"{part}.lora_B.weight")
            if up is None:
                ups.append(torch.zeros(4 * hidden if part.endswith(".proj_mlp") else hidden, 0))
                continue
            downs.append(lora.weights[f"{part}.lora_A.weight"])
            ups.append(up if lora.scaling(part) == scaling else up * (lora.scaling(part) / scaling))
        up = ups[0] if len(ups) == 1 else torch.block_diag(*ups)
        weights[f"{name}.lora_down.weight"] = torch.cat(downs).contiguous()
        weights[f"{name}.lora_up.weight"] = (_swapped(up) if layer == SWAPPED else up).contiguous()
        weights[f"{name}.alpha"] = torch.tensor(scaling * up.shape[1], dtype=torch.float32)
    return weights


def _swapped(tensor: torch.Tensor) -> torch.Tensor:
    """The two halves of the rows, the second first."""
    return torch.cat(tensor.chunk(2)[::-1])


def write_kohya(lora: LoraFile, file: Path, dtype: torch.dtype | None) -> None:
    """Write ``to_kohya`` to one safetensors file, its matrices in ``dtype``, or as they are."""
    rank, alpha = lora.config.r, lora.scaling(lora.layers[0]) * lora.config.r
    about = {"ss_network_module": "networks.lora_flux", "ss_base_model_version": "flux1"}
    about |= {"ss_network_dim": str(rank), "ss_network_alpha": str(alpha)}
    # Without the adapter's settings: diffusers would believe them and not the ranks and alphas of this file.
    ours = {name: value for name, value in lora.metadata.items() if name not in (LORA_ADAPTER_METADATA_KEY, "format")}
    weights = to_kohya(lora)
    for name, tensor in weights.items() if dtype is not None else ():
        weights[name] = tensor if name.endswith(".alpha") else tensor.to(dtype)
    file.write_bytes(serialize(weights, {"format": "pt", **ours, **about}))


def write_peft(lora: LoraFile, folder: Path) -> None:
    """Write a folder that ``PeftModel.from_pretrained(transformer, folder)`` loads.

    So does diffusers with ``transformer.load_lora_adapter(folder, prefix="base_model.model")``, which takes alpha from
    the metadata of the weights.
    """
    config = type(lora.config).from_peft_type(**lora.config.to_dict())
    config.inference_mode, config.base_model_name_or_path = True, lora.metadata.get("transformer")
    config.save_pretrained(folder)
    settings = {f"{_PEFT_PREFIX}.{name}": value for name, value in lora.config.to_dict().items()}
    metadata = {**lora.metadata, "format": "pt"}
    metadata[LORA_ADAPTER_METADATA_KEY] = json.dumps(settings, default=sorted, sort_keys=True)
    weights = {f"{_PEFT_PREFIX}.{name}": tensor.contiguous() for name, tensor in lora.weights.items()}
    (folder / PEFT_WEIGHTS).write_bytes(serialize(weights, metadata))


def find_transformer(name: str) -> Path:
    """The folder of the transformer that a folder or Hub id names, at its root or in transformer/; else ``ValueError``.

    Downloads what the Hub cache lacks.
    """
    folder = local_path(name)
    if not folder.is_dir():
        if not is_hub_id(name):
            raise ValueError(f"the base {name}: no such folder; name the transformer with --base")
        files = ("config.json", "diffusion_pytorch_model*")
        try:
            wanted = [*files, *(f"transformer/{file}" for file in files)]
            folder = Path(snapshot_download(name, allow_patterns=wanted))
        except Exception as error:  # see find_lora
            raise ValueError(f"the base {why_not_loaded(name, error)}; or name a folder with --base") from error
    folder = transformer_in(folder).resolve()
    check_files(folder, "fetch it again")
    config = folder / "config.json"
    kind = json.loads(config.read_text("utf-8")).get("_class_name") if config.is_file() else None
    if kind != "FluxTransformer2DModel" or not any(folder.glob("[!.]*.safetensors")):
        raise ValueError(f"the base {name} holds no FluxTransformer2DModel with .safetensors weights")
    return folder


def stored_dtype(transformer: Path) -> torch.dtype:
    """Precision of the weights in a transformer's folder; bf16 for one that ``DTYPES`` lacks, such as 8-bit floats."""
    with safe_open(min(transformer.glob("[!.]*.safetensors")), "pt") as file:
        stored: torch.dtype = file.get_tensor(next(iter(file.keys()))).dtype
    return stored if stored in _STORED_AS else torch.bfloat16


def write_fused(lora: LoraFile, transformer: Path, dtype: torch.dtype, folder: Path) -> None:
    """Write a folder with the transformer that has the LoRA added to its weights, in files as those of the base.

    One of them is in memory at a time.
    """
    folder.mkdir()
    (folder / "config.json").write_bytes((transformer / "config.json").read_bytes())
    stored, size = _stored(transformer), 0
    for file in sorted(set(stored.values())):
        with safe_open(file, "pt") as base:
            weights = {name: _fused(lora, name, base.get_tensor(name), dtype) for name in base.keys()}  # noqa: SIM118
        save_file(weights, folder / file.name, {"format": "pt"})
        (folder / file.name).chmod((folder / "config.json").stat().st_mode)  # safetensors writes for its owner alone
        size += sum(weight.nbytes for weight in weights.values())
    if (transformer / _INDEX).is_file():
        index = {"metadata": {"total_size": size}, "weight_map": {name: file.name for name, file in stored.items()}}
        (folder / _INDEX).write_text(json.dumps(index, indent=2), "utf-8")


def write_single_file(lora: LoraFile, transformer: Path, dtype: torch.dtype, file: Path) -> None:
    """Write the transformer with the LoRA in it as one file by Black Forest Labs' names, as flux1-fill-dev is.

    safetensors' own writer wants all weights in memory, 24 GB of them; here it is one at a time.
    """
    with contextlib.ExitStack() as stack:
        files = {path: stack.enter_context(safe_open(path, "pt")) for path in set(_stored(transformer).values())}
        base = {name: files[path] for name, path in _stored(transformer).items()}
        shapes = {name: tuple(base[name].get_slice(name).get_shape()) for name in base}
        plan = single_file_plan(shapes)
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        start = 0
        for joined, names in plan.items():
            shape = (sum(shapes[name][0] for name in names), *shapes[names[0]][1:])
            end = start + torch.Size(shape).numel() * dtype.itemsize
            header[joined] = {"dtype": _STORED_AS[dtype], "shape": shape, "data_offsets": (start, end)}
            start = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with file.open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for names in plan.values():
                for name in names:
                    weight = _fused(lora, name, base[name].get_tensor(name), dtype)
                    weight = _swapped(weight) if name.startswith(f"{SWAPPED}.") else weight
                    out.write(weight.contiguous().view(torch.uint8).numpy().data)


def single_file_plan(shapes: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Black Forest Labs' names of a transformer's tensors, and the diffusers tensors whose rows each has, in order.

    Raises ``ValueError`` for tensors that FLUX.1 does not have, or has and are missing.
    """
    names, plan = set(shapes), {}
    for name in sorted(names):
        layer, _, kind = name.rpartition(".")
        found = joined_layer(layer)
        if found is None:
            raise ValueError(f"--single_file has no name for the tensor {name}")
        joined, parts = found
        needed = tuple(f"{part}.{kind}" for part in parts)
        if missing := [part for part in needed if part not in names]:
            raise ValueError(f"the base has {name} and no {missing[0]}, which --single_file joins")
        plan[f"{joined}.{'scale' if joined.endswith('_norm') else kind}"] = needed
    return plan


def _stored(transformer: Path) -> dict[str, Path]:
    """Which file of a transformer's folder holds each tensor; ``ValueError`` where one is missing."""
    index = transformer / _INDEX
    if index.is_file():
        files = json.loads(index.read_text("utf-8"))["weight_map"]
        return {name: transformer / file for name, file in files.items()}
    if not (transformer / _WEIGHTS).is_file():
        raise ValueError(f"the base {transformer} has no {_WEIGHTS} and no {_INDEX}")
    with safe_open(transformer / _WEIGHTS, "pt") as file:
        return dict.fromkeys(file.keys(), transformer / _WEIGHTS)


def _fused(lora: LoraFile, name: str, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A weight of the base with the LoRA added in float32, as ``dtype``; ``ValueError`` for what is not finite."""
    if not weight.is_floating_point():
        raise ValueError(f"the base holds {name} as {weight.dtype}: fuse into a base that is not quantized")
    layer = name.removesuffix(".weight")
    down = lora.weights.get(f"{layer}.lora_A.weight")
    if down is not None and layer != name:
        up, magnitude = lora.weights[f"{layer}.lora_B.weight"], lora.weights.get(f"{layer}.lora_magnitude_vector")
        weight = weight.float() + lora.scaling(layer) * (up.float() @ down.float())
        if magnitude is not None:
            weight *= (magnitude.float() / weight.norm(dim=1))[:, None]
    weight = weight.to(dtype)
    if not weight.isfinite().all():
        raise ValueError(f"{name} is not finite with the LoRA in it: use another --dtype, or a lower --lora_scale")
    return weight
