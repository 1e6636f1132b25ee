"""Nobody gets past the guard: other names, other sites, other machines, wrong tokens; alone and in the real app."""

import asyncio
import http.client
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from core import guard
from core.errors import InputError
from core.guard import Guard, Rules, is_loopback, require_safe_address

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "correct horse battery staple"
HTML = ("accept", "text/html,*/*;q=0.8")


class Answer:
    """What came back from the guard, or from the app behind it."""

    def __init__(self, sent: list[dict[str, Any]], passed: bool) -> None:
        self.passed = passed
        self.sent = sent
        self.status = sent[0].get("status") if sent else None
        self.body = b"".join(message.get("body", b"") for message in sent[1:]).decode()
        self.headers = {name.decode(): value.decode() for name, value in (sent[0].get("headers", ()) if sent else ())}


def ask(
    rules: Rules | Guard,
    *headers: tuple[str, str],
    kind: str = "http",
    method: str = "GET",
    path: str = "/",
    query: str = "",
    body: bytes = b"",
    server: Any = ("127.0.0.1", 8501),
    scheme: str = "",
    host: str | None = "localhost:8501",
) -> Answer:
    sent: list[dict[str, Any]] = []
    passed = False

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal passed
        passed = True
        if kind == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"inside"})
        else:
            await send({"type": "websocket.accept"})

    made = rules if isinstance(rules, Guard) else Guard(app, rules)
    made.app = app
    named = [*headers] + ([("host", host)] if host is not None else [])
    scope = {
        "type": kind,
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "server": server,
        "scheme": scheme or ("ws" if kind == "websocket" else "http"),
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in named],
    }
    parts = [body[i : i + 1000] for i in range(0, len(body), 1000)] or [b""]

    async def receive() -> dict[str, Any]:
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(made(scope, receive, send))
    return Answer(sent, passed)


def cookie(rules: Rules) -> tuple[str, str]:
    return ("cookie", ask(rules, query=f"token={quote(rules.token)}").headers["set-cookie"].partition(";")[0])


OPEN, CLOSED = Rules(), Rules(token=TOKEN)


# --- names and origins


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:9000", "127.0.0.1:8501", "[::1]:8501", "127.8.8.8", "LOCALHOST."]
)
def test_this_machines_own_names_are_answered(host: str) -> None:
    assert ask(OPEN, host=host).passed


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "localhost@evil.example",
        "192.168.1.9",
        "localhost:99999",
        "localhost:x",
        "localhost/x",
        "localhost\\.evil.example",
        "[::1",
        "0x7f.1",
        "2130706433",
        "::",
        "[::]",
        "0.0.0.0",
        "localhost#evil.example",
        "localhost?",
        "x" * 10_000,
    ],
)
def test_a_name_that_was_made_to_point_here_is_refused(host: str | None) -> None:
    for kind in ("http", "websocket"):
        answer = ask(OPEN, host=host, kind=kind)
        assert not answer.passed
        if kind == "http":
            assert answer.status == 421


def test_two_hosts_are_none() -> None:
    assert not ask(OPEN, ("host", "localhost"), host="localhost").passed


def test_a_name_that_was_allowed_is_answered_and_its_neighbours_are_not() -> None:
    rules = Rules(token=TOKEN, hosts=frozenset({"prune.example"}))
    assert ask(rules, cookie(rules), host="prune.example").passed
    assert ask(rules, cookie(rules), host="10.0.0.5:8501").passed  # an address cannot be made to point elsewhere
    assert not ask(rules, cookie(rules), host="a.prune.example").passed


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "",
        "http://localhost:9999",
        "http://127.0.0.1:8501",
        "file://",
        "http://localhost:8501@evil.example",
        "https://localhost:8501.evil.example",
        "http://evil.example/localhost:8501",
        "javascript://localhost:8501",
    ],
)
def test_a_page_of_another_origin_reaches_neither_pages_nor_sockets(kind: str, origin: str) -> None:
    answer = ask(OPEN, ("origin", origin), kind=kind)
    assert not answer.passed
    if kind == "websocket":
        assert [message["type"] for message in answer.sent] == ["websocket.close"]


def test_two_origins_must_both_be_ours() -> None:
    assert not ask(OPEN, ("origin", "http://localhost:8501"), ("origin", "http://evil.example")).passed


@pytest.mark.parametrize(
    ("origin", "host", "more"),
    [
        ("http://localhost:8501", "localhost:8501", ()),
        ("http://localhost", "localhost", ()),
        ("http://localhost:80", "localhost", ()),
        ("https://prune.example", "prune.example", (("x-forwarded-proto", "https"),)),
        ("https://prune.example", "prune.example", ()),  # a proxy that says nothing of its scheme
        ("http://LocalHost:8501", "localhost:8501", ()),
    ],
)
def test_the_apps_own_pages_pass(origin: str, host: str, more: Any) -> None:
    rules = Rules(token=TOKEN, hosts=frozenset({"prune.example"}))
    for kind in ("http", "websocket"):
        assert ask(rules, ("origin", origin), cookie(rules), *more, host=host, kind=kind).passed


