"""FLUX-Fill with or without a LoRA: garment|person pairs in, pairs with the masked area repainted out."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FluxFillPipeline

import train_flux_inpaint as trainer
from deepfashion_training.images.layout import ResizeMode
from deepfashion_training.models.access import CATVTON_FLUX_ALPHA
from training_run import guards
from training_run.flags import AMOUNT, DRAWN_SIDE, STEPS, TOKENS
from training_run.hub import local_path, transformer_in
from training_run.lora_formats import LoraFile, without_weights

FLUX_FILL = "black-forest-labs/FLUX.1-Fill-dev"
#: Guidance of catvton-flux-alpha without a LoRA: what its own training script draws its validation pictures with.
BASE_GUIDANCE = 30.0
#: Width below which a transformer is drawn with in fp32; FLUX.1-Fill has 3,072.
SMALL = 1024
#: Main memory that ``--offload`` takes beside the weights: a block on its way, the VAE, the process. An estimate.
BESIDE_WEIGHTS = 2 * 2**30


def _one_of(**words: Any) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        if text not in words:
            raise argparse.ArgumentTypeError(f"it is one of {', '.join(words)}")
        return words[text]

    return read


#: What reads values of a LoRA's metadata, as flags are read; the others are texts.
_READERS: dict[str, Callable[[str], Any]] = {
    "height": DRAWN_SIDE,
    "width": DRAWN_SIDE,
    "guidance_scale": AMOUNT,
    "num_inference_steps": STEPS,
    "max_sequence_length": TOKENS,
    "use_captions": _one_of(**{"True": True, "False": False}),
    "resize_mode": _one_of(pad="pad", stretch="stretch"),
}


@dataclass(frozen=True)
class Recipe:
    """How a LoRA was trained and judged, and so how it is to be used; the trainer's defaults where its file is silent.

    ``height`` and ``width`` are those of one half of the pair, in pixels. ``pipeline`` gives VAE, text encoders and
    scheduler, ``transformer`` is what the LoRA changes; each a folder or a Hub id.
    """

    pipeline: str = FLUX_FILL
    transformer: str = CATVTON_FLUX_ALPHA
    height: int = 768
    width: int = 576
    prompt: str = trainer.DEFAULT_PROMPT
    use_captions: bool = False
    guidance_scale: float = BASE_GUIDANCE
    max_sequence_length: int = 512
    num_inference_steps: int = 28
    resize_mode: ResizeMode = "pad"

    @classmethod
    def of(cls, *loras: LoraFile, **asked: Any) -> Recipe:
        """From the metadata of LoRAs and the fields that are ``asked`` for, which come first.

        Of several LoRAs the first that says a field is followed; in steps the one that says fewest, as a LoRA that was
        made for few steps (Turbo) is what allows them. Raises ``ValueError`` for a value of the metadata that the flag
        of its name would not take.
        """
        recorded: dict[str, Any] = {}
        fields = [field for field in dataclasses.fields(cls) if field.name not in asked]
        for field, lora in itertools.product(fields, loras):
            text = lora.metadata.get("base_model" if field.name == "pipeline" else field.name)
            fewest = field.name == "num_inference_steps"
            if text is None or (field.name in recorded and not fewest):
                continue
            try:
                value = _READERS.get(field.name, str)(text)
                recorded[field.name] = min(value, recorded.get(field.name, value)) if fewest else value
            except (ValueError, argparse.ArgumentTypeError) as error:
                limits = f": {' '.join(str(error).split())}" if isinstance(error, argparse.ArgumentTypeError) else ""
                has_flag = field.name not in ("use_captions", "max_sequence_length")
                fix = f"say what is right with --{field.name}" if has_flag else "save the LoRA again"
                raise ValueError(
                    f"{lora.path}: its metadata says {field.name} {text!r}, which cannot be used{limits}; {fix}"
                ) from error
        return cls(**recorded | asked)

    def prompt_of(self, caption: str = "") -> str:
        """The prompt of a garment, with its caption where the LoRA was trained with captions."""
        return f"{self.prompt} {caption.strip()}".strip() if self.use_captions else self.prompt


class FillModel:
    """A FLUX-Fill pipeline and LoRAs to draw with, on the GPU where there is one.

    Weights are bf16 on CUDA (the computation of a quantized transformer too); fp32 on the CPU and for the small model.
    All ``prompts`` are encoded, and the text encoders freed, before the transformer is loaded: 10 GB less memory are
    needed.

    ``quantize_base`` keeps the transformer in 4 or 8 bits a weight: 12B of them in 7 or 12 GB. ``offload`` keeps
    it in main memory and brings one block at a time to the GPU, see ``plan_offload``. They exclude one another, see
    ``check_means``. Raises ``ValueError`` with what helps where the GPU's memory is too small, here and in ``draw``.
    """

    def __init__(
        self,
        recipe: Recipe,
        prompts: Iterable[str],
        *,
        loras: Mapping[str, LoraFile] | None = None,
        quantize_base: str | None = None,
        offload: bool = False,
        device: str | torch.device | None = None,
    ) -> None:
        check_means(quantize_base, offload)
        pins = offload and plan_offload(recipe.transformer)[0]
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = precision_of(recipe.transformer, self.device)
        self._loading = argparse.Namespace(
            pretrained_model_name_or_path=recipe.pipeline,
            pretrained_inpaint_model_name_or_path=recipe.transformer,
            max_sequence_length=recipe.max_sequence_length,
            quantize_base=quantize_base,
            **dict.fromkeys(("revision", "inpaint_revision", "variant", "cache_dir")),
        )
        self._saves = bool(quantize_base or offload)
        self._has_loras = bool(loras)
        self._doras = {name for name, lora in (loras or {}).items() if lora.config.use_dora}
        with self._memory_told():
            distinct = list(dict.fromkeys(prompts))
            self._prompts = trainer.encode_prompts(self._loading, distinct, self.device, self.dtype)
            self._transformer = self._load_transformer(loras or {}, offload)
            if offload:
                offload_blocks(self._transformer, self.device, pins)
            self._pipeline = self._load_pipeline()

    def draw(
        self,
        samples: Sequence[Mapping[str, Any]],
        seeds: Sequence[int],
        *,
        prompts: Sequence[str],
        steps: int,
        guidance_scale: float,
        loras: Mapping[str, float] | None = None,
        on_step: Callable[[int], object] | None = None,
    ) -> torch.Tensor:
        """The pairs of ``samples`` with their masked area repainted: float32 [B, 3, H, 2W] in [0, 1], on the CPU.

        ``samples`` are sample dicts of one size (see ``layout.pair_tensors``), of which ``im_mask`` and
        ``inpaint_mask`` are read. ``prompts`` and ``loras``, names with the scale of each, are among those that the
        model was made with; without ``loras`` it is the bare base. The noise of each sample follows from its seed alone
        and is drawn on the CPU, so that it is the same on every machine, in every batch, with and without a LoRA. But
        for rounding a picture does not depend on the others of its batch. ``on_step`` is called with the number of
        steps done.

        Raises ``ValueError`` for a result that is not finite.
        """
        self._use_loras(loras or {})
        masked = torch.stack([sample["im_mask"] for sample in samples])
        embeds, pooled = self._prompts.look_up(prompts, self.device)

        def report(_pipeline: Any, step: int, _timestep: Any, _tensors: dict[str, Any]) -> dict[str, Any]:
            if on_step is not None:
                on_step(step + 1)
            return {}

        with self._memory_told():
            drawn = self._pipeline(
                image=((masked + 1) / 2).to(self.device),
                mask_image=torch.stack([sample["inpaint_mask"] for sample in samples]).to(self.device),
                prompt_embeds=embeds,
                pooled_prompt_embeds=pooled,
                height=masked.shape[2],
                width=masked.shape[3],
                guidance_scale=guidance_scale,
                num_inference_steps=steps,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                callback_on_step_end=report,
                output_type="pt",
            ).images.float()
        if not drawn.isfinite().all():
            scales = " and ".join(f"{scale:g}" for scale in (loras or {}).values())
            what = f"the LoRA at scale {scales}" if loras else "the base"
            raise ValueError(f"{what} draws values that are not finite: its weights, or the scale, are out of range")
        return drawn.cpu()

    @contextlib.contextmanager
    def _memory_told(self) -> Iterator[None]:
        """Say what helps where the GPU's memory is too small."""
        try:
            yield
        except RuntimeError as error:
            if not guards.is_out_of_memory(error):
                raise
            means = "" if self._saves else "--quantize_base nf4 or --offload, "
            raise guards.out_of_memory(
                error, f"{means}smaller --height and --width, and other programs on this GPU that end"
            ) from error

    def _use_loras(self, scales: Mapping[str, float]) -> None:
        # DoRA at scale 0 would still set the magnitudes that it learned.
        active = [name for name, scale in scales.items() if scale != 0]
        # peft lets a DoRA resize whatever the adapters before it have made of the base's output.
        active.sort(key=lambda name: name not in self._doras)
        if active:
            self._transformer.enable_adapters()
            self._transformer.set_adapters([*map(_adapter, active)], weights=[scales[name] for name in active])
        elif self._has_loras:
            self._transformer.disable_adapters()

    def _load_transformer(self, loras: Mapping[str, LoraFile], offload: bool) -> Any:
        transformer = trainer.load_transformer(self._loading, self.dtype, None if offload else self.device)
        transformer.requires_grad_(False)
        for name, lora in loras.items():
            weights = {key: tensor.to(self.dtype) for key, tensor in lora.weights.items()}
            transformer.load_lora_adapter(
                weights, prefix=None, metadata=lora.config.to_dict(), adapter_name=_adapter(name)
            )
        transformer.eval()
        return transformer

    def _load_pipeline(self) -> Any:
        no_text = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
        options = trainer.pipeline_options(self._loading, self.dtype)
        pipeline = FluxFillPipeline.from_pretrained(
            self._loading.pretrained_model_name_or_path, transformer=self._transformer, **no_text, **options
        )
        pipeline.vae.to(self.device).requires_grad_(False)
        if self.device.type == "cuda":
            # Picture by picture: eight of 768x576 take 10 GiB to decode, one takes 1.3 (simulated). On a CPU, where
            # pictures are small, it would take twice the time.
            pipeline.vae.enable_slicing()
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def _adapter(name: str) -> str:
    """peft's name of a LoRA. Not ``lora``, which diffusers finds in the names of weights that it misses."""
    return f"worn_{name}"


