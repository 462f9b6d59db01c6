"""The command line of ``train_flux_inpaint.py``: its parser, its flags, and which of them cannot stand together.

Imports nothing heavy, so that a command line is read, and refused, before PyTorch is loaded.
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import math
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

#: diffusers' names of those that have a backward pass and need no download, with the package that each one needs.
BACKENDS = {
    "native": "torch", "_native_cudnn": "torch", "_native_flash": "torch", "_native_efficient": "torch",
    "flash": "flash_attn", "_flash_3": "flash_attn_interface",
}  # fmt: skip
#: What ``--quantize_base`` chooses from, with the package that each kind needs.
QUANTIZED_BY = {"nf4": "bitsandbytes", "int8": "torchao", "fp8": "torchao"}
#: Kinds whose tensors PyTorch (2.13) cannot compile a training step over: it ends with an error about aliases.
NOT_COMPILED = ("int8", "fp8")
_UNSET: Any = object()
#: What `accelerate launch` sets for trainers of its own.
_OTHER_TRAINERS = (
    "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG",
)  # fmt: skip
#: Flags whose value may be no text at all.
MAY_BE_EMPTY = ("--caption", "--instance_prompt", "--prompt")
#: The constant prompt that catvton-flux-alpha was trained with.
DEFAULT_PROMPT = (
    "The pair of images highlights a clothing and its styling on a model, high resolution, 4K, 8K; [IMAGE1] Detailed "
    "product shot of a clothing[IMAGE2] The same cloth is worn by a model in a lifestyle setting."
)


class _OneLora(argparse.Action):
    """``--lora`` of a training run, which other commands take several times."""

    def __call__(self, parser: Any, namespace: Any, value: Any, option_string: str | None = None) -> None:
        if getattr(namespace, self.dest) not in (None, _UNSET, value):
            raise argparse.ArgumentError(self, f"a run starts from one LoRA, not from {value} too: leave one out")
        setattr(namespace, self.dest, value)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Shows every default that says something, and short names for values."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = (action.help or "").removesuffix(" (default: %(default)s)")  # Python before 3.13 adds it to switches
        if action.required:
            return f"{text} (required)"
        if action.default is True:
            return f"{text} (default: on)"
        if action.default in (None, "") or action.nargs == 0 or "(default" in text:
            return text
        return f"{text} (default: %(default)s)"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return {"int": "N", "float": "X"}.get(getattr(action.type, "__name__", ""), "VALUE")


class OneLineParser(argparse.ArgumentParser):
    """Parser that answers an unknown flag with the nearest known one, in one line; exit code 2."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_Help, usage="%(prog)s [FLAG VALUE ...]", **settings)
        self.name = Path(self.prog).stem

    def given(self, words: Sequence[str] | None = None) -> tuple[dict[str, Any], list[str]]:
        """Values of the flags in ``words`` or the command line, without defaults, and the words that are unknown."""
        blank = argparse.Namespace(**{action.dest: _UNSET for action in self._actions})
        known, unknown = self.parse_known_args(words, blank)
        return {name: value for name, value in vars(known).items() if value is not _UNSET}, unknown

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but an empty value, as of an unset shell variable, is refused where it means nothing."""
        words = sys.argv[1:] if args is None else list(args)
        for word, following in itertools.pairwise([*words, None]):
            flag, equals, value = word.partition("=")
            empty = not value if equals else following == ""
            if empty and flag in self._option_string_actions and flag not in MAY_BE_EMPTY:
                self.error(f"{flag} is empty: give it a value, or leave it out")
        return super().parse_known_args(words, namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, but an unknown flag is named before anything that its misspelling leaves out."""
        words = sys.argv[1:] if args is None else list(args)
        self.refuse_unknown(words)
        parsed, unknown = self.parse_known_args(words, namespace)
        if unknown:
            self.refuse(unknown[0])
        return parsed

    def refuse_unknown(self, words: Collection[str], others: Collection[str] = ()) -> None:
        """End with exit code 2 where one of ``words`` is a flag that neither this parser nor ``others`` have."""
        for word in words:
            if word == "--":
                break
            name = word.split("=")[0]
            # With a blank in it, it is a value that begins with hyphens.
            if name.startswith("--") and " " not in name and name not in {*self._option_string_actions, *others}:
                self.refuse(name, others)

    def refuse(self, unknown: str, others: Collection[str] = ()) -> NoReturn:
        """End with exit code 2 for an unknown flag, naming the nearest one of this parser and ``others``."""
        name = unknown.split("=")[0]  # without its value, which may be a token
        near = difflib.get_close_matches(name, [*self._option_string_actions, *others], n=1)
        self.error(f"unknown argument {name}" + (f": did you mean {near[0]}?" if near else ""))

    def error(self, message: str) -> NoReturn:
        """End with exit code 2 and one line."""
        self.exit(2, f"{self.name}: {message} (see --help)\n")


