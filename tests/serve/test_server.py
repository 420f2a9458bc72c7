from __future__ import annotations

import socket

import pytest

from groundup.errors import UserError
from groundup.serve.server import bind, run_server, url_of


def test_a_port_in_use_is_said_with_the_option_to_change_it() -> None:
    """Bug: a stack trace (or two servers on one port, each taking some of the requests)."""
    held = bind("127.0.0.1", 0)
    port = held.getsockname()[1]
    with pytest.raises(UserError, match=rf"port {port} is in use.*--port"):
        bind("127.0.0.1", port)
    with pytest.raises(UserError, match=rf"port {port} is in use.*--port"):
        run_server(None, port=port)  # type: ignore[arg-type]  # it must fail before it looks at the app
    held.close()
    bind("127.0.0.1", port).close()


def test_a_port_just_left_is_free() -> None:
    """Bug: without SO_REUSEADDR a restart within a minute says "in use" of a port that nobody holds."""
    listener = bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    client = socket.create_connection(("127.0.0.1", port))
    server_side, _ = listener.accept()
    server_side.close()  # the side that closes first goes to TIME_WAIT
    client.close()
    listener.close()
    bind("127.0.0.1", port).close()


@pytest.mark.parametrize(
    ("host", "port", "said"),
    [("127.0.0.1", 70000, "--port 70000"), ("192.0.2.1", 8000, "--host"), ("no such host", 8000, "--host")],
)
def test_other_bad_addresses_name_the_option(host: str, port: int, said: str) -> None:
    """Bug: OverflowError or gaierror in the user's face."""
    with pytest.raises(UserError, match=said):
        bind(host, port)


def test_the_url_can_be_opened() -> None:
    """Bug: printing http://0.0.0.0:8000, which some browsers refuse."""
    with bind("0.0.0.0", 0) as listener:
        assert url_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
