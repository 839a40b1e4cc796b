"""The service under clients that hold connections and send without end."""

import http.client
import resource
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, closing, contextmanager

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from tests.hardening.service import HEADER_SECONDS

HALF = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: "


def free_port():
    with closing(socket.socket()) as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def health(port, timeout=HEADER_SECONDS / 2):
    """The status of `/health`, sooner than half-sent headers time out, but with room for a busy machine."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    with closing(connection):
        connection.request("GET", "/health")
        return connection.getresponse().status


def answers(port):
    try:
        return health(port) == 200
    except OSError:
        return False


def send_until_refused(connection, piece, most):
    """Bytes that the other side took before it ended the connection; at most `most`."""
    sent = 0
    try:
        while sent < most:
            connection.sendall(piece)
            sent += len(piece)
    except ConnectionError:
        pass
    return sent


@contextmanager
def service(files, log):
    """The port of a service that may open so many files; its log must hold no traceback."""
    port = free_port()
    with open(log, "w") as output:
        command = [sys.executable, "-m", "tests.hardening.service", str(port), str(files)]
        process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            end = time.monotonic() + 300  # a busy machine takes long to start a process
            while not answers(port):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.1)
            yield port
        finally:
            process.terminate()
            process.wait()
    assert "Traceback" not in log.read_text()


def connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def is_closed(connection):
    """Whether the other side has ended a connection."""
    connection.setblocking(False)
    try:
        while connection.recv(4096):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        return True
    return True


@pytest.fixture(scope="module")
def more_files():
    """Lets this process open what the clients need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1500:
        pytest.skip(f"a thousand clients need 1,500 open files, {hard} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1500), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(("files", "clients"), [(256, 300), (1024, 1000)])
def test_half_sent_headers_do_not_silence_it(files, clients, more_files, tmp_path):
    with service(files, tmp_path / "log") as port, ExitStack() as stack:
        connections = []
        for _ in range(clients):
            connections.append(stack.enter_context(closing(connect(port))))
            connections[-1].sendall(HALF)
        assert health(port) == 200
        deadline = time.monotonic() + 4 * HEADER_SECONDS
        while not all(map(is_closed, connections)) and time.monotonic() < deadline:
            time.sleep(0.2)
            for connection in connections[-50:]:
                try:
                    connection.send(b"x")  # a byte now and then holds no connection open
                except OSError:
                    pass
        assert all(map(is_closed, connections))
        assert health(port) == 200


def test_a_body_without_end_is_not_taken(more_files, tmp_path):
    with service(256, tmp_path / "log") as port:
        for head, status in (
            (b"POST /predict?name=a.npy HTTP/1.1", b"413"),
            (b"POST /predict?name=a.exe HTTP/1.1", b"422"),
            (b"GET /health HTTP/1.1", b"200"),
        ):
            with closing(connect(port)) as connection:
                connection.sendall(head + b"\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
                piece = b"10000\r\n" + bytes(0x10000) + b"\r\n"
                assert send_until_refused(connection, piece, 300 << 20) < 32 << 20  # buffers of the system hold some
                assert connection.recv(4096).startswith(b"HTTP/1.1 " + status)
        assert health(port) == 200


def test_clients_that_leave_early_flood_no_log(more_files, tmp_path):
    with service(256, tmp_path / "log") as port:
        for content in (
            b"POST /predict?name=a.npy HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\nabc",
            b"POST /predict?name=a.npy HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"\x16\x03\x01",
        ):
            for _ in range(10):
                with closing(connect(port)) as connection:
                    connection.sendall(content)
        assert health(port) == 200
