"""Whether models can be had: asked of a Hub that answers as the real one does, on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from deepfashion_training.embedded import TINY_FLUX_FILL
from deepfashion_training.models import access

ROOT = Path(__file__).resolve().parents[1]
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
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def ask(code: str, tmp_path: Path, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    clean |= {"HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1", **environment}
    command = (
        f"from deepfashion_training.models import access\ntry:\n    print({code})\nexcept ValueError as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def check(pipeline: str, transformer: str = str(TINY_FLUX_FILL)) -> str:
    return f"access.check_models({pipeline!r}, {transformer!r}, None, None)"


def test_a_licence_that_is_not_accepted(hub: str, tmp_path: Path) -> None:
    answer = ask(check("acme/gated"), tmp_path, HF_ENDPOINT=hub, HF_TOKEN="hf_canary")
    assert answer.startswith("acme/gated is gated: accept") and f"{hub}/acme/gated" in answer


def test_no_token(hub: str, tmp_path: Path) -> None:
    answer = ask(check("acme/gated"), tmp_path, HF_ENDPOINT=hub)
    assert answer.startswith("acme/gated is gated: log in with `hf auth login`")


def test_a_repository_that_is_not_there(hub: str, tmp_path: Path) -> None:
    answer = ask(check("acme/typo"), tmp_path, HF_ENDPOINT=hub, HF_TOKEN="hf_canary")
    assert answer.startswith("acme/typo is not on the Hub") and "log in" not in answer


def test_too_little_disk(hub: str, tmp_path: Path) -> None:
    answer = ask(check("acme/huge"), tmp_path, HF_ENDPOINT=hub)
    assert answer.startswith(f"the models need 1000000.0 GiB more in {tmp_path}/hub and ") and "HF_HOME" in answer


def test_what_would_be_downloaded_is_what_training_reads(hub: str, tmp_path: Path) -> None:
    pipeline = "access._bytes_to_download('acme/fill', None, '/none', access.PIPELINE_PARTS)"
    transformer = "access._bytes_to_download('acme/alpha', None, '/none', access.TRANSFORMER_PARTS)"
    assert ask(f"{pipeline}, {transformer}", tmp_path, HF_ENDPOINT=hub) == f"{10 * GIB} {24 * GIB}"


def test_offline_and_not_cached(tmp_path: Path) -> None:
    answer = ask(check("acme/fill"), tmp_path, HF_HUB_OFFLINE="1")
    assert answer.startswith(f"acme/fill is not in the cache ({tmp_path}/hub) and the Hub cannot be reached")
    assert "\n" not in answer


def test_no_server(tmp_path: Path) -> None:
    answer = ask(check("acme/fill"), tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert "the Hub cannot be reached" in answer
    assert "\n" not in answer


def test_folders_need_no_network() -> None:
    access.check_models(str(TINY_FLUX_FILL), str(TINY_FLUX_FILL), None, None)
    access.check_models(str(TINY_FLUX_FILL), str(TINY_FLUX_FILL / "transformer"), None, None)


@pytest.mark.parametrize("given", ["xiaozaa/catvton-flux-alpha", str(TINY_FLUX_FILL / "transformer")])
def test_a_transformer_given_as_the_pipeline_says_which_flag_it_belongs_to(given: str) -> None:
    with pytest.raises(ValueError, match=r"transformer only.*pass it as --pretrained_inpaint_model_name_or_path"):
        access.check_models(given, str(TINY_FLUX_FILL))


@pytest.mark.parametrize("given", ["./nowhere", "/no/where", "a/b/c"])
def test_a_folder_that_is_not_there(given: str) -> None:
    with pytest.raises(ValueError, match=r"--pretrained_model_name_or_path .*no such folder"):
        access.check_models(given, str(TINY_FLUX_FILL))
    with pytest.raises(ValueError, match=r"--pretrained_inpaint_model_name_or_path .*no such folder"):
        access.check_models(str(TINY_FLUX_FILL), given, None, None)


def test_a_folder_that_is_no_transformer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no transformer at its root or under transformer/"):
        access.check_models(str(TINY_FLUX_FILL), str(tmp_path), None, None)
    with pytest.raises(ValueError, match="holds a AutoencoderKL"):
        access.check_models(str(TINY_FLUX_FILL), str(TINY_FLUX_FILL / "vae"), None, None)


def test_an_output_directory_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    access.check_writable(tmp_path / "new" / "deep")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match=r"--output_dir .*file/below cannot be written to"):
        access.check_writable(tmp_path / "file" / "below")
