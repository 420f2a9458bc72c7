from __future__ import annotations

import signal
import socket
import subprocess
import sys
import urllib.request

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


@pytest.mark.parametrize(
    ("package", "use"),
    [
        ("fastapi", "import groundup.serve.app"),
        ("sqlalchemy", "import groundup.serve.feedback"),
        ("uvicorn", "from groundup.serve.server import run_server; run_server(None, port=0)"),
    ],
)
def test_a_missing_package_names_the_extra(package: str, use: str) -> None:
    """Bug: ModuleNotFoundError, which says nothing of the extra `serve`."""
    program = f"""
import sys
sys.modules["{package}"] = None
from groundup.errors import UserError
try:
    {use}
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert f'"{package}"' in done.stdout and 'pip install -e ".[serve]"' in done.stdout


def test_it_serves_says_where_and_ends_on_ctrl_c() -> None:
    """Bug: a `ready` that comes before connections are taken; Ctrl-C that ends in a stack trace or not at all."""
    program = """
from fastapi import FastAPI
from groundup.serve.server import run_server
app = FastAPI()
app.get("/health")(lambda: {"status": "ok"})
run_server(app, port=0, ready=lambda url: print(url, flush=True))
print("ended")
"""
    server = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        with urllib.request.urlopen(f"{url}/health", timeout=20) as response:
            assert response.status == 200
        server.send_signal(signal.SIGINT)
        out, err = server.communicate(timeout=20)
        assert (out.strip(), server.returncode) == ("ended", 0), err
        assert "Traceback" not in err
    finally:
        server.kill()
        server.wait()
