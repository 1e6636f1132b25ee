"""What moves on open pages, without a script run: one address that every page asks every `EVERY_S` (feed.js).

A run of a script costs Streamlit 38 ms of processor time on a slow core, whatever it draws, so that twenty pages which
draw themselves anew every second are more than one Python process can serve. Here they get one short JSON that is made
once for all of them. `slots` are the inner HTML of places that `slot` made, from the functions that draw them first;
`marks` tell what only a script can draw: where a page's mark is another one, its hidden button is pressed, within the
milliseconds that `spread` says: the more ask, the longer, so that they do not all draw at once.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import streamlit as st
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from core.errors import EspalierError
from core.service import Now, Service, StatusLine, get_service
from pages._parts import runs_text as say
from pages._parts import status_text
from pages._parts.theme import html

EVERY_S = 0.75
"""So that nothing on a page is two seconds old: a worker's word, 0.3 s of `core.live`, this, and a busy machine."""
BOARD, LINE = "live_board", "live_line"
"""Marks, and the keys of the hidden buttons that draw anew what they are of."""

SPREAD_MS = 150
"""For each page that asks: about what it takes to draw one."""

_lock = threading.Lock()
_asked: deque[float] = deque(maxlen=500)
_made: tuple[Now, bytes] | None = None


def slot(name: str, inner: str, *, tag: str = "div", css: str = "") -> str:
    """HTML of a place whose inside the feed keeps up to date under that name."""
    return f'<{tag} class="{css}" data-live="{html(name)}">{inner}</{tag}>'


def watch(mark: str, value: str) -> None:
    """Draw the hidden button of a mark, and what the mark is now. Within the fragment that is to be drawn anew."""
    with st.container(key=f"{mark}_box"):  # hidden by theme.css
        st.html(f'<i data-live-mark="{mark}" data-live-is="{html(value)}"></i>')
        st.button("Draw anew", key=mark)


def start() -> None:
    """The page begins to ask."""
    st.html(f"<i data-live-on hidden></i><script>{_script()}</script>", unsafe_allow_javascript=True)


@cache
def _script() -> str:
    text = Path(__file__).with_name("feed.js").read_text(encoding="utf-8")
    return text.replace("__EVERY__", str(round(1000 * EVERY_S)))


def board_mark(now: Now) -> str:
    """Another one when a run began, ended, came or went, waits elsewhere or for another reason."""
    line = now.line
    moving = [status.id for status in now.running]
    states = sorted(f"{status.id} {status.state}" for status in now.statuses)
    return _digest([now.mark, moving, states, line.waiting, line.paused, sorted(line.waits.items())])


def line_mark(line: StatusLine) -> str:
    """Another one when the line on top has other parts than texts."""
    run = line.running
    owner = str(line.owner) if line.owner is not None else None
    works = (run.id, line.running_name) if run else None
    return _digest([works, line.read_only, line.notice, owner])


def _digest(of: Any) -> str:
    return blake2b(json.dumps(of, default=str).encode(), digest_size=8).hexdigest()


def slots(now: Now, line: StatusLine) -> dict[str, str]:
    """Inner HTML by slot."""
    found = status_text.slots(line)
    for row in say.records(now.runs[now.runs["state"].isin(say.ACTIVE)]):
        found[f"run:{row['id']}"] = say.progress_html(row, dense=say.nothing(row.get("method")))
    return found


def made(service: Service) -> bytes:
    """The JSON, made once for each look at the runs."""
    global _made
    now = service.live.now()
    kept = _made
    if kept is not None and kept[0] is now:
        return kept[1]
    with _lock:
        if _made is None or _made[0] is not now:
            line = service.status_line()
            marks = {BOARD: board_mark(now), LINE: line_mark(line)}
            content = {"marks": marks, "slots": slots(now, line), "spread": SPREAD_MS * _pages()}
            _made = now, json.dumps(content).encode()
        return _made[1]


def _pages() -> int:
    """How many asked within the time in which each asks once."""
    since = time.monotonic() - EVERY_S
    return sum(moment > since for moment in list(_asked))


def answer(_: Request) -> Response:
    """What moves now; 503 where the store cannot be read, which pages tell. Not async: a look may wait for the disk."""
    headers = {"cache-control": "no-store"}
    _asked.append(time.monotonic())
    try:
        return Response(made(get_service()), media_type="application/json", headers=headers)
    except EspalierError:
        return Response(status_code=503, headers=headers)


ROUTES = [Route("/live", answer, methods=["GET"])]
