"""Several datasets in one run: which rows, how often each, and what the run says of them."""

from __future__ import annotations

import json
import pickle
import shlex
from collections import Counter
from pathlib import Path

import pytest
from conftest import forget_accelerator
from test_pair_folders import SIZE, described, drawn, dresscode, of_type, parquet, same, viton

from deepfashion_training import run_arguments
from deepfashion_training import train_deepfashion_lora as wrapper
from deepfashion_training.cli import WrongUseError
from deepfashion_training.deepfashion_dataset import DatasetOptions, DeepFashionDataset, MixedDataset, mixed_dataset
from deepfashion_training.embedded.wardrobe import write_wardrobe
from train_flux_inpaint import seed_for
from training_run.output_dir import data_facts
from training_run.row_order import PairStream


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A DressCode folder with 12 training rows and a VITON-HD folder with 4 of them, in a folder with blanks."""
    root = tmp_path_factory.mktemp("several sources")
    dresscode(root / "dc")
    viton(root / "viton", of_type(1), test=2)
    return [str(root / "dc"), str(root / "viton")]


def mixed(sources: list[str], weights: list[float] | None = None, **options: object) -> MixedDataset:
    chosen = DatasetOptions(validation_split="train", **options)  # type: ignore[arg-type]
    return mixed_dataset("ignored", "train", size=SIZE, sources=sources, options=chosen, weights=weights)


def test_rows_come_one_source_after_the_other(sources: list[str]) -> None:
    data = mixed(sources)
    parts = [DeepFashionDataset(name, size=SIZE, options=DatasetOptions(validation_split="train")) for name in sources]
    assert [len(part) for part in parts] == [12, 4] and len(data) == 16
    wanted = [part[index] for part in parts for index in range(len(part))]
    same([data[index] for index in range(16)], wanted)
    same([data[-1], data[-16]], [wanted[-1], wanted[0]])
    same([pickle.loads(pickle.dumps(data))[13]], [wanted[13]])
    with pytest.raises(IndexError):
        data[16]
    assert data.cloth_types() == parts[0].cloth_types() + parts[1].cloth_types()
    assert len(data.captions()) == 16


def test_weights_are_the_shares_of_what_is_drawn(sources: list[str]) -> None:
    assert mixed(sources).sampling_weights() is None
    weights = mixed(sources, [1, 3]).sampling_weights()
    assert weights is not None
    assert sum(weights[:12]) == pytest.approx(0.25) and sum(weights[12:]) == pytest.approx(0.75)
    assert len({*weights[:12]}) == len({*weights[12:]}) == 1
    stream = PairStream(16, 8, range(1000), seed_for(0, 1), 0, 1, weights)
    drawn_from = Counter(index // 12 for batch in stream for index in batch)
    assert drawn_from[1] / drawn_from.total() == pytest.approx(0.75, abs=0.02)


def test_types_are_balanced_within_each_source(sources: list[str]) -> None:
    data = mixed(sources, [1, 1], balance_cloth_types=True, max_train_samples=12)
    weights, types = data.sampling_weights(), data.cloth_types()
    assert weights is not None
    first = len(data.parts[0])
    for kind in (1, 2, 3):
        assert sum(w for w, t in zip(weights[:first], types[:first], strict=True) if t == kind) == pytest.approx(1 / 6)
    assert sum(weights[first:]) == pytest.approx(0.5)
    by_rows = mixed(sources, balance_cloth_types=True).sampling_weights()
    assert by_rows is not None and sum(by_rows[:12]) == pytest.approx(12 / 16)


def test_shares_of_types_are_those_of_all_sources_together(sources: list[str]) -> None:
    data = mixed(sources, [3, 1], cloth_type_shares=(1, 2, 5), final_cloth_type_shares=(1, 0, 0))
    weights, final, types = data.sampling_weights(), data.final_sampling_weights(), data.cloth_types()
    assert weights is not None and final is not None
    for kind, share in ((1, 1 / 8), (2, 2 / 8), (3, 5 / 8)):
        assert sum(w for w, t in zip(weights, types, strict=True) if t == kind) == pytest.approx(share)
    assert {t for w, t in zip(final, types, strict=True) if w} == {1}
    # Of tops the first source draws 4 of 12 rows with weight 3, the second 4 of 4 with weight 1.
    assert sum(final[:12]) == pytest.approx(0.5) and sum(weights[12:]) == pytest.approx(0.5 / 8)
    assert data.summary()["options"]["cloth_type_shares"] == (1, 2, 5)
    assert data_facts(mixed(sources, [3, 1], cloth_type_shares=(1, 2, 4))) != data_facts(data)
    with pytest.raises(ValueError, match=r"--cloth_type_shares .*full"):
        mixed([sources[1]], [1], cloth_type_shares=(1, 0, 1))


def test_a_number_of_rows_is_that_of_all_together(sources: list[str]) -> None:
    assert [len(part) for part in mixed(sources, max_train_samples=7).parts] == [3, 4]
    assert [len(part) for part in mixed(sources, max_train_samples=1).parts] == [1, 1]


def test_what_is_known_of_the_data_follows_all_parts_and_no_place(sources: list[str], tmp_path: Path) -> None:
    data = mixed(sources)
    facts = data_facts(data)
    assert json.loads(json.dumps(data.summary()))["parts"][1]["source"] == sources[1]
    assert facts["rows"] == 16 and not any(sources[0] in str(fact) for fact in facts.values())
    assert data_facts(mixed(sources, [2, 1])) != facts
    other = parquet(tmp_path / "other", train=drawn()[:4])
    assert data_facts(mixed([sources[0], str(other)]))["fingerprint"] != facts["fingerprint"]
    assert len({mixed(names).content_key() for names in (sources, sources[::-1], [sources[0], str(other)])}) == 3


def test_bad_rows_are_noted_for_each_source(sources: list[str], tmp_path: Path) -> None:
    described(tmp_path / "m", drawn()[:6])
    (tmp_path / "m" / "train" / "people" / "1.jpg").write_bytes(b"no picture")
    data = mixed([sources[1], str(tmp_path / "m")], ledger_dir=str(tmp_path / "logs"), max_bad_rows=0.5)
    assert len([data[index] for index in range(len(data))]) == 10
    assert [(row["source"], row["row"]) for row in data.skipped_rows] == [(str(tmp_path / "m"), 1)]
    assert (tmp_path / "logs" / "bad_rows-train-2.jsonl").is_file()
    assert not (tmp_path / "logs" / "bad_rows-train.jsonl").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ["--dataset_weights", "1"],
        ["--dataset_weights", "1,2,3"],
        ["--dataset_weights", "1,0"],
        ["--dataset_weights", "1,-2"],
        ["--dataset_weights", "1,nan"],
        ["--dataset_weights", "1,inf"],
        ["--dataset_weights", "a,b"],
        ["--dataset_name", "a/one"],
        ["--dataset_revision", "main"],
    ],
)
def test_weights_and_names_that_mean_nothing_are_wrong_use(flags: list[str]) -> None:
    with pytest.raises((WrongUseError, SystemExit)) as error:
        run_arguments.parse(["--embedded", "--dataset_name", "a/one", "--dataset_name", "a/two", *flags], load=False)
    assert flags[0] in str(error.value)


def test_one_folder_by_two_names_is_one_dataset(sources: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(sources[0]).parent)
    for other in (f"{sources[0]}/", Path(sources[0]).name):
        with pytest.raises(WrongUseError, match="--dataset_name"):
            run_arguments.parse(["--embedded", "--dataset_name", sources[0], "--dataset_name", other], load=False)


def test_weights_of_one_dataset_are_wrong_use_and_one_name_stays_a_text(tmp_path: Path) -> None:
    with pytest.raises(WrongUseError, match="--dataset_weights"):
        run_arguments.parse(["--embedded", "--dataset_name", "a/one", "--dataset_weights", "1"], load=False)
    args, _ = run_arguments.parse(["--embedded", "--dataset_name", "a/one"], load=False)
    assert args.dataset_name == args.dataroot == "a/one"
    preset = tmp_path / "mine.yaml"
    preset.write_text("flags:\n  dataset_name: a/of-preset\n")
    assert run_arguments.parse(["--preset", str(preset), "--embedded"], load=False)[0].dataset_name == "a/of-preset"
    typed = ["--preset", str(preset), "--embedded", "--dataset_name", "a/one", "--dataset_name", "b/two"]
    assert run_arguments.parse(typed, load=False)[0].dataset_name == ["a/one", "b/two"]


def run(capsys: pytest.CaptureFixture[str], *flags: object) -> str:
    few = "--max_train_steps 2 --validation_steps 2 --num_inference_steps 1 --evaluate_samples 0 --train_batch_size 2"
    forget_accelerator()
    assert wrapper.main(["--quick-test", "--embedded", *few.split(), *map(str, flags)]) == 0, capsys.readouterr().err
    forget_accelerator()
    return capsys.readouterr().out


def test_a_dresscode_folder_is_trained_on_as_it_lies_there(
    sources: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run(capsys, "--dataset_name", sources[0], "--output_dir", tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["dataset"]["train"]["source"] == facts["arguments"]["dataset_name"] == sources[0]
    assert facts["dataset"]["train"]["rows"] + facts["dataset"]["validation"]["rows"] == 12
    assert sources[0] in shlex.split(said.partition("next")[2], comments=True)


def test_a_run_on_two_sources_names_both_and_goes_on(
    sources: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = write_wardrobe(tmp_path / "raw rows", "hub", rows=30, size=(256, 192))
    names = ["--dataset_name", sources[0], "--dataset_name", raw, "--dataset_weights", "2,1"]
    flags = [*names, "--output_dir", tmp_path / "run", "--pairs_dir", tmp_path / "pairs", "--checkpointing_steps", 1]
    said = run(capsys, *flags)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    train = facts["dataset"]["train"]
    assert [part["source"] for part in train["parts"]] == [sources[0], str(tmp_path / "pairs" / "2")]
    assert facts["arguments"]["raw_dataset_name"] == [sources[0], str(raw)] and train["weights"] == [2, 1]
    assert train["rows"] == sum(part["rows"] for part in train["parts"]) == sum(train["by_type"].values())
    card = (tmp_path / "run" / "README.md").read_text()
    assert "`dc`" in card and "`raw rows`" in card
    words = shlex.split(said.partition("next")[2], comments=True)
    assert words[2:8] == ["--dataset_name", sources[0], "--dataset_name", str(raw), "--dataset_weights", "2,1"]
    run(capsys, *flags, "--resume_from_checkpoint", "latest", "--max_train_steps", 3, "--allow_changed_arguments")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["step"] == 3
