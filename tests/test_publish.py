"""Publishing a LoRA: what is asked before training, what is uploaded after it, and what never is."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import forget_accelerator
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import filter_repo_objects
from safetensors.numpy import save_file

from deepfashion_training import run_arguments
from deepfashion_training import train_deepfashion_lora as wrapper
from deepfashion_training.cli import PRESETS
from deepfashion_training.embedded import TINY_FLUX_FILL
from deepfashion_training.embedded.wardrobe import write_wardrobe
from deepfashion_training.models import publish

SCRIPT = Path(__file__).parent / "scripts" / "catvton_flux" / "train_flux_inpaint.py"
NATIVE = Path(__file__).parent / "scripts" / "native_lora.py"
LORA = "pytorch_lora_weights.safetensors"
TOKEN = "hf_" + "aB3" * 11


class Hub:
    """What the methods of ``HfApi`` would have answered, and what they were asked to store."""

    def __init__(self) -> None:
        self.role, self.public, self.failure = "write", set[str](), dict[str, Exception]()
        self.asked: list[str] = []
        self.private: bool | None = None
        self.uploads: dict[str, dict[str, bytes]] = {}

    def _note(self, api: HfApi, name: str) -> None:
        self.asked.append(name)
        if name in self.failure:
            raise self.failure[name]

    def methods(hub) -> dict[str, Any]:
        def whoami(api: HfApi) -> dict[str, Any]:
            hub._note(api, "whoami")
            return {"name": "joe", "auth": {"accessToken": {"role": hub.role}}}

        def create_repo(api: HfApi, repo_id: str, *, private: bool | None, exist_ok: bool) -> str:
            hub._note(api, "create_repo")
            assert exist_ok
            hub.private = private
            return f"https://huggingface.co/{repo_id}"

        def upload_folder(
            api: HfApi, *, repo_id: str, folder_path: Path, allow_patterns: list[str], commit_message: str
        ) -> None:
            hub._note(api, "upload_folder")
            there = [path.relative_to(folder_path).as_posix() for path in folder_path.rglob("*") if path.is_file()]
            names = filter_repo_objects(there, allow_patterns=allow_patterns)
            hub.uploads[repo_id] = {name: (folder_path / name).read_bytes() for name in names}

        def model_info(api: HfApi, repo_id: str) -> Any:
            hub._note(api, "model_info")
            return SimpleNamespace(private=repo_id not in hub.public)

        return {f.__name__: f for f in (whoami, create_repo, upload_folder, model_info)}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A Hub that only writes down, for a user who is logged in."""
    hub = Hub()
    for name, method in hub.methods().items():
        monkeypatch.setattr(HfApi, name, method)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of a run, with everything that must stay at home."""
    folder = tmp_path / "my run"
    for name in ("checkpoint-5/training_state.pt", "logs/losses.jsonl", "wardrobe/data/train-0.parquet", "run.json",
                 "validation/step-0.png", "validation/step-5.png", "evaluation.json", ".env"):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    save_file({"transformer.a": np.zeros(3, np.float32)}, folder / LORA, metadata={"rank": "4"})
    (folder / "README.md").write_text("# A card\n\n![a picture](validation/step-5.png) [more](run.json) (README.md)\n")
    return folder


# ---- before training


def test_the_id_is_the_users_and_the_name_of_the_directory(hub: Hub) -> None:
    assert publish.check_push(None, "skirts") == "joe/skirts"
    assert publish.check_push("trousers", "skirts") == "joe/trousers"
    assert publish.check_push("acme/trousers", "skirts") == "acme/trousers"
    assert publish.check_push("other/trousers", "skirts") == "other/trousers"  # whether it may, the upload tells
    assert set(hub.asked) == {"whoami"}


@pytest.mark.parametrize("bad", ["a b", "a/b/c", "-x", "me/a--b", "x" * 97, "me/"])
def test_an_id_that_is_none_is_refused_before_anything_is_asked(bad: str, hub: Hub) -> None:
    for repo_id, default in ((bad, "skirts"), (None, bad)):
        with pytest.raises(ValueError, match=r"(?s)^--hub_model_id: .*Name it OWNER/NAME$"):
            publish.check_push(repo_id, default)
    assert hub.asked == []


def test_no_token(no_token: None) -> None:
    with pytest.raises(ValueError, match=r"--push_to_hub: .*HF_TOKEN"):
        publish.check_push(None, "skirts")


def test_a_token_that_may_only_read(hub: Hub) -> None:
    hub.role = "read"
    with pytest.raises(ValueError, match="--push_to_hub: your token may only read"):
        publish.check_push(None, "skirts")


def test_a_hub_that_does_not_answer(hub: Hub) -> None:
    hub.failure["whoami"] = OSError("401\n\nnot   authorized")
    with pytest.raises(ValueError) as raised:
        publish.check_push(None, "skirts")
    assert "--push_to_hub" in str(raised.value) and "not   authorized" in str(raised.value)


def test_private_is_not_promised_of_a_public_repository(hub: Hub, folder: Path) -> None:
    hub.public.add("joe/skirts")
    with pytest.raises(ValueError, match="not uploaded to joe/skirts: --hub_private"):
        publish.push(folder, "joe/skirts", private=True)
    assert hub.uploads == {}


# ---- what is uploaded


def test_lora_card_and_the_picture_that_it_shows_are_uploaded_and_nothing_else(hub: Hub, folder: Path) -> None:
    assert publish.push(folder, "joe/skirts") == "https://huggingface.co/joe/skirts"
    assert set(hub.uploads["joe/skirts"]) == {LORA, "README.md", "validation/step-5.png"}
    assert hub.uploads["joe/skirts"][LORA] == (folder / LORA).read_bytes()
    assert hub.private is None
    publish.push(folder, "joe/trousers", private=True)
    assert hub.private is True


def test_the_evaluation_goes_with_a_card_that_shows_it(hub: Hub, folder: Path) -> None:
    with (folder / "README.md").open("a") as card:
        card.write("[evaluation.json](evaluation.json) [evaluation.json](evaluation.json)")
    assert publish.published_files(folder) == [LORA, "README.md", "validation/step-5.png", "evaluation.json"]


@pytest.mark.parametrize(
    "target",
    ["../x.png", "validation/../../x.png", "wardrobe/data/train-0.parquet", "logs/losses.jsonl", "/etc/x.png", ".env"],
)
def test_a_card_cannot_name_other_files(target: str, hub: Hub, folder: Path) -> None:
    (folder / "README.md").write_text(f"![x]({target})")
    assert publish.published_files(folder) == [LORA, "README.md"]


@pytest.mark.parametrize("name", [LORA, "README.md", "validation/step-5.png"])
def test_a_link_out_of_the_folder_is_refused(name: str, hub: Hub, folder: Path, tmp_path: Path) -> None:
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"nothing was uploaded: .*{name} is a link out of its folder"):
        publish.push(folder, "joe/skirts")
    assert hub.asked == []


@pytest.mark.parametrize("name", [LORA, "README.md", "validation/step-5.png"])
def test_a_file_that_is_missing_is_named(name: str, hub: Hub, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"nothing was uploaded: .* has no {name}"):
        publish.push(folder, "joe/skirts")
    assert hub.asked == []


def test_nothing_with_a_token_in_it_is_uploaded(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str) -> None:
        with pytest.raises(ValueError, match=f"^nothing was uploaded: {name} holds an access token") as raised:
            publish.push(folder, "joe/skirts")
        assert "hf_" not in str(raised.value) and hub.asked == []

    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(f"{card} hf_{'x9' * 15}")  # anybody's
    refused("README.md")
    (folder / "README.md").write_text(f"{card} hf_short")
    publish.push(folder, "joe/skirts")
    hub.asked.clear()

    monkeypatch.setenv("HF_TOKEN", "a-token-of-other-looks")
    (folder / "validation" / "step-5.png").write_bytes(b"\x89PNG a-token-of-other-looks")
    refused("validation/step-5.png")
    (folder / "validation" / "step-5.png").write_bytes(b"\x89PNG")
    weights = {"transformer.a": np.zeros(3, np.float32)}
    save_file(weights, folder / LORA, metadata={"base_model": f"https://x:hf_{'x9' * 20}@hub"})
    refused(LORA)


# ---- an upload that fails


@pytest.mark.parametrize("where", ["create_repo", "upload_folder"])
def test_a_failed_upload_says_where_the_lora_is_and_how_to_upload_it(where: str, hub: Hub, folder: Path) -> None:
    hub.failure[where] = RuntimeError("403 Forbidden:\n no.")
    with pytest.raises(ValueError) as raised:
        publish.push(folder, "joe/skirts", private=True)
    said, command = str(raised.value).split(" Upload it later with: ")
    assert str(folder) in said and "joe/skirts" in said and "403 Forbidden" in said
    names = (LORA, "README.md", "validation/step-5.png")
    assert [shlex.split(one) for one in command.split(" && ")] == [
        ["cd", str(folder)],
        *(["hf", "upload", "joe/skirts", name, name, "--private"] for name in names),
    ]


def test_the_command_for_later_is_one_that_hf_takes(hub: Hub, folder: Path) -> None:
    hub.failure["upload_folder"] = RuntimeError("no")
    with pytest.raises(ValueError) as raised:
        publish.push(folder, "joe/skirts", private=True)
    line = shlex.split(str(raised.value).split(" Upload it later with: ")[1].split(" && ")[-1])
    code = """
