"""LoRA files of a FLUX transformer as all tools write them, read into one form: diffusers' layers, peft's A and B.

Here A is [r, in] and B is [out, r]; a layer's weight grows by ``scaling`` x B A, where ``scaling`` is alpha / r, or
alpha / sqrt(r) for rsLoRA. A DoRA then brings each row to the length that ``lora_magnitude_vector`` [out] says.

diffusers has converters for FLUX, but they take layers to be as wide as FLUX.1's, drop the magnitudes of a DoRA, the
layers outside of blocks, and keys without the prefix that they expect; so the table of names is here, once for reading
and for writing. tests/test_lora_formats.py compares with them what they read rightly.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open

from training_run.hub import local_path, subfolder_of_transformer, why_not_loaded
from training_run.not_data import what_else

#: What peft calls an adapter's weights and settings, which lie in one folder.
PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"

#: Layers of Black Forest Labs' FLUX and the diffusers layers that each is made of, in the order of their rows. In
#: double blocks and single blocks, and outside of blocks. The norms have no LoRA; a whole model has them.
_DOUBLE_BLOCK = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.proj": ("attn.to_out.0",),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "txt_mod.lin": ("norm1_context.linear",),
}
_SINGLE_BLOCK = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
}
_OUTSIDE: dict[str, tuple[str, ...]] = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    "final_layer.linear": ("proj_out",),
}
#: diffusers' name of a kind of block ("" is outside of them), and its layers above.
_KINDS: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "transformer_blocks": ("double_blocks", _DOUBLE_BLOCK),
    "single_transformer_blocks": ("single_blocks", _SINGLE_BLOCK),
    "": ("", _OUTSIDE),
}
#: The layer whose rows are shift and then scale in Black Forest Labs' FLUX, and scale and then shift in diffusers.
SWAPPED = "norm_out.linear"
#: What XLabs' trainer calls layers: its LoRA of a single block's linear1 has the rows of q, k and v only.
_XLABS: dict[str, dict[str, tuple[str, ...]]] = {
    "transformer_blocks": {
        "processor.qkv_lora1": _DOUBLE_BLOCK["img_attn.qkv"],
        "processor.qkv_lora2": _DOUBLE_BLOCK["txt_attn.qkv"],
        "processor.proj_lora1": _DOUBLE_BLOCK["img_attn.proj"],
        "processor.proj_lora2": _DOUBLE_BLOCK["txt_attn.proj"],
    },
    "single_transformer_blocks": {
        "processor.qkv": _SINGLE_BLOCK["linear1"][:3],  # "_lora" has gone with the name of the factor
        "processor.proj": _SINGLE_BLOCK["linear2"],
        "linear1_qkv": _SINGLE_BLOCK["linear1"][:3],  # ComfyUI's name of the same
    },
    "": {},
}

#: A key of metadata that no other tool writes.
_OURS = "use_captions"
#: diffusers' name of denoising steps: a LoRA that was made for few (Turbo) may say it.
_STEPS = "num_inference_steps"

#: What tools put before a layer's name, and what compiled or wrapped modules put into it.
_PREFIX = re.compile(r"(?:(?:base_model|model|transformer|diffusion_model|unet|module)\.)+|lora_unet[_.]|lycoris_")
_WRAPPER = re.compile(r"(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module|processor(?=\.(?:to|add)_))\.")
_FACTOR = re.compile(r"(?P<layer>.+?)(?:[._]lora(?:_linear_layer)?)?[._](?P<part>A|B|down|up)(?:\.[\w-]+)?\.weight")
_EXTRA = re.compile(
    r"(?P<layer>.+?)(?:[._]lora(?:_linear_layer|_A|_B|_down|_up|\.down|\.up)?)?"
    r"\.(?P<part>alpha|dora_scale|lora_magnitude_vector)(?:\.[\w-]+)*"
)
_PARTS = {"down": "A", "up": "B", "dora_scale": "magnitude", "lora_magnitude_vector": "magnitude"}
_TEXT_ENCODER = re.compile(
    r"(?:base_model\.model\.)?(?:lora_te\d?_|text_encoders?(?:_\d)?\.|text_model\.|te\d?\."
    r"|(?:clip_[lg]|t5(?:xxl)?)(?:\.|$)|conditioner\.embedders\.|cond_stage_model\.|emb_params$)"
)
#: Tensors that some tools add beside a LoRA: differences of whole weights, biases and norms.
_DIFFERENCE = re.compile(r".+\.(?:diff|diff_b|w_norm|b_norm)")

#: Channels that the first layer of FLUX.1 Depth and Canny takes in; that of FLUX.2, too.
_CONTROL_CHANNELS = 128
#: Adapters that are no LoRA, by a part of their keys.
_NO_LORA = re.compile(r"[._](lokr|hada|oft|boft|ia3|vera)_|\.(a1)\.weight")
_NO_LORA_NAMES = {
    "lokr": "LoKr",
    "hada": "LoHa",
    "oft": "OFT",
    "boft": "BOFT",
    "ia3": "IA3",
    "vera": "VeRA",
    "a1": "GLoRA",
}
#: Models of which there are LoRAs, by the names of their layers, dots as underscores. The first that fits is said.
_OTHER_MODELS = {
    r"(?:down_blocks|up_blocks|mid_block|input_blocks|output_blocks|middle_block)_": "Stable Diffusion 1, 2 or XL",
    r"joint_blocks_": "Stable Diffusion 3 (SD3)",
    r"transformer_blocks_\d+_(?:img|txt)_(?:mlp|mod)_": "Qwen-Image",
    r"(?:double|single)_blocks_\d+_(?:(?:img|txt)_(?:mod_linear|mlp_fc\d)|modulation_linear)": "HunyuanVideo",
    r".*individual_token_refiner": "HunyuanVideo",
    r"distilled_guidance_layer": "Chroma",
    r".*(?:to_qkv_mlp_proj|stream_modulation|attn_to_added_qkv|ff(?:_context)?_linear_(?:in|out))": "FLUX.2",
    r"(?:double|single)_stream_blocks_": "HiDream",
    r"(?:joint_transformer_blocks|double_layers|single_layers)_": "AuraFlow",
    r"blocks_\d+_(?:self_attn|cross_attn|attn1|attn2|ffn)_": "Wan",
    r"transformer_blocks_\d+_attn[12]_": "LTX-Video, CogVideoX, PixArt, Sana or SD3.5 medium",
    r"(?:layers|noise_refiner|context_refiner)_\d+_(?:attention|feed_forward|adaLN)_": "Z-Image or Lumina 2",
    r"(?:.*_)?(?:layers|h)_\d+_(?:self_attn|mlp|attn)_": "a language model",
}
#: Width of the texts that a UNet's cross-attention reads, and whose it is.
_TEXT_WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL (SDXL)"}

#: Width of images that FLUX.1-dev takes in, which are the first of Fill's channels; masks follow.
_DEV_CHANNELS = 64
#: Transformers with layers of FLUX.1's names: double blocks, single blocks and width. Source: their configurations.
_MODELS = {
    "FLUX.1": (19, 38, 3072),
    "HunyuanVideo": (20, 40, 3072),
    "Qwen-Image": (60, 0, 3072),
    "Stable Diffusion 3 (SD3) medium": (24, 0, 1536),
    "Stable Diffusion 3.5 (SD3) large": (38, 0, 2432),
    "FLUX.2-dev": (8, 48, 6144),
}


@dataclass(frozen=True)
class LoraFile:
    """A LoRA of a FLUX transformer: ``weights`` by ``<layer>.lora_A.weight`` and ``<layer>.lora_B.weight``.

    A DoRA also has ``<layer>.lora_magnitude_vector``. Rank and alpha of each layer follow from ``config``, which peft
    and diffusers take as it is. ``metadata`` is what our trainer writes; of other files, whose words may mean other
    things, a number of ``num_inference_steps`` alone. ``notes`` are lines on what was assumed or left out.
    """

    path: Path
    weights: dict[str, torch.Tensor]
    config: LoraConfig
    metadata: dict[str, str]
    notes: tuple[str, ...] = ()

    def scaling(self, layer: str) -> float:
        """The factor before B A in a layer."""
        rank, alpha = _of_layer(self.config, layer)
        return alpha / (math.sqrt(rank) if self.config.use_rslora else rank)

    @property
    def layers(self) -> list[str]:
        """Names of the layers that the LoRA changes."""
        return sorted({name.rsplit(".lora_", 1)[0] for name in self.weights})

    @property
    def ranks(self) -> str:
        """The rank, or the lowest and the highest, for a person to read."""
        ranks = {len(tensor) for name, tensor in self.weights.items() if name.endswith(".lora_A.weight")}
        return f"{min(ranks)}" if len(ranks) == 1 else f"{min(ranks)} to {max(ranks)}"

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


def joined_layer(layer: str) -> tuple[str, tuple[str, ...]] | None:
    """Black Forest Labs' name of the layer that diffusers' ``layer`` is part of, and all its parts by full names.

    None for a layer that FLUX has not.
    """
    match = re.fullmatch(r"((?:single_)?transformer_blocks)\.(\d+)\.(.+)", layer)
    kind, number, rest = match.groups() if match else ("", "", layer)
    blocks, names = _KINDS[kind]
    for name, parts in names.items():
        if rest in parts:
            return _full(blocks, number, name), tuple(_full(kind, number, part) for part in parts)
    return None


def _full(blocks: str, number: str, name: str) -> str:
    return f"{blocks}.{number}.{name}" if blocks else name


def _known_layers() -> dict[str, dict[str, tuple[str, ...]]]:
    """Layers by kind of block and by each of their names, dots as underscores; parts by diffusers' names."""
    known: dict[str, dict[str, tuple[str, ...]]] = {}
    for kind, (_, names) in _KINDS.items():
        own = {part: (part,) for parts in names.values() for part in parts}
        known[kind] = {name.replace(".", "_"): parts for name, parts in {**names, **own, **_XLABS[kind]}.items()}
    return known


