"""What stands before a web server of ours: it decides from which name, from which page and by whom it may be asked.

A page in a browser can send requests to 127.0.0.1, and a name that its owner points to 127.0.0.1 makes the browser take our
server for his (DNS rebinding). So every request, the start of a websocket included, must

- be for one of the server's own names (`Host`);
- come from a page of this server, or from no page (`Origin`, `Sec-Fetch-Site`). A link elsewhere may open a page of the
  server, as it may any page, because the site that holds the link cannot read what is opened;
- bring the password, if the server behind does not ask for it itself.

It needs the standard library alone.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from dataclasses import dataclass
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEALTH = "/health"
"""The one path that needs no password. It tells that the server answers, and nothing else."""


@dataclass(frozen=True)
class Refusal:
    """An answer instead of the server's: status, one sentence, and headers."""

    status: int
    why: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True)
class Gate:
    """An ASGI application that passes on what may pass.

    `names` are the values of `Host` that the server answers to. `is_page` says which paths a link elsewhere may open.
    `credentials` are `user:password`, or None if the server behind asks for its own.
    """

    app: App
    names: Collection[str]
    is_page: Callable[[str], bool]
    credentials: str | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request or websocket."""
        refusal = self.refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self.app(scope, receive, send)
        else:
            await _refuse(refusal, scope, receive, send)

    def refusal(self, scope: Scope) -> Refusal | None:
        """Why a request is refused; None if it passes."""
        return self._name(scope) or self._page(scope) or self._password(scope)

    def _name(self, scope: Scope) -> Refusal | None:
        hosts = _values(scope, b"host")
        if len(hosts) == 1 and hosts[0].lower() in self.names:
            return None
        known = ", ".join(sorted(self.names))
        return Refusal(403, f"This server answers to {known} alone; ONWARD_SERVER_NAMES adds other names.")

    def _page(self, scope: Scope) -> Refusal | None:
        origins, sites = _values(scope, b"origin"), _values(scope, b"sec-fetch-site")
        own = all(self._own(origin) for origin in origins)
        if own and len(origins) <= 1 and all(site in ("same-origin", "none") for site in sites):
            return None
        if not origins and self._opens_page(scope):
            return None
        return Refusal(403, "This server answers no page but its own.")

    def _own(self, origin: str) -> bool:
        scheme, _, name = origin.lower().partition("://")
        return scheme in ("http", "https") and name in self.names

    def _opens_page(self, scope: Scope) -> bool:
        """Whether a link elsewhere is followed, in a tab of its own and not in a frame."""
        to_page = scope["type"] == "http" and scope["method"] == "GET" and self.is_page(scope["path"])
        how = _values(scope, b"sec-fetch-mode"), _values(scope, b"sec-fetch-dest")
        return to_page and how == (["navigate"], ["document"])

    def _password(self, scope: Scope) -> Refusal | None:
        if self.credentials is None or (scope["type"] == "http" and _asks_for_health(scope)):
            return None
        given = _values(scope, b"authorization")
        if len(given) == 1 and hmac.compare_digest(_basic(given[0]), self.credentials.encode()):
            return None
        login = (b"www-authenticate", b'Basic realm="Onward", charset="UTF-8"')
        return Refusal(401, "This server asks for the user and the password of onward status.", (login,))


def _values(scope: Scope, header: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for name, value in scope["headers"] if name.lower() == header]


def _asks_for_health(scope: Scope) -> bool:
    return scope["path"] == HEALTH and scope["method"] in ("GET", "HEAD")


def _basic(header: str) -> bytes:
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        return b""


async def _refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})  # before it is accepted: HTTP 403
        return
    body = f"{refusal.why}\n".encode()
    plain = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    headers = [*plain, *refusal.headers]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
