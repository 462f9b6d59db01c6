"""Stand-in for the CatVTON-Flux training script that users have: its seams and its quirks, in our own words.

Tests drive it as a script that nobody here may change. What looks like a mistake is one that the users' script has: a
global ``args`` that only ``__main__`` sets, packages imported for nothing, a flag without which it cannot train.
"""

import math
import shutil
from pathlib import Path

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


def show_tensor(tensor, path):
    transforms.ToPILImage()(tensor / 2 + 0.5).save(path)


def load_text_encoders(class_one, class_two):
    where = {"revision": args.revision, "variant": args.variant}
    one = class_one.from_pretrained(args.pretrained_model_name_or_path, subfolder="text_encoder", **where)
    two = class_two.from_pretrained(args.pretrained_model_name_or_path, subfolder="text_encoder_2", **where)
    return one, two


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


def log_validation(pipeline, args, accelerator, dataloader, tag, epoch):
    pipeline = pipeline.to(accelerator.device)
    seeded = torch.Generator(accelerator.device).manual_seed(args.seed) if args.seed else None
    shown = []
    for batch in dataloader:
        images = pipeline(
            prompt=[PROMPT] * len(batch["image"]),
            height=args.height,
            width=2 * args.width,
            image=batch["image"],
            mask_image=batch["inpaint_mask"],
            num_inference_steps=28,
            generator=seeded,
            guidance_scale=30,
        ).images
        shown += zip(batch["cloth_pure"], images, strict=True)
    for tracker in accelerator.trackers:
        if tracker.name == "wandb":
            tracker.log({tag: [wandb.Image(picture) for row in shown for picture in row], "epoch": epoch})


def register_hooks(accelerator):
    def save_hook(models, weights, output_dir):
        for model in models if accelerator.is_main_process else ():
            if isinstance(model, DeepSpeedEngine):
                model = model.module
            if not isinstance(accelerator.unwrap_model(model), FluxTransformer2DModel):
                raise ValueError(f"unexpected model to save: {type(model)}")
            accelerator.unwrap_model(model).save_pretrained(Path(output_dir) / "transformer")
            if weights:
                weights.pop()

    def load_hook(models, input_dir):
        while models:
            model = models.pop()
            load_model = FluxTransformer2DModel.from_pretrained(input_dir, subfolder="transformer")
            model.register_to_config(**load_model.config)
            model.load_state_dict(load_model.state_dict())

    accelerator.register_save_state_pre_hook(save_hook)
    accelerator.register_load_state_pre_hook(load_hook)


def find_checkpoints(output_dir):
    found = [path.name for path in Path(output_dir).iterdir() if path.name.startswith("checkpoint")]
    return sorted(found, key=lambda name: int(name.split("-")[1]))


def save_checkpoint(accelerator, args, global_step):
    if args.checkpoints_total_limit is not None:
        names = find_checkpoints(args.output_dir)
        for name in names[: max(0, len(names) - args.checkpoints_total_limit + 1)]:
            shutil.rmtree(Path(args.output_dir) / name)
    accelerator.save_state(str(Path(args.output_dir) / f"checkpoint-{global_step}"))