import sys
from huggingface_hub import HfApi
def upload_file(api, *, path_or_fileobj, path_in_repo, **_):
    print("CHOSEN", path_in_repo, path_or_fileobj)
    raise SystemExit
HfApi.upload_file = upload_file
HfApi.create_repo = lambda api, repo_id, **_: type("Url", (), {"repo_id": repo_id, "url": ""})()
from huggingface_hub.cli.hf import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code, *line[1:]], capture_output=True, text=True, cwd=folder)
    chosen = [text for text in done.stdout.splitlines() if text.startswith("CHOSEN")]
    name = "validation/step-5.png"
    assert chosen == [f"CHOSEN {name} {name}"], done.stdout + done.stderr


# ---- through the command


@pytest.fixture(scope="module")
def wardrobe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wardrobe(tmp_path_factory.mktemp("data") / "wardrobe", rows=30, seed=1, size=(128, 96))


@pytest.fixture
def forgotten() -> Iterator[None]:
    forget_accelerator()
    yield
    forget_accelerator()


def small_preset(wardrobe: Path) -> str:
    """The small model's preset as a file of one's own: with ``--embedded`` nothing is published."""
    return str(shutil.copy(PRESETS / "embedded.yaml", wardrobe.with_name("small.yaml")))


def flags(wardrobe: Path, out: Path, *more: str) -> list[str]:
    base = str(TINY_FLUX_FILL)
    return [
        *("--preset", small_preset(wardrobe), "--pretrained_model_name_or_path", base),
        *("--pretrained_inpaint_model_name_or_path", base, "--dataset_name", str(wardrobe), "--output_dir", str(out)),
        *"--max_train_steps 2 --checkpointing_steps 1 --validation_steps 1".split(),
        *"--num_inference_steps 1 --lora_rank 4 --train_batch_size 2 --evaluate_samples 0 --push_to_hub".split(),
        *more,
    ]


