"""Serve a folder of results on loopback until the user stops it."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from pathlib import Path

from pneumoscope.errors import InputError
from pneumoscope.viewer.contents import find_results
from pneumoscope.viewer.guard import RequestGuard

LOOPBACK = "127.0.0.1"

BACKLOG = 256
"""Connections that wait to be accepted, and that are accepted at a time."""


def serve(root: str | Path, *, port: int = 0, ready: Callable[[str], None]) -> None:
    """Serve until interrupted.

    Args:
        root: a case folder, a folder of cases, or a study folder.
        port: 0 takes a free one.
        ready: called with the address, which works once, when the server is about to answer.

    Raises:
        InputError: nothing to show, or the port is taken.
    """
    import uvicorn

    from pneumoscope.viewer.app import make_app
    from pneumoscope.viewer.connection import BoundedProtocol

    folder = Path(root)
    find_results(folder)
    listener = _listen(port)
    taken = listener.getsockname()[1]
    guard = RequestGuard((f"{LOOPBACK}:{taken}", f"localhost:{taken}"), f"pneumoscope-{taken}")
    config = uvicorn.Config(
        make_app(folder, guard), http=BoundedProtocol, backlog=BACKLOG, timeout_graceful_shutdown=3,
        log_config=None, access_log=False, server_header=False, lifespan="off",
    )  # fmt: skip
    for name in ("uvicorn", "asyncio"):  # a line on a stderr that nobody reads would hold every page
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False
    ready(f"http://{LOOPBACK}:{taken}/?token={guard.token}")
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        listener.close()


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOOPBACK, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise InputError(
            f"port {port} cannot be used ({error.strerror}); leave --port out to take a free one"
        ) from None
    return listener
