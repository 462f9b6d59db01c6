"""A trained LoRA as a file, and the same LoRA in the formats that other tools load.

Here A is [r, in] and B is [out, r]; a layer's weight grows by ``scaling`` x B A, where ``scaling`` is alpha / r, or
alpha / sqrt(r) for rsLoRA.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from huggingface_hub import hf_hub_download, snapshot_download
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from training_run.bases import check_files
from training_run.hub import is_hub_id, subfolder_of_transformer, transformer_in, why_not_loaded

#: Precisions of a fused transformer.
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
#: What ``PeftModel`` expects before a layer's name.
_PEFT_PREFIX = "base_model.model"

#: Layers of Black Forest Labs' FLUX and the diffusers layers that each is made of, in order. Read off diffusers'
#: ``_convert_kohya_flux_lora_to_diffusers``, of which ``to_kohya`` is the inverse.
_DOUBLE_BLOCK = {
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn_proj": ("attn.to_out.0",),
    "img_mlp_0": ("ff.net.0.proj",),
    "img_mlp_2": ("ff.net.2",),
    "img_mod_lin": ("norm1.linear",),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn_proj": ("attn.to_add_out",),
    "txt_mlp_0": ("ff_context.net.0.proj",),
    "txt_mlp_2": ("ff_context.net.2",),
    "txt_mod_lin": ("norm1_context.linear",),
}
_SINGLE_BLOCK = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation_lin": ("norm.linear",),
}
_BLOCKS = {
    "transformer_blocks": ("double_blocks", _DOUBLE_BLOCK),
    "single_transformer_blocks": ("single_blocks", _SINGLE_BLOCK),
}


@dataclass(frozen=True)
class LoraFile:
    """A LoRA of a FLUX transformer: ``weights`` by ``<layer>.lora_A.weight`` and ``<layer>.lora_B.weight``."""

    path: Path
    weights: dict[str, torch.Tensor]
    config: LoraConfig
    metadata: dict[str, str]

    @property
    def scaling(self) -> float:
        """The factor before B A."""
        return self.config.lora_alpha / (math.sqrt(self.config.r) if self.config.use_rslora else self.config.r)

    @property
    def layers(self) -> list[str]:
        """Names of the layers that the LoRA changes."""
        return sorted({name.rsplit(".lora_", 1)[0] for name in self.weights})

    @property
    def sha256(self) -> str:
        """SHA-256 of the file, in hex: which LoRA this is, wherever it lies."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def scaled(self, factor: float) -> LoraFile:
        """The same LoRA with ``factor`` times the update, which may be zero or negative: it goes into B, not alpha."""
        grown = {
            name: (tensor.float() * factor).to(tensor.dtype) if name.endswith(".lora_B.weight") else tensor
            for name, tensor in self.weights.items()
        }
        return self if factor == 1 else replace(self, weights=grown)


def find_lora(name: str) -> Path:
    """The LoRA file that a folder, a file or a Hub id names; ``ValueError`` where there is none."""
    path = Path(name).expanduser()
    if is_hub_id(name):
        try:
            return Path(hf_hub_download(name, LORA_WEIGHT_NAME_SAFE)).resolve()
        except Exception as error:  # no such repository or file, no network: each HTTP library has its own classes
            raise ValueError(f"LoRA {name}: no {LORA_WEIGHT_NAME_SAFE}: {why_not_loaded(name, error)}") from error
    file = path / LORA_WEIGHT_NAME_SAFE if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"LoRA {name}: there is no file {file}")
    return file.resolve()


