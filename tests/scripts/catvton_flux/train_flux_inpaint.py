"""Re-creation of the CatVTON-Flux training script that users have: its names and its known issues, in our own words.

Tests drive it as a script that nobody here may change. What looks like a mistake is one that the users' script has: a
global ``args`` that only ``__main__`` sets, packages imported for nothing, a flag without which it cannot train.
"""

import functools
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration, set_seed
from deepspeed.runtime.engine import DeepSpeedEngine
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxFillPipeline, FluxTransformer2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.optimization import get_scheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from diffusers.utils import is_wandb_available
from image_datasets.cp_dataset import VitonHDTestDataset
from paser_helper import parse_args
from src.flux.train_utils import encode_images_to_latents, prepare_fill_with_mask, prepare_latents
from torchvision import transforms
from tqdm.auto import tqdm
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

if is_wandb_available():
    import wandb

logger = get_logger(__name__)

PROMPT = (
    "The pair of images highlights a clothing and its styling on a model, high resolution, 4K, 8K; "
    "[IMAGE1] Detailed product shot of a clothing"
    "[IMAGE2] The same cloth is worn by a model in a lifestyle setting."
)
#: Single blocks 11 and 12 are forgotten by the users' script; block 1 stands for them in a model of two blocks.
TRAINED_BLOCKS = (
    *(f"transformer_blocks.{i}." for i in range(19)),
    *(f"single_transformer_blocks.{i}." for i in range(38) if i not in (1, 11, 12)),
)
HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def show_tensor(tensor, path):
    transforms.ToPILImage()(tensor / 2 + 0.5).save(path)


# ---- models


def load_text_encoders(clip, t5):
    base, files = args.pretrained_model_name_or_path, {"variant": args.variant, "revision": args.revision}
    kinds = {"text_encoder": clip, "text_encoder_2": t5}
    return [kind.from_pretrained(base, subfolder=folder, **files) for folder, kind in kinds.items()]


def load_parts(args):
    """Models and tokenizers, none of them trainable yet."""
    base, revision = args.pretrained_model_name_or_path, args.revision
    files = {"variant": args.variant, "revision": revision}
    readers = {"tokenizer": CLIPTokenizer, "tokenizer_2": T5Tokenizer}
    parts = SimpleNamespace(
        tokenizers=[kind.from_pretrained(base, revision=revision, subfolder=at) for at, kind in readers.items()],
        encoders=load_text_encoders(CLIPTextModel, T5EncoderModel),
        times=FlowMatchEulerDiscreteScheduler.from_pretrained(base, subfolder="scheduler"),
        vae=AutoencoderKL.from_pretrained(base, subfolder="vae", **files),
        transformer=FluxTransformer2DModel.from_pretrained(args.pretrained_inpaint_model_name_or_path, **files),
    )
    for model in (parts.transformer, parts.vae, *parts.encoders):
        model.requires_grad_(False)
    parts.factor = 2 ** (len(parts.vae.config.block_out_channels) - 1)
    of_pictures, of_masks = {}, dict.fromkeys(("do_binarize", "do_convert_grayscale"), True) | {"do_normalize": False}
    parts.processors = {
        f"{kind}_processor": VaeImageProcessor(vae_scale_factor=2 * parts.factor, **how)
        for kind, how in (("image", of_pictures), ("mask", of_masks))
    }
    return parts


def choose_trained(args, model):
    """Make the listed blocks' attention trainable."""
    if args.train_base_model:
        for name, weight in model.named_parameters():
            if "attn" in name and name.startswith(TRAINED_BLOCKS):
                weight.requires_grad_(True)
                print("to be trained:", name)
    print(sum(weight.numel() for weight in model.parameters() if weight.requires_grad), "numbers are trained")


def place(args, parts, accelerator):
    """Bring every model to the device, in half precision where that is wanted."""
    parts.dtype = HALVES.get(accelerator.mixed_precision, torch.float32)
    parts.transformer.to(accelerator.device, dtype=parts.dtype)
    for frozen in (parts.vae, *parts.encoders):
        frozen.to(accelerator.device, dtype=parts.dtype)
    spares_memory, may_round = args.gradient_checkpointing, args.allow_tf32
    if spares_memory:
        parts.transformer.enable_gradient_checkpointing()
    if may_round and torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")


