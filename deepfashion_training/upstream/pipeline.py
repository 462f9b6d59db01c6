"""A ``FluxFillPipeline`` that draws validation pictures in any precision and saves nothing."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers import FluxFillPipeline
from PIL import Image

from deepfashion_training.upstream.driven_run import DrivenRun
from training_run.sheets import write_sheet


class PipelineOnDemand:
    """``FluxFillPipeline.from_pretrained(source, **parts)`` of the script that ``run`` drives, loaded when it draws.

    Scripts load VAE and text encoders a second time only to save the whole pipeline, and read it back.
    """

    def __init__(self, run: DrivenRun, source: str | Path, **parts: Any) -> None:
        if run.model is None and "transformer" not in parts:
            raise ValueError(f"this script takes its transformer out of a pipeline ({source}), where it gets no LoRA")
        if Path(source).resolve() == run.folder.resolve():  # what the script believes to have saved there
            source, parts = run.settings.pretrained_model_name_or_path, {"torch_dtype": parts.get("torch_dtype")}
        self._run, self._source, self._parts = run, source, {"transformer": run.model, **parts}
        self._step, self._samples, self._results = -1, list[dict[str, Any]](), list[Image.Image]()

    @functools.cached_property
    def pipeline(self) -> FluxFillPipeline:
        """The pipeline itself, loaded when it is first asked for."""
        pipeline = FluxFillPipeline.from_pretrained(self._source, **self._parts)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipeline, name)

    def to(self, *args: Any, **kwargs: Any) -> PipelineOnDemand:
        """The pipeline is moved when it draws."""
        return self

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Nothing is saved: the LoRA is written when the script has ended."""

    def __call__(self, **kwargs: Any) -> Any:
        """Draw. Steps, guidance and length of the prompt are those of the run, the randomness is its seed's.

        The prediction may be fp32 over a VAE in bf16, so latents are cast to the VAE's precision to be decoded.
        """
        run, settings, pipeline = self._run, self._run.settings, self.pipeline.to(self._run.accelerator.device)
        kwargs |= {name: getattr(settings, name) for name in ("num_inference_steps", "guidance_scale")}
        kwargs["max_sequence_length"] = settings.max_sequence_length
        if kwargs.get("generator") is None:
            kwargs["generator"] = torch.Generator(run.accelerator.device).manual_seed(settings.seed)
        transformer, decode = pipeline.transformer, pipeline.vae.decode
        trained = transformer.training
        transformer.eval()  # scripts leave it as it trains, with --lora_dropout

        def cast(latents: torch.Tensor, *args: Any, **more: Any) -> Any:
            return decode(latents.to(pipeline.vae.dtype), *args, **more)

        with torch.no_grad(), mock.patch.object(pipeline.vae, "decode", cast), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*as torch tensor with value range in")  # with every picture
            result = pipeline(**kwargs)
        transformer.train(trained)
        run.clock = None
        if isinstance(kwargs.get("image"), torch.Tensor) and run.accelerator.is_main_process:
            self._add_to_sheet(kwargs["image"].cpu(), result.images)
        return result

    def _add_to_sheet(self, pairs: torch.Tensor, results: Sequence[Image.Image]) -> None:
        """Write the sheet of this step with pictures [B,3,H,2W] in [-1,1] and what was drawn for them added to it."""
        run, width = self._run, self._run.settings.width
        if self._step != run.step:
            self._step, self._samples, self._results = run.step, [], []
        for pair, result in zip(pairs, results, strict=True):
            for sample in (each for each in run.samples if torch.equal(each["image"], pair)):
                self._samples.append(sample)
                self._results.append(result.convert("RGB").crop((width, 0, 2 * width, result.height)))
        if self._samples:
            write_sheet(run.folder, run.step, self._samples, self._results)
