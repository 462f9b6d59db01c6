"""State of one training run through a script that trains no LoRA: its data, its steps, what it leaves on disk."""

from __future__ import annotations

import inspect
import json
import math
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch.utils.data import Subset

from training_run.checkpoints import step_of
from training_run.lora import save_lora
from training_run.lora_formats import read_lora
from training_run.output_dir import LORA_FILE, find_checkpoint, forget_future, refuse_finished
from training_run.processes import launched_processes
from training_run.record import RunRecord
from training_run.row_order import PairStream, seed_for, validation_rows, weights_of
from training_run.start_lora import Start
from training_run.stopping import StoppedError, Stopping

#: What the script's arguments for lists of pairs are set to, so that its three datasets can be told apart.
TRAIN_LIST, VERIFICATION_LIST, VALIDATION_LIST = "train", "train verification", "validation"
#: A step that no run reaches: for "never" where a script divides by the number of steps.
NEVER = 2**62


class TrainingRows(Subset):
    """Rows of a whole run in their order, for a loader that reads from 0 on."""


class DrivenRun:
    """State of a run, from before the script's ``main`` to after it.

    ``settings`` has every argument of our own trainer and of the script, with the values that hold in this run;
    ``dataset`` builds a ``DeepFashionDataset`` from a script's five keyword arguments; ``facts`` about the script go
    into ``run.json``.
    """

    def __init__(self, settings: Namespace, dataset: Callable[..., Any], facts: dict[str, Any]) -> None:
        self.settings, self.dataset, self.facts = settings, dataset, facts
        self.args = settings  # under the name by which run.json knows them
        self.folder = Path(settings.output_dir)
        checkpoint = settings.resume_from_checkpoint
        self.first_step = self.step = (step_of(Path(checkpoint)) or 0) if checkpoint else 0
        self.saved_checkpoint = self.first_step
        self.stopping = Stopping()
        self.skipped_steps = 0
        self.accelerator: Any = None
        self.model: Any = None
        self.start: Start | None = None
        self.parameters: list[torch.nn.Parameter] = []
        self.optimizer: Any = None
        self.datasets: dict[str, Any] = {}
        self.samples: list[dict[str, Any]] = []
        self.prompt = ""
        self.losses: list[torch.Tensor] = []
        self.record: RunRecord | None = None
        self.clock: float | None = None
        """When the current step began; None before a pass begins, and after what belongs to no step."""
        steps = settings.validation_steps
        changed = {
            "train_base_model": True,  # without it the script of catvton-flux trains nothing
            "train_data_list": TRAIN_LIST,
            "train_verification_list": VERIFICATION_LIST,
            "validation_data_list": VALIDATION_LIST,
            # It validates where step % validation_steps is 1: never with 1, and 0 is an error.
            "validation_steps": {0: NEVER, 1: 2}.get(steps, steps),
            "checkpointing_steps": settings.checkpointing_steps or NEVER,
            "checkpoints_total_limit": None,  # old ones go when the new one is complete
            "max_grad_norm": settings.max_grad_norm or math.inf,
            "resume_from_checkpoint": checkpoint if self.first_step else None,  # "latest" of none is a fresh start
        }
        self.script_args = Namespace(**{**vars(settings), **changed})
        """The arguments that the script gets; ``settings`` keep what the user has asked for."""

    # ---- data

    def build_dataset(
        self, dataroot_path: str, phase: str, order: str = "paired", size: Any = (768, 576), data_list: Any = None
    ) -> Any:
        """What the script gets for each ``VitonHDTestDataset`` that it builds.

        Its training rows are the whole run's, shuffled, from the step on at which the run continues. Its validation
        rows are ``--num_validation_images`` samples, none without validation; rows to verify training on are none.
        """
        kind = "validation" if phase == "test" else "train"
        if data_list == VERIFICATION_LIST:
            return []
        if kind not in self.datasets:
            self.datasets[kind] = self.dataset(dataroot_path, phase, order, size, data_list)
        data = self.datasets[kind]
        if kind == "train":
            return self._training_rows(data)
        count = self.settings.num_validation_images if self.settings.validation_steps else 0
        self.samples = [data[row] for row in validation_rows(data, count)]
        return self.samples

    def _training_rows(self, data: Any) -> TrainingRows:
        """As many rows as the run takes, since scripts count epochs by them, in the order of our own trainer.

        A loader in batches, dealt to the ranks in turn, gives every rank of every step the same rows.
        """
        settings, ranks = self.settings, launched_processes()
        per_step = settings.train_batch_size * settings.gradient_accumulation_steps * ranks
        steps = settings.max_train_steps or math.ceil(settings.num_train_epochs * len(data) / per_step)
        settings.max_train_steps = self.script_args.max_train_steps = steps
        order = PairStream(len(data), 1, range(steps * per_step), settings.seed, 0, 1, *weights_of(data))
        first = self.step * per_step
        return TrainingRows(data, [order.row_at(place) for place in range(first, first + steps * per_step)])

    # ---- steps

    def begin_pass(self) -> None:
        """A forward pass begins, on every rank. After a signal: save the last whole step and raise ``StoppedError``.

        What the pass draws at random follows from seed, rank and its number, whatever was drawn before: a continued run
        draws the same.
        """
        self.stopping.saving = True
        if not self.losses and (signum := self.stopping.agreed(self.accelerator)[0]):
            if self.step > self.saved_checkpoint:
                self.accelerator.save_state(str(self.folder / f"checkpoint-{self.step}"))
            self.accelerator.wait_for_everyone()
            raise StoppedError(signum)
        self.clock = time.perf_counter() if self.clock is None else self.clock
        number = self.step * self.settings.gradient_accumulation_steps + len(self.losses)
        set_seed(seed_for(self.settings.seed, self.accelerator.process_index, number) % 2**32)

    def add_loss(self, loss: torch.Tensor) -> None:
        """Note the loss of a forward pass. Raises ``ValueError`` when it is not finite, before it moves a weight."""
        if not torch.isfinite(loss):
            raise ValueError(f"the loss is not finite at step {self.step + 1}: lower --learning_rate")
        self.begun_record()
        self.losses.append(loss.detach())

    def begun_record(self) -> RunRecord:
        """``run.json``, which begins with the first step, when nothing can be refused any more."""
        if self.record is None:
            self.settings.mixed_precision = self.accelerator.mixed_precision
            if not self.prompt and self.first_step:  # a script may encode none where no step is left
                trained = read_lora(self.folder / f"checkpoint-{self.first_step}" / LORA_FILE)
                self.prompt = trained.metadata.get("prompt", "")
            self.settings.instance_prompt = self.prompt
            self.record = RunRecord(self, self.datasets)
            self.record.facts["upstream"] = self.facts
            if self.accelerator.is_main_process:
                forget_future(self.folder, self.step)
        return self.record

    def end_step(self) -> None:
        """An optimizer step is about to be taken, on every rank: write its mean loss to ``logs/losses.jsonl``."""
        self.step += 1
        loss = self.accelerator.reduce(torch.stack(self.losses).mean(), "mean").item()
        self.losses.clear()
        now = time.perf_counter()
        if self.clock is not None:
            self.begun_record().seconds.append(now - self.clock)
        self.clock = now
        if self.accelerator.is_main_process:
            facts = {"step": self.step, "loss": loss, "lr": float(self.optimizer.param_groups[0]["lr"])}
            with (self.folder / "logs" / "losses.jsonl").open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(facts) + "\n")

    # ---- files

    def noting_prompts(self, encode_prompt: Callable[..., Any]) -> Callable[..., Any]:
        """``encode_prompt`` of the script; its first prompt is kept, for the LoRA's metadata."""
        signature = inspect.signature(encode_prompt)

        def noting(*args: Any, **kwargs: Any) -> Any:
            prompt = signature.bind(*args, **kwargs).arguments.get("prompt")
            if prompt and not self.prompt:
                self.prompt = prompt if isinstance(prompt, str) else prompt[0]
            return encode_prompt(*args, **kwargs)

        return noting

    def finish(self) -> None:
        """After the script's ``main``: save the LoRA, look at the losses. ``ValueError`` when it has not trained."""
        if self.step == self.first_step != self.settings.max_train_steps:
            raise ValueError(f"{self.facts['script']} has ended without taking a step")
        record = self.begun_record()
        if self.accelerator.is_main_process:
            save_lora(self.model, self.settings, self.folder, published=True)
            record.see_losses()

    def end(self, status: str) -> None:
        """Write how the run ended into ``run.json``."""
        if self.record is not None:
            if (self.folder / LORA_FILE).exists():
                self.record.facts["weights"] = LORA_FILE
            self.record.end(status)


def checkpoint_of(settings: Namespace) -> Path | None:
    """The checkpoint that a run continues from, in its own output directory, or None for a fresh start.

    Raises ``ValueError`` for one of our own trainer, and for one that is elsewhere, damaged, or of the last step.
    """
    path = find_checkpoint(settings)
    if path is None:
        return None
    if (path / "training_state.json").exists():
        raise ValueError(f"--resume_from_checkpoint {path} was written by train_flux_inpaint.py: leave --upstream out")
    step, folder = step_of(path), settings.output_dir
    if step is None or path.resolve().parent != Path(folder).resolve() or not (path / LORA_FILE).is_file():
        raise ValueError(
            f"--resume_from_checkpoint {path} is no checkpoint-<step> with a LoRA in --output_dir {folder}"
        )
    if settings.max_train_steps:
        refuse_finished(settings, step)
    return path
