"""A connection of the viewer with a time limit: what never asks, or asks by halves, is closed."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_S = 5.0
"""A connection without a whole request for so long is closed."""

MAX_CONNECTIONS = 128
"""With more, connections that wait for a request are closed at once; far below the usual limit of 1024 open files."""


class BoundedProtocol(H11Protocol):
    """uvicorn's protocol, which by itself waits for ever for the first request of a connection."""

    _check: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Watch the connection; where there are too many, close the idle ones."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            for other in [*self.connections]:
                if other is not self and isinstance(other, BoundedProtocol) and other._is_idle:
                    other.transport.abort()
        self._check = self.loop.call_later(REQUEST_S, self._close_if_idle)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop watching."""
        if self._check is not None:
            self._check.cancel()
        super().connection_lost(exc)

    def _close_if_idle(self) -> None:
        if self._is_idle:
            self.transport.close()
        else:
            self._check = self.loop.call_later(REQUEST_S, self._close_if_idle)

    @property
    def _is_idle(self) -> bool:
        """Whether no answer is under way."""
        return self.cycle is None or self.cycle.response_complete
