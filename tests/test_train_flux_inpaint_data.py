"""The trainer's VITON-HD dataset, and the order in which rows reach each rank."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import GARMENT_BOX, HEIGHT, MASK_BOX, WIDTH
from PIL import Image

import train_flux_inpaint as tfi
from train_flux_inpaint import PairStream, VitonHDTestDataset, seed_for

SIZE = (HEIGHT, WIDTH)


def box_map(box: tuple[int, int, int, int]) -> torch.Tensor:
    """[1,H,W] that is 1 inside ``box``."""
    left, top, right, bottom = box
    inside = torch.zeros(1, *SIZE)
    inside[:, top:bottom, left:right] = 1
    return inside


def flat(colour: tuple[int, int, int]) -> torch.Tensor:
    """[3,H,W] of one 8-bit colour in [-1,1]."""
    return (torch.tensor(colour) / 127.5 - 1).view(3, 1, 1).expand(3, *SIZE)


# -------------------------------------------------------------------------------------------------------- samples


def test_a_sample_holds_the_drawn_colours_and_boxes(viton_root):
    data = VitonHDTestDataset(str(viton_root), "train", "paired", SIZE)
    sample = data[3]
    person, garment, masked = flat((200, 30, 50)), flat((30, 100, 250)), box_map(MASK_BOX)
    expected = {
        "image": torch.cat([garment, person], dim=2),
        "im_mask": torch.cat([garment, torch.where(masked == 1, torch.zeros(3, *SIZE), person)], dim=2),
        "inpaint_mask": torch.cat([torch.zeros(1, *SIZE), masked], dim=2),
        "cloth_pure": garment,
        "cloth_mask": box_map(GARMENT_BOX),
    }
    assert len(data) == 8
    assert list(sample) == [*expected, "c_name", "im_name", "caption_cloth", "cloth_type"]
    for name, tensor in expected.items():
        assert sample[name].dtype == torch.float32
        torch.testing.assert_close(sample[name], tensor, rtol=0, atol=1e-6, msg=lambda text, name=name: name + text)
    assert (sample["im_mask"][:, 40:100, WIDTH + 24 : WIDTH + 72] == 0).all()  # exactly mid-grey
    assert (sample["c_name"], sample["im_name"]) == ("003_00.jpg", "003_00.jpg")
    assert (sample["caption_cloth"], sample["cloth_type"]) == ("", 1)


def test_phase_and_order_choose_folder_and_garment(viton_root):
    paired = VitonHDTestDataset(str(viton_root), "test", "paired", SIZE, data_list="test_pairs.txt")
    unpaired = VitonHDTestDataset(str(viton_root), "test", "unpaired", SIZE)
    assert len(paired) == len(unpaired) == 3
    assert [(row["im_name"][:3], row["c_name"][:3]) for row in paired] == [(f"00{i}", f"00{i}") for i in range(3)]
    assert [(row["im_name"][:3], row["c_name"][:3]) for row in unpaired] == [
        ("000", "001"),
        ("001", "002"),
        ("002", "000"),
    ]
    torch.testing.assert_close(unpaired[0]["cloth_pure"], flat((10, 100, 250)))
    torch.testing.assert_close(unpaired[0]["image"][:, :, WIDTH:], flat((200, 0, 50)))


def test_pictures_are_averaged_and_masks_are_not(viton_copy):
    """Photos at twice the size with lines one pixel wide become mid-grey; a mask's lines stay black or white."""
    lines = np.zeros((2 * HEIGHT, 2 * WIDTH), np.uint8)
    lines[:, ::2] = 255
    Image.fromarray(lines).convert("RGB").save(viton_copy / "train/image/000_00.jpg", "PNG")
    shades = np.tile(np.array([100, 127, 128, 200], np.uint8).repeat(2), (2 * HEIGHT, WIDTH // 4))
    Image.fromarray(shades).save(viton_copy / "train/agnostic-mask/000_00_mask.png")
    sample = VitonHDTestDataset(str(viton_copy), "train", size=SIZE)[0]
    middle = sample["image"][:, 4:-4, WIDTH + 4 : -4]
    assert middle.abs().max() < 0.02
    mask = sample["inpaint_mask"][0, :, WIDTH:]
    assert torch.equal(mask, torch.tensor([0.0, 0, 1, 1]).repeat(HEIGHT, WIDTH // 4))  # above 127 is repainted


def test_pictures_may_be_grey_have_alpha_or_a_palette(viton_copy):
    Image.new("L", (WIDTH, HEIGHT), 51).save(viton_copy / "train/image/000_00.jpg", "PNG")
    Image.new("RGBA", (WIDTH, HEIGHT), (51, 102, 153, 7)).save(viton_copy / "train/cloth/000_00.jpg", "PNG")
    box_picture = Image.new("RGB", (WIDTH, HEIGHT), "black")
    box_picture.paste("white", MASK_BOX)
    box_picture.quantize(2).save(viton_copy / "train/agnostic-mask/000_00_mask.png")
    sample = VitonHDTestDataset(str(viton_copy), "train", size=SIZE)[0]
    torch.testing.assert_close(sample["image"], torch.cat([flat((51, 102, 153)), flat((51, 51, 51))], dim=2))
    assert torch.equal(sample["inpaint_mask"][..., WIDTH:], box_map(MASK_BOX))


def test_sixteen_bits_are_scaled_in_pictures_and_masks(viton_copy):
    grey = np.full((HEIGHT, WIDTH), 51 * 257, np.uint16)
    Image.fromarray(grey).save(viton_copy / "train/image/000_00.jpg", "PNG")
    Image.fromarray(grey).save(viton_copy / "train/agnostic-mask/000_00_mask.png")
    sample = VitonHDTestDataset(str(viton_copy), "train", size=SIZE)[0]
    torch.testing.assert_close(sample["image"][..., WIDTH:], flat((51, 51, 51)))
    assert not sample["inpaint_mask"].any()


def test_blank_lines_are_no_pairs(viton_copy):
    (viton_copy / "train_pairs.txt").write_text("\n000_00.jpg 001_00.jpg\n\n  \n002_00.jpg\t000_00.jpg\n\n")
    data = VitonHDTestDataset(str(viton_copy), "train", "unpaired", SIZE)
    assert data.pairs == [("000_00.jpg", "001_00.jpg"), ("002_00.jpg", "000_00.jpg")]


def test_summary_counts_the_rows(viton_root):
    facts = VitonHDTestDataset(str(viton_root), "train", size=SIZE).summary()
    pairs = facts.pop("fingerprint"), VitonHDTestDataset(str(viton_root), "test", size=SIZE).summary()["fingerprint"]
    assert len(pairs[0]) == 64 and pairs[0] != pairs[1]
    assert facts == {"source": str(viton_root), "split": "train", "rows": 8, "by_type": {"upper": 8}}


@pytest.mark.parametrize("line", ["001_00.jpg", "001_00.jpg 001_00.jpg 1"])
def test_a_malformed_line_is_named_with_its_number(line, viton_copy):
    (viton_copy / "train_pairs.txt").write_text(f"000_00.jpg 000_00.jpg\n\n{line}\n")
    with pytest.raises(
        ValueError, match=rf"train_pairs\.txt line 3: expected 'person\.jpg cloth\.jpg', found '{line}'"
    ):
        VitonHDTestDataset(str(viton_copy), "train", size=SIZE)


@pytest.mark.parametrize(
    "file", ["image/001_00.jpg", "cloth/001_00.jpg", "cloth-mask/001_00.jpg", "agnostic-mask/001_00_mask.png"]
)
def test_a_missing_file_is_named_before_training(file, viton_copy):
    (viton_copy / "train" / file).unlink()
    with pytest.raises(ValueError, match=rf"train_pairs\.txt names a pair whose file .*{file} is missing"):
        VitonHDTestDataset(str(viton_copy), "train", size=SIZE)


def test_a_list_that_is_a_git_lfs_pointer_is_named(viton_copy):
    (viton_copy / "train_pairs.txt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n")
    with pytest.raises(ValueError, match=r"train_pairs\.txt .*git lfs pull"):
        VitonHDTestDataset(str(viton_copy), "train", size=SIZE)


def test_a_missing_or_empty_list_is_named(viton_copy):
    with pytest.raises(ValueError, match=r"no pair list .*absent\.txt"):
        VitonHDTestDataset(str(viton_copy), "train", size=SIZE, data_list="absent.txt")
    (viton_copy / "train_pairs.txt").write_text("\n\n")
    with pytest.raises(ValueError, match=r"train_pairs\.txt names no pairs"):
        VitonHDTestDataset(str(viton_copy), "train", size=SIZE)


@pytest.mark.parametrize("kind", ["dots", "absolute", "link", "folder link"])
def test_a_name_that_leaves_the_data_root_is_refused(kind, viton_copy, tmp_path):
    outside = tmp_path / "outside"
    shutil.copytree(viton_copy / "train" / "image", outside)
    name = {"dots": "../../../outside/000_00.jpg", "absolute": f"{outside}/000_00.jpg", "link": "link.jpg"}.get(
        kind, "away/000_00.jpg"
    )
    image, cloth = viton_copy / "train" / "image", viton_copy / "train" / "cloth"
    for folder in (image, cloth):  # each kind leads to a picture that is there: only the rule keeps it out
        (folder / "link.jpg").symlink_to(outside / "000_00.jpg")
        (folder / "away").symlink_to(outside)
    for person, garment in ((name, "000_00.jpg"), ("000_00.jpg", name)):
        (viton_copy / "train_pairs.txt").write_text(f"{person} {garment}\n")
        with pytest.raises(ValueError, match=r"leaves the data root") as refusal:
            VitonHDTestDataset(str(viton_copy), "train", "unpaired", SIZE)
        assert name in str(refusal.value)


def test_a_pair_list_outside_the_data_root_is_refused(viton_copy, tmp_path):
    (tmp_path / "list.txt").write_text("000_00.jpg 000_00.jpg\n")
    for name in ("../list.txt", str(tmp_path / "list.txt")):
        with pytest.raises(ValueError, match="leaves the data root"):
            VitonHDTestDataset(str(viton_copy), "train", size=SIZE, data_list=name)


def test_a_data_root_behind_a_link_is_inside_itself(viton_copy, tmp_path):
    (tmp_path / "alias").symlink_to(viton_copy)
    assert len(VitonHDTestDataset(str(tmp_path / "alias"), "train", size=SIZE)) == 3


# ------------------------------------------------------------------------------------------------- order of rows


def rows_of(
    rows: int, batch: int, passes: range, seed: int = 0, world: int = 1, weights=None, final=None
) -> list[list[int]]:
    """What all ranks see together, one list per forward pass, rank after rank."""
    ranks = [PairStream(rows, batch, passes, seed, rank, world, weights, final) for rank in range(world)]
    return [list(itertools.chain(*together)) for together in zip(*ranks, strict=True)]


def test_an_epoch_is_a_shuffle_of_all_rows():
    (epoch,) = rows_of(50, 50, range(1))
    assert sorted(epoch) == list(range(50)) and epoch != list(range(50))


@pytest.mark.parametrize(("rows", "batch", "world"), [(10, 3, 2), (7, 2, 3), (5, 4, 2), (8, 2, 2)])
def test_ranks_lose_and_repeat_nothing_across_an_epochs_edge(rows, batch, world):
    passes = -(-3 * rows // (batch * world))  # at least 3 epochs, and rows are mostly no multiple of a global batch
    stream = list(itertools.chain(*rows_of(rows, batch, range(passes), world=world)))
    for epoch in range(2):
        assert sorted(stream[epoch * rows : (epoch + 1) * rows]) == list(range(rows))
    half = stream[2 * rows : 2 * rows + rows // 2]
    assert len(half) == len(set(half)) == rows // 2


def test_ranks_of_one_step_see_different_rows():
    for step in rows_of(12, 3, range(8), world=2):
        assert len(step) == len(set(step)) == 6


def test_a_later_start_gives_the_tail_of_the_full_run():
    full = rows_of(10, 3, range(12), world=2)
    assert rows_of(10, 3, range(5, 12), world=2) == full[5:]


def test_world_size_does_not_change_the_stream():
    """Two ranks of batch 3 see in a step what one rank of batch 6 sees."""
    assert rows_of(10, 3, range(6), world=2) == rows_of(10, 6, range(6), world=1)


def test_seed_and_epoch_change_the_order():
    first, second = rows_of(30, 30, range(2), seed=1)
    assert first != second
    assert rows_of(30, 30, range(2), seed=1) == [first, second]
    assert rows_of(30, 30, range(1), seed=2) != [first]


def test_weights_set_each_rows_share():
    """10 of 100 rows weigh 9 times as much: half of the draws. 4,000 draws, standard deviation 0.008."""
    weights = [9.0] * 10 + [1.0] * 90
    drawn = np.array(list(itertools.chain(*rows_of(100, 10, range(400), seed=3, weights=weights))))
    assert abs((drawn < 10).mean() - 0.5) < 0.04
    counts = np.bincount(drawn, minlength=100)
    assert counts[:10].min() > 150 and counts[10:].max() < 50  # about 200 and 22 each
    again = itertools.chain(*rows_of(100, 10, range(400), seed=3, weights=weights))
    assert np.array_equal(drawn, list(again))


def test_a_row_without_weight_is_never_drawn():
    drawn = set(itertools.chain(*rows_of(4, 4, range(50), weights=[0, 2, 1, 0])))
    assert drawn == {1, 2}


@pytest.mark.parametrize("weights", [[1 / 3, 2, 0, 0.7, 5, 1e-9, 0], [1] * 7])
def test_weighted_rows_are_those_that_numpy_chooses(weights):
    """As in every version so far: a run that is continued sees the rows that it would have seen."""
    shares = np.array(weights) / np.sum(weights)
    chosen = [np.random.default_rng([5, epoch]).choice(7, 7, p=shares).tolist() for epoch in range(40)]
    assert rows_of(7, 7, range(40), seed=5, weights=weights) == chosen


#: Weights of four rows at first and in the end; the second row is never drawn.
FIRST, FINAL = [3, 0, 0, 1], [2, 0, 5, 1]


def test_shares_move_linearly_from_the_first_place_to_the_last():
    drawn = np.array(list(itertools.chain(*rows_of(4, 4, range(6000), weights=FIRST, final=FINAL))))
    for tenth, part in enumerate(np.split(drawn, 10)):
        moved = (tenth + 0.5) / 10  # on average over 2,400 draws, whose standard deviation is 0.01 at most
        wanted = (1 - moved) * np.array(FIRST) / 4 + moved * np.array(FINAL) / 8
        assert np.bincount(part, minlength=4) / len(part) == pytest.approx(wanted, abs=0.045)
    assert 1 not in drawn


def test_a_row_is_drawn_as_soon_as_it_has_a_share_and_no_longer():
    stream = PairStream(2, 1, range(2), 0, weights=[1, 0], final_weights=[0, 1])
    assert list(stream) == [[0], [1]]
    assert list(PairStream(2, 1, range(2), 0, weights=[0, 1], final_weights=[1, 0])) == [[1], [0]]
    assert set(itertools.chain(*rows_of(2, 1, range(200), final=[0, 1])[:100])) == {0, 1}  # from equal shares


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_moving_mixture_is_the_same_on_any_number_of_ranks_and_goes_on(world):
    whole = rows_of(4, 8, range(50), seed=2, weights=FIRST, final=FINAL)
    assert rows_of(4, 8 // world, range(50), 2, world, FIRST, FINAL) == whole
    assert rows_of(4, 8 // world, range(31, 50), 2, world, FIRST, FINAL) == whole[31:]
    assert rows_of(4, 8, range(60), seed=2, weights=FIRST, final=FINAL)[:50] != whole  # a longer run moves later


@pytest.mark.parametrize("weights", [[1, 1], [1, 1, -1], [0, 0, 0], [1, float("nan"), 1], []])
def test_weights_that_are_none_are_refused(weights):
    for given in ({"weights": weights}, {"final_weights": weights}):
        with pytest.raises(ValueError, match="weights"), np.errstate(invalid="ignore"):
            PairStream(3, 1, range(1), 0, **given)


def test_the_loader_starts_at_the_forward_pass_of_a_step_and_ends_with_the_run(tiny_args, viton_root):
    args = tiny_args("--gradient_accumulation_steps", 2, "--max_train_steps", 5, "--seed", 7)
    data = VitonHDTestDataset(str(viton_root), "train", size=SIZE)
    place = SimpleNamespace(process_index=1, num_processes=2, device=torch.device("cpu"))
    seen = [batch["im_name"] for batch in tfi.make_loader(data, args, place, first_step=3)]
    expected = [rows[2:] for rows in rows_of(8, 2, range(6, 10), seed=7, world=2)]  # rank 1's part
    assert seen == [[f"{row:03d}_00.jpg" for row in rows] for rows in expected]


def test_the_loader_samples_by_a_datasets_own_weights(tiny_args):
    class OnlyRowTwo(list):
        def sampling_weights(self) -> list[float]:
            return [0, 0, 1, 0]

    class FromTwoToOne(OnlyRowTwo):
        def final_sampling_weights(self) -> list[float]:
            return [0, 1, 0, 0]

    args, place = (
        tiny_args("--max_train_steps", 3),
        SimpleNamespace(process_index=0, num_processes=1, device=torch.device("cpu")),
    )
    loader = tfi.make_loader(OnlyRowTwo({"im_name": name} for name in "abcd"), args, place, first_step=0)
    assert list(loader) == [{"im_name": ["c", "c"]}] * 3
    loader = tfi.make_loader(FromTwoToOne({"im_name": name} for name in "abcd"), args, place, first_step=0)
    seen = "".join(name for batch in loader for name in batch["im_name"])
    assert seen[0] == "c" and seen[-1] == "b" and set(seen) == {"b", "c"}


def test_seeds_are_distinct_by_seed_rank_and_step():
    seeds = {seed_for(seed, rank, step) for seed in (0, 1, 42) for rank in range(8) for step in range(200)}
    assert len(seeds) == 3 * 8 * 200
    assert max(seeds) > 2**32 and max(seeds) < 2**64
    assert seed_for(42, 1, 5) == seed_for(42, 1, 5)


def test_training_and_validation_sets_are_built_by_keyword(tiny_args, viton_root, monkeypatch):
    """The call that a wrapper's dataset must take."""
    built = []
    monkeypatch.setattr(tfi, "VitonHDTestDataset", lambda **how: built.append(how) or how["phase"])
    assert tfi.build_datasets(tiny_args("--train_data_list", "mine.txt")) == ("train", "test")
    common = {"dataroot_path": str(viton_root), "order": "paired", "size": SIZE}
    assert built == [
        {**common, "phase": "train", "data_list": "mine.txt"},
        {**common, "phase": "test", "data_list": "test_pairs.txt"},
    ]


def test_validation_rows_take_garment_types_in_turn():
    class Typed(list):
        def cloth_types(self) -> list[int]:
            return list(self)

    data = Typed([1, 1, 1, 3, 2, 1, 3])
    assert tfi.validation_rows(data, 5) == [0, 4, 3, 1, 6]  # upper, lower, full, upper, full: lower has run out
    assert tfi.validation_rows(data, 99) == [0, 4, 3, 1, 6, 2, 5]
    assert tfi.validation_rows("abc", 2) == [0, 1]


def test_pairs_need_the_masks_of_the_people(viton_copy: Path):
    """The agnostic mask is the person's, the garment mask the garment's, also when they are unpaired."""
    Image.new("L", (WIDTH, HEIGHT), 255).save(viton_copy / "train/agnostic-mask/000_00_mask.png")
    Image.new("L", (WIDTH, HEIGHT), 255).save(viton_copy / "train/cloth-mask/001_00.jpg", "PNG")
    sample = VitonHDTestDataset(str(viton_copy), "train", "unpaired", SIZE)[0]
    assert sample["inpaint_mask"][..., WIDTH:].all() and sample["cloth_mask"].all()