_KNOWN_LAYERS = _known_layers()


def _parts_of(stem: str) -> tuple[str, ...]:
    """diffusers' layers that a tool's name of a layer stands for, dots as underscores; empty for an unknown one."""
    match = re.fullmatch(r"(double|single)_blocks_(\d+)_(.+)|((?:single_)?transformer_blocks)_(\d+)_(.+)", stem)
    if match is None:
        return _KNOWN_LAYERS[""].get(stem, ())
    kind = match[4] or {"double": "transformer_blocks", "single": "single_transformer_blocks"}[match[1]]
    number, rest = match[2] or match[5], match[3] or match[6]
    return tuple(_full(kind, number, part) for part in _KNOWN_LAYERS[kind].get(rest, ()))


def find_lora(name: str) -> Path:
    """The LoRA file that a folder, a file, or ``OWNER/NAME``, ``OWNER/NAME/FOLDER`` or ``OWNER/NAME/FILE`` names.

    The last three are on the Hub. Of a folder it is the file by diffusers' or by peft's name, else the only
    .safetensors. Raises ``ValueError`` where there is none.
    """
    path = local_path(name)
    if path.is_dir():
        files = [file for file in (*path.iterdir(), *path.glob("*/*.safetensors")) if file.is_file()]
        return (path / _choose(name, [file.relative_to(path).as_posix() for file in files])).absolute()
    if path.is_file():
        return path.absolute()
    match = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)((?:/\w[^/\\]*)*)/?", name)
    if match is None:
        raise _NoLoraError(f"LoRA {name}: there is no such file or folder; on the Hub it would be OWNER/NAME/FILE")
    repository, inside = match[1], match[2].removeprefix("/")
    try:
        files_there = _files_on_hub(repository)
        if inside not in files_there:
            start = f"{inside}/" if inside else ""
            here = [file.removeprefix(start) for file in files_there if file.startswith(start)]
            inside = start + _choose(name, here)
        beside = inside.removesuffix(PEFT_WEIGHTS) + PEFT_CONFIG
        if beside in files_there:
            hf_hub_download(repository, beside)
        return Path(hf_hub_download(repository, inside))
    except _NoLoraError:
        raise
    except Exception as error:  # no such repository, no network: each HTTP library has its own classes
        raise _NoLoraError(f"LoRA {name}: no such file or folder, and {why_not_loaded(repository, error)}") from error