def read_lora(path: Path, *, assume_alpha: bool = False) -> LoraFile:
    """The LoRA in ``path``; ``ValueError`` for a file that is not one, or does not say its rank and alpha.

    With ``assume_alpha`` a file that does not say them has the rank of its first layer and alpha equal to it, as
    diffusers takes it; its ``metadata`` is empty then.
    """
    try:
        with safe_open(path, "pt") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    known = re.compile(r"transformer\..+\.(lora_[AB]\.weight|lora_magnitude_vector)")
    other = next((name for name in stored if not known.fullmatch(name)), None if stored else "nothing")
    if other is not None:
        raise ValueError(f"{path} is not a LoRA of a FLUX transformer as diffusers names it: it holds {other}")
    weights = {name.removeprefix("transformer."): tensor for name, tensor in stored.items()}
    for name, tensor in weights.items():
        if not tensor.numel() or not tensor.is_floating_point() or not tensor.isfinite().all():
            raise ValueError(f"{path}: {name} does not hold finite numbers: the file is damaged")
    if assume_alpha and LORA_ADAPTER_METADATA_KEY not in metadata:
        rank = next((len(tensor) for name, tensor in weights.items() if name.endswith(".lora_A.weight")), 1)
        layers = sorted({name.rsplit(".lora_", 1)[0] for name in weights})
        dora = any(name.endswith("lora_magnitude_vector") for name in weights)
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=layers, use_dora=dora)
        lora = LoraFile(path, weights, config, {})
    else:
        lora = LoraFile(path, weights, _config(path, metadata), metadata)
    for layer in lora.layers:
        down, up = (weights.get(f"{layer}.lora_{part}.weight", torch.empty(0)) for part in "AB")
        if not down.ndim == up.ndim == 2 or not down.shape[0] == up.shape[1] == lora.config.r:
            raise ValueError(f"{path}: {layer} is not of the rank {lora.config.r} that the metadata says")
    return lora


def _config(path: Path, metadata: dict[str, str]) -> LoraConfig:
    """The adapter's settings, as the trainer and diffusers write them into a file."""
    try:
        adapter = json.loads(metadata[LORA_ADAPTER_METADATA_KEY])
        settings = {name.removeprefix("transformer."): value for name, value in adapter.items()}
        if settings["r"] < 1 or not 0 < settings["lora_alpha"] < math.inf:  # NaN compares as false
            raise ValueError(f"rank {settings['r']}, alpha {settings['lora_alpha']}")
        config = LoraConfig.from_peft_type(**{"peft_type": "LORA", **settings})
        if config.rank_pattern or config.alpha_pattern:
            raise ValueError("only one rank and alpha for all layers are supported")
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} does not say a rank and alpha to use ({LORA_ADAPTER_METADATA_KEY} in its metadata: {error!r}): "
            "train it with this project, or save it with save_lora_weights of diffusers 0.35 or later"
        ) from error
    return config


def _place(layer: str) -> tuple[str, tuple[str, ...]]:
    """kohya's name of the layer that ``layer`` is part of, and all its parts, by diffusers' full names."""
    match = re.fullmatch(r"((?:single_)?transformer_blocks)\.(\d+)\.(.+)", layer)
    if match:
        blocks, names = _BLOCKS[match[1]]
        for name, parts in names.items():
            if match[3] in parts:
                return f"lora_unet_{blocks}_{match[2]}_{name}", tuple(f"{match[1]}.{match[2]}.{part}" for part in parts)
    raise ValueError(f"--format kohya has no name for the layer {layer}")


def to_kohya(lora: LoraFile) -> dict[str, torch.Tensor]:
    """Weights under the names of kohya's sd-scripts, which ComfyUI and diffusers know too.

    These name the layers of Black Forest Labs' FLUX, where q, k and v (single blocks: q, k, v and the MLP's first
    layer) are one. With hidden size D, the n = 3 (4) LoRAs of rank r become one of rank n r: ``lora_down`` [n r, D]
    stacks the A's, ``lora_up`` [3 D (7 D), n r] has the B's on its diagonal and zeros elsewhere. Tools scale by alpha
    over the rank of the file, so ``alpha`` is scaling x n r (x r for layers that stay alone) and the update is
    unchanged; rsLoRA is folded in that way too. A part without a LoRA gets zeros. No weight is rounded. Assumed is an
    MLP four times as wide as D.

    Raises ``ValueError`` for DoRA and for layers that the format has no name for.
    """
    if lora.config.use_dora:
        raise ValueError("--format kohya cannot hold the magnitudes of a DoRA: use --format fused, or peft")
    weights: dict[str, torch.Tensor] = {}
    for layer in lora.layers:
        name, parts = _place(layer)
        if f"{name}.alpha" in weights:
            continue
        sample = lora.weights[f"{layer}.lora_A.weight"]
        rank, hidden = sample.shape
        downs, ups = [], []
        for part in parts:
            rows = 4 * hidden if part.endswith(".proj_mlp") else hidden
            downs.append(lora.weights.get(f"{part}.lora_A.weight", torch.zeros_like(sample)))
            ups.append(lora.weights.get(f"{part}.lora_B.weight", sample.new_zeros(rows, rank)))
        weights[f"{name}.lora_down.weight"] = torch.cat(downs).contiguous()
        weights[f"{name}.lora_up.weight"] = torch.block_diag(*ups).contiguous()
        weights[f"{name}.alpha"] = torch.tensor(lora.scaling * rank * len(parts), dtype=torch.float32)
    return weights


