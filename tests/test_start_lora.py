"""Starting a run from a LoRA: what follows from its file, its update in another rank, runs beside a merged base."""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import forget_accelerator
from diffusers import FluxTransformer2DModel
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

import train_flux_inpaint as tfi
from deepfashion_training import run_arguments
from deepfashion_training import train_deepfashion_lora as wrapper
from deepfashion_training.embedded.wardrobe import write_wardrobe
from deepfashion_training.models.lora_files import write_fused, write_kohya
from training_run import start_lora
from training_run.lora_formats import LoraFile, fitted, read_lora
from training_run.output_dir import is_done
from training_run.start_lora import Start, settings_of_start, start_from

LORA = "pytorch_lora_weights.safetensors"
ONE_STEP = "--max_train_steps 1 --validation_steps 0 --checkpointing_steps 0 --learning_rate 1e-2".split()


@pytest.fixture(scope="module")
def flags(tiny_flags: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """Words of a small run without a rank."""

    def words(*more: object) -> list[str]:
        found = tiny_flags(*more)
        place = found.index("--lora_rank")
        return found[:place] + found[place + 2 :]

    return words


@pytest.fixture(scope="module")
def files(save_random_lora: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """LoRAs of rank 4 whose weights are large enough to be seen in a loss."""
    kinds: dict[str, list[str]] = {
        "plain": [],
        "alpha": ["--lora_alpha", "7"],
        "rslora": ["--use_rslora", "--lora_alpha", "3"],
        "dora": ["--use_dora", "--lora_alpha", "6"],
        "attention": ["--lora_target_modules", "attention"],
        "norms": ["--lora_target_modules", "attn.to_q,norm1.linear"],
    }
    found = {name: save_random_lora(*words, size=0.2) for name, words in kinds.items()}
    found["kohya"] = tmp_path_factory.mktemp("kohya") / "kohya.safetensors"
    write_kohya(read_lora(found["alpha"]), found["kohya"], None)
    weights = load_file(found["plain"])
    weights = {name: tensor for name, tensor in weights.items() if "proj_mlp" not in name}
    for name in [name for name in weights if ".attn.to_q.lora_" in name]:  # lower ranks than the others'
        weights[name] = (weights[name][:2] if "lora_A" in name else weights[name][:, :2]).contiguous()
    weights["transformer.proj_out.lora_A.weight"] = torch.ones(4, 192)
    weights["transformer.proj_out.lora_B.weight"] = torch.ones(64, 4)
    outside = {name: tensor for name, tensor in weights.items() if name.startswith("transformer.proj_out")}
    found["outside"] = found["kohya"].with_name("outside.safetensors")
    save_file(outside, found["outside"])
    found["mixed"] = found["kohya"].with_name("mixed.safetensors")
    save_file(weights, found["mixed"])
    return found


def losses_of(args: argparse.Namespace) -> list[float]:
    """The losses of a run through ``main``."""
    forget_accelerator()
    try:
        tfi.main(args)
    finally:
        forget_accelerator()
    lines = (Path(args.output_dir) / "logs" / "losses.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def updates(lora: LoraFile) -> dict[str, torch.Tensor]:
    """What a LoRA adds to each layer's weight."""
    factors = {layer: [lora.weights[f"{layer}.lora_{part}.weight"].double() for part in "BA"] for layer in lora.layers}
    return {layer: lora.scaling(layer) * (up @ down) for layer, (up, down) in factors.items()}


def started(
    words: list[str], fresh: dict[str, torch.Tensor] | None = None
) -> tuple[Start, dict[str, torch.Tensor], dict[str, torch.Tensor], argparse.Namespace]:
    """Start a run's adapter: what is said of it, its updates by layer, its weights, its arguments.

    ``fresh`` gets the weights that it began with.
    """
    args = tfi.parse_args(words)
    folder = args.pretrained_inpaint_model_name_or_path
    transformer = FluxTransformer2DModel.from_pretrained(folder, subfolder="transformer")
    torch.manual_seed(0)
    tfi.make_trainable(transformer, args)
    if fresh is not None:
        fresh |= {name: tensor.clone() for name, tensor in get_peft_model_state_dict(transformer).items()}
    start = start_from(transformer, args)
    weights = get_peft_model_state_dict(transformer)
    layers = {name.rsplit(".lora_", 1)[0] for name in weights}
    scale = args.lora_alpha / (math.sqrt(args.lora_rank) if args.use_rslora else args.lora_rank)
    added = {
        layer: scale * weights[f"{layer}.lora_B.weight"].double() @ weights[f"{layer}.lora_A.weight"].double()
        for layer in layers
    }
    return start, added, weights, args


def lost(wanted: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> float:
    """Share of an update, by its norm, that is not found."""
    missing = [tensor - found.get(layer, torch.zeros(())) for layer, tensor in wanted.items()]
    return math.sqrt(sum(float(one.square().sum()) for one in missing)) / math.sqrt(
        sum(float(one.square().sum()) for one in wanted.values())
    )


# ---- what must hold: the first step's loss is that of the merged model


@pytest.mark.parametrize("form", ["alpha", "rslora", "kohya", "dora"])
def test_the_first_loss_is_that_of_the_merged_model(
    form: str, files: dict[str, Path], flags: Callable[..., list[str]], tiny_flux_fill: Path, tmp_path: Path
) -> None:
    lora = fitted(read_lora(files[form]), str(tiny_flux_fill))
    write_fused(lora, tiny_flux_fill / "transformer", torch.float32, tmp_path / "merged")
    (bare,) = losses_of(tfi.parse_args(flags(*ONE_STEP)))
    merged = ["--pretrained_inpaint_model_name_or_path", tmp_path / "merged"]
    (wanted,) = losses_of(tfi.parse_args(flags(*ONE_STEP, *merged)))
    (found,) = losses_of(tfi.parse_args(flags(*ONE_STEP, "--lora", files[form])))
    assert abs(found - wanted) < 1e-6 * max(1, wanted) < 1e-3 < abs(bare - wanted)


def test_a_run_and_one_from_its_lora(
    flags: Callable[..., list[str]], tiny_flux_fill: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of three steps each: the second is as the merged model begins, with a fresh optimizer, and goes on from there."""
    steps = "--validation_steps 0 --checkpointing_steps 0 --learning_rate 3e-2 --lora_alpha 9".split()
    first = tfi.parse_args(flags(*steps, "--max_train_steps", 3))
    losses_of(first)
    folder = Path(first.output_dir)
    lora = fitted(read_lora(folder / "pytorch_lora_weights.safetensors"), str(tiny_flux_fill))
    write_fused(lora, tiny_flux_fill / "transformer", torch.float32, tmp_path / "merged")
    merged = ["--pretrained_inpaint_model_name_or_path", tmp_path / "merged"]
    wanted = losses_of(tfi.parse_args(flags(*steps, "--max_train_steps", 1, *merged)))
    caplog.set_level("INFO")
    second = tfi.parse_args(flags(*steps[:-2], "--max_train_steps", 3, "--lora", folder))
    found = losses_of(second)
    assert len(found) == 3 and abs(found[0] - wanted[0]) < 1e-6
    assert "rank 16 in rank 16: 100.00% of its update is kept" in caplog.text
    record = json.loads((Path(second.output_dir) / "run.json").read_text("utf-8"))
    assert record["step"] == 3 and record["resumed_from_step"] is None
    assert record["arguments"]["lora"] == str(folder) and record["started_from"]["sha256"] == lora.sha256
    assert record["started_from"]["kept"] == pytest.approx(1) and record["arguments"]["lora_rank"] == 16


# ---- rank, alpha, layers


def test_what_follows_from_a_file(files: dict[str, Path]) -> None:
    found = {name: tuple(settings_of_start(str(path), {}).values()) for name, path in files.items()}
    assert found["plain"] == (4, 4, "all", False, False) and found["attention"] == (4, 4, "attention", False, False)
    assert found["alpha"] == (4, 7, "all", False, False) and found["rslora"] == (4, 3, "all", False, True)
    assert found["dora"] == (4, 6, "all", True, False)
    assert found["norms"] == (4, 4, "attn.to_q,norm1.linear", False, False)
    assert found["mixed"][0] == 4 and "proj_mlp" not in found["mixed"][2].split(",")
    assert settings_of_start(str(files["alpha"]), {"lora_rank": 8})["lora_alpha"] == 14  # the factor before B A stays
    assert settings_of_start(str(files["rslora"]), {"use_rslora": False})["lora_alpha"] == pytest.approx(6)


def test_the_file_beats_the_preset_and_the_user_the_file(
    files: dict[str, Path], flags: Callable[..., list[str]], tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(f"flags: {{lora_rank: 9, use_dora: true, lora: {files['rslora']}}}", "utf-8")

    def values(*words: str) -> tuple[Any, ...]:
        named = ["--preset", str(tmp_path / "mine.yaml"), "--output_dir", str(tmp_path / "out"), *words]
        args = run_arguments.parse(named, load=False)[0]
        return args.lora_rank, args.lora_alpha, args.use_dora, args.use_rslora

    assert values() == (4, 3, False, True)
    assert values("--lora", str(files["dora"]), "--lora_rank", "6", "--no-use_rslora") == (6, 9, True, False)
    args = run_arguments.parse(
        ["--embedded", "--lora", str(files["alpha"]), "--output_dir", str(tmp_path)], load=False
    )[0]
    assert (args.lora_rank, args.lora_alpha) == (4, 7)  # and 32 in the embedded preset
    args = tfi.parse_args(flags("--lora", files["alpha"], "--lora_alpha", 2))
    assert (args.lora_rank, args.lora_alpha) == (4, 2)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("alpha", "--lora_rank 6"),
        ("rslora", "--lora_alpha 2"),
        ("rslora", "--lora_rank 7 --no-use_rslora"),
        ("kohya", "--lora_rank 7 --use_rslora --lora_alpha 1"),
        ("kohya", "--use_dora"),
    ],
)
def test_any_rank_from_the_files_on_holds_the_update(
    form: str, words: str, files: dict[str, Path], flags: Callable[..., list[str]]
) -> None:
    fresh: dict[str, torch.Tensor] = {}
    start, added, weights, args = started(flags("--lora", files[form], *words.split()), fresh)
    wanted = updates(read_lora(files[form]))
    assert lost(wanted, added) < 1e-6 and start.kept == 1 and not start.left_out and not start.fresh
    for layer in wanted:  # what the file does not fill is as peft draws it
        rank = len(read_lora(files[form]).weights[f"{layer}.lora_A.weight"])
        names = [f"{layer}.lora_{part}.weight" for part in "AB"]
        assert torch.equal(weights[names[0]][rank:], fresh[names[0]][rank:]) and weights[names[0]][rank:].ne(0).all()
        assert not weights[names[1]][:, rank:].any() and weights[names[1]].shape[1] == args.lora_rank


def test_a_lower_rank_keeps_the_largest_singular_values(
    files: dict[str, Path], flags: Callable[..., list[str]]
) -> None:
    start, added, _, args = started(flags("--lora", files["alpha"], "--lora_rank", 2))
    wanted = updates(read_lora(files["alpha"]))
    values = {layer: torch.linalg.svdvals(tensor).square() for layer, tensor in wanted.items()}
    shares = {layer: float(found[:2].sum() / found.sum()) for layer, found in values.items()}
    whole = float(sum(found.sum() for found in values.values()))
    assert start.kept == pytest.approx(float(sum(found[:2].sum() for found in values.values())) / whole, abs=1e-9)
    assert lost(wanted, added) ** 2 == pytest.approx(1 - start.kept, abs=1e-6)
    assert start.least[0] == min(shares, key=lambda layer: shares[layer])
    assert f"rank 4 in rank 2: {start.kept:.2%}" in start.line(args) and start.least[0] in start.line(args)


def test_the_full_rank_of_an_update_loses_nothing_and_leaves_no_dead_rows(
    files: dict[str, Path], flags: Callable[..., list[str]], tmp_path: Path
) -> None:
    """A file of rank 8 whose updates have rank 4, and 0 in one layer."""
    weights = {}
    for name, tensor in load_file(files["alpha"]).items():
        weights[name] = torch.cat([tensor, tensor], 0 if "lora_A" in name else 1)
    empty = "transformer.transformer_blocks.0.attn.to_k.lora_B.weight"
    weights[empty] = torch.zeros_like(weights[empty])
    save_file(weights, tmp_path / "twice.safetensors")
    start, added, cut, _ = started(flags("--lora", tmp_path / "twice.safetensors", "--lora_rank", 6))
    assert lost(updates(read_lora(tmp_path / "twice.safetensors")), added) < 1e-6 and start.kept > 1 - 1e-12
    assert all(tensor.ne(0).any(1).all() for name, tensor in cut.items() if "lora_A" in name)


def test_ranks_that_differ_and_layers_that_are_missing_or_too_many(
    files: dict[str, Path], flags: Callable[..., list[str]]
) -> None:
    words = flags("--lora", files["mixed"], "--lora_target_modules", "all")
    start, added, _, args = started(words)
    wanted = updates(read_lora(files["mixed"]))
    size = {layer: float(tensor.square().sum()) for layer, tensor in wanted.items()}
    assert start.left_out == ["proj_out"] and start.least == ("proj_out", 0)
    assert start.kept == pytest.approx(1 - size["proj_out"] / sum(size.values()))
    assert lost({layer: tensor for layer, tensor in wanted.items() if layer != "proj_out"}, added) < 1e-6
    fresh = {layer for layer in added if layer not in wanted}
    assert start.fresh == len(fresh) > 0 and all("proj_mlp" in layer and not added[layer].any() for layer in fresh)
    assert f"{len(fresh)} layers begin fresh; 1 layers are left out, such as proj_out" in start.line(args)


def test_magnitudes_of_a_dora_stay(files: dict[str, Path], flags: Callable[..., list[str]]) -> None:
    for words in ([], ["--lora_rank", "2"]):
        _, _, weights, args = started(flags("--lora", files["dora"], *words))
        given = read_lora(files["dora"]).weights
        magnitudes = [name for name in given if name.endswith("magnitude_vector")]
        assert args.use_dora and magnitudes and all(torch.equal(weights[name], given[name]) for name in magnitudes)


# ---- what is refused


def refused(words: list[str]) -> str:
    """What ``main`` says, before an accelerator is made or a row is read."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError) as error:
        patch.setattr(tfi, "start", lambda args: pytest.fail("too late"))
        tfi.main(tfi.parse_args(words))
    return str(error.value)


def test_what_cannot_be_started_from(
    files: dict[str, Path], flags: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone.safetensors"
    assert str(gone) in refused(flags("--lora", gone))
    (tmp_path / "lora.bin").write_bytes(b"\x80\x02}q\x00.")
    assert "lora.bin is a pickle" in refused(flags("--lora", tmp_path))
    assert f"{files['dora']} is a DoRA" in refused(flags("--lora", files["dora"], "--no-use_dora"))
    wide = {name: torch.cat([tensor] * 2, 1) for name, tensor in load_file(files["plain"]).items() if "lora_A" in name}
    save_file(load_file(files["plain"]) | wide, tmp_path / "wide.safetensors")
    message = refused(flags("--lora", tmp_path / "wide.safetensors"))
    assert "another transformer" in message and "--pretrained_inpaint_model_name_or_path" in message
    mine = tmp_path / "mine"
    mine.mkdir()
    shutil.copy(files["plain"], mine)
    assert f"--output_dir {mine}" in refused(flags("--lora", mine, "--output_dir", mine, "--overwrite_output_dir"))
    for kind, targets in (("norms", "attn.to_k"), ("outside", "all")):
        message = refused(flags("--lora", files[kind], "--lora_target_modules", targets))
        assert f"--lora_target_modules {targets}" in message
    for words in (["--train_base_model"], ["--lora", str(files["dora"])]):
        with pytest.raises(SystemExit) as ended:
            tfi.parse_args([*flags(), *words, "--lora", str(files["plain"])])
        assert ended.value.code == 2 and "--lora" in capsys.readouterr().err


# ---- continuing


def test_a_continued_run_goes_on_from_its_checkpoint(
    files: dict[str, Path], flags: Callable[..., list[str]], tmp_path: Path
) -> None:
    """And not from the LoRA again, which has to be the same one."""
    mine = tmp_path / "mine.safetensors"
    shutil.copy(files["rslora"], mine)
    words = "--max_train_steps 2 --validation_steps 0 --learning_rate 1e-2 --checkpointing_steps 1 --lora".split()
    out = tmp_path / "out"
    whole = losses_of(tfi.parse_args(flags(*words, mine, "--output_dir", out)))
    end = load_file(out / "pytorch_lora_weights.safetensors")
    moved = shutil.copy(mine, tmp_path / "moved.safetensors")  # it is its content that counts
    again = [*words, moved, "--output_dir", out, "--resume_from_checkpoint", out / "checkpoint-1"]
    assert losses_of(tfi.parse_args(flags(*again))) == whole
    assert all(torch.equal(end[name], tensor) for name, tensor in load_file(out / LORA).items())
    assert is_done(tfi.parse_args(flags(*again)), tfi.OWN_ARGUMENTS)
    shutil.copy(files["plain"], moved)
    same = ["--use_rslora", "--lora_alpha", 3]
    assert not is_done(tfi.parse_args(flags(*again, *same)), tfi.OWN_ARGUMENTS)
    for others, name in ((same, "LoRA to start from"), ([], "lora_alpha")):
        with pytest.raises(ValueError, match=name):
            losses_of(tfi.parse_args(flags(*again, *others)))
    without = [word for word in again if word not in ("--lora", moved)]
    with pytest.raises(ValueError, match="LoRA to start from"):
        losses_of(tfi.parse_args(flags(*without, "--lora_rank", 4, *same)))


# ---- the command that a user types


def test_the_wrapper_checks_plans_and_trains_from_a_lora(
    files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forget_accelerator()
    quick = ["--quick-test", "--embedded", "--output_dir", str(tmp_path / "out"), "--lora"]
    assert wrapper.main([*quick, str(files["attention"]), "--check"]) == 0
    assert f"ok  LoRA           {files['attention']}: rank 4" in capsys.readouterr().out
    assert wrapper.main([*quick, str(tmp_path / "none"), "--check"]) == 1
    said = capsys.readouterr().err
    assert str(tmp_path / "none") in said and said.count("\n") == 1
    few = ["--dataset_name", str(write_wardrobe(tmp_path / "rows", rows=12, seed=1, size=(128, 96)))]
    few += "--max_train_steps 1 --evaluate_samples 0 --validation_steps 0 --train_batch_size 2".split()
    try:
        assert wrapper.main([*quick, str(files["attention"].parent), *few]) == 0
    finally:
        forget_accelerator()
    record = json.loads((tmp_path / "out" / "run.json").read_text("utf-8"))
    assert (record["arguments"]["lora_rank"], record["arguments"]["lora_target_modules"]) == (4, "attention")
    sha256 = read_lora(files["attention"]).sha256
    assert record["started_from"]["sha256"] == sha256
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert f"| Started from the LoRA | `lora/{LORA}`, sha256 `{sha256}`" in card and str(tmp_path) not in card
    assert start_lora.read_lora(tmp_path / "out" / LORA).layers == read_lora(files["attention"]).layers