class _NoLoraError(ValueError):
    """There is no LoRA by a name."""


def _files_on_hub(repository: str) -> list[str]:
    """The files of a repository; those in the cache where the Hub cannot be reached."""
    try:
        return [file.rfilename for file in HfApi().model_info(repository, timeout=10).siblings or []]
    except RepositoryNotFoundError:  # or a gated one
        raise
    except Exception:  # no network, or offline mode
        cached = Path(snapshot_download(repository, local_files_only=True))
        return [path.relative_to(cached).as_posix() for path in cached.rglob("*") if path.is_file()]


def _choose(where: str, names: list[str]) -> str:
    """The LoRA among the files of a folder, those of folders in it by FOLDER/FILE; else ``_NoLoraError``."""
    for usual in (LORA_WEIGHT_NAME_SAFE, PEFT_WEIGHTS):
        if usual in names:
            return usual
    found = [name for name in sorted(names) if name.endswith(".safetensors") and "/." not in f"/{name}"]
    here = [name for name in found if "/" not in name]
    if len(here) == 1:
        return here[0]
    what = f"there is no {where}/{LORA_WEIGHT_NAME_SAFE} and no other .safetensors file in it"
    if here:
        what = f"it holds {len(here)} .safetensors files: name one, such as {where}/{here[0]}"
    elif pickled := [name for name in sorted(names) if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]:
        what = f"its {pickled[0]} is {_PICKLE}"
    elif found:
        what = f"{what}: name a folder of it, such as {where}/{found[0].rpartition('/')[0]}"
    raise _NoLoraError(f"LoRA {where}: {what}")


