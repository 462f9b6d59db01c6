"""One training run through a script that is not ours: what its replaced parts share, and what they leave on disk."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import shutil
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

import train_flux_inpaint as trainer
from deepfashion_training.upstream.pipeline import PipelineOnDemand
from deepfashion_training.upstream.sample_pictures import Sheets
from training_run import checkpoints, guards
from training_run.output_dir import forget_future
from training_run.stopping import StoppedError, Stopping

logger = logging.getLogger(__name__)

#: What the script's arguments for lists of pairs are set to, so that its three datasets can be told apart.
TRAIN_LIST, VERIFICATION_LIST, VALIDATION_LIST = "train", "train verification", "validation"
#: Arguments that neither trackers nor run.json may show.
SECRETS = ("hub_token",)
#: Files of a checkpoint that other ranks add when they have written theirs.
OTHER_RANKS = "random_states_*"
#: A step that no run reaches: for "never" where a script divides by the number of steps.
NEVER = 2**62


class RowStream(Dataset):
    """Rows ``first`` to ``first + length`` of an endless shuffled ``order``, for a loader that reads from 0 on.

    The order is that of our own trainer: a loader in batches, dealt to the ranks in turn, gives every rank of every
    step the same rows.
    """

    def __init__(self, data: Any, order: trainer.PairStream, first: int, length: int) -> None:
        self.data, self.order, self.first, self.length = data, order, first, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self.length:
            raise IndexError(f"row {index} of {self.length}")
        return self.data[self.order.row_at(self.first + index)]


class DrivenRun:
    """State of a run, from before the script's ``main`` to after it.

    ``settings`` has every argument of our own trainer, with the values that hold in this run; ``args`` are those that
    the script itself gets, ``dataset`` builds a ``DeepFashionDataset`` from a script's five keyword arguments.
    """

    def __init__(
        self, settings: Namespace, args: Namespace, dataset: Callable[..., Any], facts: dict[str, Any]
    ) -> None:
        self.settings, self.script_args, self.dataset, self.facts = settings, args, dataset, facts
        self.folder = Path(settings.output_dir)
        self.first_step = self.step = step_of(settings.resume_from_checkpoint)
        self.stopping, self.saved_at = Stopping(), self.first_step
        self.skipped = guards.SkippedSteps(0, self.folder)
        self.accelerator: Any = None
        self.model: Any = None
        self.parameters: list[torch.nn.Parameter] = []
        self.datasets: dict[str, Any] = {}
        self.sheets = Sheets(settings)
        self.optimizer: torch.optim.Optimizer | None = None
        self.prompt_known = False
        self.encoded: tuple[torch.Tensor, torch.Tensor] | None = None
        self.losses: list[torch.Tensor] = []
        self.means: list[torch.Tensor] = []
        self.record: trainer.RunRecord | None = None
        self.started, self.clock = time.time(), time.perf_counter()
        self._held: tuple[torch.Tensor, list[torch.Tensor]] | None = None
        self._logged, self._saved_at, self._streaming = (self.step, math.nan), -1, False

    @property
    def args(self) -> Namespace:
        """Arguments for ``run.json``."""
        return self.settings

    @property
    def script(self) -> str:
        """Path of the script."""
        return str(self.facts["upstream"]["script"])

    @property
    def mixed_precision(self) -> str:
        """``no``, ``bf16`` or ``fp16``, as the script's accelerator has it."""
        return str(self.accelerator.mixed_precision if self.accelerator else self.settings.mixed_precision)

    # ---- data -------------------------------------------------------------------------------------------------

    def build_dataset(
        self, dataroot_path: str, phase: str, order: str = "paired", size: tuple[int, int] = (768, 576),
        data_list: str | None = None, **unknown: Any,
    ) -> Any:  # fmt: skip
        """What the script gets for each ``VitonHDTestDataset`` that it builds.

        Its training rows are the whole run's, shuffled, from the step on at which the run continues; its other rows,
        of whatever lists, are the few that validation shows. Raises ``ValueError`` for arguments of another dataset.
        """
        if unknown:
            raise ValueError(
                f"{self.script} builds its dataset with {', '.join(unknown)}: only dataroot_path, phase, order, size "
                "and data_list mean something to ours"
            )
        kind = "validation" if phase == "test" else "train"
        if kind not in self.datasets:
            self.datasets[kind] = self.dataset(dataroot_path, phase, order, size, data_list)
        if kind == "train" and data_list != VERIFICATION_LIST and not self._streaming:
            self._streaming = True
            return self._stream(self.datasets[kind])
        return self.sheets.rows_of(kind, self.datasets[kind])

    def _stream(self, data: Any) -> RowStream:
        settings = self.settings
        ranks = self.accelerator.num_processes if self.accelerator else int(os.environ.get("WORLD_SIZE", "1"))
        rows = settings.train_batch_size * settings.gradient_accumulation_steps * ranks
        steps = settings.max_train_steps or math.ceil(settings.num_train_epochs * len(data) / rows)
        settings.max_train_steps = self.script_args.max_train_steps = steps
        refuse_finished(settings.resume_from_checkpoint, steps)
        weights = data.sampling_weights() if hasattr(data, "sampling_weights") else None
        order = trainer.PairStream(len(data), 1, range(0), settings.seed, weights=weights)
        return RowStream(data, order, self.step * rows, steps * rows)

    # ---- steps ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The first step begins, so nothing has been refused: start the record of the run."""
        if self.record is not None:
            return
        self.settings.mixed_precision = self.mixed_precision
        for secret in SECRETS:
            if getattr(self.settings, secret, None):
                setattr(self.settings, secret, "not recorded")
        self.record = trainer.RunRecord(self, self.datasets)
        self.record.facts.update(self.facts)
        if not self.prompt_known:
            self.settings.instance_prompt = ""  # unknown: the script has no encode_prompt to take it from
        if self.step and self.accelerator.is_main_process:
            forget_future(self.folder, self.step)
        self.started, self.clock = time.time(), time.perf_counter()

    def add_loss(self, loss: torch.Tensor) -> None:
        """Note the loss of a forward pass. Raises ``ValueError`` when it is not finite, before it moves a weight."""
        if not torch.isfinite(loss):
            raise ValueError(f"the loss is not finite at step {self.step + 1}: lower --learning_rate")
        self.losses.append(loss.detach())

    def hold_randomness(self) -> None:
        """Let training draw on from here, whatever is drawn before its next forward pass.

        Validation would move it, and so does the loader that a continued run has to make.
        """
        self._held = self._held or (torch.get_rng_state(), torch.cuda.get_rng_state_all())

    def release_randomness(self) -> None:
        """A forward pass begins: go on where ``hold_randomness`` was called."""
        if self._held is not None:
            torch.set_rng_state(self._held[0])
            torch.cuda.set_rng_state_all(self._held[1])
            self._held = None

    def stop_if_asked(self) -> None:
        """Between forward passes, on every rank: end after a signal, with the checkpoint of the last whole step."""
        self.stopping.saving = True
        if self.losses:  # in the middle of a step, whose random numbers are partly drawn
            return
        if signum := self.stopping.agreed(self.accelerator)[0]:
            if self.step > self.saved_at:
                self.accelerator.save_state(str(self.folder / f"checkpoint-{self.step}"))
            self.accelerator.wait_for_everyone()
            raise StoppedError(signum, self.step)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leave the block out of the step's seconds."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.clock += time.perf_counter() - began

    def end_step(self) -> None:
        """An optimizer step is about to be taken, on every rank."""
        self.step += 1
        self.means.append(self.accelerator.reduce(torch.stack(self.losses).mean(), "mean"))
        self.losses.clear()
        now = time.perf_counter()
        if self.record is not None:
            self.record.seconds.append(now - self.clock)
        self.clock = now

    def write_loss(self) -> None:
        """Write a line of ``logs/losses.jsonl``: the mean loss of all forward passes and ranks since the last line."""
        if not self.means:
            return
        self._logged = (self.step, torch.stack(self.means).mean().item())
        self.means.clear()
        if self.accelerator.is_main_process:
            facts: dict[str, float] = {"step": self.step, "loss": self._logged[1]}
            if self.optimizer is not None:
                facts["lr"] = float(self.optimizer.param_groups[0]["lr"])
            with (self.folder / "logs" / "losses.jsonl").open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(facts) + "\n")

    def with_mean_loss(self, values: dict[str, Any]) -> dict[str, Any]:
        """``values`` that the script logs, its ``loss`` replaced by the one that ``write_loss`` has written."""
        self.write_loss()
        return {**values, "loss": self._logged[1]} if "loss" in values and self._logged[0] == self.step else values

    # ---- files ------------------------------------------------------------------------------------------------

    def save_lora(self, folder: Path) -> None:
        """Write the LoRA file, with the prompt that the script has trained with in its metadata."""
        folder.mkdir(parents=True, exist_ok=True)
        final = folder.resolve() == self.folder.resolve()
        trainer.save_lora(self.model, self.settings, folder, published=final)
        if final:
            self._saved_at = self.step

    def note_prompt(self, prompt: str | Sequence[str], encoded: Any = None) -> None:
        """Remember the prompt that the script trains with, and what it is encoded as: embeddings and pooled ones.

        The first prompt stands for all.
        """
        if not self.prompt_known:
            self.prompt_known = True
            self.settings.instance_prompt = prompt if isinstance(prompt, str) else prompt[0]
        if self.encoded is None and isinstance(encoded, tuple) and len(encoded) > 1:
            self.encoded = (encoded[0][:1].detach(), encoded[1][:1].detach())

    def note_print(self, *values: Any) -> None:
        """Keep what the script prints in ``logs/printed.log``; there can be a line for every weight."""
        if self.accelerator is None or self.accelerator.is_main_process:
            path = self.folder / "logs" / "printed.log"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as lines:
                lines.write(" ".join(map(str, values)) + "\n")

    def checkpoint_saved(self, staged: Path, final: Path) -> None:
        """Put a complete checkpoint in its place, then delete the oldest ones. Of the main process."""
        checkpoints.publish(staged, final)
        checkpoints.prune(final, self.settings.checkpoints_total_limit)
        if self.record is not None:
            self.record.write()

    def add_to_checkpoint(self, staged: Path, final: Path, patience: float = 600) -> None:
        """Move the files of another rank into the checkpoint that the main process writes, once it is there.

        Raises ``RuntimeError`` after ``patience`` seconds.
        """
        first, until = final / "random_states_0.pkl", time.monotonic() + patience
        while not (first.exists() and first.stat().st_mtime >= self.started):  # one of an earlier run may lie there
            if time.monotonic() > until:
                raise RuntimeError(f"{final} was not written by the main process within {patience:.0f} s")
            time.sleep(0.05)
        for file in staged.glob("random_states_*"):
            file.replace(final / file.name)
        shutil.rmtree(staged)

    def finish(self) -> None:
        """After the script's ``main``: save the LoRA where it has not done so, and draw what has been learned.

        Raises ``ValueError`` when it has ended without what it was run for.
        """
        if self.step == self.first_step:
            raise ValueError(f"{self.script} has ended without taking a step")
        if self.accelerator.is_main_process:
            if self._saved_at != self.step:
                self.save_lora(self.folder)
            if self.record is not None:
                self.record.see_losses()
            self._draw_last()

    def _draw_last(self) -> None:
        samples = self.sheets.samples.get("validation", [])
        if not samples or self.sheets.path("validation", self.step).exists():
            return
        if self.encoded is None:
            logger.warning("no picture of the last step: %s has no encode_prompt to take its prompt from", self.script)
            return
        settings, text = self.settings, ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
        parts = {"torch_dtype": trainer.DTYPES[self.mixed_precision], **dict.fromkeys(text)}
        parts |= {name: getattr(settings, name) for name in ("revision", "variant") if getattr(settings, name)}
        draw = PipelineOnDemand(self, settings.pretrained_model_name_or_path, parts).to(self.accelerator.device)
        self.sheets.drawn.clear()
        for sample in samples:
            draw(prompt_embeds=self.encoded[0], pooled_prompt_embeds=self.encoded[1], image=sample["image"][None],
                 mask_image=sample["inpaint_mask"][None], height=settings.height, width=2 * settings.width)  # fmt: skip

    def end(self, status: str) -> None:
        """Write how the run ended into ``run.json``."""
        if self.record is not None:
            if (self.folder / trainer.LORA_FILE).exists():
                self.record.facts["weights"] = trainer.LORA_FILE
            self.record.facts["status"] = status
            self.record.write()