def number(
    kind: type[int] | type[float], low: float = -math.inf, high: float = math.inf, step: int = 0, *, above: bool = False
) -> Callable[[str], Any]:
    """Converter for argparse: a finite number in [low, high], and a multiple of ``step`` where one is given.

    With ``above`` the number must lie above ``low``.
    """

    limits = f"above {low:g}" if above else f"at least {low:g}"
    if high < math.inf:
        limits = f"{limits} and at most {high:g}" if above else f"from {low:g} to {high:g}"
    limits = ("a finite number" if low == -math.inf else limits) + (f" and a multiple of {step}" if step else "")

    def read(text: str) -> Any:
        value = kind(text)
        finite = -math.inf < value < math.inf  # math.isfinite takes no int of 400 digits
        if not finite or not low <= value <= high or (above and value == low) or (step and value % step):
            raise argparse.ArgumentTypeError(f"{text} is not {limits if finite else 'a finite number'}")
        return value

    read.__name__ = kind.__name__  # what argparse calls it in its messages
    return read


COUNT, FROM_ZERO, SIDE = number(int, 1), number(int, 0), number(int, 16, step=16)
POSITIVE, AMOUNT = number(float, 0, above=True), number(float, 0)
BETA = number(float, 0, 0.999999)
SHARE, FINITE = number(float, 0, 1), number(float)
SEED, SWITCH = number(int, 0, 2**32 - 1), argparse.BooleanOptionalAction
#: Most denoising steps of a picture: FLUX's scheduler has as many timesteps.
MOST_INFERENCE_STEPS = 1000
STEPS, TOKENS, DRAWN_SIDE = number(int, 1, MOST_INFERENCE_STEPS), number(int, 1, 512), number(int, 16, 4096, step=16)


def recompute_stride(text: str) -> int | str:
    """Every how many blocks one is checkpointed: a number from 1, 0 for 'none', or 'auto'."""
    if text in ("auto", "none"):
        return "auto" if text == "auto" else 0
    try:
        return int(COUNT(text))
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, none or a number from 1") from None


def type_numbers(text: str) -> str:
    """Garment types by number, 1 upper, 2 lower and 3 full, comma-separated: in ascending order and each once."""
    numbers = {number.strip() for number in text.split(",")}
    if not numbers <= {"1", "2", "3"}:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of 1 (upper), 2 (lower) and 3 (full), such as 1,3")
    return ",".join(sorted(numbers))


def timestep_shift(text: str) -> str | float:
    """How drawn timesteps are shifted: 'none', 'tokens', or by a factor above 0."""
    if text in ("none", "tokens"):
        return text
    try:
        return float(POSITIVE(text))
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"{text!r} is not none, tokens or a number above 0") from None