def main(args):
    if args.report_to == "wandb" and args.hub_token is not None:
        raise ValueError("--report_to wandb and --hub_token together would publish the token")
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=args.report_to,
        project_config=ProjectConfiguration(
            project_dir=args.output_dir, logging_dir=str(Path(args.output_dir) / args.logging_dir)
        ),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if args.seed is not None:
        set_seed(args.seed)
    if accelerator.is_main_process:
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)

    base = args.pretrained_model_name_or_path
    where = {"revision": args.revision, "variant": args.variant}
    tokenizer_one = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer", revision=args.revision)
    tokenizer_two = T5Tokenizer.from_pretrained(base, subfolder="tokenizer_2", revision=args.revision)
    text_encoder_one, text_encoder_two = load_text_encoders(CLIPTextModel, T5EncoderModel)
    noise_scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(base, subfolder="scheduler")
    vae = AutoencoderKL.from_pretrained(base, subfolder="vae", **where)
    transformer = FluxTransformer2DModel.from_pretrained(args.pretrained_inpaint_model_name_or_path, **where)
    for model in (transformer, vae, text_encoder_one, text_encoder_two):
        model.requires_grad_(False)
    if args.train_base_model:
        for name, param in transformer.named_parameters():
            if name.startswith(TRAINED_BLOCKS) and "attn" in name:
                param.requires_grad = True
                print(f"Enabling gradients for: {name}")
    print(f"Trainable parameters: {sum(p.numel() for p in transformer.parameters() if p.requires_grad)}")

    weight_dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision, torch.float32)
    for model in (vae, transformer, text_encoder_one, text_encoder_two):
        model.to(accelerator.device, dtype=weight_dtype)
    if args.gradient_checkpointing:
        transformer.enable_gradient_checkpointing()
    register_hooks(accelerator)
    if args.allow_tf32 and torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True

    if args.scale_lr:
        args.learning_rate *= args.gradient_accumulation_steps * args.train_batch_size * accelerator.num_processes
    if args.train_base_model:
        params_to_optimize = [{"params": transformer.parameters(), "lr": args.learning_rate}]
    optimizer_class = torch.optim.AdamW
    if args.optimizer.lower() != "adamw":
        logger.warning(f"--optimizer {args.optimizer} is not known: AdamW is used")
    if args.use_8bit_adam:
        import bitsandbytes

        optimizer_class = bitsandbytes.optim.AdamW8bit
    optimizer = optimizer_class(
        params_to_optimize,
        betas=(args.adam_beta1, args.adam_beta2),
        weight_decay=args.adam_weight_decay,
        eps=args.adam_epsilon,
    )

    loaders = []
    for phase, data_list in (
        ("train", args.train_data_list),
        ("train", args.train_verification_list),
        ("test", args.validation_data_list),
    ):
        dataset = VitonHDTestDataset(
            dataroot_path=args.dataroot,
            phase=phase,
            order="paired",
            size=(args.height, args.width),
            data_list=data_list,
        )
        loaders.append(torch.utils.data.DataLoader(dataset, shuffle=False, batch_size=args.train_batch_size))
    train_dataloader, verification_dataloader, validation_dataloader = loaders

    if args.max_train_steps is None:
        per_epoch = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)
        args.max_train_steps = args.num_train_epochs * per_epoch
    lr_scheduler = get_scheduler(
        args.lr_scheduler,
        optimizer=optimizer,
        num_warmup_steps=args.lr_warmup_steps * accelerator.num_processes,
        num_training_steps=args.max_train_steps * accelerator.num_processes,
        num_cycles=args.lr_num_cycles,
        power=args.lr_power,
    )
    transformer, optimizer, train_dataloader, lr_scheduler = accelerator.prepare(
        transformer, optimizer, train_dataloader, lr_scheduler
    )
    per_epoch = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)
    args.num_train_epochs = math.ceil(args.max_train_steps / per_epoch)
    if accelerator.is_main_process:
        accelerator.init_trackers(
            "flux-fill-tryon", config=vars(args), init_kwargs={"wandb": {"settings": wandb.Settings(code_dir=".")}}
        )

    global_step = first_epoch = 0
    if args.resume_from_checkpoint:
        name = Path(args.resume_from_checkpoint).name
        if name == "latest":
            name = next(reversed(find_checkpoints(args.output_dir)), None)
        if name is None:
            print(f"No checkpoint in {args.output_dir}: starting anew")
        else:
            accelerator.load_state(str(Path(args.output_dir) / name))
            global_step = int(name.split("-")[1])
            first_epoch = global_step // per_epoch

    vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)
    image_processor = VaeImageProcessor(vae_scale_factor=2 * vae_scale_factor)
    mask_processor = VaeImageProcessor(
        vae_scale_factor=2 * vae_scale_factor, do_normalize=False, do_binarize=True, do_convert_grayscale=True
    )
    text_encoders, tokenizers = [text_encoder_one, text_encoder_two], [tokenizer_one, tokenizer_two]
    progress = tqdm(initial=global_step, total=args.max_train_steps, disable=not accelerator.is_local_main_process)
    for epoch in range(first_epoch, args.num_train_epochs):
        transformer.train()
        for batch in train_dataloader:
            with accelerator.accumulate([transformer]):
                pixel_values = batch["image"].to(dtype=vae.dtype)
                control_image = batch["im_mask"].to(dtype=vae.dtype)
                control_mask = batch["inpaint_mask"].to(dtype=vae.dtype)
                count = len(pixel_values)
                embeds, pooled, text_ids = encode_prompt(
                    text_encoders, tokenizers, [PROMPT] * count, args.max_sequence_length
                )
                cond, height, width = prepare_fill_with_mask(
                    image_processor=image_processor,
                    mask_processor=mask_processor,
                    vae=vae,
                    vae_scale_factor=vae_scale_factor,
                    image=control_image,
                    mask=control_mask,
                    width=args.width * 2,
                    height=args.height,
                    batch_size=count,
                    num_images_per_prompt=1,
                    device=accelerator.device,
                    dtype=weight_dtype,
                )
                if args.dropout_prob > 0:
                    kept = torch.rand(count, 1, 1, device=cond.device) >= args.dropout_prob
                    cond = cond * kept.to(cond.dtype)
                latents = encode_images_to_latents(vae, pixel_values, weight_dtype, args.height, args.width * 2)
                img_ids = prepare_latents(vae_scale_factor, count, height, width, weight_dtype, accelerator.device)

                noise = torch.randn_like(latents)
                density = compute_density_for_timestep_sampling(
                    args.weighting_scheme, count, args.logit_mean, args.logit_std, args.mode_scale
                )
                chosen = (density * noise_scheduler.config.num_train_timesteps).long()
                timesteps = noise_scheduler.timesteps[chosen].to(accelerator.device)
                sigmas = noise_scheduler.sigmas[chosen].to(latents).view(-1, 1, 1, 1)
                noisy = (1 - sigmas) * latents + sigmas * noise
                packed = FluxFillPipeline._pack_latents(noisy, *noisy.shape)
                pred = transformer(
                    hidden_states=torch.cat([packed, cond], dim=-1),
                    timestep=(timesteps / 1000).to(weight_dtype),
                    guidance=torch.full((count,), args.guidance_scale, device=accelerator.device, dtype=weight_dtype),
                    pooled_projections=pooled,
                    encoder_hidden_states=embeds,
                    txt_ids=text_ids,
                    img_ids=img_ids,
                    return_dict=False,
                )[0]
                pred = FluxFillPipeline._unpack_latents(
                    pred, height=height, width=width, vae_scale_factor=vae_scale_factor
                )
                weights = compute_loss_weighting_for_sd3(args.weighting_scheme, sigmas)
                loss = (weights.float() * (pred.float() - (noise - latents).float()) ** 2).mean()
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(transformer.parameters(), args.max_grad_norm)
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()

            if accelerator.sync_gradients:
                progress.update(1)
                global_step += 1
                if accelerator.is_main_process and global_step % args.checkpointing_steps == 0:
                    save_checkpoint(accelerator, args, global_step)
            logs = {"loss": loss.detach().item(), "lr": lr_scheduler.get_last_lr()[0]}
            progress.set_postfix(**logs)
            accelerator.log(logs, step=global_step)

            validates = accelerator.sync_gradients and global_step % args.validation_steps == 1
            if validates and accelerator.is_main_process:
                pipeline = FluxFillPipeline.from_pretrained(
                    base,
                    transformer=accelerator.unwrap_model(transformer),
                    torch_dtype=weight_dtype,
                    vae=vae,
                    tokenizer=tokenizer_one,
                    tokenizer_2=tokenizer_two,
                    text_encoder=text_encoder_one,
                    text_encoder_2=text_encoder_two,
                )
                for tag, loader in (("verification", verification_dataloader), ("validation", validation_dataloader)):
                    log_validation(
                        pipeline=pipeline, args=args, accelerator=accelerator, dataloader=loader, tag=tag, epoch=epoch
                    )
                del pipeline
            if global_step >= args.max_train_steps:
                break

    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        pipeline = FluxFillPipeline.from_pretrained(base, transformer=accelerator.unwrap_model(transformer))
        pipeline.save_pretrained(args.output_dir)
        FluxFillPipeline.from_pretrained(args.output_dir, torch_dtype=weight_dtype, **where)
    accelerator.end_training()


if __name__ == "__main__":
    args = parse_args()
    main(args)
