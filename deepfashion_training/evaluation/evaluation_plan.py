"""What an evaluation is going to do: everything that can be known, and refused, before models are loaded."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import PartialState

from deepfashion_training.evaluation import inception
from deepfashion_training.evaluation.cases import Cases
from deepfashion_training.evaluation.draw_cases import Setting, setting
from deepfashion_training.garment_types import parse_cloth_types
from deepfashion_training.inference.choice import ModelChoice, choose
from deepfashion_training.inference.dress import DrawingSettings
from deepfashion_training.inference.records import differences
from deepfashion_training.models.access import check_writable
from deepfashion_training.models.features import DEFAULT_DINO, find_dino
from deepfashion_training.models.fill import Recipe, same_model
from deepfashion_training.models.human_parser import check_human_parser, default_human_parser, load_human_parser
from deepfashion_training.models.lora_files import LoraFile, check_fits, find_lora, find_transformer, read_lora

SETTINGS = "settings.json"
#: What an evaluation writes into its folder, and --overwrite may remove.
WRITTEN = (SETTINGS, "metrics.json", "metrics.csv", "report.html", "before_after.png", "pictures", "wardrobe")
#: Figures of papers that need torchvision.
EXTRAS = ("lpips", "fid", "kid")
#: Settings that say where something lies, and not what it is.
_PLACES = ("lora", "against", "data")


@dataclasses.dataclass(frozen=True)
class Plan:
    """The cases, how they are drawn, and what cannot be measured here."""

    folder: Path
    choice: ModelChoice
    against: LoraFile | None
    cases: Cases
    guidances: tuple[float, ...]
    looks: dict[str, DrawingSettings]
    dino: str | None
    extras: tuple[str, ...]
    """Those of ``EXTRAS`` that this machine can compute; known to the first process only."""
    parser: str | None
    """The human parser that finds the worn garment, where the data does not say which it is."""
    left_out: dict[str, str]
    """Figures that cannot be had here, and how to get them."""
    settings: dict[str, Any]
    """What decides which pictures are drawn, ready for JSON."""
    unpaired: bool
    """Whether garments of other people are tried on too."""
    publish_as: str | None
    """Where the LoRA and its card go in the end; known to the first process only."""

    @property
    def trained_folder(self) -> Path | None:
        """The output folder of our own training that the LoRA lies in, whose card gets the figures; None elsewhere.

        A card is about the LoRA as it was trained, on people that it has not seen: at scale 1, beside its own base, in
        full precision, with its own prompt and size.
        """
        choice = self.choice
        if choice.lora is None or choice.lora_scale != 1 or choice.quantize_base or self.against is not None:
            return None
        trained = Recipe.of(choice.lora)
        same = (
            same_model(trained.transformer, choice.recipe.transformer)
            and same_model(trained.pipeline, choice.recipe.pipeline)
            and dataclasses.replace(
                trained,
                transformer=choice.recipe.transformer,
                pipeline=choice.recipe.pipeline,
                guidance_scale=choice.recipe.guidance_scale,
                num_inference_steps=choice.recipe.num_inference_steps,
            )
            == choice.recipe
        )
        folder = choice.lora.path.parent
        return folder if same and self.settings["split"] != "train" and (folder / "run.json").is_file() else None

    def setting(self, guidance: float, unpaired: bool) -> Setting:
        """The pictures at one guidance."""
        looks = {name: dataclasses.replace(look, guidance_scale=guidance) for name, look in self.looks.items()}
        return setting(self.folder, guidance, unpaired, looks)


@contextmanager
def first_process_first(state: PartialState) -> Iterator[None]:
    """Let the first process go ahead: what it fetches is there for the others, and what it refuses is told once."""
    if not state.is_main_process:
        wait_for_others(state)
    yield
    if state.is_main_process:
        wait_for_others(state)


def wait_for_others(state: PartialState) -> None:
    """Wait until every process is here; ``ValueError`` where another one ended, whose own message says why."""
    try:
        state.wait_for_everyone()
    except RuntimeError as error:
        raise ValueError(
            f"process {state.process_index} stopped because another one did, whose message counts"
        ) from error


def make_plan(args: argparse.Namespace, state: PartialState) -> Plan:
    """Check what the flags ask for. Raises ``ValueError``, one line, for whatever cannot be done."""
    folder = args.output_dir.expanduser().resolve()
    with first_process_first(state):
        _check_folder(folder)
        choice = choose(args)
        against = None
        if args.against is not None:
            against = read_lora(find_lora(args.against, flag="--against"), assume_alpha=True, flag="--against")
            check_fits(against, find_transformer(choice.recipe.transformer, weights=False))
        dino, left_out = _dino_name(args)
        parser = _parser_name(args)
    # The first process draws it, and the others wait inside.
    source = args.data or _drawn_wardrobe(folder, state)
    with first_process_first(state):
        plan = _planned(args, folder, choice, against, source, state.is_main_process)
        plan = dataclasses.replace(plan, dino=dino, parser=None if plan.cases.has_parse else parser)
        plan.left_out.update(left_out)
        if state.is_main_process:
            plan.cases.check_masks()
            if args.push_to_hub:
                plan = dataclasses.replace(plan, publish_as=_publish_as(plan, args))
            if plan.parser is not None:
                plan.cases.parser = load_human_parser(plan.parser)
            _take_folder(plan, args.overwrite)
    return plan


def _planned(
    args: argparse.Namespace, folder: Path, choice: ModelChoice, against: LoraFile | None, source: str, is_first: bool
) -> Plan:
    """The plan without DINOv2, parser and where to publish. Only the first process measures, and knows ``extras``."""
    # Asking whether they can be had loads their networks, and fetches what is missing of them.
    unasked = None if args.extras else "--no-extras"
    extras = {name: unasked or inception.unavailable(name) for name in EXTRAS} if is_first else {}
    size = (choice.recipe.height, choice.recipe.width)
    limit = args.limit or _compared_rows(choice.lora, source)
    types = parse_cloth_types(args.cloth_types)
    cases = Cases(
        source,
        args.split,
        size,
        types=types,
        limit=limit,
        seed=args.seed,
        revision=args.data_revision,
        resize_mode=choice.recipe.resize_mode,
    )
    look = choice.drawing(repaint=args.repaint)
    looks = {"base": dataclasses.replace(look, lora="against" if against else None, lora_scale=1.0)}
    if choice.lora is not None:
        looks["lora"] = look
    settings = {
        **choice.described(),
        "against": None if against is None else str(against.path),
        "against_sha256": None if against is None else against.sha256,
        "data": cases.source,
        "data_fingerprint": cases.fingerprint,
        "split": args.split,
        "limit": limit,
        "cloth_types": list(types),
        "height": size[0],
        "width": size[1],
        "resize_mode": look.resize_mode,
        "num_inference_steps": look.num_inference_steps,
        "repaint": args.repaint,
        "batch_size": args.batch_size,
        "seed": args.seed,
    }
    guidances = tuple(dict.fromkeys(args.guidance_scale or [choice.recipe.guidance_scale]))
    possible = tuple(name for name, why in extras.items() if why is None)
    left_out = {name: why for name, why in extras.items() if why is not None}
    return Plan(
        folder, choice, against, cases, guidances, looks, None, possible, None, left_out, settings, args.unpaired, None
    )


def _compared_rows(lora: LoraFile | None, source: str) -> int | None:
    """How many rows the run that made a LoRA compared at its end, where ``source`` is its data; None for all rows."""
    folder = Path() if lora is None else lora.path.parent
    if lora is None or not (folder / "run.json").is_file():
        return None
    try:
        arguments = json.loads((folder / "run.json").read_text(encoding="utf-8"))["arguments"]
        samples, data = arguments.get("evaluate_samples"), str(arguments.get("dataset_name"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / 'run.json'} cannot be read ({error}): name the rows with --limit") from error
    same = source == data or Path(source).resolve() in (Path(data).resolve(), (folder / "wardrobe").resolve())
    return samples if same and isinstance(samples, int) and samples > 0 else None


def _publish_as(plan: Plan, args: argparse.Namespace) -> str:
    from deepfashion_training.models.publish import check_push

    if plan.trained_folder is None:
        raise ValueError(
            "--push_to_hub uploads a LoRA from the folder that training wrote, evaluated as it was trained: at scale "
            "1, on its own base, size and prompt, without --quantize_base and --against, and not on the split train"
        )
    if args.embedded:
        raise ValueError("--push_to_hub: a LoRA of the embedded model dresses nobody")
    return check_push(args.hub_model_id, plan.trained_folder.name, args.hub_private)


def _check_folder(folder: Path) -> None:
    """Raise ``ValueError`` for a folder that holds something else, or cannot be written to."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output_dir {folder} is a file: name a folder")
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    # What a killed process was writing begins with a point and goes on with the name.
    other = [name for name in names if name not in WRITTEN and not name.startswith(tuple(f".{own}" for own in WRITTEN))]
    if other:
        raise ValueError(f"--output_dir {folder} holds other files ({other[0]}): name a new or empty folder")
    if "pictures" in names and SETTINGS not in names:
        raise ValueError(f"--output_dir {folder} holds pictures that are not of an evaluation: name another folder")
    check_writable(folder)


