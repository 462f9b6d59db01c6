"""What the model sees and what it has to predict: Fill conditioning, timesteps, flow-matching loss, its regions."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from conftest import HEIGHT, WIDTH, forget_accelerator
from diffusers import FlowMatchEulerDiscreteScheduler as FlowScheduler
from diffusers import FluxFillPipeline, FluxTransformer2DModel

import train_flux_inpaint as tfi

DATA = ["--dataroot", "data"]


def pack(latents: torch.Tensor) -> torch.Tensor:
    """[B,C,h,w] to tokens, one loop per axis: channel c of the pixel (dy, dx) of a 2x2 patch goes to 4c + 2dy + dx."""
    size, channels, h, w = latents.shape
    tokens = latents.new_zeros(size, h // 2 * (w // 2), 4 * channels)
    for y in range(h):
        for x in range(w):
            token, place = y // 2 * (w // 2) + x // 2, 2 * (y % 2) + x % 2
            tokens[:, token, place::4] = latents[:, :, y, x]
    return tokens


def random_batch(size: int = 2, h: int = 4, w: int = 8, seed: int = 0) -> tfi.FillBatch:
    """A batch of random numbers; the mask is a box of the person half."""
    draw = torch.Generator().manual_seed(seed)
    mask = torch.zeros(size, 1, 8 * h, 8 * w)
    mask[..., 8:20, 4 * w + 9 : 4 * w + 30] = 1
    timesteps = torch.tensor([250.0, 900.0, 500.0, 40.0])[:size]
    return tfi.FillBatch(
        latents=torch.randn(size, 16, h, w, generator=draw),
        conditioning=torch.randn(size, h * w // 4, 320, generator=draw),
        regions=tfi.region_maps(mask, h, w),
        prompt_embeds=torch.randn(size, 5, 32, generator=draw),
        pooled_embeds=torch.randn(size, 32, generator=draw),
        noise=torch.randn(size, 16, h, w, generator=draw),
        timesteps=timesteps,
        sigmas=timesteps / 1000,
    )


# --------------------------------------------------------------------------------------------------- conditioning


def test_fill_conditioning_is_the_one_that_diffusers_builds(viton_root, tiny_flux_fill):
    no_text = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    pipeline = FluxFillPipeline.from_pretrained(tiny_flux_fill, **no_text, torch_dtype=torch.float32)
    data = tfi.VitonHDTestDataset(str(viton_root), "train", size=(HEIGHT, WIDTH))
    samples = torch.utils.data.default_collate([data[1], data[4]])
    posterior, draw = tfi.encode_posterior(pipeline.vae, samples["im_mask"]), torch.Generator().manual_seed(3)
    masked = tfi.draw_latents(posterior, pipeline.vae.config, torch.float32, draw)
    ours = tfi.fill_conditioning(masked, samples["inpaint_mask"], torch.float32)

    # FluxFillPipeline.__call__, steps 3 and 6: it gets pictures in [0,1] and masks the person itself.
    size = {"height": HEIGHT, "width": 2 * WIDTH}
    with torch.no_grad():
        image = pipeline.image_processor.preprocess((samples["image"] + 1) / 2, **size)
        mask = pipeline.mask_processor.preprocess(samples["inpaint_mask"], **size)
        mask_tokens, latents = pipeline.prepare_mask_latents(
            mask, image * (1 - mask), 2, 16, 1, *size.values(), torch.float32, "cpu", torch.Generator().manual_seed(3)
        )
    theirs = torch.cat([latents, mask_tokens], dim=-1)
    assert ours.shape == (2, HEIGHT // 16 * (2 * WIDTH // 16), 64 + 256)
    assert theirs[..., 64:].sum() == samples["inpaint_mask"].sum() > 0
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_each_pixel_of_the_mask_has_one_place():
    for y, x in ((0, 0), (13, 6), (31, 63), (20, 41)):
        mask = torch.zeros(1, 1, 32, 64)
        mask[..., y, x] = 1
        tokens = tfi.fill_conditioning(torch.zeros(1, 16, 4, 8), mask, torch.float32)[0, :, 64:]
        channel = 4 * (8 * (y % 8) + x % 8) + 2 * (y // 8 % 2) + x // 8 % 2
        assert tokens.nonzero().tolist() == [[y // 16 * 4 + x // 16, channel]]


def test_packing_puts_each_2x2_patch_into_one_token():
    latents = torch.randn(2, 16, 4, 6)
    assert torch.equal(tfi.pack_latents(latents), pack(latents))


# ------------------------------------------------------------------------------------------------------- regions


def test_regions_are_a_partition_and_one_pixel_masks_a_cell():
    mask = torch.zeros(2, 1, 32, 64)
    mask[0, 0, 8, 47] = 1  # the first pixel of cell row 1, the last of cell column 5
    mask[1, 0, :, 56:] = 1
    regions = tfi.region_maps(mask, 4, 8)
    garment, masked, background = regions.unbind(dim=1)
    assert torch.equal(regions.sum(dim=1), torch.ones(2, 4, 8))
    assert set(regions.unique().tolist()) == {0, 1}
    assert garment[..., :4].all() and not garment[..., 4:].any()
    assert masked[0].nonzero().tolist() == [[1, 5]]
    assert masked[1].nonzero().tolist() == [[row, 7] for row in range(4)]
    assert background.sum(dim=(1, 2)).tolist() == [16 - 1, 16 - 4]


def test_a_mask_on_the_garment_half_stays_garment():
    regions = tfi.region_maps(torch.ones(1, 1, 32, 64), 4, 8)
    assert regions.sum(dim=(0, 2, 3)).tolist() == [16, 16, 0]


# ---------------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("seed", [0, 1])
def test_the_loss_is_plain_flow_matching(seed, tiny_flux_fill):
    """x_t = (1 - s) x + s e, target e - x, mean of the squared error, with the packing written out here."""
    transformer = FluxTransformer2DModel.from_pretrained(tiny_flux_fill, subfolder="transformer").requires_grad_(False)
    batch, args = random_batch(4, seed=seed), tfi.parse_args([*DATA, "--guidance_scale", "3.5"])
    prediction = tfi.predict_velocity(transformer, batch, args.guidance_scale, takes_guidance=True)
    loss, _ = tfi.flow_matching_loss(prediction, batch, args)

    share = torch.tensor([0.25, 0.9, 0.5, 0.04]).view(4, 1, 1, 1)
    noisy = (1 - share) * batch.latents + share * batch.noise
    places = [[0, y, x] for y in range(2) for x in range(4)]
    output = transformer(
        hidden_states=torch.cat([pack(noisy), batch.conditioning], dim=2),
        timestep=share.flatten(),
        guidance=torch.full((4,), 3.5),
        pooled_projections=batch.pooled_embeds,
        encoder_hidden_states=batch.prompt_embeds,
        txt_ids=torch.zeros(5, 3),
        img_ids=torch.tensor(places, dtype=torch.float32),
    ).sample
    plain = ((output - pack(batch.noise - batch.latents)) ** 2).mean()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)


def loss_of(prediction: torch.Tensor, batch: tfi.FillBatch, *flags: str) -> float:
    return tfi.flow_matching_loss(prediction, batch, tfi.parse_args([*DATA, *flags]))[0].item()


def test_region_sums_add_up_to_the_loss():
    batch = random_batch()
    prediction = torch.randn_like(batch.latents)
    loss, sums = tfi.flow_matching_loss(prediction, batch, tfi.parse_args(DATA))
    error = (prediction - (batch.noise - batch.latents)) ** 2
    assert sums.shape == (3, 2)
    # Of 4 x 8 cells the left half is garment; the box covers rows 1-2 and columns 5-7; 16 channels, 2 pairs.
    assert sums[:, 1].tolist() == [16 * 32, 6 * 32, 10 * 32]
    assert sums[0, 0].item() == pytest.approx(error[..., :4].sum().item(), rel=1e-5)
    assert sums[1, 0].item() == pytest.approx(error[:, :, 1:3, 5:8].sum().item(), rel=1e-5)
    assert sums[:, 0].sum().item() / sums[:, 1].sum().item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize(("flag", "region"), [("garment", 0), ("mask", 1), ("background", 2)])
def test_doubling_a_regions_weight_adds_its_part_of_the_loss(flag, region):
    batch = random_batch()
    prediction = torch.randn_like(batch.latents)
    _, sums = tfi.flow_matching_loss(prediction, batch, tfi.parse_args(DATA))
    part = (sums[region, 0] / prediction.numel()).item()
    plain = loss_of(prediction, batch)
    assert loss_of(prediction, batch, f"--{flag}_loss_weight", "2") == pytest.approx(plain + part, rel=1e-6)
    assert loss_of(prediction, batch, f"--{flag}_loss_weight", "0") == pytest.approx(plain - part, rel=1e-5)
    weighted = tfi.flow_matching_loss(prediction, batch, tfi.parse_args([*DATA, f"--{flag}_loss_weight", "2"]))
    assert torch.equal(weighted[1], sums)  # what is logged stays unweighted


def test_weighting_schemes_weight_each_pair_by_its_sigma():
    batch = random_batch()  # sigmas 0.25 and 0.9
    prediction = torch.randn_like(batch.latents)
    first, second = ((prediction - (batch.noise - batch.latents)) ** 2).mean(dim=(1, 2, 3)).tolist()
    sigma_sqrt = (first / 0.25**2 + second / 0.9**2) / 2
    cosmap = sum(2 * e / (torch.pi * (1 - 2 * s + 2 * s * s)) for e, s in ((first, 0.25), (second, 0.9))) / 2
    for scheme, expected in (("sigma_sqrt", sigma_sqrt), ("cosmap", cosmap), ("mode", (first + second) / 2)):
        assert loss_of(prediction, batch, "--weighting_scheme", scheme) == pytest.approx(expected, rel=1e-5)


def test_a_bf16_prediction_is_compared_in_fp32():
    batch = random_batch()
    prediction = torch.randn_like(batch.latents).bfloat16()
    halves = replace(batch, latents=batch.latents.bfloat16(), noise=batch.noise.bfloat16())
    target = halves.noise.float() - halves.latents.float()
    loss, sums = tfi.flow_matching_loss(prediction, halves, tfi.parse_args(DATA))
    assert loss.dtype == sums.dtype == torch.float32
    assert loss.item() == pytest.approx(((prediction.float() - target) ** 2).mean().item(), rel=1e-6)


def test_the_prior_loss_is_a_mean_over_all_rows_with_the_weights_of_the_loss():
    batch = replace(random_batch(4), known=torch.tensor([0, 3]))
    prediction, of_base = torch.randn(4, 16, 4, 8), torch.randn(2, 16, 4, 8)
    flags = "--weighting_scheme sigma_sqrt --garment_loss_weight 0.25 --mask_loss_weight 3 --prior_loss_weight 5"
    distance, sums = tfi.prior_loss(prediction, of_base, batch, tfi.parse_args([*DATA, *flags.split()]))
    total = 0.0
    for row, base in ((0, 0), (3, 1)):
        squares = (prediction[row] - of_base[base]) ** 2
        for region, weight in enumerate((0.25, 3, 1)):
            total += weight / batch.sigmas[row].item() ** 2 * (squares * batch.regions[row, region]).sum().item()
    assert distance.item() == pytest.approx(total / (4 * 16 * 4 * 8), rel=1e-5)
    expected = ((prediction[[0, 3]] - of_base) ** 2).sum().item()
    assert sums.tolist() == [[pytest.approx(expected, rel=1e-5), 2 * 16 * 4 * 8]]


# ----------------------------------------------------------------------------------------------------- timesteps


@pytest.fixture(scope="module")
def scheduler(tiny_flux_fill) -> FlowScheduler:
    return FlowScheduler.from_pretrained(tiny_flux_fill, subfolder="scheduler")


def draw(scheduler: FlowScheduler, count: int, seed: int, *flags: str) -> tuple[torch.Tensor, torch.Tensor]:
    return tfi.sample_timesteps(scheduler, count, tfi.parse_args([*DATA, *flags]), torch.Generator().manual_seed(seed))


def test_timesteps_cover_the_schedulers_range_evenly(scheduler):
    timesteps, sigmas = draw(scheduler, 20_000, 0)
    torch.testing.assert_close(sigmas, timesteps / 1000, rtol=0, atol=1e-6)
    assert timesteps.min() == 1 and timesteps.max() == 1000  # each of 1,000 is missed with a chance of e^-20
    assert len(timesteps.unique()) == 1000
    share = torch.histc(sigmas, 10, min=0, max=1) / 20_000
    assert (share - 0.1).abs().max() < 0.012  # standard deviation 0.002


def test_the_same_seed_draws_the_same_timesteps(scheduler):
    first, again, other = (draw(scheduler, 64, seed)[0] for seed in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_logit_normal_has_its_mean_and_spread(scheduler):
    flags = "--weighting_scheme logit_normal --logit_mean 1 --logit_std 0.5".split()
    _, sigmas = draw(scheduler, 20_000, 0, *flags)
    logits = torch.logit(1 - sigmas + 0.0005)  # the scheduler counts down: u 0 is sigma 1; each bin is 0.001 wide
    assert logits.mean().item() == pytest.approx(1, abs=0.02)
    assert logits.std().item() == pytest.approx(0.5, abs=0.02)


def test_mode_bends_the_draw_by_its_scale(scheduler):
    """At scale 0 the map is 1 - u; at 1.29 the middle is drawn more often than the ends."""
    uniform, bent = (
        draw(scheduler, 20_000, 0, "--weighting_scheme", "mode", "--mode_scale", s)[1] for s in "0 1.29".split()
    )
    middle = [((sigmas > 0.4) & (sigmas < 0.6)).float().mean().item() for sigmas in (uniform, bent)]
    assert middle[0] == pytest.approx(0.2, abs=0.015) and middle[1] > 0.23


def shifted_map(scheduler: FlowScheduler, *flags: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Sigmas and timesteps that a run with ``flags`` draws from, by falling noise: 1,000 of each."""
    args = tfi.parse_args([*DATA, "--timestep_shift", *map(str, flags)])
    schedule = tfi.training_schedule(scheduler, args)
    return schedule.sigmas[:1000], schedule.timesteps