_PICKLE = (
    "a pickle of PyTorch, which can run code and so is not read: convert it with the Hub's Space safetensors/convert, "
    "or with torch.load(FILE, weights_only=True) and safetensors.torch.save_file"
)
#: How other files begin that lie in the place of a LoRA, what they are, and what to do; see also ``what_else``.
_BEGINNINGS = {
    (b"{", b"["): "a JSON text, perhaps a server's message: look into it, and fetch the file again",
    (b"pk\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"): _PICKLE,
    (b"gguf",): "a GGUF file, which is for whole models: name a LoRA as safetensors",
}


def _what_else(path: Path, error: Exception) -> str:
    """What a file is that safetensors cannot read, and how to fix it."""
    with path.open("rb") as file:
        stored = file.read(1024)
    head = stored.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    found = what_else(stored) or next((what for starts, what in _BEGINNINGS.items() if head.startswith(starts)), None)
    return f"is not a safetensors file but {found or f'cut short, or something else: fetch it again ({error})'}"


def read_lora(path: Path) -> LoraFile:
    """The LoRA in ``path``, whichever tool wrote it; ``ValueError``, with what it is, for a file that holds none.

    Rank and alpha are those of ``.alpha`` keys, of diffusers' or kohya's metadata, or of peft's
    ``adapter_config.json``. Where there is none of them, alpha is the rank, as every tool takes it, which ``notes``
    says. Weights keep their precision (8-bit floats become float32) and are not scaled. Layers that a tool has joined
    (q, k and v) are taken apart: a part gets those columns of B, and rows of A, in which its rows of B are not all
    zero.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            names, notes = _of_the_transformer(path, file)
            layers = _by_layer(path, {name: _tensor(path, file, name) for name in names})
    except SafetensorError as error:
        raise ValueError(f"{path} {_what_else(path, error)}") from error
    said = _said_settings(path, metadata)
    weights: dict[str, torch.Tensor] = {}
    sizes: dict[str, tuple[int, float]] = {}
    for layer, tensors in layers.items():
        if "alpha" not in tensors and said is None and (alpha := _alpha_of_kohya(metadata, len(tensors["A"]))):
            tensors["alpha"] = torch.tensor(alpha)
        if "alpha" not in tensors and said is None:
            notes["alpha"] = "the LoRA does not say its alpha: it is taken to be the rank"
        rank, alpha = _rank_and_alpha(path, layer, tensors, said)
        for part, split in _taken_apart(path, layer, tensors).items():
            if f"{part}.lora_A.weight" in weights:
                raise ValueError(f"{path} holds {part} twice, once as {layer}: which is meant cannot be told")
            weights |= {f"{part}.lora_{name}": tensor for name, tensor in split.items()}
            share = len(split["A.weight"]) / rank
            sizes[part] = len(split["A.weight"]), alpha * (math.sqrt(share) if said and said.use_rslora else share)
    config = _config(path, sizes, weights, said)
    if _OURS not in metadata:
        metadata = {name: text for name, text in metadata.items() if name == _STEPS and text.isdecimal()}
    return LoraFile(path, weights, config, metadata, tuple(notes.values()))


def _key(name: str) -> tuple[str, str] | None:
    """The layer that a key is of, without prefixes, and its part: A, B, alpha or magnitude. None for other keys."""
    name = _WRAPPER.sub("", name)
    match = _FACTOR.fullmatch(name) or _EXTRA.fullmatch(name)
    if match is None:
        return None
    return _bare(match["layer"]), _PARTS.get(match["part"], match["part"])


def _bare(layer: str) -> str:
    """A layer's name without prefixes."""
    while prefix := _PREFIX.match(layer):
        layer = layer[prefix.end() :]
    return layer