# --- other machines


@pytest.mark.parametrize(
    "server", [("0.0.0.0", 80), ("192.168.1.2", 80), ("::ffff:10.0.0.1", 80), ("2001:db8::1", 80), None]
)
def test_what_comes_in_on_another_address_is_refused_however_the_app_was_started(server: Any) -> None:
    for kind in ("http", "websocket"):
        assert not ask(OPEN, server=server, kind=kind).passed
    assert ask(CLOSED, cookie(CLOSED), server=server).passed


@pytest.mark.parametrize("server", [("127.0.0.1", 80), ("::1", 80), ("::ffff:127.0.0.1", 80)])
def test_loopback_is_answered(server: Any) -> None:
    assert ask(OPEN, server=server).passed


@pytest.mark.parametrize("address", [None, "", "0.0.0.0", "::", "192.168.1.2", "prune.example", "unix:///x"])
def test_listening_beyond_loopback_needs_a_token_or_a_login(address: str | None) -> None:
    with pytest.raises(InputError, match="ESPALIER_TOKEN"):
        require_safe_address(address, OPEN, login_ready=True)
    require_safe_address(address, CLOSED, login_ready=False)
    known = Rules(users=frozenset({"ann@x.org"}))
    require_safe_address(address, known, login_ready=True)
    with pytest.raises(InputError, match="no login is configured"):
        require_safe_address(address, known, login_ready=False)


def test_loopback_needs_neither() -> None:
    for address in ("127.0.0.1", "localhost", "::1"):
        assert is_loopback(address)
        require_safe_address(address, OPEN, login_ready=False)


# --- the token


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    "headers",
    [
        (),
        (("cookie", "espalier_00000000=x"),),
        (("cookie", "\x00;=;;"),),
        (("cookie", 'a="'),),
        (("authorization", "Bearer wrong"),),
        (("authorization", "Basic eDp4"),),
        (("authorization", "Bearer "),),
        (("authorization", f"Bearer {TOKEN}x"),),
        (("authorization", TOKEN),),
        (("cookie", f"token={TOKEN}"),),
    ],
)
def test_without_the_token_nothing_is_reached(kind: str, headers: Any) -> None:
    for path in (
        "/",
        "/_stcore/health",
        "/_stcore/stream",
        "/static/js/index.js",
        "/media/x",
        "/_stcore/upload_file/a/b",
    ):
        answer = ask(CLOSED, *headers, kind=kind, path=path)
        assert not answer.passed
        assert answer.status in (401, None)


def test_a_wrong_cookie_under_the_right_name_does_not_open() -> None:
    name, _, value = cookie(CLOSED)[1].partition("=")
    for wrong in ("", value[:-1], value + "0", value.upper(), TOKEN, "é" * 64):
        assert not ask(CLOSED, ("cookie", f"{name}={wrong}")).passed
    assert not ask(Rules(token=TOKEN + "2"), ("cookie", f"{name}={value}")).passed  # a token that was changed