def encode_prompt(text_encoders, tokenizers, prompt, max_sequence_length, device=None):
    lengths = (tokenizers[0].model_max_length, max_sequence_length)
    clip_ids, t5_ids = (
        tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        for tokenizer, length in zip(tokenizers, lengths, strict=True)
    )
    clip, t5 = text_encoders
    pooled = clip(clip_ids.to(device or clip.device)).pooler_output.to(clip.dtype)
    embeds = t5(t5_ids.to(device or t5.device))[0].to(t5.dtype)
    return embeds, pooled, torch.zeros(embeds.shape[1], 3, device=embeds.device, dtype=embeds.dtype)


# ---- checkpoints


def write_models(accelerator, models, weights, folder):
    if not accelerator.is_main_process:
        return
    for wrapped in models:
        inner = accelerator.unwrap_model(wrapped.module if isinstance(wrapped, DeepSpeedEngine) else wrapped)
        if not isinstance(inner, FluxTransformer2DModel):
            raise ValueError(f"a checkpoint has no place for a {type(inner).__name__}")
        inner.save_pretrained(Path(folder) / "transformer")
        if weights:
            weights.pop()


def read_models(models, folder):
    while models:
        trained, saved = models.pop(), FluxTransformer2DModel.from_pretrained(folder, subfolder="transformer")
        trained.register_to_config(**saved.config)
        trained.load_state_dict(saved.state_dict())


def step_of(checkpoint):
    return int(checkpoint.name.split("-")[1])


def checkpoints_in(folder):
    return sorted(Path(folder).glob("checkpoint*"), key=step_of)


def save_checkpoint(args, accelerator, step):
    folder, limit = Path(args.output_dir), args.checkpoints_total_limit
    earlier = [] if limit is None else checkpoints_in(folder)
    for surplus in earlier[: max(0, len(earlier) + 1 - (limit or 0))]:
        shutil.rmtree(surplus)
    accelerator.save_state(str(folder / f"checkpoint-{step}"))


def continued_step(args, accelerator):
    """Load the checkpoint that is asked for; its step, or 0 without one."""
    folder, asked = Path(args.output_dir), args.resume_from_checkpoint
    if not asked:
        return 0
    checkpoint = folder / Path(asked).name
    if checkpoint.name == "latest":
        checkpoint = max(checkpoints_in(folder), key=step_of, default=None)
    if checkpoint is None:
        print(f"nothing to continue in {folder}: this is step 0")
        return 0
    accelerator.load_state(str(checkpoint))
    return step_of(checkpoint)


# ---- what training needs besides models


def start(args):
    """An accelerator, with seed and folder."""
    if args.hub_token is not None and args.report_to == "wandb":
        raise ValueError("wandb would show the token: leave --hub_token or --report_to wandb out")
    folder, passes, precision = Path(args.output_dir), args.gradient_accumulation_steps, args.mixed_precision
    accelerator = Accelerator(
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        project_config=ProjectConfiguration(logging_dir=str(folder / args.logging_dir), project_dir=str(folder)),
        log_with=args.report_to,
        mixed_precision=precision,
        gradient_accumulation_steps=passes,
    )
    if args.seed is not None:
        set_seed(args.seed)
    folder.mkdir(parents=True, exist_ok=True)
    accelerator.register_save_state_pre_hook(functools.partial(write_models, accelerator))
    accelerator.register_load_state_pre_hook(read_models)
    return accelerator


def make_loader(args, phase, data_list):
    pairs = {"dataroot_path": args.dataroot, "phase": phase, "order": "paired", "data_list": data_list}
    pictures = VitonHDTestDataset(size=(args.height, args.width), **pairs)
    return torch.utils.data.DataLoader(pictures, batch_size=args.train_batch_size, shuffle=False)


def make_optimizer(args, weights, ranks):
    if args.scale_lr:
        args.learning_rate *= args.gradient_accumulation_steps * args.train_batch_size * ranks
    if args.train_base_model:
        groups = [{"lr": args.learning_rate, "params": weights}]
    if args.optimizer.lower() != "adamw":
        logger.warning(f"--optimizer {args.optimizer} is not known: AdamW is used")
    kind, decay = torch.optim.AdamW, args.adam_weight_decay
    if args.use_8bit_adam:
        import bitsandbytes

        kind = bitsandbytes.optim.AdamW8bit
    memory = (args.adam_beta1, args.adam_beta2)
    return kind(groups, eps=args.adam_epsilon, weight_decay=decay, betas=memory)