def write_kohya(lora: LoraFile, file: Path) -> None:
    """Write ``to_kohya`` to one safetensors file."""
    about = {"ss_network_module": "networks.lora_flux", "ss_base_model_version": "flux1"}
    about |= {"ss_network_dim": str(lora.config.r), "ss_network_alpha": str(lora.scaling * lora.config.r)}
    # Without the adapter's settings: diffusers would believe them and not the ranks and alphas of this file.
    ours = {name: value for name, value in lora.metadata.items() if name not in (LORA_ADAPTER_METADATA_KEY, "format")}
    file.write_bytes(serialize(to_kohya(lora), {"format": "pt", **ours, **about}))


def write_peft(lora: LoraFile, folder: Path) -> None:
    """Write a folder that ``PeftModel.from_pretrained(transformer, folder)`` loads.

    So does diffusers with ``transformer.load_lora_adapter(folder, prefix="base_model.model")``, which takes alpha from
    the metadata of the weights.
    """
    config = LoraConfig.from_peft_type(**lora.config.to_dict())
    config.inference_mode, config.base_model_name_or_path = True, lora.metadata.get("transformer")
    config.save_pretrained(folder)
    settings = {f"{_PEFT_PREFIX}.{name}": value for name, value in lora.config.to_dict().items()}
    metadata = {**lora.metadata, "format": "pt"}
    metadata[LORA_ADAPTER_METADATA_KEY] = json.dumps(settings, default=sorted, sort_keys=True)
    weights = {f"{_PEFT_PREFIX}.{name}": tensor.contiguous() for name, tensor in lora.weights.items()}
    (folder / "adapter_model.safetensors").write_bytes(serialize(weights, metadata))


def find_transformer(name: str) -> Path:
    """The folder of the transformer that a folder or Hub id names, at its root or in transformer/; else ``ValueError``.

    Downloads what the Hub cache lacks.
    """
    folder = Path(name).expanduser()
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
    if kind != "FluxTransformer2DModel" or not any(folder.glob("*.safetensors")):
        raise ValueError(f"the base {name} holds no FluxTransformer2DModel with .safetensors weights")
    return folder


def without_weights(transformer: str) -> FluxTransformer2DModel:
    """A transformer, a folder or a Hub id, of which the configuration alone is read, on the device "meta"."""
    config = FluxTransformer2DModel.load_config(transformer, subfolder=subfolder_of_transformer(transformer))
    with torch.device("meta"):
        return FluxTransformer2DModel.from_config(config)


def check_fits(lora: LoraFile, transformer: str) -> None:
    """Raise ``ValueError`` when a layer of the LoRA is missing in the transformer or has another size there.

    ``transformer`` is a folder or a Hub id, of which the configuration alone is read.
    """
    modules = dict(without_weights(transformer).named_modules())
    for layer in lora.layers:
        size = (len(lora.weights[f"{layer}.lora_B.weight"]), lora.weights[f"{layer}.lora_A.weight"].shape[1])
        there = getattr(modules.get(layer), "weight", None)
        if there is None or there.shape != size:
            here = "missing" if there is None else tuple(there.shape)
            raise ValueError(
                f"the LoRA is for another transformer than {transformer}: its {layer} is for {size}, there it is "
                f"{here}; name the right one with --base"
            )


def stored_dtype(transformer: Path) -> torch.dtype:
    """Precision of the weights in a transformer's folder."""
    with safe_open(min(transformer.glob("*.safetensors")), "pt") as file:
        stored: torch.dtype = file.get_tensor(next(iter(file.keys()))).dtype
    return stored


def write_fused(lora: LoraFile, transformer: Path, dtype: torch.dtype, folder: Path) -> None:
    """Write the transformer with the LoRA added to its weights (diffusers' ``fuse_lora``), without adapter layers."""
    model = FluxTransformer2DModel.from_pretrained(str(transformer), torch_dtype=dtype, use_safetensors=True)
    model.load_lora_adapter(dict(lora.weights), prefix=None, metadata=lora.config.to_dict(), adapter_name="lora")
    model.fuse_lora(safe_fusing=True)  # which raises when a weight is not finite
    model.unload_lora()
    model.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):  # which safetensors writes for its owner alone
        file.chmod((folder / "config.json").stat().st_mode)