# fmt: off
def add_trainer_flags(parser: argparse.ArgumentParser) -> None:
    """All flags of the trainer."""
    add = parser.add_argument_group("models").add_argument
    add("--pretrained_model_name_or_path", default="black-forest-labs/FLUX.1-Fill-dev",
        help="FLUX.1-Fill pipeline that gives VAE, text encoders, tokenizers and scheduler: folder or Hub id")
    add("--pretrained_inpaint_model_name_or_path", default="xiaozaa/catvton-flux-alpha",
        help="transformer to train: folder or Hub id, with its files at the root or under transformer/")
    add("--revision", help="branch, tag or commit of the pipeline on the Hub")
    add("--inpaint_revision", help="branch, tag or commit of the transformer on the Hub")
    add("--variant", help="variant of the model files, such as bf16")
    add("--cache_dir", help="where downloaded models are kept (default: the Hub's own cache)")
    add("--quantize_base", choices=list(QUANTIZED_BY),
        help="keep the frozen base in 4 bits a weight (bitsandbytes, CUDA) or in 8 (torchao)")
    add("--mixed_precision", choices=["no", "bf16", "fp16"], default="no", help="precision of the frozen base")
    add("--allow_tf32", action=SWITCH, default=False, help="TF32 for fp32 matrix products on CUDA")
    add = parser.add_argument_group("data and text").add_argument
    add("--dataroot", help="VITON-HD folder with train/, test/ and the pair lists")
    add("--train_data_list", default="train_pairs.txt", help="pair list of the training rows, inside the data root")
    add("--validation_data_list", default="test_pairs.txt", help="pair list of the validation rows")
    add("--height", type=SIDE, default=768, help="height of one picture in pixels, a multiple of 16")
    add("--width", type=SIDE, default=576, help="width of one picture, a multiple of 16; a pair is twice as wide")
    add("--dataloader_num_workers", type=FROM_ZERO, default=4, help="processes that load pictures; 0: between steps")
    add("--dataloader_prefetch_factor", type=COUNT, default=2, help="batches that each worker prepares ahead")
    add("--cache_latents", action=SWITCH, default=False, help="encode rows and prompts once and keep that on disk")
    add("--latents_dir", help="where --cache_latents keeps it, for all runs (default: latents in --output_dir)")
    add("--instance_prompt", default=DEFAULT_PROMPT, help="prompt of every pair")
    add("--use_captions", action=SWITCH, default=False, help="append the row's caption to the prompt")
    add("--caption_dropout", type=SHARE, default=0.0, help="share of rows with the bare prompt under --use_captions")
    add("--max_sequence_length", type=TOKENS, default=512, help="T5 tokens per prompt, at most 512")
    add = parser.add_argument_group("what is trained").add_argument
    add("--lora", action=_OneLora, metavar="LORA",
        help="LoRA to start from, folder, file or Hub id of any usual format; rank, alpha, targets, DoRA and rsLoRA "
        "are those of the file where they are not typed")
    add("--lora_rank", type=COUNT, default=16, help="rank of the LoRA matrices")
    add("--lora_alpha", type=POSITIVE, help="LoRA alpha; the update is scaled by alpha / rank (default: the rank)")
    add("--lora_target_modules", default="all",
        help="'all': attention and feed-forward of every block; 'attention'; or module names, comma-separated")
    add("--lora_dropout", type=BETA, default=0.0, help="share of a LoRA's inputs left out in training, below 1")
    add("--use_dora", action=SWITCH, default=False, help="weight-decomposed LoRA (DoRA)")
    add("--use_rslora", action=SWITCH, default=False, help="scale by alpha / sqrt(rank)")
    add("--train_base_model", nargs="?", const="attention", choices=["attention", "all"],
        help="no LoRA: train the base's own weights, those of attention (when no word follows) or all")
    add = parser.add_argument_group("optimizer and schedule").add_argument
    add("--train_batch_size", type=COUNT, default=1, help="pairs per device and forward pass")
    add("--gradient_accumulation_steps", type=COUNT, default=1, help="forward passes per optimizer step")
    add("--max_train_steps", type=COUNT, help="optimizer steps (default: from --num_train_epochs)")
    add("--num_train_epochs", type=COUNT, default=1, help="passes over the rows where --max_train_steps is not given")
    add("--learning_rate", type=POSITIVE, default=1e-4, help="learning rate after warm-up; Prodigy wants 1")
    add("--lr_scheduler", default="constant", help="learning-rate schedule",
        choices=["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"])
    add("--lr_warmup_steps", type=FROM_ZERO, default=0, help="optimizer steps of warm-up")
    add("--lr_num_cycles", type=COUNT, default=1, help="restarts of cosine_with_restarts")
    add("--lr_power", type=AMOUNT, default=1.0, help="power of the polynomial schedule")
    add("--optimizer", choices=["adamw", "muon", "prodigy"], type=str.lower, default="adamw",
        help="optimizer; Muon leaves all but the matrices of blocks to AdamW")
    add("--muon_ns_steps", type=number(int, 1, 99), default=5,
        help="Newton-Schulz steps of Muon; with 3 a small model takes less time")
    add("--use_8bit_adam", action=SWITCH, default=False, help="8-bit AdamW (bitsandbytes, CUDA)")
    add("--adam_beta1", type=BETA, default=0.9, help="beta1 of AdamW (Muon's is 0.95) and Prodigy")
    add("--adam_beta2", type=BETA, default=0.999, help="beta2 of AdamW and Prodigy")
    add("--adam_weight_decay", type=AMOUNT, default=1e-4, help="weight decay")
    add("--adam_epsilon", type=AMOUNT, default=1e-8, help="epsilon")
    add("--ema_decay", type=BETA, default=0.0,
        help="decay of a moving average of what is trained, at most; validation pictures and the result are of the "
        "average; 0: none")
    add("--max_grad_norm", type=AMOUNT, default=1.0, help="gradients are clipped to this norm; 0: not clipped")
    add("--no-gradient_checkpointing", dest="gradient_checkpointing", action="store_const", const=0, default=0,
        help="keep all activations")
    add("--gradient_checkpointing", nargs="?", const=1, default=0, type=recompute_stride, metavar="auto|none|N",
        help="activation checkpointing of every N-th block (no value: all): less memory, slower; auto: as few as fit "
        "(default: none)")
    add("--attention_backend", choices=list(BACKENDS), default="native",
        help="diffusers' name of an implementation of attention")
    add("--compile_blocks", action=SWITCH, default=False,
        help="compile blocks and the VAE's encoder: minutes once, then faster")
    add("--activation_memory_budget", type=SHARE, default=1.0,
        help="with --compile_blocks: share of what a block would keep for the backward pass that it may keep; below 1 "
        "the cheapest of it is computed again")
    add("--shard_base", action=SWITCH, default=False, help="split the frozen base over all processes (FSDP2)")
    add("--seed", type=SEED, default=42, help="seed of LoRA weights, row order, noise, timesteps and validation")
    add = parser.add_argument_group("loss").add_argument
    add("--prior_loss_weight", type=AMOUNT, default=0.0,
        help="weight of the squared distance to the base's own prediction, without any LoRA, on rows of "
        "--prior_cloth_types; 0: none")
    add("--prior_cloth_types", type=type_numbers, default="1", metavar="LIST",
        help="garment types that the base knows and is to keep: 1 upper, 2 lower, 3 full, comma-separated")
    add("--guidance_scale", type=AMOUNT, default=1.0, help="embedded guidance, in training and validation pictures")
    add("--weighting_scheme", default="none", choices=["sigma_sqrt", "logit_normal", "mode", "cosmap", "none"],
        help="how timesteps are drawn and weighted")
    add("--logit_mean", type=FINITE, default=0.0, help="mean of logit_normal")
    add("--logit_std", type=AMOUNT, default=1.0, help="standard deviation of logit_normal")
    add("--mode_scale", type=FINITE, default=1.29, help="scale of mode")
    add("--timestep_shift", type=timestep_shift, default="none", metavar="none|tokens|X",
        help="move drawn timesteps towards noise: as drawing does for the tokens of the pair, or sigma to "
        "X sigma / (1 + (X - 1) sigma)")
    add("--garment_loss_weight", type=AMOUNT, default=1.0, help="weight of the loss on the garment half")
    add("--mask_loss_weight", type=AMOUNT, default=1.0, help="weight of the loss on the masked area")
    add("--background_loss_weight", type=AMOUNT, default=1.0, help="weight of the loss on the rest of the person half")
    add = parser.add_argument_group("output").add_argument
    add("--output_dir", default="outputs/train", help="where LoRA, checkpoints, validation pictures and logs go")
    add("--overwrite_output_dir", action=SWITCH, default=False, help="delete an earlier run's files in --output_dir")
    add("--resume_from_checkpoint",
        help="checkpoint folder to continue from, or 'latest': the newest undamaged one")
    add("--allow_changed_arguments", action=SWITCH, default=False, help="continue although the result will differ")
    add("--checkpointing_steps", type=FROM_ZERO, default=500, help="optimizer steps between checkpoints; 0: none")
    add("--save_every_minutes", type=AMOUNT, default=0.0, help="minutes between checkpoints, beside steps; 0: none")
    add("--checkpoints_total_limit", type=COUNT, help="how many of the newest checkpoints are kept (default: all)")
    add("--validation_steps", type=FROM_ZERO, default=500, help="steps between validation pictures; 0: none at all")
    add("--num_validation_images", type=COUNT, default=6, help="rows in the validation picture")
    add("--num_inference_steps", type=STEPS, default=28,
        help="denoising steps of validation pictures")
    add("--report_to", default="tensorboard", choices=["tensorboard", "wandb", "none"], help="where curves are logged")
    add("--logging_steps", type=COUNT, default=1, help="optimizer steps between two points of the curves")
    add("--max_skipped_steps", type=FROM_ZERO, default=10, help="steps that may be left out for not being finite")
