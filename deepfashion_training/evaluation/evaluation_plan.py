"""What an evaluation is going to do: all that can be known, and refused, before models are loaded."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState

from deepfashion_training.embedded.wardrobe import draw_wardrobe
from deepfashion_training.evaluation.cases import Case, Cases
from deepfashion_training.evaluation.metrics import EXTRAS, unavailable
from deepfashion_training.garment_types import parse_cloth_types
from deepfashion_training.inference.choice import ModelChoice, choose
from deepfashion_training.inference.dress import DrawingSettings
from deepfashion_training.inference.records import differences
from deepfashion_training.models.access import check_writable
from deepfashion_training.models.features import DEFAULT_DINO, find_dino
from deepfashion_training.models.fill import Recipe, same_model
from deepfashion_training.models.human_parser import check_human_parser, default_human_parser, load_human_parser
from training_run.atomic import SAVING, write_file
from training_run.hub import local_path
from training_run.lora_formats import LoraFile, find_lora, fitted, read_lora
from training_run.not_data import is_left_behind

SETTINGS = "settings.json"
METRICS, TABLE, REPORT, BEFORE_AFTER = "metrics.json", "metrics.csv", "report.html", "before_after.png"
#: Settings that say where something lies, and not what it is.
_PLACES = {"lora", "against", "data"}


@dataclasses.dataclass(frozen=True)
class EvaluationPlan:
    """The cases, how they are drawn, and with what they are measured."""

    folder: Path
    choice: ModelChoice
    against: LoraFile | None
    cases: Cases
    drawing: dict[str, DrawingSettings]
    """How ``base`` draws, and ``lora`` where there is one."""
    settings: dict[str, Any]
    """What decides which pictures are drawn, ready for JSON."""
    batch_size: int | None
    """Pictures that are drawn at once; None for as many as fit a GPU, and for one on a CPU."""
    sets: list[list[Case]]
    """The paired cases and, where garments of other people are tried on too, the unpaired ones."""
    dino: str | None
    parser: str | None
    left_out: dict[str, str]
    """Figures that cannot be computed here, and why; of ``EXTRAS`` the first process alone knows."""
    trained_folder: Path | None
    """The output folder of our own training whose model card gets the figures; None for other LoRAs and settings."""
    publish_as: str | None
    """Where the LoRA and its card are uploaded in the end; known to the first process only."""

    def picture(self, model: str, case: Case) -> Path:
        """File of a drawn picture, or of the photo where ``model`` is ``truth``."""
        return self.folder / "pictures" / ("unpaired" if case.unpaired else "paired") / model / case.file


def make_plan(args: argparse.Namespace, state: PartialState) -> EvaluationPlan:
    """Check what the flags ask for. Raises ``ValueError``, one line, for whatever cannot be done.

    ``state`` are the processes that evaluate together: the first goes ahead, what it downloads is there for the others.
    """
    folder = local_path(args.output_dir).resolve()
    with state.main_process_first():
        _check_folder(folder)
        choice = choose(args)
        against = None
        if args.against is not None:
            against = fitted(read_lora(find_lora(args.against)), choice.recipe.transformer)
        dino, left_out = _find_dino(args.dino_model)
        parser = _find_parser(args)
    source = args.dataset_name
    if source is None:  # --embedded: drawn people
        source = str(folder / "wardrobe")
        draw_wardrobe(folder / "wardrobe", state)
    recipe, look = choice.recipe, choice.drawing(repaint=args.repaint)
    types = parse_cloth_types(args.cloth_types)
    trained_folder = _trained_folder(choice, against, args.split)
    publish_as = None
    with state.main_process_first():
        cases = Cases(
            source,
            args.split,
            (recipe.height, recipe.width),
            types=types,
            limit=args.limit,
            seed=args.seed,
            revision=args.dataset_revision,
            resize_mode=recipe.resize_mode,
        )
        settings = {
            **choice.described(),
            "against": None if against is None else str(against.path),
            "against_sha256": None if against is None else against.sha256,
            "data": cases.source,
            "data_fingerprint": cases.fingerprint,
            "split": args.split,
            "limit": args.limit,
            "cloth_types": list(types),
            "height": recipe.height,
            "width": recipe.width,
            "resize_mode": recipe.resize_mode,
            "num_inference_steps": look.num_inference_steps,
            "guidance_scale": look.guidance_scale,
            "repaint": args.repaint,
            "seed": args.seed,
        }
        if state.is_main_process:
            cases.rows.check_masks([case.row for case in cases.paired])
            if args.push_to_hub:
                publish_as = _check_push(args, trained_folder)
            for name in EXTRAS:
                if why := unavailable(name) if args.extras else "--no-extras":
                    left_out[name] = why
            if parser is not None and not cases.has_parse:
                cases.parser = load_human_parser(parser)
            _take_folder(folder, settings, args.overwrite)
    drawing = {"base": dataclasses.replace(look, loras={"against": 1.0} if against else {})}
    return EvaluationPlan(
        folder=folder,
        choice=choice,
        against=against,
        cases=cases,
        drawing={**drawing, "lora": look} if choice.loras else drawing,
        settings=settings,
        batch_size=args.batch_size,
        sets=[cases.paired, cases.unpaired] if args.unpaired and cases.unpaired else [cases.paired],
        dino=dino,
        parser=None if cases.has_parse else parser,
        left_out=left_out,
        trained_folder=trained_folder,
        publish_as=publish_as,
    )


def _trained_folder(choice: ModelChoice, against: LoraFile | None, split: str) -> Path | None:
    """The folder of a LoRA that is evaluated as it was trained, beside its own base, on people whom it has not seen."""
    if choice.scales != (1,) or against is not None or choice.quantize_base or split == "train":
        return None
    (lora,) = choice.loras
    used = choice.recipe
    try:
        trained = Recipe.of(lora)
    except ValueError:  # flags stand in for metadata that cannot be used
        return None
    same = ("height", "width", "prompt", "use_captions", "max_sequence_length", "resize_mode")
    as_trained = (
        same_model(trained.transformer, used.transformer)
        and same_model(trained.pipeline, used.pipeline)
        and all(getattr(trained, name) == getattr(used, name) for name in same)
    )
    folder = lora.path.parent
    return folder if as_trained and (folder / "run.json").is_file() else None


def _check_push(args: argparse.Namespace, trained_folder: Path | None) -> str:
    from deepfashion_training.models.publish import check_push

    if trained_folder is None or args.embedded:
        raise ValueError(
            "--push_to_hub uploads a LoRA of a real model from the folder that training wrote, evaluated as it was "
            "trained (scale, base, size, prompt, no --quantize_base), without --against, and not on the split train"
        )
    return check_push(args.hub_model_id, trained_folder.name)


def _check_folder(folder: Path) -> None:
    """Raise ``ValueError`` for a folder that holds something else, or cannot be written to."""
    check_writable(folder)
    if not (folder / SETTINGS).exists():
        for path in folder.iterdir() if folder.exists() else ():
            ours = path.name == "wardrobe" or path.name.startswith(SAVING)
            if not ours and not is_left_behind(path):
                raise ValueError(
                    f"--output_dir {folder} holds something else ({path.name}): name a new or empty folder"
                )


def _take_folder(folder: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Make the folder this evaluation's own; raises ``ValueError`` where it is another's, unless ``overwrite``."""
    file = folder / SETTINGS
    if overwrite:
        shutil.rmtree(folder / "pictures", ignore_errors=True)
        for name in (METRICS, TABLE, REPORT, BEFORE_AFTER):
            (folder / name).unlink(missing_ok=True)
    elif file.exists():
        changed = set(differences(json.loads(file.read_text(encoding="utf-8")), settings)) - _PLACES
        if changed:
            raise ValueError(
                f"--output_dir {folder} holds an evaluation with other settings ({', '.join(sorted(changed))}): name "
                "another folder, or replace it with --overwrite"
            )
    write_file(file, json.dumps(settings, indent=2) + "\n")


def _find_parser(args: argparse.Namespace) -> str | None:
    """The human parser that finds the worn garment. Raises ``ValueError`` where it cannot be loaded."""
    if args.parser is None:
        return None if args.embedded else default_human_parser()
    if args.parser.lower() == "none":
        return None
    check_human_parser(args.parser)
    return str(args.parser)


def _find_dino(asked: str | None) -> tuple[str | None, dict[str, str]]:
    """The DINOv2 model, and what is left out where there is none; one that was asked for has to be there."""
    name, figures = asked or DEFAULT_DINO, ("dino", "fd_dinov2", "kd_dinov2")
    if name.lower() == "none":
        return None, dict.fromkeys(figures, "--dino_model none")
    try:
        find_dino(name)
    except ValueError as error:
        if asked is not None:
            raise
        return None, dict.fromkeys(figures, str(error))
    return name, {}
