"""A ``FluxFillPipeline`` that draws validation pictures in any precision, and saves the LoRA and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from diffusers import FluxFillPipeline

if TYPE_CHECKING:
    from deepfashion_training.upstream.driven_run import DrivenRun


class DrivenPipeline(FluxFillPipeline):
    """``FluxFillPipeline`` of a script that ``run`` drives; see ``pipeline_class``."""

    run: ClassVar[DrivenRun]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **parts: Any) -> PipelineOnDemand:
        """A pipeline that is put together when it is first asked to draw.

        Scripts load VAE and text encoders a second time only to save the whole pipeline, and read it back.
        """
        cls.run.hold_randomness()
        return PipelineOnDemand(cls.run, str(pretrained_model_name_or_path), parts)


class PipelineOnDemand:
    """Stands for ``FluxFillPipeline.from_pretrained(source, **parts)`` of ``run``."""

    def __init__(self, run: DrivenRun, source: str, parts: dict[str, Any]) -> None:
        if Path(source).resolve() == run.folder.resolve():  # what the script believes to have saved there
            source, parts = run.settings.pretrained_model_name_or_path, {"torch_dtype": parts.get("torch_dtype")}
        self._run, self._source, self._parts = run, source, {"transformer": run.model, **parts}
        self._pipeline: FluxFillPipeline | None = None

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
        """Move the pipeline."""
        self.pipeline.to(*args, **kwargs)
        return self

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write the LoRA into ``save_directory``."""
        self._run.save_lora(Path(save_directory))

    def __call__(self, **kwargs: Any) -> Any:
        """Draw. Steps, guidance and length of the prompt are those of the run, the randomness is its seed's.

        The prediction may be fp32 over a VAE in bf16, so latents are cast to the VAE's precision to be decoded.
        """
        run, settings, pipeline = self._run, self._run.settings, self.pipeline
        kwargs["num_inference_steps"] = settings.num_inference_steps
        kwargs["guidance_scale"] = settings.guidance_scale
        kwargs["max_sequence_length"] = settings.max_sequence_length
        if kwargs.get("generator") is None:
            kwargs["generator"] = torch.Generator(run.accelerator.device).manual_seed(settings.seed)
        decode = pipeline.vae.decode
        pipeline.vae.decode = lambda latents, *args, **more: decode(latents.to(pipeline.vae.dtype), *args, **more)
        try:
            with run.pause(), torch.no_grad():
                result = pipeline(**kwargs)
        finally:
            del pipeline.vae.decode
        if kwargs.get("prompt"):
            run.note_prompt(kwargs["prompt"])
        if isinstance(kwargs.get("image"), torch.Tensor) and run.accelerator.is_main_process:
            run.sheets.add(run.step, kwargs["image"], result.images)
        return result


def pipeline_class(run: DrivenRun) -> type[DrivenPipeline]:
    """The class that takes the place of ``FluxFillPipeline`` in a script while ``run`` lasts."""
    return type("DrivenPipeline", (DrivenPipeline,), {"run": run})
