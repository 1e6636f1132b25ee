"""The export of an opened run: choose a form, see it being written, find the result. A process of its own does it."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st

from core.service import ExportChoice, ExportStatus, Service, get_service
from pages._parts import runs_text as say
from pages._parts import theme
from pages._parts.runs_board import EVERY_S, act

FORMATS = {"gguf": "GGUF for llama.cpp", "hf": "Hugging Face form"}
DTYPES = {"q8_0": "Q8_0", "q4_0": "Q4_0", "float16": "float16", "bfloat16": "bfloat16", "float32": "float32"}
MODELS = {"recovered": "Recovered", "pruned": "Pruned, before recovery"}
STAGES = {
    "start": "starting",
    "load": "loading the model",
    "write": "writing",
    "verify": "checking what was written",
    "upload": "uploading",
}
ENDED = {"FAILED": "failed", "CANCELLED": "stopped"}
DOWNLOAD_BYTES = 200_000_000


def button(service: Service, run_id: str) -> None:
    """The button that opens and closes the part; not there where the run kept no model."""
    if service.export_choices(run_id):
        st.button("Export", key="runs_export", icon=":material/ios_share:", on_click=_toggle, args=(run_id,))


def show(service: Service, run_id: str) -> None:
    """What can be exported, where it was asked for, and what was."""
    found = service.exports(run_id)
    opened = st.session_state.get("runs_export_open") == run_id
    if not opened and not found:
        return
    with st.container(key="runs_export_part"):
        st.html('<h2 class="esp-section">Export</h2>')
        if opened:
            _form(service, run_id)
        st.session_state["runs_export_of"] = (run_id, _running(found))
        st.fragment(_list, run_every=EVERY_S if _running(found) else None, key="runs_export_live")()


def _toggle(run_id: str) -> None:
    opened = st.session_state.get("runs_export_open") == run_id
    st.session_state["runs_export_open"] = None if opened else run_id


# ----------------------------------------------------------------------------------------------------------------- form


def _form(service: Service, run_id: str) -> None:
    both = service.export_stages(run_id)
    stage = ""
    if both:
        stage = str(st.segmented_control(
            "Model", both, default=both[0], key="runs_export_stage", required=True, format_func=MODELS.__getitem__,
        ))  # fmt: skip
    choices = service.export_choices(run_id, stage)
    formats = [name for name in FORMATS if any(each.format == name for each in choices)]
    if not formats:
        return
    with st.container(horizontal=True, vertical_alignment="bottom", key="runs_export_form"):
        chosen = st.segmented_control(
            "Form", formats, default=formats[0], format_func=lambda name: FORMATS[name], key="runs_export_format",
            required=True,
        )  # fmt: skip
        sizes = {each.dtype: each for each in choices if each.format == chosen}
        dtypes = [name for name in DTYPES if name in sizes]
        dtype = st.selectbox(
            "Weights", dtypes, format_func=lambda name: _size_word(sizes[name]), key=f"runs_export_dtype_{chosen}",
            width=240,
        )  # fmt: skip
        blocked = sizes[dtype].blocked
        st.button(
            "Export model", key="runs_export_start", type="primary", disabled=bool(blocked), on_click=_start,
            args=(service, run_id, str(chosen), dtype, stage),
        )  # fmt: skip
    if blocked:
        st.html(theme.note(blocked, level="info"))
        return
    st.html(f'<p class="esp-fact">{theme.html(_what(str(chosen), dtype))}</p>')
    st.code(_command(service, run_id, str(chosen), dtype, stage), language="bash", wrap_lines=True)


def _command(service: Service, run_id: str, format_: str, dtype: str, stage: str) -> str:
    folder = service.home / "runs" / run_id
    place = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    words = [".venv/bin/python", "-m", "core", "export", str(place), "--to", format_, "--dtype", dtype]
    words += ["--stage", stage] if stage else []
    return shlex.join(words)


def _size_word(choice: ExportChoice) -> str:
    return f"{DTYPES[choice.dtype]}, about {theme.size(choice.bytes)}"


def _what(format_: str, dtype: str) -> str:
    if format_ == "hf":
        return "A folder that transformers loads, with a model card; loaded again in a fresh process before it counts."
    rounding = ""
    if dtype == "q8_0":
        rounding = " Q8_0 rounds weights to 8 bits and a scale per 32."
    if dtype == "q4_0":
        rounding = " Q4_0 rounds weights to 4 bits and a scale per 32: judge the result before you trust it."
    return f"One file for llama.cpp and what is built on it, with a model card.{rounding}"


def _start(service: Service, run_id: str, format_: str, dtype: str, stage: str) -> None:
    act(service.start_export, run_id, format_, dtype, *([stage] if stage else []))


# ----------------------------------------------------------------------------------------------------------------- list


def _running(found: list[ExportStatus]) -> list[str]:
    return [status.name for status in found if status.state == "RUNNING"]


def _list() -> None:
    """Every export with its progress or result. When one begins or ends, the whole page is drawn anew."""
    run_id, before = st.session_state["runs_export_of"]
    service = get_service()
    found = service.exports(run_id)
    if _running(found) != before:
        st.rerun(scope="app")
    for status in found:
        with st.container(border=True, key=f"runs_export_{status.name}"):
            if status.state == "RUNNING":
                _moving(service, run_id, status)
            elif status.state == "COMPLETE":
                _done(status)
            else:
                st.html(say.row_html(_title(status), "", "") + say.failure_html(status.message, status.advice))


def _title(status: ExportStatus) -> str:
    model = f"{MODELS[status.of]}, " if status.of in MODELS else ""
    form = "GGUF" if status.format == "gguf" else FORMATS[status.format]
    return f"{model}{form} {DTYPES.get(status.dtype, status.dtype)}"


def _moving(service: Service, run_id: str, status: ExportStatus) -> None:
    text, stop = st.columns([5, 1.2], vertical_alignment="center")
    share = min(max(status.done / status.total, 0.0), 1.0) if status.total else 0.0
    counted = say.count_of(status.done, status.total, status.unit) if status.unit == "bytes" else ""
    words = " · ".join(word for word in (STAGES.get(status.stage, status.stage), counted) if word)
    with text:
        st.html(
            f"{say.row_html(_title(status), words)}"
            f'<div class="esp-bar" role="progressbar" aria-valuemin="0" aria-valuemax="100" '
            f'aria-valuenow="{100 * share:.0f}" aria-label="progress of this export">'
            f'<i style="width:{share:.2%}"></i></div>'
        )
    with stop, st.container(horizontal=True, horizontal_alignment="right"):
        st.button("Stop export", key=f"runs_export_stop_{status.name}", on_click=act,
                  args=(service.cancel_export, run_id, status.name))  # fmt: skip


def _done(status: ExportStatus) -> None:
    path = Path(status.path)
    st.html(say.row_html(_title(status), f"{theme.size(status.bytes)}{_agreement(status)}"))
    st.code(str(path), language=None, wrap_lines=True)
    facts = [*status.checks, *status.notes, *([f"uploaded to {status.url}"] if status.url else [])]
    lines = "".join(f"<li>{theme.html(text)}</li>" for text in facts)
    with st.container(horizontal=True, vertical_alignment="center"):
        with st.popover("What was checked", type="tertiary", key=f"runs_export_facts_{status.name}"):
            st.html(f'<ul class="esp-fact">{lines}</ul>')
        if status.format == "gguf" and status.bytes <= DOWNLOAD_BYTES:
            st.download_button(
                "Download file", data=partial(_content, path), file_name=path.name, on_click="ignore",
                mime="application/octet-stream", key=f"runs_export_get_{status.name}", type="tertiary",
            )  # fmt: skip


def _agreement(status: ExportStatus) -> str:
    said: dict[str, Any] = status.agreement or {}
    if isinstance(said.get("agree"), float | int):
        share = theme.percent(float(said["agree"]))
        return f" · run by llama.cpp: {share} of {said.get('positions')} next tokens as transformers has them"
    return " · not verified with llama.cpp here" if status.format == "gguf" else " · verified in a fresh process"


def _content(path: Path) -> bytes:
    return path.read_bytes()
