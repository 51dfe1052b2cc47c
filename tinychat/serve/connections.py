"""What one connection may cost: uvicorn bounds neither the time of a request's headers nor that of a client that does
not read what it asked for, nor how many connections there are."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tinychat.serve.requests import ApiError

PATIENCE = 15.0  # seconds between two looks at a connection
MOST = 500  # connections at once; beyond, the one without a request for the longest time is ended


def configuration(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Connection,
        log_level="critical",
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=3,
        server_header=False,
    )


class Connection(H11Protocol):
    """Ended where a client sends no whole request, or takes nothing of its answer, from one look to the next. How long
    a body may take to come, and an answer to be made, is the application's."""

    _since = 0.0  # when the last answer ended
    _idle: float | None = None  # _since at the last look, if there was nothing to do
    _left = 0  # bytes that wait for the client at the last look
    _taken = False  # what was too much for now has been taken since then
    _next: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since = self.loop.time()
        self._next = self.loop.call_later(PATIENCE, self._look)
        if len(self.connections) > MOST:
            idle = (one for one in self.connections if isinstance(one, Connection) and not one.busy)
            longest = min(idle, key=lambda one: one._since, default=self)
            self.connections.discard(longest)  # which its end, some moments later, does too
            longest.transport.abort()

    @property
    def busy(self) -> bool:
        """Whether the application is at a request of it."""
        return self.cycle is not None and not self.cycle.response_complete and not self.transport.is_closing()

    def _look(self) -> None:
        left = self.transport.get_write_buffer_size()
        ended = self.flow.write_paused or not self.busy  # nothing is added, so that it can only become less
        stuck = ended and 0 < self._left <= left and not self._taken
        idle = None if left or self.busy else self._since
        if stuck or (idle is not None and idle == self._idle):
            self.transport.abort()
            return
        self._left, self._taken, self._idle = left, False, idle
        self._next = self.loop.call_later(PATIENCE, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._next is not None:
            self._next.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()

    def resume_writing(self) -> None:
        self._taken = True
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """To what is no HTTP, in the API's format."""
        body = json.dumps(ApiError(f"{msg.rstrip('.')}: this server speaks HTTP/1.1").body()).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        try:
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:  # in the middle of another answer
            pass
        self.transport.close()