def test_the_cookie_opens_pages_and_sockets_is_for_the_server_alone_and_does_not_tell_the_token() -> None:
    answer = ask(CLOSED, path="/runs", query=f"run=a%26b&token={quote(TOKEN)}&x=")
    assert (answer.status, answer.headers["location"]) == (303, "/runs?run=a%26b&x=")
    words = answer.headers["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} < set(words)
    assert "Secure" not in words
    assert TOKEN not in answer.headers["set-cookie"]
    for kind in ("http", "websocket"):
        assert ask(CLOSED, ("cookie", f"a=b; {words[0]}"), kind=kind).passed
    assert "; Secure" in ask(CLOSED, query=f"token={quote(TOKEN)}", scheme="https").headers["set-cookie"]


@pytest.mark.parametrize(
    "path", ["//evil.example", "/\\evil.example", "/%2f%2fevil.example", "/\r\nset-cookie: a=b", "/ä"]
)
def test_the_way_back_stays_in_this_app(path: str) -> None:
    place = ask(CLOSED, path=path, query=f"token={quote(TOKEN)}").headers["location"]
    assert place.startswith("/")
    assert not place.startswith(("//", "/\\"))
    assert not any(sign in place for sign in "\r\n")


def test_the_form_asks_for_it_and_takes_it() -> None:
    shown = ask(CLOSED, HTML, path="/<script>", query="x=<script>")
    assert (shown.status, shown.passed) == (401, False)
    assert 'type="password"' in shown.body
    assert "<script" not in shown.body
    assert shown.headers["content-security-policy"].startswith("default-src 'none'")
    wrong = ask(CLOSED, HTML, method="POST", body=b"token=wrong")
    assert "That is not the token" in wrong.body
    right = ask(CLOSED, HTML, method="POST", path="/chat", body=f"a=b&token={quote(TOKEN)}".encode())
    assert (right.status, right.headers["location"]) == (303, "/chat")
    assert ask(CLOSED, ("authorization", f"Bearer {TOKEN}")).passed


def test_a_form_without_end_is_not_read_to_its_end() -> None:
    answer = ask(CLOSED, HTML, method="POST", body=b"x" * 9000 + f"&token={quote(TOKEN)}".encode())
    assert answer.status == 401


def test_a_form_of_another_site_is_refused_even_with_the_token() -> None:
    body = f"token={quote(TOKEN)}".encode()
    assert ask(CLOSED, ("origin", "http://evil.example"), method="POST", body=body).status == 403


def test_guessing_is_slow_and_does_not_lock_out_those_who_are_in(monkeypatch: pytest.MonkeyPatch) -> None:
    known = cookie(CLOSED)
    one = Guard(None, CLOSED)  # type: ignore[arg-type]
    for _ in range(guard._TRIES):
        ask(one, method="POST", body=b"token=wrong")
    assert ask(one, query=f"token={quote(TOKEN)}").status == 401
    assert ask(one, known).passed
    later = time.monotonic() + guard._TRIES_S + 1
    monkeypatch.setattr(guard.time, "monotonic", lambda: later)
    assert ask(one, query=f"token={quote(TOKEN)}").status == 303


def test_comparing_goes_over_the_whole_value(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    monkeypatch.setattr(guard.hmac, "compare_digest", lambda one, other: compared.append((one, other)) or one == other)
    assert not ask(CLOSED, ("authorization", "Bearer \ud7ff?".encode().decode("latin-1"))).passed
    assert compared
    assert all(len(one) == len(other) == 32 for one, other in compared)


def test_a_token_too_short_to_be_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPALIER_TOKEN", "hunter2")
    with pytest.raises(InputError, match="7 characters"):
        Rules.from_environment()
    monkeypatch.setenv("ESPALIER_TOKEN", f" {TOKEN} ")
    monkeypatch.setenv("ESPALIER_USERS", "Ann@X.org, @y.org,,")
    monkeypatch.setenv("ESPALIER_HOSTS", "Prune.X.org")
    assert Rules.from_environment() == Rules(TOKEN, frozenset({"ann@x.org", "@y.org"}), frozenset({"prune.x.org"}))
    assert TOKEN not in repr(Rules.from_environment())


def test_workers_do_not_inherit_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    from core.settings import child_environment

    monkeypatch.setenv("ESPALIER_TOKEN", TOKEN)
    assert TOKEN not in child_environment().values()
    assert child_environment()["PATH"] == os.environ["PATH"]


def test_every_answer_forbids_frames_of_other_sites() -> None:
    for answer in (ask(OPEN), ask(CLOSED), ask(OPEN, host="evil.example")):
        assert answer.headers["content-security-policy"] == "frame-ancestors 'self'"
        assert answer.headers["x-content-type-options"] == "nosniff"


# --- login


def test_the_list_of_people_names_persons_domains_or_everybody() -> None:
    some = Rules(users=frozenset({"ann@x.org", "@y.org"}))
    assert some.admits("Ann@x.org")
    assert some.admits("bob@y.org", True)
    for stranger in ("bob@x.org", "ann@x.org.evil", "@y.org", "y.org", "a@z@y.org.evil", None, 7, ""):
        assert not some.admits(stranger)
    assert not some.admits("ann@x.org", False)
    assert Rules(users=frozenset({"*"})).admits("any@where.example")
    assert not Rules(users=frozenset({"*"})).admits("")


# --- the real app


def get(port: int, path: str = "/", **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers={"Host": f"localhost:{port}", **headers})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer


def shake_hands(port: int, **headers: str) -> int:
    """Status of the answer to a WebSocket's opening."""
    asked = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Protocol": "streamlit",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Origin": f"http://localhost:{port}",
        **headers,
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/_stcore/stream", headers={"Host": f"localhost:{port}", **asked})
    status = connection.getresponse().status
    connection.close()
    return status


def test_before_the_real_app_pages_files_and_sockets_are_closed_without_the_token(serve: Any) -> None:
    port = serve(ESPALIER_TOKEN=TOKEN)
    for path in ("/", "/runs", "/_stcore/health", "/_stcore/host-config"):
        assert get(port, path).status == 401
    assert shake_hands(port) == 403
    entered = get(port, f"/?token={quote(TOKEN)}")
    assert entered.status == 303
    known = {"Cookie": entered.headers["set-cookie"].partition(";")[0]}
    assert get(port, "/", **known).status == 200
    assert shake_hands(port, **known) == 101
    assert shake_hands(port, **known, Origin="http://evil.example") == 403
    assert shake_hands(port, **known, Host="evil.example") == 403


def test_the_real_app_without_a_token_is_for_its_own_machine_and_its_own_pages(serve: Any) -> None:
    port = serve()
    assert get(port).status == 200
    assert get(port).headers["x-content-type-options"] == "nosniff"
    assert shake_hands(port) == 101
    assert get(port, Host="evil.example").status == 421
    assert shake_hands(port, Origin="http://evil.example") == 403


def test_the_real_app_does_not_begin_to_listen_for_everybody(home: Path) -> None:
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", "0", "--server.address", "0.0.0.0"]
    environment = {name: value for name, value in os.environ.items() if name != "ESPALIER_TOKEN"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "Set ESPALIER_TOKEN" in done.stderr