def _take_folder(plan: Plan, overwrite: bool) -> None:
    """Make the folder this evaluation's own; raises ``ValueError`` where it is another's, unless ``overwrite``."""
    file = plan.folder / SETTINGS
    if overwrite:
        for name in ("metrics.json", "metrics.csv", "report.html", "before_after.png"):
            (plan.folder / name).unlink(missing_ok=True)
        for pictures in plan.folder.glob("pictures/guidance-*"):
            shutil.rmtree(pictures)
    elif file.exists():
        try:
            earlier = json.loads(file.read_text(encoding="utf-8"))
            changed = [name for name in differences(earlier, plan.settings) if name not in _PLACES]
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{file} cannot be read ({error}): name another folder, or replace the evaluation with --overwrite"
            ) from error
        if changed:
            raise ValueError(
                f"--output_dir {plan.folder} holds an evaluation with other settings ({', '.join(changed)}): name "
                "another folder, or replace it with --overwrite"
            )
    plan.folder.mkdir(parents=True, exist_ok=True)
    staged = file.with_name(f".{file.name}")
    staged.write_text(json.dumps(plan.settings, indent=2) + "\n", encoding="utf-8")
    staged.replace(file)


def _parser_name(args: argparse.Namespace) -> str | None:
    """The human parser to look for garments with, once it is known to be there."""
    if args.parser is None:
        return None if args.embedded else default_human_parser()
    if args.parser.lower() == "none":
        return None
    check_human_parser(args.parser)
    return str(args.parser)


def _dino_name(args: argparse.Namespace) -> tuple[str | None, dict[str, str]]:
    """The DINOv2 model, and what is left out where there is none; one that was asked for has to be there."""
    name = args.dino_model or DEFAULT_DINO
    if name.lower() == "none":
        return None, dict.fromkeys(("dino", "fd_dinov2", "kd_dinov2"), "--dino_model none")
    try:
        find_dino(name)
    except ValueError as error:
        if args.dino_model is not None:
            raise
        return None, dict.fromkeys(("dino", "fd_dinov2", "kd_dinov2"), str(error))
    return name, {}


def _drawn_wardrobe(folder: Path, state: PartialState) -> str:
    """The drawn people of ``--embedded``."""
    from deepfashion_training.embedded.wardrobe import draw_wardrobe

    draw_wardrobe(folder / "wardrobe", state)
    return str(folder / "wardrobe")