# fmt: on


def refuse_other_trainers(environment: Mapping[str, str] = os.environ) -> None:
    """Raise ``ValueError`` where `accelerate launch` asks for a way to train that this trainer has not.

    It takes that from a saved `accelerate config` and hands it on in the ``environment``; ``Accelerator`` would follow.
    """
    asked = [name for name in _OTHER_TRAINERS if environment.get(name, "false").lower() in ("true", "1", "yes")]
    if environment.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        asked.append("ACCELERATE_DYNAMO_BACKEND")
    if "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" in environment:  # it would win over --gradient_accumulation_steps
        asked.append("ACCELERATE_GRADIENT_ACCUMULATION_STEPS")
    if asked:
        own = "--compile_blocks compiles, --shard_base splits the base, --gradient_accumulation_steps accumulates"
        raise ValueError(
            f"`accelerate launch` has set {asked[0]}={environment[asked[0]]}, by its flags or a saved `accelerate "
            f"config`, and this trainer does without ({own}): give it --config_file "
            "deepfashion_training/accelerate.yaml, or unset the variable"
        )


def refuse_contradictions(parser: argparse.ArgumentParser, args: argparse.Namespace, typed: Collection[str]) -> None:
    """End with exit code 2 for arguments that cannot stand together, and for flags that do nothing beside the others.

    Of the latter only those that were ``typed`` count: a preset's values must not make another flag impossible.
    """
    if args.dataroot is None:
        parser.error("--dataroot is needed: the folder to train on")
    if args.train_base_model and args.quantize_base:
        parser.error("--train_base_model cannot train a base that --quantize_base has quantized")
    if args.train_base_model and args.prior_loss_weight:
        parser.error("--train_base_model leaves no base whose predictions --prior_loss_weight could keep")
    if args.train_base_model and args.lora:
        parser.error("--train_base_model trains no LoRA that --lora could start: leave one of the two out")
    if args.compile_blocks and args.quantize_base in NOT_COMPILED:
        parser.error(
            f"--quantize_base {args.quantize_base}: add --no-compile_blocks (PyTorch cannot compile training in 8 bits)"
        )
    if args.use_8bit_adam and args.optimizer != "adamw":
        parser.error(f"--use_8bit_adam goes with --optimizer adamw: add --no-use_8bit_adam for {args.optimizer}")
    if args.shard_base:
        whole = [flag for flag in ("train_base_model", "quantize_base", "compile_blocks") if getattr(args, flag)]
        if whole:
            parser.error(f"--shard_base splits a frozen base as it is loaded: it does not go with --{whole[0]}")
        if args.gradient_checkpointing == "auto":
            parser.error("--shard_base: give --gradient_checkpointing a number (ranks that measure apart would wait)")
    if not (args.garment_loss_weight or args.mask_loss_weight or args.background_loss_weight):
        parser.error(
            "--garment_loss_weight, --mask_loss_weight and --background_loss_weight are all 0: nothing is learned"
        )
    lora = not args.train_base_model
    for flags, needed, there in (
        ("caption_dropout", "without --use_captions", args.use_captions),
        ("lr_warmup_steps", "with --lr_scheduler constant: use constant_with_warmup", args.lr_scheduler != "constant"),
        ("lr_num_cycles", "without --lr_scheduler cosine_with_restarts", args.lr_scheduler == "cosine_with_restarts"),
        ("lr_power", "without --lr_scheduler polynomial", args.lr_scheduler == "polynomial"),
        ("logit_mean logit_std", "without --weighting_scheme logit_normal", args.weighting_scheme == "logit_normal"),
        ("prior_cloth_types", "without --prior_loss_weight", args.prior_loss_weight),
        ("mode_scale", "without --weighting_scheme mode", args.weighting_scheme == "mode"),
        ("muon_ns_steps", "without --optimizer muon", args.optimizer == "muon"),
        ("num_train_epochs", "beside --max_train_steps", args.max_train_steps is None),
        ("activation_memory_budget", "without --compile_blocks", args.compile_blocks),
        ("latents_dir", "without --cache_latents", args.cache_latents),
        ("dataloader_prefetch_factor", "with --dataloader_num_workers 0", args.dataloader_num_workers),
        ("num_validation_images", "with --validation_steps 0", args.validation_steps),
        ("lora_rank lora_alpha lora_target_modules lora_dropout use_dora use_rslora", "with --train_base_model", lora),
    ):
        for flag in flags.split():
            if flag in typed and getattr(args, flag) and not there:
                parser.error(f"--{flag} does nothing {needed}")