@pytest.mark.parametrize("upstream", [None, pytest.param(SCRIPT, marks=pytest.mark.long)])
def test_training_publishes_lora_card_and_last_picture(
    upstream: Path | None, hub: Hub, wardrobe: Path, tmp_path: Path, forgotten: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "skirts"
    more = ["--hub_model_id", "acme/skirts"] if upstream is None else ["--upstream", str(upstream)]
    repository = "acme/skirts" if upstream is None else "joe/skirts"
    assert wrapper.main(flags(wardrobe, out, *more)) == 0
    assert hub.asked == ["whoami", "create_repo", "upload_folder"]
    assert list(hub.uploads) == [repository]
    uploaded = hub.uploads[repository]
    # The public script draws at steps 1, N + 1, 2 N + 1 and so on.
    last = "validation/step-2.png" if upstream is None else "validation/step-1.png"
    assert set(uploaded) == {LORA, "README.md", last}
    assert all(content == (out / name).read_bytes() for name, content in uploaded.items())
    at_home = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} - set(uploaded)
    assert "run.json" in at_home and any("checkpoint-2/" in name for name in at_home)
    card = uploaded["README.md"].decode()
    assert f'load_lora_weights("{repository}")' in card
    assert str(tmp_path) not in card and str(TINY_FLUX_FILL) not in card
    assert capsys.readouterr().out.endswith(f"\npublished https://huggingface.co/{repository}\n")
    assert not any(TOKEN.encode() in path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert json.loads((out / "run.json").read_text())["arguments"]["publish_as"] == repository


@pytest.mark.long
def test_a_failed_upload_loses_nothing_and_ends_with_1(
    hub: Hub, wardrobe: Path, tmp_path: Path, forgotten: None, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.failure["upload_folder"] = OSError("the network is gone")
    assert wrapper.main(flags(wardrobe, tmp_path / "skirts", "--validation_steps", "0")) == 1
    said = capsys.readouterr()
    last = said.err.splitlines()[-1]
    assert last.startswith(f"train_deepfashion_lora: the LoRA was trained and is in {tmp_path / 'skirts'}, but it was ")
    assert f"cd {tmp_path / 'skirts'} && hf upload joe/skirts {LORA} {LORA} && " in last
    assert (tmp_path / "skirts" / LORA).is_file() and "\nLoRA  " in said.out
    assert json.loads((tmp_path / "skirts" / "run.json").read_text())["status"] == "done"


def test_a_script_that_leaves_no_record_keeps_its_lora_to_itself(
    hub: Hub, wardrobe: Path, tmp_path: Path, forgotten: None, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--preset", small_preset(wardrobe), "--balance_cloth_types", "--upstream", str(NATIVE)]
    argv += ["--dataset_name", str(wardrobe), "--push_to_hub"]
    args, script = run_arguments.parse([*argv, "--output_dir", str(tmp_path / "out"), "--max_train_steps", "1"])
    with pytest.raises(ValueError, match="--push_to_hub"):
        wrapper.run(args, script)
    assert (tmp_path / "out" / LORA).is_file() and hub.uploads == {}


def test_check_asks_the_hub_before_any_model_is_looked_at(
    hub: Hub, wardrobe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.role = "read"
    argv = flags(wardrobe, tmp_path / "skirts", "--pretrained_model_name_or_path", "/nope", "--check")
    assert wrapper.main(argv) == 1
    assert "may only read" in capsys.readouterr().err
    hub.role = "write"
    assert wrapper.main(flags(wardrobe, tmp_path / "skirts", "--check")) == 0
    assert wrapper.main(flags(wardrobe, tmp_path / "a name", "--check")) == 1
    assert "Name it OWNER/NAME" in capsys.readouterr().err
    assert set(hub.asked) == {"whoami"} and not (tmp_path / "skirts").exists()
