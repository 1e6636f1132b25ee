"""What every page has: navigation, the slim line, and that opening a page loads nothing heavy."""

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from core.service import StatusLine, close_service, get_service
from pages._parts import status, theme

ROOT = Path(__file__).resolve().parent.parent.parent
MAIN = str(ROOT / "pages" / "_main.py")
PAGES = sorted(file.name for file in (ROOT / "pages").glob("[!_]*.py"))


@pytest.fixture(autouse=True)
def service() -> Iterator[Any]:
    """The process's service on this test's own home, its queue at rest."""
    made = get_service()
    made.pause()
    yield made
    close_service()


def html(app: AppTest) -> str:
    bodies = [str(element.proto.body) for element in app.get("html")]
    return "\n".join(body for body in bodies if not body.startswith("<style"))


def test_the_first_page_is_launch_and_the_slim_line_says_device_memory_work_and_queue() -> None:
    app = AppTest.from_file(MAIN, default_timeout=60).run()
    assert not app.exception
    shown = html(app)
    assert "GB free" in shown
    assert "nothing runs" in shown
    assert "queue empty" in shown
    assert "Launch</h1>" in shown


@pytest.mark.parametrize("page", PAGES)
def test_every_page_opens_on_an_empty_home_with_the_slim_line(page: str) -> None:
    app = AppTest.from_file(MAIN, default_timeout=60).run()
    app.switch_page(page).run()
    assert not app.exception
    assert "GB free" in html(app)


@pytest.mark.parametrize("page", ["compare.py", "anatomy.py", "runs.py", "report.py", "studies.py"])
def test_on_a_first_start_pages_say_that_the_reference_study_is_being_unpacked(page: str, service: Any) -> None:
    app = AppTest.from_file(MAIN, default_timeout=60).run()
    service.travel.arriving = True
    app.switch_page(page).run()
    assert not app.exception
    assert "The reference study is being unpacked" in html(app)
    service.travel.arriving = False
    app.run()
    assert not app.exception
    assert "being unpacked" not in html(app)


def test_the_slim_line_shows_a_running_run_as_a_link_and_a_name_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    from core.jobs.states import State
    from core.jobs.status import RunStatus

    run = RunStatus("20261123-201854-0a1b2c3d-9f8e", State.RUNNING, stage="prune", done=12, total=30, eta_s=125)

    class Busy:
        def status_line(self) -> StatusLine:
            return StatusLine("Some GPU <b>", 8_000_000_000, 16_000_000_000, run, "*Taylor* [x](y)", 2, False, False)

    monkeypatch.setattr(status, "get_service", Busy)
    app = AppTest.from_file(MAIN, default_timeout=60).run()
    assert not app.exception
    shown = html(app)
    assert "Some GPU &lt;b&gt;" in shown
    assert "8.0 GB of 16.0 GB free" in shown
    assert "2 waiting" in shown
    assert "width:40.0%" in shown
    link = next(e.proto for e in app.get("page_link") if "Taylor" in e.proto.label)
    assert link.label == theme.plain("*Taylor* [x](y)")
    assert "prune · 2 min left" in shown
    assert "20261123-201854-0a1b2c3d-9f8e" in str(link)


def test_a_second_app_says_whose_the_folder_is_and_takes_over_when_that_one_ends(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.jobs.ownership import Owner

    owner: list[Owner | None] = [Owner(4711)]
    reopened: list[bool] = []

    class Second:
        def status_line(self) -> StatusLine:
            return StatusLine("CPU", 1, 2, None, "", 1, False, True, owner[0], "Another Espalier (process 4711)")

    monkeypatch.setattr(status, "get_service", Second)
    monkeypatch.setattr(status, "reopen_service", lambda: reopened.append(True))
    app = AppTest.from_file(MAIN, default_timeout=60).run()
    assert not app.exception
    assert "Another Espalier, process 4711, works on this folder" in html(app)
    assert not [button for button in app.button if button.key == "take_over"]
    owner[0] = None
    app.run()
    assert "has ended" in html(app)
    app.button(key="take_over").click().run()
    assert reopened == [True]


def test_opening_every_page_loads_nothing_heavy(tmp_path: Path) -> None:
    code = f"""
import sys
from streamlit.testing.v1 import AppTest
app = AppTest.from_file({MAIN!r}, default_timeout=60).run()
assert not app.exception, app.exception
for page in {PAGES!r}:
    app.switch_page(page).run()
    assert not app.exception, (page, app.exception)
from core.service import close_service
close_service()
print(sorted({{"torch", "transformers", "peft", "lm_eval", "datasets"}} & set(sys.modules)))
"""
    environment = {**os.environ, "ESPALIER_HOME": str(tmp_path / "opened")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_the_application_file_calls_no_widgets_and_starts_the_service_with_the_server() -> None:
    import asyncio

    import app as application

    close_service()

    async def life() -> bool:
        async with application.lifespan(application.app):
            return not get_service().read_only

    assert asyncio.run(life())


def test_both_themes_carry_the_tokens() -> None:
    config = tomllib.loads((ROOT / ".streamlit" / "config.toml").read_text())
    light, dark = config["theme"]["light"], config["theme"]["dark"]
    assert (light["backgroundColor"], light["secondaryBackgroundColor"]) == ("#FAF8F4", "#F1EDE4")
    assert (light["textColor"], light["primaryColor"]) == ("#1F2933", "#2F6B57")
    assert (dark["backgroundColor"], dark["secondaryBackgroundColor"]) == ("#14181A", "#1D2326")
    assert (dark["textColor"], dark["primaryColor"]) == ("#E8E6E1", "#7FB69A")
    assert config["server"]["address"] == "127.0.0.1"
    assert config["browser"]["gatherUsageStats"] is False


def test_pages_stay_thin() -> None:
    for path in (ROOT / "pages").glob("*.py"):
        assert len(path.read_text().splitlines()) < 80, path.name


def test_text_in_labels_is_text() -> None:
    assert theme.plain("a*b_c") == r"a\*b\_c"
    assert ":red" not in theme.plain(":red[x]")
    assert "\n" not in theme.plain("one\ntwo")


def test_numbers_are_said_as_people_say_them() -> None:
    assert [theme.count(n) for n in (999, 134_515_008, 1_100_048_384)] == ["999", "134.5 M", "1.10 B"]
    assert [theme.size(n) for n in (445_000_000, 6_100_000_000)] == ["445 MB", "6.1 GB"]
    assert [theme.duration(s) for s in (0.2, 40, 540, 7800)] == ["1 s", "40 s", "9 min", "2 h 10 min"]