def make_schedule(args, optimizer, ranks):
    spans = {"num_training_steps": args.max_train_steps, "num_warmup_steps": args.lr_warmup_steps}
    spans = {name: steps * ranks for name, steps in spans.items()}
    return get_scheduler(args.lr_scheduler, optimizer, power=args.lr_power, num_cycles=args.lr_num_cycles, **spans)


def steps_per_epoch(args, loader):
    return math.ceil(len(loader) / args.gradient_accumulation_steps)


def prepare(args, parts, accelerator):
    """Add loaders, optimizer and schedule to the parts; the steps of an epoch."""
    ranks, parts.accelerator = accelerator.num_processes, accelerator
    optimizer = make_optimizer(args, parts.transformer.parameters(), ranks)
    rows = make_loader(args, "train", args.train_data_list)
    shown = {"verification": ("train", args.train_verification_list), "validation": ("test", args.validation_data_list)}
    parts.shown = {tag: make_loader(args, *which) for tag, which in shown.items()}
    wanted = args.max_train_steps
    if wanted is None:
        args.max_train_steps = steps_per_epoch(args, rows) * args.num_train_epochs
    made = {"transformer": parts.transformer, "optimizer": optimizer, "rows": rows}
    made["rate"] = make_schedule(args, optimizer, ranks)
    vars(parts).update(zip(made, accelerator.prepare(*made.values()), strict=True))
    of_epoch = steps_per_epoch(args, parts.rows)
    args.num_train_epochs = math.ceil(args.max_train_steps / of_epoch)
    return of_epoch


def begin_tracking(args, accelerator):
    """Every argument goes to the tracker."""
    if not accelerator.is_main_process:
        return
    of_wandb = {"settings": wandb.Settings(code_dir=".")}
    accelerator.init_trackers("flux-fill-tryon", init_kwargs={"wandb": of_wandb}, config=vars(args))


# ---- training


def noised(args, times, clean):
    """Noise, its share in the mixture, and when that is."""
    noise = torch.randn_like(clean)
    form = (args.logit_mean, args.logit_std, args.mode_scale)
    drawn = compute_density_for_timestep_sampling(args.weighting_scheme, len(clean), *form)
    index = (drawn * times.config.num_train_timesteps).long()
    return noise, times.sigmas[index].to(clean).view(-1, 1, 1, 1), times.timesteps[index]


def loss_of(args, parts, batch):
    """Weighted square of what the predicted velocity is off by."""
    vae, dtype, factor, device = parts.vae, parts.dtype, parts.factor, parts.accelerator.device
    truth, known, hole = (batch[key].to(dtype=vae.dtype) for key in ("image", "im_mask", "inpaint_mask"))
    count, size = len(truth), {"height": args.height, "width": 2 * args.width}
    words = encode_prompt(parts.encoders, parts.tokenizers, [PROMPT] * count, args.max_sequence_length)
    place = {"device": device, "dtype": dtype, "vae": vae, "vae_scale_factor": factor}
    shape = {"batch_size": count, "num_images_per_prompt": 1, **size}
    known, height, width = prepare_fill_with_mask(image=known, mask=hole, **parts.processors, **place, **shape)
    if args.dropout_prob > 0:
        kept = torch.rand(count, 1, 1, device=known.device) >= args.dropout_prob
        known = known * kept.to(known.dtype)
    clean = encode_images_to_latents(vae, truth, dtype, *size.values())
    grid = prepare_latents(factor, count, height, width, dtype, device)
    noise, share, when = noised(args, parts.times, clean)
    mixed = (1 - share) * clean + share * noise
    tokens = FluxFillPipeline._pack_latents(mixed, *mixed.shape)
    (found,) = parts.transformer(
        torch.cat([tokens, known], dim=-1),
        **dict(zip(("encoder_hidden_states", "pooled_projections", "txt_ids"), words, strict=True)),
        img_ids=grid,
        timestep=(when.to(device) / 1000).to(dtype),
        guidance=torch.full((count,), args.guidance_scale, device=device, dtype=dtype),
        return_dict=False,
    )
    found = FluxFillPipeline._unpack_latents(found, height, width, factor)
    off = (found.float() - (noise - clean).float()) ** 2
    return (compute_loss_weighting_for_sd3(args.weighting_scheme, share).float() * off).mean()


