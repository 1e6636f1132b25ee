"""Visitors of `benchmarks.load`: each talks with the server as a browser does, and notes what came when."""

import asyncio
import math
import random
import re
import shutil
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from pages._parts.feed import EVERY_S as LOOK_S

_WIDTH = re.compile(r'esp-bar" role="progressbar" aria-valuemin="0" aria-valuemax="100".*?<i style="width:([\d.]+%)"')
_PLACE = re.compile(r'data-live="([^"]+)"')
_MARK = re.compile(r'data-live-mark="([^"]+)" data-live-is="([^"]*)"')
_BUTTON = re.compile(r"live_\w+$")
AFTER_PRESS_S, PRESS_AGAIN_S = 0.5, 4.0  # as feed.js
QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]


@dataclass
class Visitor:
    """One page's talk with the server, read frame by frame. Times are seconds since the epoch."""

    updates: list[tuple[float, bool, float]] = field(default_factory=list)
    """Seconds of each script's answer, whether the whole page was drawn, and when it was there."""
    looks: list[tuple[float, float]] = field(default_factory=list)
    """Seconds of each answer of the feed, and when it was there."""
    shown: list[tuple[float, str]] = field(default_factory=list)
    """When a bar arrived, and how far it was: `12.34%`."""
    errors: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    page_hash: str = ""
    timers: dict[str, float] = field(default_factory=dict)
    places: set[str] = field(default_factory=set)
    """What the feed keeps up to date on this page."""
    marks: dict[str, str] = field(default_factory=dict)
    """What the page was drawn from, by the key of the button that draws it anew."""
    now: dict[str, str] = field(default_factory=dict)
    """The same as the feed said it last, and within how many seconds to press."""
    spread: float = 0.0
    buttons: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Fragment and identifier of such a button, by its key."""
    _asked: dict[str, float] = field(default_factory=dict)
    _drawn: set[str] = field(default_factory=set)
    _told: set[str] = field(default_factory=set)

    def asks(self, frame: bytes) -> None:
        """The page sends a frame."""
        from streamlit.proto.BackMsg_pb2 import BackMsg

        message = BackMsg.FromString(frame)
        if message.WhichOneof("type") == "rerun_script":
            self._asked.setdefault(message.rerun_script.fragment_id, time.time())

    def hears(self, frame: bytes) -> None:
        """A frame comes."""
        from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

        message, now = ForwardMsg.FromString(frame), time.time()
        self.bytes += len(frame)
        match message.WhichOneof("type"):
            case "new_session":  # its page is the entry point's, whichever page is asked for
                self._drawn, self._told = set(), set()
            case "navigation":
                self.page_hash = message.navigation.page_script_hash
            case "auto_rerun":
                self.timers[message.auto_rerun.fragment_id] = message.auto_rerun.interval
                self._told.add(message.auto_rerun.fragment_id)
            case "delta":
                self._delta(message.delta, now)
            case "script_finished":
                self._finished(ForwardMsg.ScriptFinishedStatus.Name(message.script_finished), now)

    def _delta(self, delta: Any, now: float) -> None:
        self._drawn.add(delta.fragment_id)
        if delta.WhichOneof("type") != "new_element":
            return
        element = delta.new_element
        if element.WhichOneof("type") == "exception":
            self.errors[f"exception on the page: {element.exception.message[:200]}"] += 1
        elif element.WhichOneof("type") == "html":
            self._shows(element.html.body, now)
            self.places.update(_PLACE.findall(element.html.body))
            self.marks.update(_MARK.findall(element.html.body))
        elif element.WhichOneof("type") == "button" and (key := _BUTTON.search(element.button.id)):
            self.buttons[key[0]] = delta.fragment_id, element.button.id

    def _shows(self, html: str, now: float) -> None:
        if found := _WIDTH.search(html):
            self.shown.append((now, found[1]))

    def looked(self, content: dict[str, Any], seconds: float) -> None:
        """The feed answered."""
        now = time.time()
        self.looks.append((seconds, now))
        for place, html in content["slots"].items():
            if place in self.places:
                self._shows(html, now)
        self.now, self.spread = content["marks"], content["spread"] / 1000

    def others(self) -> list[str]:
        """Keys of the buttons to press, the page's first."""
        return [key for key, mark in self.now.items() if key in self.buttons and self.marks.get(key, mark) != mark]

    def _finished(self, status: str, now: float) -> None:
        whole = status == "FINISHED_SUCCESSFULLY"
        if status == "FINISHED_WITH_COMPILE_ERROR":
            self.errors["a script that does not compile"] += 1
        answered = list(self._asked) if whole else [each for each in self._drawn if each in self._asked]
        begun = [self._asked.pop(each) for each in answered]
        if begun:
            self.updates.append((now - min(begun), whole, now))
        if whole:  # a browser forgets the timers of fragments that are not on the page any more
            self.timers = {each: every for each, every in self.timers.items() if each in self._told}


