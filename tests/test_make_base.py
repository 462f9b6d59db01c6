"""The small FLUX-Fill: of the form of the real one, and made by one command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FluxFillPipeline
from safetensors.torch import load_file

import train_flux_inpaint as tfi
from deepfashion_training.embedded import TINY_FLUX_FILL
from deepfashion_training.embedded.make import make_base
from deepfashion_training.embedded.make.make_base import (
    drawn_elsewhere,
    elsewhere,
    garment_elsewhere,
    part_of,
    processes_for,
    repainted_type,
    top_specs,
    without_garment,
    write_tops_folder,
)
from deepfashion_training.garment_types import FULL, LOWER, UPPER


@pytest.fixture(scope="module")
def start() -> Any:
    return make_base.untrained_transformer()


def test_weights_follow_from_the_seed(start: Any) -> None:
    name = "transformer_blocks.0.attn.to_q.weight"
    again, other = (make_base.untrained_transformer(seed).state_dict()[name] for seed in (0, 1))
    assert torch.equal(start.state_dict()[name], again)
    assert (start.state_dict()[name] - other).abs().max() > 0.01


def test_it_begins_without_modulation(start: Any) -> None:
    """Shift 0, scale 0, gate 1, whatever the timestep: 2 x (3 of attention, 3 of feed-forward) in a double block."""
    for norm, parts in ((start.transformer_blocks[1].norm1_context, 6),
                        (start.single_transformer_blocks[3].norm, 3)):  # fmt: skip
        modulation = norm.linear(torch.randn(2, 192))
        assert modulation.unflatten(1, (parts, 192)).mean(dim=2).tolist() == [[0.0, 0.0, 1.0] * (parts // 3)] * 2


def test_it_begins_with_noise_minus_masked_picture(start: Any) -> None:
    """To about 2% whatever the mask, the place, the prompt and the timestep are."""
    draw = torch.Generator().manual_seed(0)
    noise, picture = torch.randn(2, 2, 96, 64, generator=draw)
    mask = (torch.rand(2, 96, 256, generator=draw) > 0.5).float()
    with torch.no_grad():
        velocity = start(
            hidden_states=torch.cat([noise, picture, mask], dim=2),
            timestep=torch.tensor([1.0, 0.3]),
            guidance=torch.ones(2),
            pooled_projections=torch.randn(2, 32, generator=draw),
            encoder_hidden_states=torch.randn(2, 8, 32, generator=draw),
            txt_ids=torch.zeros(8, 3),
            img_ids=torch.cartesian_prod(torch.zeros(1), torch.arange(8.0), torch.arange(12.0)),
        ).sample
    assert (velocity - (noise - picture)).std() < 0.03 * (noise - picture).std()


def test_the_base_that_ships_has_the_form_of_flux_fill_and_is_small() -> None:
    base = FluxFillPipeline.from_pretrained(TINY_FLUX_FILL)
    assert (base.transformer.config.in_channels, base.transformer.config.out_channels) == (384, 64)
    assert (base.vae.config.latent_channels, base.vae_scale_factor) == (16, 8)
    for part, weights in (("transformer", 5_269_440), ("vae", 220_259)):
        stored = load_file(TINY_FLUX_FILL / part / "diffusion_pytorch_model.safetensors")
        assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
        assert sum(tensor.numel() for tensor in stored.values()) == weights
    assert sum(path.stat().st_size for path in TINY_FLUX_FILL.rglob("*") if path.is_file()) < 20e6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tops") / "it"
    write_tops_folder(made, rows=3)
    return made


def test_the_trainer_reads_it(folder: Path) -> None:
    train = tfi.VitonHDTestDataset(str(folder), "train", size=(128, 96))
    assert [person for person, _ in train.pairs] == [f"00000{n}{m}.jpg" for n in range(3) for m in ("", "m")]
    test = tfi.VitonHDTestDataset(str(folder), "test")
    assert [person for person, _ in test.pairs] == [f"{n:06d}.jpg" for n in range(3, 19)]
    usual = (spec for spec in top_specs(3) if not (without_garment(spec) or any(elsewhere(spec))))
    spec = next(spec for spec in usual if repainted_type(spec) == UPPER)
    drawing = spec.draw((128, 96))
    flat, lies = spec.draw_garment((128, 96))
    sample = train[2 * spec.index]
    drawn = np.concatenate([np.asarray(flat), np.asarray(drawing.photo)], axis=1)
    stored = (sample["image"].permute(1, 2, 0).numpy() + 1) * 127.5
    assert np.abs(stored - drawn).mean() < 3  # JPEG
    assert np.array_equal(sample["inpaint_mask"][0, :, 96:].numpy() == 1, drawing.agnostic[UPPER])
    assert (sample["cloth_mask"][0].numpy() == lies).mean() > 0.99


def test_mirror_images_are_mirrored_in_all_parts(folder: Path) -> None:
    train = tfi.VitonHDTestDataset(str(folder), "train", size=(128, 96))
    plain, mirrored = train[2], train[3]
    assert torch.equal(plain["inpaint_mask"][..., 96:].flip(2), mirrored["inpaint_mask"][..., 96:])
    for half in (slice(0, 96), slice(96, None)):
        assert (plain["image"][..., half].flip(2) - mirrored["image"][..., half]).abs().mean() < 0.03


def test_one_row_in_five_repaints_other_clothes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = list(top_specs(1000))
    kinds = [repainted_type(spec) for spec in specs]
    assert 70 < kinds.count(LOWER) < 130 and 70 < kinds.count(FULL) < 130
    monkeypatch.setattr(make_base, "PLAIN_INPAINTING", 1.0)
    monkeypatch.setattr(make_base, "WITHOUT_GARMENT", 0.0)
    monkeypatch.setattr(make_base, "ELSEWHERE", 0.0)
    write_tops_folder(tmp_path / "it", rows=1)
    repainted = repainted_type(specs[0])
    drawing = replace(specs[0], cloth_type=repainted).draw((128, 96))
    sample = tfi.VitonHDTestDataset(str(tmp_path / "it"), "train", size=(128, 96))[0]
    assert np.array_equal(sample["inpaint_mask"][0, :, 96:].numpy() == 1, drawing.agnostic[repainted])
    flat, _ = specs[0].draw_garment((128, 96))
    assert np.abs((sample["cloth_pure"].permute(1, 2, 0).numpy() + 1) * 127.5 - np.asarray(flat)).mean() < 3


def test_one_row_in_five_has_no_garment_beside_other_clothes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [row for row in map(without_garment, top_specs(1000)) if row]
    assert 160 < len(found) < 240
    kinds = [row.cloth_type for row in found]
    assert kinds.count(FULL) + kinds.count(LOWER) == len(found) and 0.55 < kinds.count(FULL) / len(found) < 0.75
    monkeypatch.setattr(make_base, "WITHOUT_GARMENT", 1.0)
    monkeypatch.setattr(make_base, "ELSEWHERE", 0.0)
    write_tops_folder(tmp_path / "it", rows=4)
    train = tfi.VitonHDTestDataset(str(tmp_path / "it"), "train", size=(128, 96))
    parts = 0
    for spec, sample in zip(top_specs(4), list(train)[::2], strict=True):
        shown = without_garment(spec)
        assert shown is not None
        drawing = shown.draw((128, 96))
        area = drawing.agnostic[shown.cloth_type]
        photo = (sample["image"][..., 96:].permute(1, 2, 0).numpy() + 1) * 127.5
        assert np.abs(photo - np.asarray(drawing.photo)).mean() < 3  # JPEG
        assert np.array_equal(sample["inpaint_mask"][0, :, 96:].numpy() == 1, part_of(spec, area))
        assert (sample["cloth_pure"] == 1).all()
        parts += not np.array_equal(part_of(spec, area), area)
    assert 0 < parts < 4


def test_pairs_of_a_step_are_shared_evenly_by_as_many_processes_as_cores_allow() -> None:
    assert [processes_for(cores) for cores in (1, 2, 5, 7, 16, 64)] == [1, 2, 4, 6, 16, 48]


def test_rectangles_lie_around_what_is_worn_in_half_of_the_rows() -> None:
    area = np.zeros((128, 96), bool)
    area[50:60, 20:70] = True
    made = [part_of(spec, area) for spec in top_specs(200)]
    other = [mask for mask in made if mask is not area]
    assert 80 < len(other) < 120
    for mask in other:
        rows, columns = np.nonzero(mask)
        assert mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()
        assert (mask & area).any() and np.ptp(rows) < 0.8 * 128 and np.ptp(columns) < 0.8 * 96


def test_people_and_garments_are_elsewhere_in_half_of_the_rows() -> None:
    specs = list(top_specs(600))
    moved = np.array([elsewhere(spec) for spec in specs])
    assert (abs(moved.mean(axis=0) - make_base.ELSEWHERE) < 0.06).all()
    centres = []
    for spec in specs[:12]:
        photo, area = drawn_elsewhere(spec)
        assert photo.size == (96, 128) and area.shape == (128, 96) and area.mean() > 0.02
        flat, lies = spec.draw_garment((128, 96))
        ground, there = garment_elsewhere(spec, flat, lies)
        assert ground.size == flat.size and 0.3 < there.sum() / lies.sum() < 1.02
        assert np.asarray(ground)[~there].mean() > 250  # the garment is where the mask says
        centres += [np.mean(np.nonzero(area), axis=1)]
    assert np.ptp(centres, axis=0).min() > 10


def test_same_arguments_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_tops_folder(tmp_path / "again", rows=3)
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 2 + 4 * (6 + 16)
    assert all((folder / file).read_bytes() == (tmp_path / "again" / file).read_bytes() for file in files)


SMALL = {
    "VAE_ROWS": 6,
    "VAE_STEPS": (1, 1),
    "ROWS": 2,
    "STEPS": 1,
    "PAINTED_ROWS": 2,
    "PAINTED_STEPS": 2,
}  # the first step of a schedule is warm-up


@pytest.mark.slow
@pytest.mark.long
def test_the_command_makes_a_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, number in SMALL.items():
        monkeypatch.setattr(make_base, name, number)
    monkeypatch.setattr(make_base, "TEST_ROWS", 2)
    monkeypatch.setattr(make_base, "TRAINING", [word for word in make_base.TRAINING if word != "--compile_blocks"])
    monkeypatch.setattr(make_base, "usable_cores", lambda: 2)
    work, out = tmp_path / "work", tmp_path / "out"
    flags = f"--output_dir {out} --work_dir {work}".split()
    assert make_base.main(flags) == 0
    facts = json.loads((work / "train" / "run.json").read_text("utf-8"))
    assert (facts["arguments"]["train_base_model"], facts["trainable_parameters"]) == ("all", 5_269_440)
    assert (facts["arguments"]["optimizer"], facts["step"]) == ("muon", 1)
    assert (facts["world_size"], facts["arguments"]["train_batch_size"]) == (2, make_base.PAIRS // 2)
    made = FluxFillPipeline.from_pretrained(out)
    assert made.transformer.dtype == made.text_encoder.dtype == torch.float32
    ours = AutoencoderKL.from_pretrained(work / "start" / "vae")
    assert made.vae.config.scaling_factor == ours.config.scaling_factor
    assert abs(ours.config.scaling_factor - AutoencoderKL.load_config(TINY_FLUX_FILL / "vae")["scaling_factor"]) > 1e-3
    for name, same in (("encoder.conv_out.weight", True), ("decoder.conv_in.weight", False)):  # it learned once more
        assert torch.equal(made.vae.state_dict()[name], ours.state_dict()[name].half().float()) is same
    assert not [path for path in out.rglob("*.json") if str(tmp_path) in path.read_text("utf-8")]
    assert sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) < 20e6
    with pytest.raises(FileExistsError, match="work"):
        make_base.main(flags)
    on_from = f"--start {out} --output_dir {tmp_path / 'on'} --work_dir {tmp_path / 'w'}".split()
    assert make_base.main(on_from) == 0
    facts = json.loads((tmp_path / "w" / "train" / "run.json").read_text("utf-8"))
    assert facts["arguments"]["pretrained_inpaint_model_name_or_path"] == str(out)
    assert not (tmp_path / "w" / "start").exists()
    on = FluxFillPipeline.from_pretrained(tmp_path / "on")
    for name, same in (("encoder.conv_out.weight", True), ("decoder.conv_in.weight", False)):
        assert torch.equal(on.vae.state_dict()[name], made.vae.state_dict()[name]) is same