def _of_the_transformer(path: Path, file: Any) -> tuple[list[str], dict[str, str]]:
    """Keys that are a LoRA of a FLUX transformer, and notes on those left out. Other files raise ``ValueError``."""
    names, notes = list(file.keys()), {}
    if text := [name for name in names if _TEXT_ENCODER.match(name)]:
        notes["text"] = f"the LoRA's part for text encoders ({len(text)} tensors) is left out: it is not used here"
    rest = [name for name in names if name not in set(text)]
    if all(any(name.startswith(prefix) for name in rest) for prefix in ("transformer.", "lora_unet_")):
        notes["both"] = "the LoRA is in the file by two sets of names: those of diffusers are read, not lora_unet_"
        rest = [name for name in rest if not name.startswith("lora_unet_")]
    if counters := [name for name in rest if "." not in name and file.get_slice(name).get_shape() in ([], [1])]:
        notes["counters"] = f"numbers that belong to no layer are left out: {', '.join(counters)}"
        rest = [name for name in rest if name not in set(counters)]
    _refuse_others(path, file, rest, bool(text))
    if differences := [name for name in rest if _DIFFERENCE.fullmatch(name)]:
        notes["differences"] = (
            f"a part of what the file changes is left out, so pictures can differ from those of tools that use it: "
            f"{len(differences)} differences of whole weights, biases or norms, such as {differences[0]}"
        )
    return [name for name in rest if name not in set(differences)], notes


def _refuse_others(path: Path, file: Any, names: list[str], has_text: bool) -> None:
    """Raise ``ValueError``, with what it is and what converts it, unless all keys fit a LoRA of FLUX."""
    if not names:
        what = "changes text encoders only, which are not used here" if has_text else "holds nothing"
        raise ValueError(f"{path} {what}: name a LoRA of a FLUX.1 transformer")
    for name in names:
        if kind := _NO_LORA.search(name):
            raise ValueError(
                f"{path} is a {_NO_LORA_NAMES[kind[1] or kind[2]]} and no LoRA (it holds {name}): nothing converts it "
                "exactly. Merge it into the model, and take a LoRA from that with LyCORIS's tools/extract_locon.py"
            )
    if any(name.startswith(("lora_transformer_", "bundle_emb.")) for name in names):
        raise ValueError(
            f"{path} is in the legacy format of OneTrainer (it holds {names[0]}): convert it with OneTrainer's "
            "scripts/convert_model.py, to its Diffusers or Kohya format"
        )
    keys = {name: _key(name) or (name, "") for name in names if not _DIFFERENCE.fullmatch(name)}
    stems = {name: layer.replace(".", "_") for name, (layer, _) in keys.items()}
    for name, stem in stems.items():
        if known := next((model for pattern, model in _OTHER_MODELS.items() if re.match(pattern, stem)), None):
            reading_text = [key for key in keys if stems[key].endswith("_attn2_to_k") and keys[key][1] == "A"]
            if reading_text and known.startswith("Stable"):
                known = _TEXT_WIDTHS.get(file.get_slice(reading_text[0]).get_shape()[-1], known)
            raise ValueError(
                f"{path} is a LoRA of {known} (it changes {name}), whose layers FLUX.1 does not have. No conversion "
                "exists: train one, or name one that was trained on FLUX.1"
            )
    if not any(part in ("A", "B") for _, part in keys.values()):
        raise ValueError(f"{path} is not a LoRA of a FLUX transformer: {_without_factors(names)}")
    inputs = [name for name, (_, part) in keys.items() if part == "A" and stems[name] in ("img_in", "x_embedder")]
    norms = [name for name in names if name.endswith("_norm.scale")]
    if norms or any(file.get_slice(name).get_shape()[-1] == _CONTROL_CHANNELS for name in inputs):
        or_else = "" if norms else " or one of FLUX.2"
        raise ValueError(
            f"{path} is a Control LoRA (FLUX.1 Depth or Canny){or_else}, for other inputs than Fill has (it holds "
            f"{(norms + inputs)[0]}): name another one"
        )
    for name, (_, part) in keys.items():
        if name.endswith(".bias") and _key(f"{name.removesuffix('bias')}weight"):
            raise ValueError(
                f"{path} has biases in its LoRA (lora_bias; it holds {name}), which are not read: train it without them"
            )
        if not part or not _parts_of(stems[name]):
            what = "a layer that FLUX.1 does not have" if part else "no part of a LoRA"
            raise ValueError(f"{path} is not a LoRA of a FLUX transformer: it holds {name}, {what}")


