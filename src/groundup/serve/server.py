"""Run the app on a port; a port that is taken is said so before any model is asked anything."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from groundup.errors import UserError, missing_extra

if TYPE_CHECKING:
    from fastapi import FastAPI


def bind(host: str, port: int) -> socket.socket:
    """A listening socket on host:port (port 0: any free one).

    Call it before loading models, so that a taken port is told at once. Raises UserError.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port}: a port is a number from 1 to 65535")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise UserError(f"--host {host}: not an address of this machine ({error.strerror})") from error
    listener = socket.socket(family, kind, proto)
    try:
        # a server that was just stopped leaves the port in TIME_WAIT; a LISTENING one still makes bind fail
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise UserError(_why(error, host, port)) from error
    return listener


def _why(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        nearby = port + 1 if port < 65535 else port - 1
        return f"port {port} is in use on {host}: stop what runs there, or choose another with --port {nearby}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} needs administrator rights: choose one above 1023 with --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host {host}: not an address of this machine (127.0.0.1 is; 0.0.0.0 is all of them)"
    return f"cannot listen on {host}:{port}: {error.strerror}"


def url_of(listener: socket.socket) -> str:
    """The address to open in a browser."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{host}:{port}"


def run_server(
    app: FastAPI,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    listener: socket.socket | None = None,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until Ctrl-C or SIGTERM; `ready(url)` is called once connections are taken.

    `listener`: a socket from `bind`, when the port was claimed before the models were loaded.
    Raises UserError when the port is in use or uvicorn is not installed.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise missing_extra("serve", "uvicorn") from error
    listener = listener or bind(host, port)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
    try:
        if ready is not None:
            ready(url_of(listener))
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        pass  # uvicorn raises Ctrl-C again after its own clean shutdown
    finally:
        listener.close()
