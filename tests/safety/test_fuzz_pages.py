"""Whatever stands in an address, a text field, a study's YAML or a run's folder: pages show it or say what is wrong.

A few examples by default, as each takes a page or several; `ESPALIER_FUZZ=300` looks longer.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from core import yaml_text
from core.errors import EspalierError
from core.experiment import Experiment
from core.jobs.rundir import RunDirectory
from core.service import Service, close_service, get_service
from tests.pages.conftest import results
from tests.safety.test_fuzz import PIECES, SCALARS, WORDS, changed

ROOT = Path(__file__).resolve().parents[2]
MANY = int(os.environ.get("ESPALIER_FUZZ", "0"))
RUN = "20261123-201854-1a2b3c4d-x7y9"
pytestmark = pytest.mark.timeout(60 * MANY or 300)  # a page takes seconds beside other work
PAGES = ("launch", "studies", "runs", "compare", "anatomy", "chat", "report")
NAMES = [
    "run", "runs", "study", "model", "view", "chat_stage", "compare_text", "compare_method", "compare_model",
    "compare_ratio", "compare_layers", "compare_study", "compare_state", "compare_columns", "compare_sort",
    "compare_ascending", "compare_matching", "compare_page", "compare_chart", "compare_baseline", "compare_metric",
    "compare_front", "compare_hide", "compare_all", "compare_pair_first", "compare_pair_second", "compare_flips_task",
    "compare_only", "report_language", "embed", "",
]  # fmt: skip


def quick(few: int) -> Any:
    """Settings of a fuzz: few examples in the default suite, many where it is asked to look longer."""
    longer = MANY > 0
    return settings(
        max_examples=MANY if longer else few,
        deadline=None,
        phases=tuple(Phase) if longer else (Phase.explicit, Phase.generate),  # each page takes a fifth of a second
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The process's service, at rest, with one complete run."""
    before = {name: os.environ.get(name) for name in ("ESPALIER_HOME", "ESPALIER_REFERENCE")}
    os.environ |= {"ESPALIER_HOME": str(tmp_path_factory.mktemp("home")), "ESPALIER_REFERENCE": "0"}
    close_service()
    made = get_service()
    made.pause()
    yield made
    close_service()
    for name, value in before.items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def opened(page: str, **query: Any) -> AppTest:
    app = AppTest.from_file(str(ROOT / "pages" / "_main.py"), default_timeout=60)
    for name, value in query.items():
        app.query_params[name] = value
    return checked(app.switch_page(f"{page}.py").run())


def checked(app: AppTest) -> AppTest:
    assert not app.exception, [each.message for each in app.exception]
    return app


def put(service: Service, experiment: str, state: str = "COMPLETE", name: str = RUN) -> RunDirectory:
    """A run with this text as its experiment, as a worker would have left it."""
    folder = RunDirectory.of(service.home / "runs", name)
    shutil.rmtree(folder.path, ignore_errors=True)
    folder.path.mkdir(parents=True)
    folder.experiment_file.write_text(experiment, encoding="utf-8", errors="replace")
    words = ["RUNNING", state] if state != "RUNNING" else ["RUNNING"]
    lines = [
        {"v": 1, "seq": i, "attempt": 1, "time": f"2026-11-23T21:00:0{i}.000Z", "kind": "state", "state": word}
        for i, word in enumerate(words, 1)
    ]
    folder.events_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if state == "COMPLETE":
        with suppress(EspalierError):
            folder.write_results(results(name, folder.experiment(), (26.5, 0.65), 0.2))
    return folder


ODD = st.one_of(
    st.sampled_from([*WORDS, RUN, "quick-look", "true", "NaN", "-1", "1e999", "none", "0"]), st.text(max_size=30)
)
VALUES = ODD | st.lists(ODD, max_size=4)


@quick(8)
@given(
    page=st.sampled_from(PAGES), query=st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), VALUES, max_size=4)
)
def test_any_address_opens_a_page(service: Service, page: str, query: dict[str, Any]) -> None:
    put(service, Experiment.parse({"name": "x", "pruning": {"method": "wanda", "ratio": 0.5}}).to_yaml())
    opened(page, **query)