def step_of(checkpoint: str | None) -> int:
    """Step of a ``checkpoint-<n>`` folder; 0 for None."""
    if checkpoint is None:
        return 0
    found = re.fullmatch(r"checkpoint-(\d+)", Path(checkpoint).name)
    if found is None:
        raise ValueError(f"--resume_from_checkpoint {checkpoint}: its name is not checkpoint-<step>")
    return int(found[1])


def find_checkpoint(settings: Namespace) -> str | None:
    """The checkpoint that a run continues from, in its own output directory, or None for a fresh start.

    Raises ``ValueError`` for one that another script has written, that is elsewhere, or that is not there.
    """
    wanted, folder = settings.resume_from_checkpoint, Path(settings.output_dir)
    if wanted is None:
        return None
    if wanted == "latest":
        newest = checkpoints.newest_whole(folder, OTHER_RANKS)
        if newest is None:
            if damaged := checkpoints.checkpoints_in(folder):
                checkpoints.verify(damaged[-1], OTHER_RANKS)
            return None
        path = newest
    else:
        path = Path(wanted)
    step_of(str(path))
    if (path / "training_state.json").exists():
        raise ValueError(f"--resume_from_checkpoint {path} was written by train_flux_inpaint.py: leave --upstream out")
    try:
        checkpoints.verify(path, OTHER_RANKS)
    except checkpoints.DamagedCheckpointError as error:
        raise ValueError(f"--resume_from_checkpoint {path}: {error}") from error
    if not (path / trainer.LORA_FILE).is_file() or not (path / "optimizer.bin").is_file():
        raise ValueError(f"--resume_from_checkpoint {path}: no complete checkpoint there")
    if path.resolve().parent != folder.resolve():
        raise ValueError(
            f"--resume_from_checkpoint {path} is not in --output_dir {folder}, and this script continues nowhere else"
        )
    refuse_finished(str(path), settings.max_train_steps)
    return str(path)


def refuse_finished(checkpoint: str | None, steps: int | None) -> None:
    """Raise ``ValueError`` for a checkpoint of a run that has taken its ``steps``, where they are known yet."""
    if checkpoint and steps and step_of(checkpoint) >= steps:
        raise ValueError(f"{checkpoint} is at step {step_of(checkpoint)} of {steps}: raise --max_train_steps")
