"""The command `demo` without a browser: wrong use, addresses, and what it asks of the server."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from deepfashion_training import demo


def test_without_gradio(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    assert demo.main(["--embedded"]) == 1
    assert "pip install -r requirements-demo.txt" in capsys.readouterr().err


def test_an_address_that_cannot_be_served_at(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio")
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert demo.main(["--embedded", "--port", str(port)]) == 1
        assert f"--port {port}: address already in use" in capsys.readouterr().err
    assert demo.main(["--embedded", "--host", "256.1.1.1"]) == 1
    assert "--host 256.1.1.1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ports", "1"], "did you mean --port?"),
        (["--port", "0"], "0 is not from 1 to 65535"),
        (["--max_upload_mb", "0"], "0 is not at least 1"),
        (["--share"], "unknown argument --share"),
    ],
)
def test_wrong_use(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(flags) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_uploads_lie_in_a_private_folder_that_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(demo, "check_port", lambda host, port: None)
    seen: list[Path] = []

    def serve(args: object, choice: object, parser: object, folder: Path) -> None:
        assert folder.parent == tmp_path and folder.stat().st_mode & 0o777 == 0o700
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
        (folder / "upload").touch()
        seen.append(folder)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(demo, "serve", serve)
    assert demo.main(["--embedded"]) == 143
    assert len(seen) == 1 and not seen[0].exists()


def test_the_server_is_told_its_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    from deepfashion_training.inference import tryon_page
    from deepfashion_training.models import human_parser

    asked: dict[str, Any] = {}

    class Blocks:
        def queue(self, **how: Any) -> None:
            asked.update(how)

        def launch(self, **how: Any) -> tuple[None, str, None]:
            asked.update(how)
            return None, "http://127.0.0.1:7/", None

        def close(self, **how: Any) -> None:
            asked["closed"] = True

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    choice = argparse.Namespace(notes=(), recipe=argparse.Namespace(prompt_of=str), load=lambda prompts: None)
    monkeypatch.setattr(tryon_page, "build", lambda page, *_: asked.update(crop=page.crop) or Blocks())
    monkeypatch.setattr(human_parser, "load_human_parser", lambda name: None)
    monkeypatch.setattr(demo.threading.Event, "wait", stop)
    args = demo.build_parser().parse_args("--embedded --max_upload_mb 7 --port 7 --no-crop".split())
    with pytest.raises(KeyboardInterrupt):
        demo.serve(args, choice, "", tmp_path)  # type: ignore[arg-type]
    assert asked["max_file_size"] == 7 * 2**20 and asked["max_size"] == 20 and asked["server_name"] == "127.0.0.1"
    assert not asked.get("share") and asked["closed"] and asked["crop"] is False
