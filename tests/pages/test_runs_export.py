"""The export part of an opened run. The service does the work; here it is asked, and what it says is shown."""

import json
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from core.jobs.processes import identity
from core.service import Service

MAIN = str(Path(__file__).resolve().parent.parent.parent / "pages" / "_main.py")
TAYLOR = {"method": "taylor", "ratio": 0.3, "layers": [4, 25]}
CONFIG = {
    "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1088, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture
def opened(run_folder: Any, service: Any, home: Path) -> Any:
    """`opened(config, exports…)`: a complete run with a model folder, and its page; each `path` is a file's name."""

    def make(config: dict[str, Any] | None = None, **exports: dict[str, Any]) -> tuple[str, AppTest]:
        run_id = run_folder("taylor", TAYLOR)
        folder = home / "runs" / run_id
        if config is not None:
            (folder / "model").mkdir()
            (folder / "model" / "config.json").write_text(json.dumps(config))
        (folder / "export").mkdir()
        for name, status in exports.items():
            format_, _, dtype = name.partition("_")
            content = {"format": format_, "dtype": dtype, **status}
            if "path" in status:
                file = folder / "export" / status["path"]
                file.write_bytes(b"GGUF")
                content["path"] = str(file)
            (folder / "export" / f"{format_}-{dtype}.json").write_text(json.dumps(content))
        app = AppTest.from_file(MAIN, default_timeout=60)
        app.query_params["run"] = run_id
        app.switch_page("runs.py").run()
        assert not app.exception
        return run_id, app

    return make


def html(app: AppTest) -> str:
    return "\n".join(str(element.proto.body) for element in app.get("html"))


def keys(app: AppTest) -> list[str]:
    return [str(button.key) for button in app.button]


def test_a_form_and_a_format_are_chosen_and_the_service_is_asked(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(Service, "start_export", lambda _self, *what: asked.append(what))
    run_id, app = opened(CONFIG)
    assert "runs_export_start" not in keys(app)
    app.button(key="runs_export").click().run()
    boxes = {str(box.key): box for box in app.selectbox}
    assert boxes["runs_export_dtype_gguf"].options[0].startswith("Q8_0, about 1")
    boxes["runs_export_dtype_gguf"].set_value("q4_0").run()
    assert "judge the result" in html(app)
    assert any(f"{run_id} --to gguf --dtype q4_0" in code.value for code in app.code)
    app.button(key="runs_export_start").click().run()
    assert asked == [(run_id, "gguf", "q4_0")]
    assert not app.exception


def test_of_a_recovered_run_the_model_is_chosen_too(
    opened: Any, recovered: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(Service, "start_export", lambda _self, *what: asked.append(what))
    run_id = recovered("tuned", (33.0, 0.61))
    for name in ("model", "recovered"):
        (home / "runs" / run_id / name).mkdir()
        (home / "runs" / run_id / name / "config.json").write_text(json.dumps(CONFIG))
    app = AppTest.from_file(MAIN, default_timeout=60)
    app.query_params["run"] = run_id
    app.switch_page("runs.py").run()
    app.button(key="runs_export").click().run()
    assert any("--stage recovered" in code.value for code in app.code)
    app.segmented_control(key="runs_export_stage").set_value("pruned").run()
    app.button(key="runs_export_start").click().run()
    assert asked == [(run_id, "gguf", "q8_0", "pruned")]
    assert not app.exception


def test_a_run_without_its_model_offers_no_export(opened: Any) -> None:
    _, app = opened(None)
    assert "runs_export" not in keys(app)


def test_a_form_that_cannot_be_is_said_beside_a_button_that_is_off(opened: Any) -> None:
    _, app = opened({**CONFIG, "model_type": "gemma2"})
    app.button(key="runs_export").click().run()
    assert "no architecture for a gemma2 model" in html(app)
    assert app.button(key="runs_export_start").disabled


def test_a_finished_export_shows_size_place_and_agreement(opened: Any, home: Path) -> None:
    status = {
        "state": "COMPLETE", "path": "x-Q8_0.gguf", "bytes": 126_700_000, "checks": ["<b>read</b> again"],
        "agreement": {"agree": 0.979, "positions": 96},
    }  # fmt: skip
    run_id, app = opened(CONFIG, gguf_q8_0=status)
    file = home / "runs" / run_id / "export" / "x-Q8_0.gguf"
    shown = html(app)
    assert "127 MB" in shown
    assert "97.9\u00a0% of 96 next tokens" in shown
    assert "&lt;b&gt;read" in shown
    assert any(code.value == str(file) for code in app.code)


def test_a_running_one_shows_its_progress_and_can_be_stopped(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[tuple[str, ...]] = []
    monkeypatch.setattr(Service, "cancel_export", lambda _self, *what: stopped.append(what))
    status = {"state": "RUNNING", "stage": "write", "done": 5e7, "total": 2e8, "unit": "bytes", **identity()}
    run_id, app = opened(CONFIG, gguf_q8_0=status)
    assert "writing · 50 of 200 MB" in html(app)
    assert 'aria-valuenow="25"' in html(app)
    app.button(key="runs_export_stop_gguf-q8_0").click().run()
    assert stopped == [(run_id, "gguf-q8_0")]


def test_a_failed_one_says_what_happened_and_a_dead_one_is_not_running(opened: Any) -> None:
    failed = {"state": "FAILED", "message": "The disk <is> full.", "advice": "Make room."}
    dead = {"state": "RUNNING", "pid": 2**22 + 1, "pid_created": 1.0}
    _, app = opened(CONFIG, gguf_q8_0=failed, hf_float16=dead)
    assert "The disk &lt;is&gt; full." in html(app)
    assert "Make room." in html(app)
    assert "ended without a result" in html(app)


def test_a_damaged_status_file_does_not_break_the_page(opened: Any, home: Path) -> None:
    _, app = opened(CONFIG, gguf_q8_0={"state": "COMPLETE", "bytes": "many", "done": None, "agreement": "x"})
    assert not app.exception