def check_means(quantize_base: str | None, offload: bool) -> None:
    """Raise ``ValueError`` when this machine, or the combination, does not allow ``quantize_base`` or ``offload``."""
    if quantize_base and offload:
        raise ValueError("--offload and --quantize_base are two ways to the same end: leave one out")
    if offload:
        guards.check_gpu("--offload needs a CUDA GPU, and none is visible", "leave --offload out")
    if quantize_base:
        guards.check_quantization(quantize_base)


def plan_offload(transformer: str) -> tuple[bool, str]:
    """Whether main memory holds all weights of ``transformer`` pinned, and a line on what ``--offload`` takes of it.

    Pinned weights reach the GPU while it computes. PyTorch rounds what a pinned tensor takes up to a power of two
    (``CachingHostAllocator.h``): 34.6 GiB for FLUX.1's 22.2. Where these are not free, a block is pinned whenever it is
    needed, which takes time in each step. Raises ``ValueError``, with the numbers, where even that does not fit.
    """
    bytes_each = precision_of(transformer, torch.device("cuda")).itemsize
    sizes = [weight.numel() * bytes_each for weight in without_weights(transformer).parameters()]
    pinned = sum(1 << (size - 1).bit_length() for size in sizes) + BESIDE_WEIGHTS
    least, free = sum(sizes) + BESIDE_WEIGHTS, guards.available_memory()
    gib = {name: f"{value / 2**30:.1f}" for name, value in (("pinned", pinned), ("least", least), ("free", free))}
    if least > free:
        raise ValueError(
            f"--offload keeps the transformer in main memory, which takes {gib['least']} GiB, and {gib['free']} are "
            "free: use --quantize_base nf4, or free memory"
        )
    if pinned > free:
        slower = f"; with {gib['pinned']} free it would be faster"
        return False, f"--offload takes {gib['least']} of {gib['free']} GiB of main memory that are free{slower}"
    return True, f"--offload takes {gib['pinned']} of {gib['free']} GiB of main memory that are free"