@quick(2)
@given(data=changed(), state=st.sampled_from(["COMPLETE", "FAILED", "RUNNING"]))
def test_any_experiment_of_a_run_is_shown_by_every_page(service: Service, data: dict[str, Any], state: str) -> None:
    try:
        text = Experiment.parse(data).to_yaml()
    except EspalierError:
        text = json.dumps(data, default=str)  # a file that somebody changed by hand
    put(service, text, state)
    opened("runs", run=RUN)
    opened("anatomy", run=RUN)
    opened("compare", runs=[RUN])
    opened("report", runs=[RUN])
    opened("chat", model=f"run:{RUN}")
    app = AppTest.from_file(str(ROOT / "pages" / "_main.py"), default_timeout=60)
    app.session_state["launch_copy"] = RUN
    checked(app.run())


@quick(3)
@given(text=st.lists(PIECES, max_size=30).map("".join) | st.text(max_size=60))
def test_any_text_as_the_experiment_of_a_run_is_said_to_be_none(service: Service, text: str) -> None:
    put(service, text, "FAILED")
    opened("runs", run=RUN)
    opened("runs")


def typed(text: str) -> str:
    """What of a text a browser can send: half a pair of UTF-16 is no character."""
    return text.encode(errors="replace").decode()


@st.composite
def studies(draw: st.DrawFn) -> str:
    """YAML of a study, more or less."""
    data: dict[str, Any] = {
        "name": draw(st.sampled_from(["Mine", "Quick look", "<b>x</b>", "", "x" * 300]) | st.text(max_size=20))
    }
    data["base"] = draw(changed())
    data["base"].pop("name", None)
    for name in ("grid", "runs", "seeds", "keep", "baseline", "note"):
        if draw(st.booleans()):
            fields = st.sampled_from(
                ["pruning.ratio", "pruning.method", "seed", "recovery.kind", "model.name", "x.y", ""]
            )
            values = st.dictionaries(fields, st.lists(SCALARS, max_size=3), max_size=2)
            data[name] = draw(st.one_of(values, st.lists(values, max_size=2), SCALARS))
    try:
        return yaml_text.dump(data)
    except Exception:  # noqa: BLE001 - what cannot be written as YAML cannot be typed as YAML either
        return json.dumps(data, default=str)


@quick(3)
@given(text=(studies() | st.lists(PIECES, max_size=30).map("".join)).map(typed))
@example("name: x\nbase: {pruning: {method: l1}}\ngrid: {pruning.ratio: [0.1, 0.2]}\nkeep: [{pruning.ratio: 0.1}]")
def test_any_text_in_the_editor_of_studies_is_a_study_or_a_clear_error(service: Service, text: str) -> None:
    shutil.rmtree(service.home / "studies", ignore_errors=True)
    app = opened("studies")
    app.text_area[0].set_value(text).run()
    checked(app.button(key="studies_write").click().run())
    kept = list((service.home / "studies").glob("*.yaml")) if (service.home / "studies").is_dir() else []
    said = "".join(str(each.proto.body) for each in app.get("html"))
    assert kept or "esp-note" in said, text


@quick(3)
@given(
    model=(st.sampled_from(["builtin:smollm2-135m-instruct", *WORDS]) | st.text(max_size=20)).filter(bool),
    texts=st.lists(ODD, min_size=4, max_size=12),
)
def test_any_text_in_the_fields_of_launch_is_taken_or_refused(service: Service, model: str, texts: list[str]) -> None:
    app = AppTest.from_file(str(ROOT / "pages" / "_main.py"), default_timeout=60)
    app.session_state["launch_model"] = model
    checked(app.run())
    fields = [*app.text_input, *app.text_area]
    assert fields
    for field, text in zip(fields, texts, strict=False):
        field.set_value(text)
    checked(app.run())
    for field, text in zip(reversed([*app.text_input, *app.text_area]), texts, strict=False):
        field.set_value(text)
    checked(app.run())
