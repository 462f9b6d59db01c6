"""Between the browser and Gradio: what may come in, and where the page may send its requests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepfashion_training.inference.upload_store import inside

#: Gradio's route for uploads, which are no JSON and for which it has a limit of its own.
UPLOAD = "/gradio_api/upload"
#: Longest request that is no upload: the painted mask is the largest part of one.
MAX_BODY = 8_000_000
#: The page talks to the server that it came from, and to nobody else.
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; font-src 'self' data:; media-src 'self' data: blob:; "
    "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "worker-src 'self' blob:; connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'; form-action 'self'"
)


class Guard:
    """ASGI middleware that refuses requests naming files which were not uploaded here, and sets ``POLICY``.

    Gradio fetches a web address that stands where a file's path belongs, and reads a request of any length.
    """

    def __init__(self, app: ASGIApp, folder: Path) -> None:
        self.app = app
        self.folder = folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 413 or 400, or pass the request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        if scope["method"] != "POST" or scope["path"] == UPLOAD:
            await self.app(scope, receive, sending)
            return
        body = await _body(receive)
        if body is None:
            await PlainTextResponse("the request is too long", 413)(scope, receive, sending)
        elif not self._allowed(body):
            await PlainTextResponse("the request is no JSON, or names a file that was not uploaded here", 400)(
                scope, receive, sending
            )
        else:
            await self.app(scope, _again(body, receive), sending)

    def _allowed(self, body: bytes) -> bool:
        """Whether every file that the request names was uploaded here; what cannot be read as JSON may name any."""
        try:
            request = json.loads(body) if body else None
        except (ValueError, RecursionError):
            return False
        return all(path is None or (isinstance(path, str) and inside(path, self.folder)) for path in _paths(request))


async def _body(receive: Receive) -> bytes | None:
    parts = bytearray()
    while True:
        message = await receive()
        parts += message.get("body", b"")
        if len(parts) > MAX_BODY:
            return None
        if not message.get("more_body"):
            return bytes(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """``receive`` that gives ``body`` first."""
    given = False

    async def receiving() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receiving


def _paths(request: Any) -> Iterator[Any]:
    """Values of every key ``path`` in a request, however deep: without recursion, which has a limit."""
    rest = [request]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            if "path" in value:
                yield value["path"]
            rest.extend(value.values())
        elif isinstance(value, list):
            rest.extend(value)
