"""A ``FluxFillPipeline`` that draws validation pictures in any precision, and saves the LoRA and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import FluxFillPipeline
from PIL import Image

import train_flux_inpaint as trainer
from deepfashion_training.upstream.driven_run import DrivenRun
from training_run.sheets import labelled_grid, to_picture

logger = logging.getLogger(__name__)


class DrivenPipeline(FluxFillPipeline):
    """``FluxFillPipeline`` of a script that ``run`` drives; ``run`` is set on a subclass made for one run."""

    run: ClassVar[DrivenRun]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **parts: Any) -> PipelineOnDemand:
        """A pipeline that is put together when it is first asked to draw.

        Scripts load VAE and text encoders a second time only to save the whole pipeline, and read it back.
        """
        return PipelineOnDemand(cls.run, str(pretrained_model_name_or_path), parts)


class PipelineOnDemand:
    """Stands for ``FluxFillPipeline.from_pretrained(source, **parts)`` with the transformer of ``run``."""

    def __init__(self, run: DrivenRun, source: str, parts: dict[str, Any]) -> None:
        if Path(source).resolve() == run.folder.resolve():  # what the script believes to have saved there
            source, parts = run.settings.pretrained_model_name_or_path, {"torch_dtype": parts.get("torch_dtype")}
        self._run, self._source, self._parts = run, source, {"transformer": run.model, **parts}
        self._pipeline: FluxFillPipeline | None = None
        self._step, self._rows, self._labels = -1, list[list[Image.Image]](), list[str]()

    @property
    def pipeline(self) -> FluxFillPipeline:
        """The pipeline itself, loaded now if it was not."""
        if self._pipeline is None:
            self._pipeline = FluxFillPipeline.from_pretrained(self._source, **self._parts)
            self._pipeline.set_progress_bar_config(disable=True)
        return self._pipeline

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipeline, name)

    def to(self, *args: Any, **kwargs: Any) -> PipelineOnDemand:
        """The pipeline is moved when it draws."""
        return self

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write the LoRA into ``save_directory``."""
        self._run.save_lora(Path(save_directory))

    def __call__(self, **kwargs: Any) -> Any:
        """Draw. Steps, guidance and length of the prompt are those of the run, the randomness is its seed's.

        The prediction may be fp32 over a VAE in bf16, so latents are cast to the VAE's precision to be decoded.
        """
        run, settings, pipeline = self._run, self._run.settings, self.pipeline.to(self._run.accelerator.device)
        kwargs |= {name: getattr(settings, name) for name in ("num_inference_steps", "guidance_scale")}
        kwargs["max_sequence_length"] = settings.max_sequence_length
        if kwargs.get("generator") is None:
            kwargs["generator"] = torch.Generator(run.accelerator.device).manual_seed(settings.seed)
        decode = pipeline.vae.decode
        pipeline.vae.decode = lambda latents, *args, **more: decode(latents.to(pipeline.vae.dtype), *args, **more)
        try:
            with torch.no_grad():
                result = pipeline(**kwargs)
        finally:
            del pipeline.vae.decode
            run.clock = None
        if isinstance(kwargs.get("image"), torch.Tensor) and run.accelerator.is_main_process:
            self._add_to_sheet(kwargs["image"].cpu(), result.images)
        return result

    def _add_to_sheet(self, pairs: torch.Tensor, results: Sequence[Image.Image]) -> None:
        """Write the sheet of this step with pictures [B,3,H,2W] in [-1,1] and what was drawn for them added to it."""
        run, width = self._run, self._run.settings.width
        if self._step != run.step:
            self._step, self._rows, self._labels = run.step, [], []
        for pair, result in zip(pairs, results, strict=True):
            for sample in (each for each in run.samples if torch.equal(each["image"], pair)):
                known = [sample["cloth_pure"], sample["im_mask"][..., width:], sample["image"][..., width:]]
                garment, person, truth = map(to_picture, known)
                drawn = result.convert("RGB").crop((width, 0, 2 * width, result.height))
                self._rows.append([garment, person, drawn, truth])
                self._labels.append(f"{sample['im_name']}  {sample['caption_cloth']}")
        if self._rows:
            sheet_path(run).parent.mkdir(exist_ok=True)
            columns = ["garment", "masked person", f"result, step {run.step}", "truth"]
            labelled_grid(self._rows, columns, self._labels).save(sheet_path(run))


def draw_last(run: DrivenRun) -> None:
    """Draw the samples after the last step, where the script has not drawn them and its prompt is known."""
    if not run.samples or not run.accelerator.is_main_process or sheet_path(run).exists():
        return
    if run.encoded is None:
        logger.warning("no picture of the last step: %s has no encode_prompt", run.facts["script"])
        return
    settings, text = run.settings, ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    parts = {
        **trainer.pipeline_options(settings, trainer.DTYPES[run.accelerator.mixed_precision]),
        **dict.fromkeys(text),
    }
    draw = PipelineOnDemand(run, settings.pretrained_model_name_or_path, parts)
    for sample in run.samples:
        draw(
            prompt_embeds=run.encoded[0],
            pooled_prompt_embeds=run.encoded[1],
            image=sample["image"][None],
            mask_image=sample["inpaint_mask"][None],
            height=settings.height,
            width=2 * settings.width,
        )


def sheet_path(run: DrivenRun) -> Path:
    """Where the pictures of the current step go."""
    return run.folder / "validation" / f"step-{run.step}.png"