async def session(address: str, over: asyncio.Event, visitor: Visitor) -> None:
    """A session without a browser: connects, asks for Runs, and asks again as the page's timers say."""
    from streamlit.proto.BackMsg_pb2 import BackMsg
    from websockets.asyncio.client import connect
    from websockets.exceptions import WebSocketException
    from websockets.typing import Origin, Subprotocol

    def ask(fragment: str = "", press: str = "") -> bytes:
        message = BackMsg()
        state = message.rerun_script
        by_itself = bool(fragment) and not press
        state.page_script_hash, state.fragment_id, state.is_auto_rerun = visitor.page_hash, fragment, by_itself
        if press:
            state.widget_states.widgets.add(id=press, trigger_value=True)
        if not visitor.page_hash:
            state.page_name = "runs"
        state.context_info.timezone = "Europe/Berlin"
        frame = message.SerializeToString()
        visitor.asks(frame)
        return frame

    async def look(client: aiohttp.ClientSession) -> None:
        begun = time.time()
        async with client.get(f"{address}/live") as answer:
            visitor.looked(await answer.json(), time.time() - begun)

    url = address.replace("http", "ws") + "/_stcore/stream"
    try:
        async with (
            connect(url, origin=Origin(address), subprotocols=[Subprotocol("streamlit")], max_size=None) as socket,
            aiohttp.ClientSession() as client,
        ):
            await socket.send(ask())

            async def listen() -> None:
                async for frame in socket:
                    visitor.hears(frame if isinstance(frame, bytes) else frame.encode())

            listening = asyncio.create_task(listen())
            due: dict[str, float] = {}
            next_look, next_press, looking = math.inf, math.inf, None
            pressed: dict[str, tuple[str, float]] = {}
            while not over.is_set():
                now = time.monotonic()
                if visitor.places and next_look == math.inf:
                    next_look = now + LOOK_S
                if now >= next_look and looking is None:
                    looking, next_look = asyncio.create_task(look(client)), now + LOOK_S
                if looking is not None and looking.done():
                    looking.result()
                    looking = None
                    if visitor.others() and next_press == math.inf:
                        next_press = now + random.random() * visitor.spread
                if now >= next_press:
                    next_press = math.inf
                    key = next(iter(visitor.others()), "")
                    mark, moment = pressed.get(key, ("", 0.0))
                    if key and (mark != visitor.now[key] or now - moment > PRESS_AGAIN_S):
                        pressed[key], next_look = (visitor.now[key], now), now + AFTER_PRESS_S
                        fragment, button = visitor.buttons[key]
                        await socket.send(ask(fragment, press=button))
                for fragment, every in list(visitor.timers.items()):
                    if now >= due.setdefault(fragment, now + every):
                        due[fragment] = now + every
                        await socket.send(ask(fragment))
                due = {each: when for each, when in due.items() if each in visitor.timers}
                if listening.done():
                    listening.result()
                    raise ConnectionError("the server closed the socket")
                await asyncio.sleep(0.02)
            listening.cancel()
    except (OSError, aiohttp.ClientError, WebSocketException) as error:
        visitor.errors[f"socket: {type(error).__name__}: {error}"[:200]] += 1


async def chromium_pages(address: str, over: asyncio.Event, visitors: list[Visitor], shot: Path | None) -> None:
    """Real pages; their frames are read on the way."""
    if not visitors:
        return
    from playwright.async_api import async_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=found, args=QUIET)
        pages = [await _page(chromium, address, visitor) for visitor in visitors]
        await asyncio.to_thread(_give_way)
        await over.wait()
        if shot is not None:
            await pages[0].screenshot(path=str(shot))
        await chromium.close()


def _give_way() -> None:
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "chrom" in process.name():
                process.nice(10)


async def _page(chromium: Any, address: str, visitor: Visitor) -> Any:
    from playwright.async_api import Error

    page = await (await chromium.new_context(viewport={"width": 1440, "height": 900})).new_page()

    def frames(socket: Any) -> None:
        socket.on("framesent", lambda frame: visitor.asks(_bytes(frame)))
        socket.on("framereceived", lambda frame: visitor.hears(_bytes(frame)))

    def console(message: Any) -> None:
        asked = str(message.location.get("url", ""))
        if message.type == "error" and "/runs/_stcore/" not in asked:  # where Streamlit asks first on any sub-page
            visitor.errors[f"console: {message.text}"[:200]] += 1

    begun: dict[Any, float] = {}
    reading: set[asyncio.Task[None]] = set()

    async def read(response: Any) -> None:
        with suppress(Error):  # the page may be closed meanwhile
            visitor.looked(await response.json(), time.time() - begun.pop(response.request))

    def answered(response: Any) -> None:
        if response.url.endswith("/live"):
            reading.add(task := asyncio.create_task(read(response)))
            task.add_done_callback(reading.discard)

    def asked(request: Any) -> None:
        if request.url.endswith("/live"):
            begun[request] = time.time()

    page.on("request", asked)
    page.on("response", answered)
    page.on("websocket", frames)
    page.on("console", console)
    page.on("pageerror", lambda error: visitor.errors.update([f"page: {error}"[:200]]))
    await page.goto(f"{address}/runs", wait_until="domcontentloaded", timeout=120_000)
    return page


def _bytes(frame: Any) -> bytes:
    return frame if isinstance(frame, bytes) else str(frame).encode("latin-1", "replace")