def test_tokens_shift_timesteps_as_the_pipeline_draws(viton_root, tiny_flux_fill):
    """At 128 x 2 96 pixels a pair has 8 x 12 tokens: mu = 0.5 + (96 - 256) (1.15 - 0.5) / (4096 - 256)."""
    pipeline = FluxFillPipeline.from_pretrained(tiny_flux_fill, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    sample = tfi.VitonHDTestDataset(str(viton_root), "train", size=(HEIGHT, WIDTH))[1]
    pipeline(
        prompt="top", image=sample["image"][None] / 2 + 0.5, mask_image=sample["inpaint_mask"][None],
        height=HEIGHT, width=2 * WIDTH, num_inference_steps=4, max_sequence_length=8, output_type="latent",
    )  # fmt: skip
    drawn = pipeline.scheduler
    sigmas, timesteps = shifted_map(drawn, "tokens", "--height", HEIGHT, "--width", WIDTH)
    places = [0, 250, 500, 750]  # where the unshifted sigma is 1, 3/4, 1/2 and 1/4
    assert torch.equal(sigmas[places], drawn.sigmas[:4]) and torch.equal(timesteps[places], drawn.timesteps)
    factor = math.exp(0.5 - 160 * 0.65 / 3840)
    expected = [factor * s / (1 + (factor - 1) * s) for s in (1, 0.75, 0.5, 0.25)]
    assert sigmas[places].tolist() == pytest.approx(expected, abs=1e-6)


def test_more_tokens_shift_further(scheduler):
    """768 x 2 576 pixels are 48 x 72 tokens, so mu is 0.5 + 3200 * 0.65 / 3840 = 1.04167 and e^mu 2.83394."""
    sigmas, timesteps = shifted_map(scheduler, "tokens", "--height", 768, "--width", 576)
    assert sigmas[500].item() == pytest.approx(2.83394 / 3.83394, abs=1e-5)
    torch.testing.assert_close(timesteps, 1000 * sigmas)
    assert torch.equal(scheduler.sigmas, torch.arange(1000, 0, -1) / 1000)  # others go on drawing from theirs


def test_a_factor_shifts_alike_at_any_size(scheduler):
    sigmas, timesteps = shifted_map(scheduler, 3)
    assert sigmas[[0, 500, 750]].tolist() == pytest.approx([1, 1.5 / 2, 0.75 / 1.5], abs=1e-6)
    torch.testing.assert_close(timesteps, 1000 * sigmas)


def test_tokens_shift_nothing_where_drawing_does_not():
    fixed = FlowScheduler(shift=3.0)
    with pytest.raises(ValueError, match="--timestep_shift tokens"):
        shifted_map(fixed, "tokens")
    assert torch.equal(shifted_map(fixed, "none")[0], fixed.sigmas)


# ------------------------------------------------------------------------------------------------ the model's call


class Recorder(torch.nn.Module):
    """Stands in for the transformer: keeps what it was called with and returns its first 64 input channels."""

    def forward(self, **inputs: torch.Tensor) -> tuple[torch.Tensor]:
        self.inputs = inputs
        return (inputs["hidden_states"][..., :64],)


def test_the_model_sees_noisy_latents_masked_latents_and_mask_in_that_order():
    batch, model = random_batch(), Recorder()
    velocity = tfi.predict_velocity(model, batch, 30.0, takes_guidance=True)
    share = torch.tensor([0.25, 0.9]).view(2, 1, 1, 1)
    noisy = (1 - share) * batch.latents + share * batch.noise
    seen = model.inputs
    assert seen["hidden_states"].shape == (2, 8, 384)
    torch.testing.assert_close(seen["hidden_states"][..., :64], pack(noisy))
    assert torch.equal(seen["hidden_states"][..., 64:], batch.conditioning)
    torch.testing.assert_close(seen["timestep"], torch.tensor([0.25, 0.9]))
    assert seen["guidance"].tolist() == [30, 30]
    assert seen["img_ids"].tolist() == [[0, y, x] for y in range(2) for x in range(4)]
    assert torch.equal(seen["txt_ids"], torch.zeros(5, 3))
    assert seen["encoder_hidden_states"] is batch.prompt_embeds and seen["pooled_projections"] is batch.pooled_embeds
    torch.testing.assert_close(velocity, noisy)  # unpacking undoes packing


def test_a_model_without_guidance_gets_none():
    model = Recorder()
    tfi.predict_velocity(model, random_batch(), 30.0, takes_guidance=False)
    assert model.inputs["guidance"] is None


# --------------------------------------------------------------------------------------------- a run's own batches


def run_on(args: argparse.Namespace, accelerator) -> tuple[tfi.Run, list[dict]]:
    """A run ready to take steps, and its first training rows."""
    args.max_train_steps = args.max_train_steps or 1
    train, _ = tfi.build_datasets(args)
    captions = train.captions() if hasattr(train, "captions") else []
    prompts = tfi.prompts_of_run(args, tfi.distinct_prompts(args, captions), accelerator)
    return tfi.Run(args, accelerator, prompts), [train[row] for row in range(len(train))]


def collate(rows: list[dict]) -> dict:
    return torch.utils.data.default_collate(rows)


def test_draws_follow_from_seed_and_forward_pass(tiny_args, accelerator):
    run, rows = run_on(tiny_args(), accelerator)
    first, again, later = (run.encode(collate(rows[:2]), n) for n in (0, 0, 1))
    assert torch.equal(first.noise, again.noise) and torch.equal(first.timesteps, again.timesteps)
    assert torch.equal(first.latents, again.latents) and torch.equal(first.conditioning, again.conditioning)
    assert not torch.equal(first.noise, later.noise) and not torch.equal(first.timesteps, later.timesteps)
    assert not torch.equal(first.noise[0], first.noise[1])
    assert first.noise.shape == first.latents.shape == (2, 16, HEIGHT // 8, 2 * WIDTH // 8)
    assert first.noise.mean().abs() < 0.05 and abs(first.noise.std() - 1) < 0.05
    run.args.seed += 1
    assert not torch.equal(first.noise, run.encode(collate(rows[:2]), 0).noise)


def test_dropout_follows_from_seed_rank_and_forward_pass(tiny_args, accelerator):
    run, rows = run_on(tiny_args("--lora_dropout", 0.5), accelerator)
    for parameter in run.parameters:
        parameter.data.normal_(std=0.1)
    batch = run.encode(collate(rows[:2]), 0)

    def loss(rank: int, number: int) -> float:
        """Of the same batch, with what is left out in this rank's pass."""
        run.accelerator = SimpleNamespace(process_index=rank, device=accelerator.device)
        run.encode(collate(rows[:2]), number)
        return float(run.loss_of(batch)[0])

    places = [(0, 0), (1, 0), (0, 1), (1, 1)]
    found = [loss(*place) for place in places]
    assert len(set(found)) == 4 and [loss(*place) for place in places] == found
    run.model.eval()
    assert len({loss(*place) for place in places}) == 1


def test_without_dropout_the_global_generators_are_left_alone(tiny_args, accelerator):
    run, rows = run_on(tiny_args(), accelerator)
    before = torch.get_rng_state()
    run.loss_of(run.encode(collate(rows[:2]), 3))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_runs_batches_have_shifted_timesteps(tiny_args, accelerator):
    run, rows = run_on(tiny_args(), accelerator)
    plain = run.encode(collate(rows[:2]), 0)
    run.args.timestep_shift = 3.0
    run.schedule = tfi.training_schedule(run.scheduler, run.args)
    shifted = run.encode(collate(rows[:2]), 0)
    torch.testing.assert_close(shifted.sigmas, 3 * plain.sigmas / (1 + 2 * plain.sigmas))
    torch.testing.assert_close(shifted.timesteps, 1000 * shifted.sigmas)
    assert torch.equal(shifted.noise, plain.noise)


def of_types(rows: list[dict], *types: int) -> dict:
    """The first rows with these garment types, collated."""
    return collate([{**row, "cloth_type": kind} for row, kind in zip(rows, types, strict=False)])


def test_rows_of_known_types_are_held_to_the_base_without_its_lora(tiny_args, accelerator, monkeypatch):
    run, rows = run_on(tiny_args("--prior_loss_weight", 3, "--prior_cloth_types", "3,1"), accelerator)
    batch = run.encode(of_types(rows, 2, 1, 3), 0)
    assert batch.known.tolist() == [1, 2]
    loss, sums = run.loss_of(batch)
    assert sums[3].tolist() == [0, 2 * 16 * 16 * 24]  # a LoRA that begins changes nothing
    plain, _ = tfi.flow_matching_loss(tfi.predict_velocity(run.model, batch, 1.0, True), batch, run.args)
    assert loss.item() == plain.item()

    torch.manual_seed(0)
    for parameter in run.parameters:
        parameter.data += 0.05 * torch.randn_like(parameter)
    base = FluxTransformer2DModel.from_pretrained(run.args.pretrained_model_name_or_path, subfolder="transformer")
    with torch.no_grad():
        of_base = tfi.predict_velocity(base, batch, 1.0, True)[1:]
    modes = []
    run.model.register_forward_pre_hook(lambda model, *_: modes.append((model.training, torch.is_grad_enabled())))
    loss, sums = run.loss_of(batch)
    assert modes == [(False, False), (True, True)]
    trained = tfi.predict_velocity(run.model, batch, 1.0, True)
    squares = (trained[1:] - of_base) ** 2
    assert sums[3, 0].item() == pytest.approx(squares.sum().item(), rel=1e-4) and squares.mean() > 1e-3
    expected = tfi.flow_matching_loss(trained, batch, run.args)[0] + 3 * squares.sum() / trained.numel()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    ours, theirs = (torch.autograd.grad(each, run.parameters) for each in (loss, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)

    modes.clear()  # no row of these types: no second pass, and the loss of a run without the flag
    others = run.encode(of_types(rows, 2, 2), 0)
    loss, sums = run.loss_of(others)
    assert modes == [(True, True)] and sums[3].tolist() == [0, 0]
    assert loss.item() == run.loss_of(replace(others, known=None))[0].item()


class Captioned(tfi.VitonHDTestDataset):
    """The drawn rows, each with a caption of its own."""

    def captions(self) -> list[str]:
        return [f"colour {row}" for row in range(len(self))]

    def __getitem__(self, index: int) -> dict:
        return {**super().__getitem__(index), "caption_cloth": f"colour {index}"}


def test_dropped_captions_leave_the_bare_prompt(tiny_args, accelerator, monkeypatch):
    monkeypatch.setattr(tfi, "VitonHDTestDataset", Captioned)
    run, rows = run_on(tiny_args("--use_captions", "--caption_dropout", "1"), accelerator)
    bare = run.prompts.embeds[run.prompts.rows[tfi.DEFAULT_PROMPT]]
    own = [run.prompts.embeds[run.prompts.rows[f"{tfi.DEFAULT_PROMPT} colour {row}"]] for row in range(4)]
    assert torch.equal(run.encode(collate(rows[:4]), 0).prompt_embeds, torch.stack([bare] * 4))
    run.args.caption_dropout = 0.0
    assert torch.equal(run.encode(collate(rows[:4]), 0).prompt_embeds, torch.stack(own))

    run.args.caption_dropout = 0.25
    no_latents = torch.zeros(4, 2, 16, HEIGHT // 8, 2 * WIDTH // 8)  # the VAE is what takes time here
    monkeypatch.setattr(tfi, "encode_rows", lambda *_: {"target": no_latents, "masked": no_latents})
    four = collate([rows[0]] * 4)
    dropped = [torch.equal(text, bare) for n in range(50) for text in run.encode(four, n).prompt_embeds]
    assert 0.13 < sum(dropped) / 200 < 0.37  # standard deviation 0.03


def take_step(run: tfi.Run, batches: list[tfi.FillBatch]) -> list[float]:
    """A step over encoded batches as the loop of ``train`` takes it; the loss of each."""
    losses = []
    for batch in batches:
        with run.accelerator.accumulate(run.transformer):
            loss, _ = run.loss_of(batch)
            run.accelerator.backward(loss)
        losses.append(loss.item())
    norm = run.accelerator.clip_grad_norm_(run.parameters, run.args.max_grad_norm or math.inf)
    assert run.optimizer_step([[loss, 1.0] for loss in losses], float(norm), [])
    return losses


def gradients(run: tfi.Run, batches: list[tfi.FillBatch]) -> list[torch.Tensor]:
    """Mean over ``batches`` of each one's gradient, by autograd alone."""
    total = [torch.zeros_like(parameter) for parameter in run.parameters]
    for batch in batches:
        prediction = tfi.predict_velocity(run.model, batch, 1.0, run.takes_guidance)
        loss, _ = tfi.flow_matching_loss(prediction, batch, run.args)
        for sum_, part in zip(total, torch.autograd.grad(loss, run.parameters), strict=True):
            sum_ += part / len(batches)
    return total


@pytest.mark.parametrize("clip", [pytest.param(0.0, marks=pytest.mark.long), 0.01])
def test_accumulated_passes_step_once_on_their_mean_gradient(clip, tiny_args):
    forget_accelerator()
    args = tiny_args("--gradient_accumulation_steps", 2, "--max_grad_norm", clip, "--lr_scheduler", "linear")
    args.max_train_steps = 10
    run, rows = run_on(args, Accelerator(cpu=True, gradient_accumulation_steps=2))
    torch.manual_seed(0)
    for parameter in run.parameters:
        parameter.data += 0.05 * torch.randn_like(parameter)  # a fresh LoRA passes no gradient to its A matrices
    batches = [run.encode(collate(rows[:2]), 0), run.encode(collate(rows[2:4]), 1)]
    expected = gradients(run, batches)
    norm = torch.stack([gradient.norm() for gradient in expected]).norm().item()
    assert norm > 0.01

    stepped_on = []
    run.optimizer.optimizer.register_step_pre_hook(
        lambda *_: stepped_on.append([parameter.grad.clone() for parameter in run.parameters])
    )
    losses = take_step(run, batches)
    forget_accelerator()
    assert len(stepped_on) == 1 and run.step == 1
    scale = clip / norm if clip else 1.0
    for got, want in zip(stepped_on[0], expected, strict=True):
        torch.testing.assert_close(got, want * scale, rtol=1e-3, atol=1e-6 * scale)
    assert run.lr_scheduler.get_last_lr() == [pytest.approx(0.9 * args.learning_rate)]  # one of ten steps
    assert len(losses) == 2


def test_a_step_changes_the_adapter_and_nothing_else(tiny_args, accelerator):
    run, rows = run_on(tiny_args(), accelerator)
    before = {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in run.model.named_buffers()}
    for step in range(2):
        take_step(run, [run.encode(collate(rows[:2]), step)])
    changed = {name for name, parameter in run.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name in before if "lora_" in name}
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in run.model.named_buffers())


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small steps gain nothing from a second thread, and lose tenfold where other processes want its core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.long
def test_training_overfits_four_pairs(tiny_args, accelerator, one_thread):
    """A fixed batch of 4 pairs falls to a quarter of its loss within 300 steps of rank 16."""
    flags = "--lora_rank 16 --learning_rate 1e-2 --lr_scheduler cosine --max_train_steps 300"
    run, rows = run_on(tiny_args(*flags.split()), accelerator)
    batch = run.encode(collate(rows[:4]), 0)
    losses = []
    while run.step < 300 and (not losses or losses[-1] > losses[0] / 4):
        losses += take_step(run, [batch])
    assert losses[-1] < losses[0] / 4, f"{losses[0]:.3f} -> {losses[-1]:.3f} in {run.step} steps"
    assert losses[0] > 0.5
