"""Whether models can be had: asked of a Hub that answers as the real one does, on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from deepfashion_training.embedded import TINY_FLUX_FILL
from deepfashion_training.models import access
from training_run.hub import why_not_loaded

TINY = str(TINY_FLUX_FILL)
GIB = 2**30
FILES = {
    "acme/fill": {
        "model_index.json": 500,
        "text_encoder_2/model.safetensors": 9 * GIB,
        "vae/model.safetensors": GIB,
        "transformer/model.safetensors": 24 * GIB,
        "flux1-fill-dev.safetensors": 24 * GIB,
    },
    "acme/alpha": {"config.json": 500, "diffusion_pytorch_model-00001.safetensors": 24 * GIB, "README.md": GIB},
    "acme/rows": {"data/train-0.parquet": 2 * GIB, "README.md": 500},
    "acme/huge": {"text_encoder/model.safetensors": 10**6 * GIB},
}


class FakeHub(BaseHTTPRequestHandler):
    """The two answers of the Hub that the checks ask for: a model's files, and whether one may read them."""

    def do_GET(self) -> None:
        repository = "/".join(self.path.split("?")[0].split("/")[3:5])
        if repository == "acme/gated":
            return self.answer(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"}, {"error": "gated"})
        if repository not in FILES:
            return self.answer(401, {"X-Error-Code": "RepoNotFound"}, {"error": "not found"})
        siblings = [{"rfilename": name, "size": size} for name, size in FILES[repository].items()]
        self.answer(200, {}, {"id": repository, "_id": "1", "sha": "0" * 40, "siblings": siblings, "tags": []})

    def answer(self, status: int, headers: dict[str, str], body: dict) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def nothing_cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, and nobody who is logged in."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def hub(server: str, nothing_cached: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", server)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return server


def refused(pipeline: str, transformer: str = TINY) -> str:
    with pytest.raises(ValueError) as caught:
        access.check_models(pipeline, transformer)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_licence_that_is_not_accepted(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = refused("acme/gated")
    assert "acme/gated is gated" in answer and "hf auth login" in answer and f"{hub}/acme/gated" in answer
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    answer = refused("acme/gated")
    assert "acme/gated is gated" in answer and "log in" not in answer


@pytest.mark.parametrize("named", ["HF_HUB_CACHE", "HF_HOME"])
def test_a_cache_that_cannot_be_written_to(
    hub: str, nothing_cached: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    file = nothing_cached / "file"
    file.touch()
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv(named, "somewhere")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(file / "hub"))
    assert str(file / "hub") in (answer := refused("acme/fill")) and answer.endswith(named)
    with pytest.raises(ValueError, match=f"{file}.*{named}"):
        access.dataset_bytes("acme/rows")
    with pytest.raises(ValueError, match=f"{file}.*--cache_dir"):
        access.check_models("acme/fill", TINY, cache_dir=str(file / "mine"))
    assert str(file / "hub") in why_not_loaded("acme/lora", NotADirectoryError(20, "Not a directory", str(file)))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(nothing_cached / "not yet" / "there"))
    assert "written" not in why_not_loaded("acme/lora", OSError("no network"))


def test_a_repository_that_is_not_there(hub: str) -> None:
    assert "acme/typo is not on the Hub" in refused("acme/typo")


def test_too_little_disk(hub: str, nothing_cached: Path) -> None:
    assert f"1000000.0 GiB more in {nothing_cached}" in refused("acme/huge")


def test_what_would_be_downloaded_is_what_training_reads(hub: str) -> None:
    assert access._bytes_to_download("acme/fill", None, "/none", access.PIPELINE_PARTS) == 10 * GIB
    assert access._bytes_to_download("acme/alpha", None, "/none", access.TRANSFORMER_PARTS) == 24 * GIB


def test_what_would_be_downloaded_of_a_dataset_is_all_of_it(hub: str, nothing_cached: Path) -> None:
    assert access.dataset_bytes("acme/rows") == 2 * GIB + 500
    for name, said in (("acme/gated", "acme/gated is gated"), ("acme/typo", "acme/typo is not on the Hub")):
        with pytest.raises(ValueError, match=said):
            access.dataset_bytes(name)


def test_a_dataset_that_was_loaded_before_needs_no_network(nothing_cached: Path) -> None:
    with pytest.raises(ValueError, match="acme/rows"):
        access.dataset_bytes("acme/rows")
    (nothing_cached / "datasets--acme--rows").mkdir()
    assert access.dataset_bytes("acme/rows") == 0


def test_offline_and_not_cached(nothing_cached: Path) -> None:
    assert f"acme/fill is not in the cache ({nothing_cached})" in refused("acme/fill")


def test_folders_need_no_network() -> None:
    access.check_models(TINY, TINY)
    access.check_models(TINY, str(TINY_FLUX_FILL / "transformer"))


@pytest.mark.parametrize("given", ["xiaozaa/catvton-flux-alpha", str(TINY_FLUX_FILL / "transformer")])
def test_a_transformer_given_as_the_pipeline_says_which_flag_it_belongs_to(given: str) -> None:
    answer = refused(given)
    assert f"--pretrained_model_name_or_path {given} " in answer and "--pretrained_inpaint_model_name_or_path" in answer


@pytest.mark.parametrize("given", ["./nowhere", "/no/where", "a/b/c"])
def test_a_folder_that_is_not_there(given: str) -> None:
    assert f"--pretrained_model_name_or_path {given}: no such folder" in refused(given)
    assert f"--pretrained_inpaint_model_name_or_path {given}: no such folder" in refused(TINY, given)


def test_a_folder_that_is_no_transformer(tmp_path: Path) -> None:
    for folder in (tmp_path, TINY_FLUX_FILL / "vae"):
        answer = refused(TINY, str(folder))
        assert str(folder) in answer and "FluxTransformer2DModel" in answer


def test_an_output_directory_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    access.check_writable(tmp_path / "new" / "deep")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match=r"--output_dir .*file/below cannot be written to"):
        access.check_writable(tmp_path / "file" / "below")