def _without_factors(names: list[str]) -> str:
    """What a file holds that has no A and no B of a LoRA, with what to do."""
    for name in names:
        layer, _, kind = name.rpartition(".")
        if "ip_adapter" in name:
            return f"it is an IP-Adapter (it holds {name}), which is not used here"
        if re.search(r"[._]lora_(?:A|B|down|up)$", name):
            return f"{name} does not end in .weight as in every known format: rename its tensors, or save it again"
        if kind in ("weight", "bias", "scale") and _parts_of(_bare(layer).replace(".", "_")):
            return f"it holds {name} and no LoRA at all. A whole transformer goes with --base, as a folder"
        if _DIFFERENCE.fullmatch(name):
            return f"it holds {name} and no LoRA: add its differences to the model, and name that with --base"
    return f"it holds {names[0]} and no LoRA at all: name another file"


def _tensor(path: Path, file: Any, name: str) -> torch.Tensor:
    """A tensor of finite floats; ``ValueError`` for other ones."""
    tensor: torch.Tensor = file.get_tensor(name)
    if tensor.is_floating_point() and tensor.itemsize == 1:
        tensor = tensor.float()  # few operations know 8-bit floats
    if name.endswith("alpha") and tensor.numel() == 1:
        tensor = tensor.float()
    if not tensor.numel() or not tensor.is_floating_point() or not tensor.isfinite().all():
        raise ValueError(f"{path}: {name} does not hold finite numbers: the file is damaged")
    return tensor


