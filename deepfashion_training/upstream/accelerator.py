"""An ``Accelerator`` that fixes, from outside, what a script does around its training step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator, DistributedType
from torch.utils.data import DataLoader

from deepfashion_training.upstream.driven_run import DrivenRun, TrainingRows
from training_run import checkpoints
from training_run.output_dir import prepare_output_dir
from training_run.stopping import settle_gloo, worker_ignores_signals


class DrivenAccelerator(Accelerator):
    """``Accelerator`` of a script that ``run`` drives; ``run`` is set on a subclass made for one run."""

    run: ClassVar[DrivenRun]
    _models: list[Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("log_with") == "none":
            kwargs["log_with"] = None
        super().__init__(*args, **kwargs)
        if self.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.MEGATRON_LM):
            raise ValueError(
                f"a LoRA through another script trains on one GPU or data-parallel, not with {self.distributed_type}: "
                "choose another `accelerate config`"
            )
        self.run.accelerator = self
        if self.is_main_process:
            prepare_output_dir(self.run.settings)
        self.wait_for_everyone()

    def prepare(self, *objects: Any, **kwargs: Any) -> Any:
        """Check that the optimizer holds the LoRA and nothing else, then prepare as ever.

        The loader of training rows keeps to their order, and gets worker processes. Raises ``ValueError`` when the
        optimizer holds anything else, or the script has no transformer of ours.
        """
        run = self.run
        if run.model is None:
            raise ValueError("this script has not loaded a FluxTransformer2DModel, so its transformer gets no LoRA")
        run.parameters = list(run.model.parameters())
        wanted = {id(parameter) for parameter in run.parameters}
        for optimizer in (each for each in objects if isinstance(each, torch.optim.Optimizer)):
            held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            if held != wanted:
                raise ValueError("this script's optimizer holds other weights than the LoRA's, so it cannot train one")
            run.optimizer = optimizer
        return super().prepare(*(self._in_order(each) for each in objects), **kwargs)

    def _in_order(self, part: Any) -> Any:
        """A loader of training rows in their order, which is shuffled already, with workers; anything else as it is."""
        if not isinstance(part, DataLoader) or not isinstance(part.dataset, TrainingRows):
            return part
        workers = self.run.settings.dataloader_num_workers
        return DataLoader(
            part.dataset, batch_size=part.batch_size, collate_fn=part.collate_fn, num_workers=workers,
            prefetch_factor=self.run.settings.dataloader_prefetch_factor if workers else None,
            pin_memory=self.device.type == "cuda", worker_init_fn=worker_ignores_signals if workers else None,
        )  # fmt: skip

    def init_trackers(self, project_name: str, config: Any = None, init_kwargs: Any = None) -> None:
        """Start the trackers with plain values."""
        plain = {name: value for name, value in (config or {}).items() if isinstance(value, (bool, int, float, str))}
        super().init_trackers(project_name, config=plain, init_kwargs=init_kwargs or {})

    def backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        """Note the loss, which must be finite, and run the backward pass; the last one of a step ends the step."""
        self.run.add_loss(loss)
        super().backward(loss, **kwargs)
        if self.sync_gradients:
            self.run.end_step()

    def save_state(self, output_dir: str | None = None, **kwargs: Any) -> str:
        """Write a checkpoint that is complete or absent, then delete the oldest ones; only the main process does."""
        assert output_dir is not None  # given: scripts of this kind name their checkpoints
        final, run = Path(output_dir), self.run
        if self.is_main_process:
            with checkpoints.staged(final) as draft:
                super().save_state(str(draft), **kwargs)
            checkpoints.prune(final, run.settings.checkpoints_total_limit)
            run.begun_record().write()
        run.saved_checkpoint, run.clock = run.step, None
        return output_dir

    def load_state(self, input_dir: str | None = None, **kwargs: Any) -> None:
        """Load a checkpoint; scripts load into the model that they get here, so several ranks get it unwrapped."""
        wrapped, self._models = self._models, [self.unwrap_model(model) for model in self._models]
        try:
            super().load_state(input_dir, **kwargs)
        finally:
            self._models = wrapped

    @contextlib.contextmanager
    def accumulate(self, *models: Any) -> Iterator[None]:
        """A forward and backward pass, with random numbers of its own, unless the run is to stop."""
        self.run.begin_pass()
        with super().accumulate(*models):
            yield

    def end_training(self) -> None:
        """Save a last checkpoint where the script has saved none at that step, then finish as ever."""
        run = self.run
        if run.settings.checkpointing_steps and run.step > run.saved_checkpoint:
            self.save_state(str(run.folder / f"checkpoint-{run.step}"))
        settle_gloo()
        super().end_training()
