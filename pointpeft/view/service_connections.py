"""Connections to the service: how many stay open, how long a request's header may take, and how one ends.

uvicorn waits for a header for ever, and reads on behind an answer that did not wait for the request's body. A client
that holds a thousand half-sent headers would take all of a process's open files.
"""

import asyncio
import os
from collections import OrderedDict
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_RESERVE = 32  # open files for what answers: each request has one, and a reader a few
_TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_LINGER_SECONDS = 1.0  # for a client to read its answer while its body, which is discarded, arrives
_LINGER_BYTES = 1 << 20


def connection_limits(connections: int) -> tuple[int, int]:
    """How many connections may be open, and how many may wait to be accepted, so that files are left to be opened.

    A connection that is closed for a newer one keeps its file until the event loop comes to it, and a loop accepts all
    that wait at once: up to three times as many as may wait are open beyond the limit.

    Args:
        connections: Most connections where the system allows for them.

    Raises:
        ValueError: The process may open too few files for any connection.
    """
    try:
        import resource
    except ImportError:  # a system without such a limit
        return connections, 128
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed == resource.RLIM_INFINITY:
        return connections, 128
    used = len(os.listdir("/dev/fd")) if os.path.isdir("/dev/fd") else 64
    room = allowed - used - _RESERVE
    waiting = max(1, min(128, room // 8))
    if room - 3 * waiting < 1:
        raise ValueError(
            f"the service needs at least {used + _RESERVE + 8} open files, {allowed} are allowed: ulimit -n"
        )
    return min(connections, room - 3 * waiting), waiting


def guarded(header_seconds: float, limit: int) -> type[H11Protocol]:
    """A protocol for uvicorn that bounds the time of a request's header and the number of open connections.

    At the limit the connection that has waited longest for its header is closed for a new one; where all are being
    answered, the new one is refused with 503. Behind an answer that did not wait for the whole body of its request the
    connection is closed.

    Args:
        header_seconds: From the opening of a connection, or the answer before, to the end of a header.
        limit: Open connections.
    """
    idle: OrderedDict[Any, None] = OrderedDict()  # those without a request, the oldest first
    opened: set[Any] = set()

    class Guarded(H11Protocol):
        lingering = False
        timer: asyncio.TimerHandle | None = None
        discarded = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            while len(opened) >= limit and idle:
                oldest, _ = idle.popitem(last=False)
                opened.discard(oldest)
                oldest.transport.abort()
            if len(opened) >= limit:
                transport.write(_TOO_MANY)
                transport.close()  # at once: one that lingers would keep a file open
                return
            opened.add(self)
            self.await_header()

        def connection_lost(self, exc: Exception | None) -> None:
            opened.discard(self)
            self.stop_waiting()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if not self.lingering:
                try:
                    super().data_received(data)
                except h11.LocalProtocolError:  # what is no HTTP, behind the beginning of an answer
                    self.transport.abort()
                if self.conn.their_state is not h11.IDLE:
                    self.stop_waiting()
                return
            self.discarded += len(data)
            if self.discarded > _LINGER_BYTES:
                self.transport.pause_reading()

        def on_response_complete(self) -> None:
            if self.conn.their_state is h11.SEND_BODY and not self.transport.is_closing():
                self.server_state.total_requests += 1
                self.linger()
                return
            super().on_response_complete()
            if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
                self.await_header()

        def await_header(self) -> None:
            self.stop_waiting()
            idle[self] = None
            self.timer = self.loop.call_later(header_seconds, self.end, _TOO_LATE)

        def stop_waiting(self) -> None:
            idle.pop(self, None)
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None

        def end(self, answer: bytes) -> None:
            """Says why, and closes the connection."""
            self.stop_waiting()
            if not self.transport.is_closing():
                self.transport.write(answer)
                self.linger()

        def linger(self) -> None:
            """Closes the connection once its client has had time to read the answer.

            A close with data of the client unread would be a reset, which may take the answer with it.
            """
            self.lingering = True
            self._unset_keepalive_if_required()
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self.transport.resume_reading()
            if self in opened:
                idle[self] = None  # it may be closed for a new one
            self.timer = self.loop.call_later(_LINGER_SECONDS, self.transport.abort)

    return Guarded