def _by_layer(path: Path, stored: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Tensors by layer, in the tool's words, and part. A, B [out, r] and magnitude [out] fit one another."""
    layers: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, tensor in stored.items():
        layer, part = _key(name) or ("", "")
        there = layers[layer].get(part)
        if there is not None and not (part == "alpha" and torch.equal(there, tensor)):
            raise ValueError(f"{path} holds {layer} twice, once as {name}: which is meant cannot be told")
        layers[layer][part] = tensor
    for layer, tensors in layers.items():
        down, up = tensors.get("A", torch.empty(0)), tensors.get("B", torch.empty(0))
        if not down.ndim == up.ndim == 2 or down.shape[0] != up.shape[1]:
            shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
            raise ValueError(f"{path}: {layer} has not two matrices of one rank, but {shapes}: the file is damaged")
        magnitude = tensors.get("magnitude")
        if magnitude is None:
            continue
        if magnitude.numel() != len(up) or len(magnitude) != len(up):
            raise ValueError(
                f"{path}: {layer} is a DoRA with magnitudes {tuple(magnitude.shape)} of inputs, and diffusers knows "
                f"those of its {len(up)} outputs only: no conversion exists"
            )
        tensors["magnitude"] = magnitude.flatten()
    return layers


def _said_settings(path: Path, metadata: dict[str, str]) -> LoraConfig | None:
    """Rank and alpha as diffusers writes them into a file, or peft beside it; None where nothing says them."""
    beside = path.with_name(PEFT_CONFIG)
    text, where = metadata.get(LORA_ADAPTER_METADATA_KEY), f"{LORA_ADAPTER_METADATA_KEY} in its metadata"
    if text is None:
        if path.name != PEFT_WEIGHTS or not beside.is_file():
            return None
        where = str(beside)
    try:
        stored = json.loads(beside.read_text("utf-8-sig") if text is None else text)
        said = {name.rpartition(".")[2]: value for name, value in stored.items() if not name.startswith("text_enc")}
        if (kind := said.get("peft_type") or "LORA") != "LORA":
            raise ValueError(f"its adapter is a {kind} and no LoRA")
        patterns = {
            name: {_PREFIX.sub("", layer, count=1): value for layer, value in (said.get(name) or {}).items()}
            for name in ("rank_pattern", "alpha_pattern")
        }
        for name, least in (("r", 1), ("lora_alpha", 0)):
            values = [said[name], *patterns["rank_pattern" if name == "r" else "alpha_pattern"].values()]
            # NaN compares as false.
            if wrong := [value for value in values if not least <= value < math.inf or value == 0]:
                raise ValueError(f"{name} {wrong[0]}")
        for pattern in (*patterns["rank_pattern"], *patterns["alpha_pattern"]):
            re.compile(pattern)
        flags = {name: bool(said.get(name)) for name in ("use_dora", "use_rslora")}
        return LoraConfig(r=said["r"], lora_alpha=said["lora_alpha"], **patterns, **flags)
    except (KeyError, ValueError, TypeError, AttributeError, re.error) as error:
        raise ValueError(
            f"{path} does not say a rank and alpha to use ({where}: {type(error).__name__}: {error}): correct it, or "
            "save the LoRA again with the tool that trained it"
        ) from error


def _alpha_of_kohya(metadata: dict[str, str], rank: int) -> float | None:
    """Alpha of a layer of ``rank`` as sd-scripts' metadata say it; None without one, or with a word such as Dynamic."""
    said = metadata.get("ss_network_alpha", ""), metadata.get("ss_network_dim", str(rank))
    try:
        alpha, of_rank = map(float, said)
    except ValueError:
        return None
    return alpha * rank / of_rank if 0 < alpha < math.inf and 0 < of_rank < math.inf else None


def _rank_and_alpha(
    path: Path, layer: str, tensors: dict[str, torch.Tensor], said: LoraConfig | None
) -> tuple[int, float]:
    """Rank and alpha of a layer as the file has it. Its own alpha comes before what the settings say."""
    rank = len(tensors["A"])
    if said is not None and _of_layer(said, layer)[0] != rank:
        raise ValueError(
            f"{path}: the rank of {layer} is {rank}, and its settings say {_of_layer(said, layer)[0]}: they are of "
            "another LoRA"
        )
    if "alpha" in tensors:
        alpha = tensors["alpha"]
        if alpha.numel() != 1:
            raise ValueError(f"{path}: the alpha of {layer} is {alpha.tolist()} and no number: the file is damaged")
        if not alpha.item() > 0:
            raise ValueError(
                f"{path}: the alpha of {layer} is {alpha.item():g}: 0 does nothing, and a negative one the "
                "opposite of what was learned. Save the LoRA again with a positive alpha"
            )
        # What it scales by is alpha / rank for every tool that writes it.
        return rank, alpha.item() * (1 / math.sqrt(rank) if said is not None and said.use_rslora else 1)
    return rank, float(rank) if said is None else _of_layer(said, layer)[1]


def _taken_apart(path: Path, layer: str, tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """The diffusers layers that a layer of a file is made of, by ``A.weight``, ``B.weight``, ``magnitude_vector``."""
    parts = _parts_of(layer.replace(".", "_"))
    down, up, magnitude = tensors["A"], tensors["B"], tensors.get("magnitude")
    if parts == (SWAPPED,) and "final_layer" in layer:
        up = torch.cat(up.chunk(2)[::-1])
        magnitude = None if magnitude is None else torch.cat(magnitude.chunk(2)[::-1])
    # The MLP of a single block takes what q, k and v, each as wide as the input, leave.
    width = down.shape[1] if len(parts) == 4 else len(up) // len(parts)
    rows = [width] * len(parts) if len(parts) != 4 else [width, width, width, len(up) - 3 * width]
    if min(rows) < 1 or sum(rows) != len(up):
        raise ValueError(f"{path}: {layer} has {len(up)} rows, which are not those of {', '.join(parts)}")
    found = {}
    nothing = len(parts) == 1 or not up.any()
    for number, (part, rows_of_part) in enumerate(zip(parts, up.split(rows), strict=True)):
        used = rows_of_part.any(dim=0) | nothing
        if not used.any() and magnitude is None:
            continue
        used |= not used.any()
        whole = bool(used.all()) and len(parts) == 1
        found[part] = {
            "A.weight": down if whole else down[used],
            "B.weight": up if whole else rows_of_part[:, used].contiguous(),
        }
        if magnitude is not None:
            found[part]["magnitude_vector"] = magnitude.split(rows)[number].clone()
    return found


def _config(
    path: Path, sizes: dict[str, tuple[int, float]], weights: dict[str, torch.Tensor], said: LoraConfig | None
) -> LoraConfig:
    """peft's settings for layers of these ranks and alphas: the commonest for all, patterns for the others."""
    rank, alpha = (Counter(values).most_common(1)[0][0] for values in zip(*sizes.values(), strict=True))
    with_magnitude = sum(name.endswith("magnitude_vector") for name in weights)
    if with_magnitude not in (0, len(sizes)) or (said is not None and said.use_dora and not with_magnitude):
        raise ValueError(f"{path} is a DoRA, and {with_magnitude} of its {len(sizes)} layers have magnitudes")
    return LoraConfig(
        r=rank,
        lora_alpha=_plain(alpha),
        target_modules=sorted(sizes),
        rank_pattern={f"^{layer}": own for layer, (own, _) in sizes.items() if own != rank},
        alpha_pattern={f"^{layer}": _plain(own) for layer, (_, own) in sizes.items() if own != alpha},
        use_dora=bool(with_magnitude),
        use_rslora=said is not None and said.use_rslora,
    )


def _plain(number: float) -> float:
    return int(number) if float(number).is_integer() else number


def _of_layer(config: LoraConfig, layer: str) -> tuple[int, float]:
    """Rank and alpha of a layer, as peft finds them."""
    rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), layer), config.r)
    return rank, config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), layer), config.lora_alpha)