def learn(args, parts, batch):
    """One forward and backward pass; its loss."""
    with parts.accelerator.accumulate([parts.transformer]):
        loss = loss_of(args, parts, batch)
        parts.accelerator.backward(loss)
        if parts.accelerator.sync_gradients:
            parts.accelerator.clip_grad_norm_(parts.transformer.parameters(), args.max_grad_norm)
        for move in (parts.optimizer.step, parts.rate.step, parts.optimizer.zero_grad):
            move()
    return float(loss.detach())


def train_epoch(args, parts, epoch, step, bar):
    """Train until the rows or the steps are used up; the step that is reached."""
    accelerator = parts.accelerator
    parts.transformer.train()
    for batch in parts.rows:
        facts = {"loss": learn(args, parts, batch)}
        stepped, leads = accelerator.sync_gradients, accelerator.is_main_process
        if stepped:
            step += 1
            bar.update()
            if leads and step % args.checkpointing_steps == 0:
                save_checkpoint(args, accelerator, step)
        facts["lr"] = parts.rate.get_last_lr()[0]
        bar.set_postfix(facts)
        accelerator.log(facts, step)
        if leads and stepped and step % args.validation_steps == 1:
            validate(args, parts, epoch)
        if args.max_train_steps <= step:
            break
    return step


# ---- pictures


def log_validation(args, accelerator, pipeline, loader, tag, epoch):
    seeded = torch.Generator(accelerator.device).manual_seed(args.seed) if args.seed else None
    size = {"width": 2 * args.width, "height": args.height}
    draw = functools.partial(pipeline.to(accelerator.device), guidance_scale=30, num_inference_steps=28, **size)
    row = []
    for batch in loader:
        pairs, holes = batch["image"], batch["inpaint_mask"]
        drawn = draw(image=pairs, mask_image=holes, prompt=[PROMPT] * len(pairs), generator=seeded).images
        row += [picture for pair in zip(batch["cloth_pure"], drawn, strict=True) for picture in pair]
    for board in (each for each in accelerator.trackers if each.name == "wandb"):
        board.log({"epoch": epoch, tag: list(map(wandb.Image, row))})


def validate(args, parts, epoch):
    """Draw the rows of verification and validation with the transformer as it is."""
    numbered = {"tokenizer": parts.tokenizers, "text_encoder": parts.encoders}
    own = {f"{kind}{end}": part for kind, pair in numbered.items() for end, part in zip(("", "_2"), pair, strict=True)}
    own |= {"transformer": parts.accelerator.unwrap_model(parts.transformer), "torch_dtype": parts.dtype}
    pipeline = FluxFillPipeline.from_pretrained(args.pretrained_model_name_or_path, vae=parts.vae, **own)
    for tag, loader in parts.shown.items():
        log_validation(args, parts.accelerator, pipeline, loader, tag, epoch)


def finish(args, parts):
    """Save everything, and see whether it can be loaded."""
    ranks, base = parts.accelerator, args.pretrained_model_name_or_path
    ranks.wait_for_everyone()
    if ranks.is_main_process:
        pipe = FluxFillPipeline.from_pretrained(base, transformer=ranks.unwrap_model(parts.transformer))
        pipe.save_pretrained(args.output_dir)
        files = {"variant": args.variant, "revision": args.revision}
        FluxFillPipeline.from_pretrained(args.output_dir, torch_dtype=parts.dtype, **files)
    ranks.end_training()


def main(args):
    accelerator = start(args)
    parts = load_parts(args)
    choose_trained(args, parts.transformer)
    place(args, parts, accelerator)
    of_epoch = prepare(args, parts, accelerator)
    begin_tracking(args, accelerator)
    step = continued_step(args, accelerator)
    bar = tqdm(total=args.max_train_steps, initial=step, disable=not accelerator.is_local_main_process)
    for epoch in range(step // of_epoch, args.num_train_epochs):
        step = train_epoch(args, parts, epoch, step, bar)
    finish(args, parts)


if __name__ == "__main__":
    args = parse_args()
    main(args)
