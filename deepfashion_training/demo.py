"""Try-on on a web page: choose a person and a garment, paint the mask, see base and LoRA side by side.

    python -m deepfashion_training.demo [--lora DIR] [--port 7860] [--embedded]

The page is served to this machine alone unless --host says otherwise, and asks nobody else for anything. Exit codes:
1 failed, 2 wrong use, 130 stopped by Ctrl-C, which is the usual end, 143 by SIGTERM.
"""

# Nothing heavy is imported up here, so that --help answers at once.
from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepfashion_training.cli import FlagParser, number, run_command
from deepfashion_training.inference.choice import add_drawing_flags, add_model_flags, choose
from deepfashion_training.tryon import find_parser

if TYPE_CHECKING:
    from deepfashion_training.inference.choice import ModelChoice

#: Jobs that may wait; the next one is told that the queue is full.
QUEUE = 20
#: People at a time whose pages the server remembers.
SESSIONS = 200
_LOCAL = ("127.0.0.1", "localhost", "::1")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = FlagParser("demo", "Try-on on a web page: base and LoRA side by side.")
    add = parser.add_argument_group("page").add_argument
    add("--host", default="127.0.0.1", metavar="H", help="address to serve at; 0.0.0.0 is everybody (127.0.0.1)")
    add("--port", type=number(int, 1, 65535), default=7860, metavar="P", help="port to serve at (7860)")
    add("--max_upload_mb", type=number(int, 1), default=20, metavar="MB", help="largest picture to upload (20)")
    add("--parser", metavar="MODEL", help="human parser, folder or Hub id (default: mattmdjaga/segformer_b2_clothes)")
    add("--debug", action="store_true", help="show the traceback of an error")
    add_model_flags(parser)
    add_drawing_flags(parser)
    return parser


def demo(args: argparse.Namespace) -> None:
    """Load the models and serve the page until Ctrl-C. Raises ``ValueError``, one line, for what can be told before."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("needs the package gradio: pip install -r requirements-demo.txt")
    check_port(args.host, args.port)
    choice = choose(args)
    parser = find_parser(args.parser, choice)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # without this, uploads would be left behind
    with private_folder() as folder:
        serve(args, choice, parser, folder)


def check_port(host: str, port: int) -> None:
    """Raise ``ValueError`` where nothing can be served at this address."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
            probe.bind(address)
    except socket.gaierror:
        raise ValueError(f"--host {host}: no address of this name") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ValueError(f"--port {port} at {host}: {reason}; name another") from None


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for uploads and results that only this user can read, gone at the end; Gradio is told to use it.

    By default Gradio's lies in the machine's temporary folder, one for everybody, and stays.
    """
    before = os.environ.get("GRADIO_TEMP_DIR")
    if before is not None:
        Path(before).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tryon-demo-", dir=before, ignore_cleanup_errors=True) as name:
        os.environ["GRADIO_TEMP_DIR"] = name
        try:
            yield Path(name).resolve()
        finally:
            os.environ.pop("GRADIO_TEMP_DIR")
            if before is not None:
                os.environ["GRADIO_TEMP_DIR"] = before


def page_lines(choice: ModelChoice, args: argparse.Namespace) -> list[str]:
    """What the page says of its models. Folders of the server go by their last name."""
    from deepfashion_training.inference.page_jobs import plain_name
    from deepfashion_training.models.fill import is_embedded

    models = f"Base {plain_name(choice.recipe.transformer)}"
    if choice.lora is not None:
        models += f", LoRA {plain_name(args.lora)}: both draw from the same noise"
    lines = [f"{models}. Drawn at {choice.recipe.width}x{choice.recipe.height}, shown in the photo's own size."]
    if is_embedded(choice.recipe.transformer):
        known = "tops alone" if choice.lora is None else "tops, and what the LoRA has taught it"
        lines.append(f"This small model knows drawn people and {known}; it draws best in 1 step.")
    if choice.recipe.use_captions:
        lines.append("The LoRA was trained with captions: here it draws without one.")
    return lines


def serve(args: argparse.Namespace, choice: ModelChoice, parser: str, folder: Path) -> None:
    """Load the models and answer requests until the process is interrupted."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    # The server asks itself whether it is up, which must not go through a proxy.
    os.environ["NO_PROXY"] = ",".join(filter(None, [os.environ.get("NO_PROXY"), *_LOCAL]))
    from starlette.middleware import Middleware

    from deepfashion_training.inference.page_examples import draw_examples
    from deepfashion_training.inference.page_guard import Guard
    from deepfashion_training.inference.page_jobs import Studio
    from deepfashion_training.inference.page_layout import Page, build, css, theme
    from deepfashion_training.models.human_parser import load_human_parser

    for line in choice.notes:
        sys.stderr.write(f"note      {line}\n")
    people, garments = draw_examples(folder / "examples")
    model = choice.load([choice.recipe.prompt_of()])
    page = Page(Studio(choice, model, load_human_parser(parser), folder / "results"), folder, people, garments)
    blocks = build(page, choice.recipe.num_inference_steps, args.seed, page_lines(choice, args), args.max_upload_mb)
    blocks.queue(max_size=QUEUE, default_concurrency_limit=1, api_open=False)
    launched: dict[str, Any] = {
        "server_name": args.host,
        "server_port": args.port,
        "share": False,
        "quiet": True,
        "prevent_thread_lock": True,
        "footer_links": [],
        "run_history": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "enable_monitoring": False,
        "max_file_size": args.max_upload_mb * 2**20,
        "state_session_capacity": SESSIONS,
        "app_kwargs": {"middleware": [Middleware(Guard, folder=folder)]},
        "theme": theme(),
        "css": css(),
    }
    blocks.launch(**launched)
    try:
        if args.host not in _LOCAL:
            sys.stderr.write(f"warning   --host {args.host}: anybody who reaches port {args.port} can use this GPU\n")
        shown = "127.0.0.1" if args.host == "0.0.0.0" else args.host
        sys.stdout.write(f"http://{f'[{shown}]' if ':' in shown else shown}:{args.port} (Ctrl-C ends)\n")
        sys.stdout.flush()
        threading.Event().wait()
    finally:
        blocks.close(verbose=False)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    args = build_parser().parse_args(argv)
    return run_command("demo", lambda: demo(args), debug=args.debug, stopped="the page is closed")


if __name__ == "__main__":
    sys.exit(main())
