"""Try-on on a web page: choose a person and a garment, paint the mask, see base and LoRA side by side.

    python -m deepfashion_training.demo [--lora DIR] [--port 7860] [--embedded]

The page is served to this machine alone unless --host says otherwise, and asks nobody else for anything. Exit codes:
1 failed, 2 wrong use, 130 stopped by Ctrl-C, which is the usual end, 143 by SIGTERM or SIGHUP.
"""

# Nothing heavy is imported up here, so that --help answers at once.
from __future__ import annotations

import argparse
import importlib.util
import os
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepfashion_training.cli import FlagParser, number, quiet_libraries, run_command
from deepfashion_training.inference.choice import (
    add_crop_flag,
    add_drawing_flags,
    add_model_flags,
    add_parser_flag,
    choose,
    choose_parser,
)

if TYPE_CHECKING:
    from deepfashion_training.inference.choice import ModelChoice

#: Jobs that may wait; the next one is refused with the message that the queue is full.
QUEUE_SIZE = 20
_LOCAL = ("127.0.0.1", "localhost", "::1")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = FlagParser("demo", "Try-on on a web page: base and LoRA side by side.")
    group = parser.add_argument_group("page")
    add = group.add_argument
    add("--host", default="127.0.0.1", metavar="H", help="address to serve at; 0.0.0.0 is everybody")
    add("--port", type=number(int, 1, 65535), default=7860, metavar="P", help="port to serve at")
    add("--max_upload_mb", type=number(int, 1), default=20, metavar="MB", help="largest picture to upload")
    add_crop_flag(group)
    add_parser_flag(group)
    add_model_flags(parser)
    add_drawing_flags(parser)
    return parser


def demo(args: argparse.Namespace) -> None:
    """Load the models and serve the page until Ctrl-C. Raises ``ValueError``, one line, before that where it can."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("needs the package gradio: pip install -r requirements-demo.txt")
    check_port(args.host, args.port)
    quiet_libraries()
    choice = choose(args)
    parser = choose_parser(args.parser, choice)
    # Gradio's own folder is one for everybody on the machine, and stays.
    parent = Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tryon-demo-", dir=parent, ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        serve(args, choice, parser, Path(folder).resolve())


def check_port(host: str, port: int) -> None:
    """Raise ``ValueError`` where nothing can be served at this address."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise ValueError(
            f"--host {host} --port {port}: {(error.strerror or str(error)).lower()}; name another"
        ) from None


def serve(args: argparse.Namespace, choice: ModelChoice, parser: str, folder: Path) -> None:
    """Load the models and answer requests until the process is interrupted."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    # The server asks itself whether it is up, which must not go through a proxy.
    os.environ["NO_PROXY"] = ",".join(filter(None, [os.environ.get("NO_PROXY"), *_LOCAL]))
    import gradio as gr

    from deepfashion_training.inference import tryon_page
    from deepfashion_training.models.human_parser import load_human_parser

    for note in choice.notes:
        sys.stderr.write(f"note      {note}\n")
    model = choice.load([choice.recipe.prompt_of()])
    page = tryon_page.TryOnPage(choice, model, load_human_parser(parser), folder / "results", crop=args.crop)
    blocks = tryon_page.build(page, folder / "examples", args.seed, args.max_upload_mb)
    blocks.queue(max_size=QUEUE_SIZE, api_open=False)
    fonts: dict[str, Any] = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}  # none is downloaded
    _, url, _ = blocks.launch(
        server_name=args.host,
        server_port=args.port,
        quiet=True,
        show_error=True,
        prevent_thread_lock=True,
        footer_links=[],
        ssr_mode=False,
        max_file_size=args.max_upload_mb * 2**20,
        theme=gr.themes.Default(primary_hue=gr.themes.colors.pink, **fonts),
        css_paths=Path(tryon_page.__file__).with_suffix(".css"),
    )
    try:
        if args.host not in _LOCAL:
            sys.stderr.write(f"warning   --host {args.host}: anybody who reaches port {args.port} can use this GPU\n")
        sys.stdout.write(f"{url} (Ctrl-C ends)\n")
        sys.stdout.flush()
        threading.Event().wait()
    finally:
        blocks.close(verbose=False)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command("demo", argv, lambda words: demo(build_parser().parse_args(words)), "the page is closed")


if __name__ == "__main__":
    sys.exit(main())
