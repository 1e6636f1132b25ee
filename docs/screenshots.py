"""Makes docs/images/*.png from the real app: `python docs/screenshots.py --home HOME [--only NAME …] [--chat]`.

HOME is a folder with complete runs (ESPALIER_HOME). What is complete in it is copied, so nothing in it changes, and
nothing that waits or was interrupted is started. Pages are taken as they are at 1440 px, light, and written as PNG of
256 colours. `--chat` asks two models a question first, so both must be saved there; without it, Chat is left as it is.
Needs Playwright (requirements-test.txt) and a Chromium.
"""

import argparse
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
WIDTH, HEIGHT = 1440, 900
READY = '[data-test-script-state="notRunning"]'
PROMPT = "What is the capital of France?"
KEPT = ("studies", "documents", "chat")


@dataclass(frozen=True)
class Shot:
    """One picture: a page, what is waited for, what is done there first, and how much of it is shown (px)."""

    name: str
    path: str
    wait: str = ""
    act: Callable[[Any], None] | None = None
    height: int = HEIGHT


def _ask(page: Any) -> None:
    """Ask both models, and wait until both have answered."""
    box = page.locator('.st-key-chat_prompt textarea, [data-testid="stChatInputTextArea"]').first
    box.fill(PROMPT)
    box.press("Enter")
    page.wait_for_timeout(3000)
    page.locator(".st-key-chat_again").first.wait_for(timeout=300_000)


def _without_tour(page: Any) -> None:
    """Send the invitation to the tour away: it stands on the first visit only."""
    refuse = page.get_by_role("button", name="No, thanks")
    if refuse.count():
        refuse.first.click()
        page.wait_for_timeout(1000)


def _pick(chart: str) -> Callable[[Any], None]:
    """Choose one of Compare's charts."""

    def act(page: Any) -> None:
        page.locator(".st-key-compare_chart").get_by_text(chart, exact=True).first.click()

    return act


def shots(chat: bool) -> list[Shot]:
    """All pictures there are."""
    plot = ".js-plotly-plot"
    return [
        Shot("launch", "", act=_without_tour, height=1250),
        Shot("studies", "studies"),
        Shot("runs", "runs"),
        Shot("compare", "compare", plot, height=1420),
        Shot("compare-ratio", "compare", plot, _pick("By ratio"), height=1420),
        Shot("anatomy", "anatomy", "svg", height=1250),
        Shot("report", "report", ".esp-report table", height=1500),
        Shot("chat", "chat", act=_ask if chat else None),
    ]


@contextmanager
def served(home: Path) -> Iterator[str]:
    """The app on a copy of the home, on a free port of 127.0.0.1; yields its address."""
    with tempfile.TemporaryDirectory(prefix="espalier-images-") as folder:
        copy = Path(folder) / "home"
        for name in KEPT:
            if (home / name).is_dir():
                shutil.copytree(home / name, copy / name, copy_function=_linked)
        for run in (home / "runs").iterdir():
            if (run / "results.json").is_file():
                shutil.copytree(run, copy / "runs" / run.name, copy_function=_linked)
        (copy / "runs").mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(port),
                   "--server.headless", "true", "--server.address", "127.0.0.1"]  # fmt: skip
        environment = {**os.environ, "ESPALIER_HOME": str(copy)}
        with (Path(folder) / "server.log").open("wb") as log:
            server = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
            try:
                address = f"http://127.0.0.1:{port}"
                _wait_until_healthy(address, server)
                yield address
            finally:
                server.send_signal(signal.SIGTERM)
                try:
                    server.wait(30)
                except subprocess.TimeoutExpired:
                    server.kill()
                    server.wait(10)


def _linked(source: str, target: str) -> str:
    """Weights are linked, not copied: they are never written again."""
    if source.endswith(".safetensors"):
        Path(target).symlink_to(Path(source).resolve())
        return target
    return str(shutil.copy2(source, target))


def _wait_until_healthy(address: str, server: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        if server.poll() is not None:
            raise SystemExit("the app ended before it answered")
        try:
            with urllib.request.urlopen(f"{address}/_stcore/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.3)
    raise SystemExit("the app did not answer within two minutes")


def take(page: Any, address: str, shot: Shot) -> bytes:
    """Open a page, wait until it is done, act, and take the picture."""
    page.set_viewport_size({"width": WIDTH, "height": shot.height})
    page.goto(f"{address}/{shot.path}")
    page.wait_for_selector(READY, timeout=120_000)
    for act in (None, shot.act):
        if act is not None:
            act(page)
            page.wait_for_selector(READY, timeout=300_000)
        if shot.wait:
            page.locator(shot.wait).first.wait_for(timeout=60_000)
    page.mouse.move(WIDTH - 2, shot.height - 2)
    page.wait_for_timeout(1500)  # fonts, and charts that settle
    return small(page.screenshot())


def small(png: bytes) -> bytes:
    """The same picture in 256 colours: a fifth of the bytes, and no difference to the eye."""
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB")
    reduced = image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    reduced.save(buffer, "PNG", optimize=True)
    return min(buffer.getvalue(), png, key=len)


def main() -> None:
    """Take the pictures that were asked for."""
    parser = argparse.ArgumentParser(description="Take the pictures of docs/images from the real app.")
    parser.add_argument("--home", type=Path, required=True, help="a folder with complete runs")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these pictures")
    parser.add_argument("--chat", action="store_true", help="ask two saved models a question for the picture of Chat")
    parser.add_argument("--out", type=Path, default=IMAGES, help="where they go (default: docs/images)")
    options = parser.parse_args()
    if not (options.home / "runs").is_dir():
        parser.error(f"{options.home} has no runs/: give the folder that ESPALIER_HOME names")
    chosen = [shot for shot in shots(options.chat) if not options.only or shot.name in options.only]
    unknown = set(options.only or ()) - {shot.name for shot in chosen}
    if unknown:
        parser.error(f"no picture is called {', '.join(sorted(unknown))}: {', '.join(s.name for s in shots(False))}")
    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser_path is None:
        parser.error("there is no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    options.out.mkdir(parents=True, exist_ok=True)
    with served(options.home) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(color_scheme="light", device_scale_factor=1)
        for shot in chosen:
            content = take(page, address, shot)
            path = options.out / f"{shot.name}.png"
            path.write_bytes(content)
            print(f"{path.name}  {len(content) / 1e3:.0f} kB", flush=True)  # noqa: T201
        browser.close()


if __name__ == "__main__":
    main()
