"""The smallest services: ``GET /<number>`` is one inference of a real model, over ASGI and over WSGI."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from support.ledger import connect, infer
from support.mlp import seeded

connect()
MODEL = seeded()


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                infer(-1, MODEL)
                return
    body = str(infer(int(scope["path"][1:]), MODEL)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [str(infer(int(environ["PATH_INFO"][1:]), MODEL)).encode()]