def offload_blocks(transformer: Any, device: torch.device, pins: bool) -> None:
    """Keep a transformer in main memory, pinned if it ``pins``, and bring one block at a time to ``device``."""
    on_gpu = device.type == "cuda"
    if on_gpu and pins:
        # One after the other: diffusers would copy all of them before it lets go of the first.
        for weight in transformer.parameters():
            weight.data = weight.data.pin_memory()
    transformer.enable_group_offload(
        onload_device=device,
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=on_gpu,
        low_cpu_mem_usage=not pins,
    )


def precision_of(transformer: str, device: torch.device) -> torch.dtype:
    """The precision to draw in: bf16 on CUDA, but fp32 for a transformer narrower than ``SMALL``, which gains nothing.

    The embedded model would lose by it: its VAE carries colours on an offset.
    """
    file = transformer_in(local_path(transformer)) / "config.json"
    config = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    width = config.get("num_attention_heads", SMALL) * config.get("attention_head_dim", 1)
    return torch.bfloat16 if device.type == "cuda" and width >= SMALL else torch.float32


def same_model(one: str, other: str) -> bool:
    """Whether two names, folders or Hub ids, mean one model; a pipeline's folder and its transformer's are the same."""

    def plain(name: str) -> str:
        folder = local_path(name)
        return str(transformer_in(folder).resolve()) if folder.is_dir() else name.rstrip("/")

    return plain(one) == plain(other)
