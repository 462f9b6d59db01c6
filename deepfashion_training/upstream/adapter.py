"""A FLUX-Fill transformer whose parameters are its LoRA, for scripts that train whatever the transformer gives them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import FluxTransformer2DModel
from peft import set_peft_model_state_dict

import train_flux_inpaint as trainer
from deepfashion_training.upstream.driven_run import DrivenRun
from training_run.lora import read_checkpoint_lora, save_lora
from training_run.output_dir import LORA_FILE
from training_run.start_lora import start_from


class AdapterTransformer(FluxTransformer2DModel):
    """``FluxTransformer2DModel`` over a frozen base, which shows only its LoRA to the script that trains it.

    ``named_parameters``, ``parameters``, ``state_dict``, ``load_state_dict`` and ``save_pretrained`` are about the LoRA
    alone, so the script's own freezing loop, optimizer, clipping and checkpoints handle megabytes and not the base.
    Every LoRA weight is trainable whenever it is listed, whatever block names the script chooses by, and stays in fp32
    whatever the transformer is cast to. ``run`` is set on a subclass made for one training run.
    """

    run: ClassVar[DrivenRun]
    adapter_names: frozenset[str]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> AdapterTransformer:
        """The base of the run with a new LoRA; of a checkpoint of the run: the model in training, with that LoRA.

        The script's own keyword arguments are not used: files at the root or under ``transformer/``, precision and
        quantization follow the run's settings. Raises ``ValueError`` for a checkpoint with another LoRA.
        """
        folder = Path(pretrained_model_name_or_path)
        if (folder / LORA_FILE).is_file():
            set_peft_model_state_dict(cls.run.model, read_checkpoint_lora(cls.run.model, cls.run.settings, folder))
            return cls.run.model
        settings = cls.run.settings
        settings.pretrained_inpaint_model_name_or_path = str(pretrained_model_name_or_path)  # goes on record too
        with torch.random.fork_rng(devices=[]):  # the LoRA of a seed is the same one whatever was drawn before
            # A quantized base is made where it stays; the script moves another one when it sees fit.
            device = cls.run.accelerator.device if settings.quantize_base else None
            model = trainer.load_transformer(settings, trainer.DTYPES[cls.run.accelerator.mixed_precision], device)
            base = {id(parameter) for parameter in model.parameters()}
            torch.manual_seed(settings.seed)
            trainer.make_trainable(model, settings)
            cls.run.start = start_from(model, settings) if settings.lora else None
        if cls.run.start and not cls.run.first_step:
            trainer.logger.info(cls.run.start.line(settings))
        # Only now, because loading a base and adding an adapter need the whole model's parameters.
        model.__class__ = cls
        named = torch.nn.Module.named_parameters(model)
        model.adapter_names = frozenset(name for name, parameter in named if id(parameter) not in base)
        cls.run.model = model
        return model

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Names and weights of the adapter, made trainable."""
        lead = f"{prefix}." if prefix else ""
        for name, parameter in super().named_parameters(prefix, recurse, remove_duplicate):
            if name.removeprefix(lead) in self.adapter_names:
                yield name, parameter.requires_grad_(True)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the base."""
        return trainer.DTYPES[self.run.accelerator.mixed_precision]

    def to(self, *args: Any, **kwargs: Any) -> AdapterTransformer:
        """Move and cast the base, move the adapter; a quantized base is not cast."""
        if self.run.settings.quantize_base:
            device = torch._C._nn._parse_to(*args, **kwargs)[0]
            return self if device is None else super().to(device)
        exact = [(parameter, parameter.detach().clone()) for _, parameter in self.named_parameters()]
        super().to(*args, **kwargs)
        for parameter, value in exact:
            parameter.data = value.to(parameter.device)
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The adapter's part of the usual state dict."""
        whole = super().state_dict(*args, **kwargs)
        return {name: tensor for name, tensor in whole.items() if name in self.adapter_names}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load the adapter's weights. With ``strict`` the names must be exactly the adapter's (``RuntimeError``)."""
        if strict and set(state_dict) != self.adapter_names:
            differing = sorted(set(state_dict) ^ self.adapter_names)
            raise RuntimeError(f"{len(differing)} weights are not those of the LoRA in training: {differing[0]}, ...")
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write the LoRA to continue from into ``save_directory``, or beside it where that is ``transformer/``."""
        folder = Path(save_directory)
        folder = folder.parent if folder.name == "transformer" else folder
        folder.mkdir(parents=True, exist_ok=True)
        save_lora(self, self.run.settings, folder, published=False)
