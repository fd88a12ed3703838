"""Who may ask: this machine, by the address that was printed, from pages of this server; everybody else gets nothing.

The address carries a token that works once and is exchanged for a cookie. The Host check stops DNS rebinding, the
Origin and Sec-Fetch-Site checks stop other pages in the same browser, and nothing but GET and HEAD is answered.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; frame-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
"""For the viewer's own pages: no script at all."""

DOCUMENT_POLICY = (
    "sandbox allow-scripts allow-downloads; default-src 'none'; "
    "script-src 'unsafe-inline' blob: data:; style-src 'unsafe-inline'; img-src data: blob:; "
    "connect-src data: blob:; worker-src blob: data:; font-src data:; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'self'"
)
"""For documents of a result folder: an origin of their own, so that a script in one can ask this server for nothing."""


class RequestGuard:
    """The token, the session, and the checks of one server."""

    def __init__(self, hosts: tuple[str, ...], cookie: str) -> None:
        self.hosts, self.cookie = hosts, cookie
        self.token = secrets.token_urlsafe(24)  # for the address; "" once it has been used
        self._session = secrets.token_urlsafe(32)

    def redeem(self, offered: str) -> bool:
        """Whether the token is right; it is gone afterwards."""
        right = bool(self.token) and hmac.compare_digest(offered.encode(), self.token.encode())
        if right:
            self.token = ""
        return right

    def refusal(self, request: Request) -> str:
        """Why a request is not answered, "" when it is."""
        if request.method not in ("GET", "HEAD"):
            return "only reading is possible here"
        if request.headers.get("host", "") not in self.hosts:
            return "unknown host name in the request"
        origin = request.headers.get("origin")
        if origin is not None and origin not in {f"http://{host}" for host in self.hosts}:
            return "the request comes from another page"
        if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return "the request comes from another page"
        return ""

    def knows(self, request: Request) -> bool:
        """Whether the request carries the session's cookie."""
        return hmac.compare_digest(request.cookies.get(self.cookie, "").encode(), self._session.encode())

    async def __call__(self, request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        """Refuse, exchange the token for the cookie, or let the request through; harden every answer."""
        from starlette.responses import PlainTextResponse, RedirectResponse

        refused = self.refusal(request)
        response: Response
        if refused:
            response = PlainTextResponse(f"refused: {refused}\n", 405 if "reading" in refused else 403)
        elif "token" in request.query_params and not self.knows(request):
            if self.redeem(request.query_params["token"]):
                response = RedirectResponse("/", 303)
                response.set_cookie(self.cookie, self._session, httponly=True, samesite="strict", path="/")
            else:
                response = PlainTextResponse("refused: this address has been used; start the viewer again\n", 403)
        elif not self.knows(request):
            response = PlainTextResponse("refused: open the address that the command printed\n", 403)
        else:
            response = await answer(request)
        response.headers.setdefault("Content-Security-Policy", PAGE_POLICY)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
        response.headers["Cache-Control"] = "no-store"
        return response


REQUEST_S = 5.0  # A connection without a whole request for so long is closed

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
