"""Who may talk to the app: middleware that stands before every page, file and socket. Plain ASGI, no dependency.

| asked | answered |
|---|---|
| a connection that came in on another address than loopback, with neither token nor login set up | 403 |
| a Host that is not this app's: another site's name that was made to point here (DNS rebinding) | 421 |
| an Origin that is not the Host: a page of another site, or a file | 403 |
| no token, where ESPALIER_TOKEN is set | 401 and a form for it; sockets are closed before they open |

The token is given once (the form, `?token=` in the address, or `Authorization: Bearer`) and kept in an HttpOnly cookie
as a value made from it, so that the cookie does not tell the token. Comparisons take the same time for every wrong one.
"""

import hashlib
import hmac
import ipaddress
import os
import re
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from core.errors import InputError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

SHORTEST_TOKEN = 16
_COOKIE_DAYS = 30
_FORM_BYTES = 4096
_TRIES, _TRIES_S = 20, 60.0
_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_AUTHORITY = re.compile(r"([a-zA-Z0-9._-]{1,253}|\[[0-9a-fA-F:.]{2,45}\])(?::(\d{1,5}))?")
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"content-security-policy", b"frame-ancestors 'self'"),
)
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Espalier</title><style>
:root { color-scheme: light dark; } body { font: 15px/1.5 system-ui, sans-serif; margin: 0; display: grid;
place-items: center; min-height: 100vh; background: light-dark(#FAF8F4, #14181A); color: light-dark(#1F2933, #E8E6E1); }
form { max-width: 22rem; padding: 2rem; } h1 { font-size: 1.4rem; margin: 0 0 .3rem; font-weight: 600; }
p { margin: 0 0 1rem; color: light-dark(#6B7280, #9AA3A8); } p[role] { color: inherit; font-weight: 600; }
input, button { font: inherit; box-sizing: border-box; width: 100%; padding: .5rem .7rem; border-radius: 4px;
border: 1px solid light-dark(#DDD6C8, #343D42); background: light-dark(#F1EDE4, #1D2326); color: inherit; }
button { margin-top: .6rem; background: light-dark(#2F6B57, #7FB69A); color: light-dark(#FAF8F4, #14181A);
border: 0; cursor: pointer; font-weight: 600; }</style>
<form method="post"><h1>Espalier</h1><p>This workbench asks for its token: the value of ESPALIER_TOKEN where it was
started.</p>SAID<input type="password" name="token" aria-label="Token" autofocus required
autocomplete="current-password"><button>Open Espalier</button></form></html>"""


@dataclass(frozen=True)
class Rules:
    """What the guard goes by. `hosts`: names that the app is reached under, besides this machine's own."""

    token: str = field(default="", repr=False)
    users: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()

    @classmethod
    def from_environment(cls) -> "Rules":
        """ESPALIER_TOKEN, ESPALIER_USERS and ESPALIER_HOSTS. InputError for a token that is too short to be one."""
        token = os.environ.get("ESPALIER_TOKEN", "").strip()
        if token and len(token) < SHORTEST_TOKEN:
            raise InputError(
                f"ESPALIER_TOKEN has {len(token)} characters.",
                f"Take at least {SHORTEST_TOKEN}: python -c 'import secrets; print(secrets.token_urlsafe())'.",
            )
        return cls(token, _words("ESPALIER_USERS"), _words("ESPALIER_HOSTS"))

    @property
    def guarded(self) -> bool:
        """Whether somebody unknown is kept out, so that other machines may reach the app."""
        return bool(self.token or self.users)

    def admits(self, email: object, verified: object = None) -> bool:
        """Whether a person who logged in under this address may enter; `*` stands for all, `@x.org` for a domain."""
        if not isinstance(email, str) or verified in (False, "false"):
            return False
        address = email.strip().lower()
        local, _, domain = address.rpartition("@")
        return bool(local) and bool({"*", address, f"@{domain}"} & self.users)


def _words(variable: str) -> frozenset[str]:
    return frozenset(word.strip().lower() for word in os.environ.get(variable, "").split(",") if word.strip())


def require_safe_address(address: str | None, rules: Rules, *, login_ready: bool) -> None:
    """InputError if the app is about to listen beyond loopback with nobody asked who they are. None: everywhere."""
    if rules.users and not login_ready:
        raise InputError(
            "ESPALIER_USERS is set, but no login is configured.",
            "Write [auth] into .streamlit/secrets.toml and install Authlib (docs/running.md).",
        )
    if not rules.guarded and not is_loopback(address or "0.0.0.0"):
        raise InputError(
            f"Espalier would listen on {address or 'every address'}, where other machines reach it.",
            "Set ESPALIER_TOKEN, or a login (docs/running.md); or keep to 127.0.0.1 and use an SSH tunnel.",
        )


def is_loopback(host: str) -> bool:
    """Whether an address or name leads to this machine and is reached from nowhere else."""
    if host == "localhost":
        return True
    found = _ip(host)
    return found is not None and found.is_loopback


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


class Guard:
    """The middleware. Every connection that does not pass ends here."""

    def __init__(self, app: App, rules: Rules) -> None:
        self.app, self.rules = app, rules
        self._names = {"localhost", *rules.hosts}
        if rules.guarded:
            own = socket.gethostname().lower()
            self._names |= {own, own.partition(".")[0], f"{own.partition('.')[0]}.local"}
        key = rules.token.encode()
        self._cookie = "espalier_" + hmac.new(key, b"the cookie's name", hashlib.sha256).hexdigest()[:8]
        self._mark = hmac.new(key, b"the cookie's value", hashlib.sha256).hexdigest()
        self._wrong: deque[float] = deque(maxlen=_TRIES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        refused = self._refusal(scope)
        if refused is not None:
            await _refuse(scope, send, *refused)
        elif not self.rules.token or self._is_known(scope):
            await self.app(scope, receive, _hardened(send) if scope["type"] == "http" else send)
        elif scope["type"] == "websocket":
            await _refuse(scope, send, 401, "")
        else:
            await self._ask(scope, receive, send)

    # --- where from

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        local = (scope.get("server") or (None,))[0]
        if not self.rules.guarded and (local is None or not is_loopback(local)):
            return 403, "This Espalier is for its own machine: set ESPALIER_TOKEN where it starts (docs/running.md)."
        hosts = _all(scope, b"host")
        host = _host_port(hosts[0], _scheme(scope)) if len(hosts) == 1 else None
        if host is None or not self._is_ours(host[0]):
            return 421, "This is not the name of this Espalier: add it to ESPALIER_HOSTS where it is started."
        for origin in _all(scope, b"origin"):
            if _origin(origin) != host and _origin(origin, forced=_scheme(scope)) != host:
                return 403, "Pages of other sites may not use this Espalier."
        return None

    def _is_ours(self, host: str) -> bool:
        """A name of this app. Addresses cannot be made to point elsewhere; beyond loopback they need the token."""
        address = _ip(host)
        if address is None:
            return host in self._names
        return address.is_loopback or self.rules.guarded

    # --- who

    def _is_known(self, scope: Scope) -> bool:
        for line in _all(scope, b"cookie"):
            jar = SimpleCookie()
            try:
                jar.load(line)
            except CookieError:
                continue
            if self._cookie in jar and _same(jar[self._cookie].value, self._mark):
                return True
        bearers = (line.removeprefix("Bearer ") for line in _all(scope, b"authorization") if line.startswith("Bearer "))
        return any(self._is_token(given.strip()) for given in bearers)

    def _is_token(self, given: str) -> bool:
        """Whether it is the token; after many wrong ones within a minute none is."""
        now = time.monotonic()
        if len(self._wrong) == _TRIES and now - self._wrong[0] < _TRIES_S:
            return False
        if _same(given, self.rules.token):
            return True
        self._wrong.append(now)
        return False

    async def _ask(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in query if name == "token"]
        if scope["method"] == "POST":
            given = await _form_token(receive)
        if any(self._is_token(one) for one in given):
            rest = urlencode([(name, value) for name, value in query if name != "token"])
            place = "/" + quote(scope["path"].lstrip("/\\")) + (f"?{rest}" if rest else "")
            cookie = f"{self._cookie}={self._mark}; Path=/; Max-Age={_COOKIE_DAYS * 86400}; HttpOnly; SameSite=Lax"
            if _scheme(scope) == "https":
                cookie += "; Secure"
            await _answer(send, 303, b"", (b"location", place.encode()), (b"set-cookie", cookie.encode()))
        elif any("text/html" in line for line in _all(scope, b"accept")):
            said = '<p role="alert">That is not the token.</p>' if given else ""
            policy = b"default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
            await _answer(
                send, 401, _PAGE.replace("SAID", said).encode(),
                (b"content-type", b"text/html; charset=utf-8"), (b"content-security-policy", policy),
            )  # fmt: skip
        else:
            await _refuse(scope, send, 401, "This Espalier asks for its token (Authorization: Bearer).")


def _same(given: str, wanted: str) -> bool:
    """Equality in a time that tells nothing, not even the length."""
    one, other = (hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in (given, wanted))
    return hmac.compare_digest(one, other)


def _all(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == name]


def _scheme(scope: Scope) -> str:
    """http or https, as the visitor sees it: a proxy in front says so."""
    said = [line.split(",")[0].strip().lower() for line in _all(scope, b"x-forwarded-proto")]
    seen = said[0] if said else scope.get("scheme", "http")
    return "https" if seen in ("https", "wss") else "http"


def _host_port(text: str, scheme: str) -> tuple[str, int] | None:
    """Host and port of an authority; None for anything that is more, or less, than one."""
    found = _AUTHORITY.fullmatch(text)
    if found is None:
        return None
    port = int(found[2]) if found[2] else _PORTS.get(scheme, 0)
    return (found[1].lower().rstrip("."), port) if port < 65_536 else None


def _origin(text: str, forced: str = "") -> tuple[str, int] | None:
    """Host and port of an Origin; `forced` is the scheme of a proxy's visitor where the port is left out."""
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.lower() not in _PORTS:
        return None
    return _host_port(rest, forced or scheme.lower())


async def _form_token(receive: Receive) -> list[str]:
    body = b""
    while len(body) <= _FORM_BYTES:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] != "http.request" or not message.get("more_body"):
            break
    if len(body) > _FORM_BYTES:
        return []
    return [value for name, value in parse_qsl(body.decode("utf-8", "replace")) if name == "token"]


def _hardened(send: Send) -> Send:
    """Add the headers that keep other sites from framing the app and browsers from guessing types."""

    async def sent(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            there = {name.lower() for name, _ in message.get("headers", ())}
            added = [(name, value) for name, value in _HEADERS if name not in there]
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        await send(message)

    return sent


async def _refuse(scope: Scope, send: Send, status: int, why: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": why})
    else:
        await _answer(send, status, why.encode() + b"\n", (b"content-type", b"text/plain; charset=utf-8"))


async def _answer(send: Send, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    lasting: Iterable[tuple[bytes, bytes]] = [
        (b"content-length", str(len(body)).encode()), (b"cache-control", b"no-store"), *headers
    ]  # fmt: skip
    start = {"type": "http.response.start", "status": status, "headers": list(lasting)}
    await _hardened(send)(start)
    await send({"type": "http.response.body", "body": body})