def without_weights(transformer: str, **hub: Any) -> FluxTransformer2DModel:
    """A transformer, a folder or a Hub id, of which the configuration alone is read, on the device "meta".

    ``hub`` are ``revision`` and ``cache_dir``.
    """
    subfolder = subfolder_of_transformer(transformer, **hub)
    config = FluxTransformer2DModel.load_config(transformer, subfolder=subfolder, **hub)
    with torch.device("meta"):
        return FluxTransformer2DModel.from_config(config)


def fitted(lora: LoraFile, transformer: str, flag: str = "--base", **hub: Any) -> LoraFile:
    """The LoRA for a transformer, which ``flag`` has named and of which ``without_weights`` is enough.

    A LoRA of FLUX.1-dev gets zeros for the channels that Fill's first layer has beside those of dev. Raises
    ``ValueError`` when a layer is missing in the transformer or has another size there.
    """
    modules = dict(without_weights(transformer, **hub).named_modules())
    weights = dict(lora.weights)
    for layer in lora.layers:
        down, rows = weights[f"{layer}.lora_A.weight"], len(weights[f"{layer}.lora_B.weight"])
        there = getattr(modules.get(layer), "weight", None)
        more = 0 if there is None else there.shape[1] - down.shape[1]
        if layer == "x_embedder" and down.shape[1] == _DEV_CHANNELS and more > 0:
            weights[f"{layer}.lora_A.weight"] = down = torch.nn.functional.pad(down, (0, more))
        if there is None or there.shape != (rows, down.shape[1]):
            here = "is missing" if there is None else f"has {tuple(there.shape)}"
            raise ValueError(
                f"the LoRA is for another transformer than {transformer}{_likely_model(lora)}: its {layer} is for "
                f"{(rows, down.shape[1])}, there it {here}; name the right one with {flag}. Nothing converts a LoRA "
                "of another model"
            )
    return replace(lora, weights=weights)


def _likely_model(lora: LoraFile) -> str:
    """In words, the first model that has the blocks of a LoRA and its width; nothing where there is none."""
    blocks = [re.match(r"(single_)?transformer_blocks\.(\d+)\.attn\.to_q", layer) for layer in lora.layers]
    found = [(match[0], bool(match[1]), int(match[2]) + 1) for match in blocks if match]
    double, single = (max((number for _, kind, number in found if kind == single), default=0) for single in (0, 1))
    widths = {lora.weights[f"{layer}.lora_A.weight"].shape[1] for layer, _, _ in found}
    fitting = (name for name, has in _MODELS.items() if double <= has[0] and single <= has[1] and widths == {has[2]})
    model = next(fitting, None)
    return f", {model} by its blocks and width" if model else ""
