"""One opened run: what it cut, its numbers against dense, how long its stages took, and what can be done with it."""

from __future__ import annotations

from typing import Any

import streamlit as st

from core.errors import EspalierError
from core.espalier import Branch, branches_of_plan, branches_of_rows, dense_branches
from core.service import RunDetail, Service, get_service
from pages._parts import feed, runs_again, runs_ended, runs_export, runs_numbers, runs_recovery, runs_weights, theme
from pages._parts import runs_text as say
from pages._parts.runs_board import act, waits_for

EVERY_S = 2.0
"""The curve and the log. Progress comes by the feed, and so does the word that a state is another one."""
LOG_LINES = 200


def show(service: Service, run_id: str) -> None:
    """The page of one run; an id that is not there leads back to the board."""
    try:
        detail = service.run_detail(run_id)
    except EspalierError as error:
        st.html(theme.note(str(error), level="error"))
        st.button("All runs", key="runs_back", icon=":material/arrow_back:", on_click=_back)
        return
    st.button("All runs", key="runs_back", icon=":material/arrow_back:", type="tertiary", on_click=_back)
    _head(service, detail)
    state = str(detail.status.state)
    if state not in (*say.ACTIVE, *say.QUEUED):
        runs_export.show(service, run_id)
    moving = state in (*say.ACTIVE, *say.QUEUED)
    st.session_state["runs_open_state"] = _seen(detail)
    if moving:
        st.session_state["runs_open_id"] = run_id
        st.session_state["runs_open_choice"] = _choice(detail)
        st.fragment(_live, run_every=EVERY_S, key="runs_live_detail")()
    elif state != "COMPLETE":
        runs_ended.show(service, detail)
        with st.expander("Log", key="runs_log", icon=":material/notes:"):
            _log(detail.log_tail)
    _body(service, detail)
    if state == "COMPLETE":
        with st.expander("Log", key="runs_log", icon=":material/notes:"):
            _log(detail.log_tail)
    with st.expander("YAML", key="runs_yaml", icon=":material/description:"):
        st.code(detail.yaml, language="yaml")
    with st.expander("Command", key="runs_command", icon=":material/terminal:"):
        st.code(detail.command, language="bash", wrap_lines=True)


def _seen(detail: RunDetail) -> tuple[str, str, bool]:
    """What the page was drawn from; when it changes, the whole page is drawn anew: a new state, or first numbers."""
    return detail.status.id, str(detail.status.state), detail.results is not None


def _back() -> None:
    st.query_params.pop("run", None)


# ----------------------------------------------------------------------------------------------------------------- head


def _head(service: Service, detail: RunDetail) -> None:
    status = detail.status
    st.html(
        f'<h1 class="esp-title">{theme.html(detail.name)}</h1>{say.row_html("", _facts(service, detail), status.state)}'
    )
    with st.container(horizontal=True, key="runs_buttons"):
        _buttons(service, detail)
    runs_again.facts(service, status.id)


def _facts(service: Service, detail: RunDetail) -> str:
    titles = {method.name: method.title for method in service.methods()}
    words = [say.method_line(_choice(detail), titles)]
    if detail.experiment is not None:
        words.append(detail.experiment.model.name)
    environment = (detail.results or {}).get("environment") or {}
    words += [str(environment[key]) for key in ("device_name", "dtype") if environment.get(key)]
    finished = say.when(detail.status.finished, st.context.timezone)
    words += [f"finished {finished}"] if finished else []
    words.append(detail.status.id)
    return " · ".join(words)


def _choice(detail: RunDetail) -> dict[str, Any]:
    pruning = detail.experiment.pruning if detail.experiment is not None else None
    if pruning is None:
        quantised = detail.experiment.model.quantised if detail.experiment is not None else None
        return {"method": quantised, "kind": "quantised"} if quantised else {}
    first, last = pruning.layers or (None, None)
    recovery = detail.experiment.recovery if detail.experiment is not None else None
    scan = detail.experiment is not None and detail.experiment.scan is not None
    return {
        "kind": "scan" if scan else None, "method": pruning.method, "ratio": pruning.ratio,
        "pattern": pruning.pattern, "target": pruning.target,
        "layer_first": first, "layer_last": last, "recovery": recovery.kind if recovery is not None else None,
    }  # fmt: skip


def _buttons(service: Service, detail: RunDetail) -> None:
    run_id, state = detail.status.id, str(detail.status.state)
    if state in (*say.ACTIVE, *say.QUEUED):
        st.button("Cancel run", key="runs_cancel", icon=":material/stop:", on_click=act, args=(service.cancel, run_id))
        _copy(run_id)
        if state in say.QUEUED and st.button(
            "Delete run", key="runs_delete", icon=":material/delete:", type="tertiary"
        ):
            _confirm_delete(service, run_id, detail.name)
        runs_weights.to_come(service, run_id)
        return
    if state == "COMPLETE":
        _look(detail)
    else:
        st.button("Retry run", key="runs_retry", icon=":material/refresh:", on_click=_retry, args=(service, run_id))
    talker = service.talker(run_id)
    if talker and st.button("Chat", key="runs_chat", icon=":material/forum:"):
        st.switch_page("chat.py", query_params={"model": talker})
    runs_export.button(service, run_id)
    if service.rebuilds.missing(run_id):
        runs_again.button(service, run_id)
    _copy(run_id)
    runs_weights.button(service, run_id)
    if st.button("Delete run", key="runs_delete", icon=":material/delete:", type="tertiary"):
        _confirm_delete(service, run_id, detail.name)


def _look(detail: RunDetail) -> None:
    """The pages that say more of a complete run: a scan has no numbers to compare, a dense model nothing removed."""
    run_id, choice = detail.status.id, _choice(detail)
    if choice.get("kind") != "scan" and st.button("Compare", key="runs_compare", icon=":material/monitoring:"):
        chosen = [run for run in (detail.baseline, run_id) if run]
        st.switch_page("compare.py", query_params={"runs": list(dict.fromkeys(chosen))})
    pruned = bool(choice) and choice.get("kind") != "quantised"
    if pruned and st.button("Anatomy", key="runs_anatomy", icon=":material/park:", help="Layer by layer"):
        st.switch_page("anatomy.py", query_params={"run": run_id})


def _copy(run_id: str) -> None:
    """Launch, filled in with what this run is."""
    if st.button("Edit a copy", key="runs_copy", icon=":material/edit:", help="Open Launch with these settings"):
        st.session_state["launch_copy"] = run_id
        st.switch_page("launch.py", query_params={})


def _retry(service: Service, run_id: str) -> None:
    try:
        st.query_params["run"] = service.retry(run_id)
    except EspalierError as error:
        st.session_state["runs_problem"] = str(error)


@st.dialog("Delete this run?")
def _confirm_delete(service: Service, run_id: str, name: str) -> None:
    st.html(f'<p class="esp-row"><b>{theme.html(name)}</b><span>{theme.html(run_id)}</span></p>')
    st.html('<p class="esp-fact">Its numbers, its log, its model and its exports go for good.</p>')
    gone = st.button(
        "Delete run and its files", key="runs_delete_yes", type="primary", on_click=_delete, args=(service, run_id)
    )
    if gone:
        st.rerun()


def _delete(service: Service, run_id: str) -> None:
    act(service.delete, run_id)
    _back()


# ----------------------------------------------------------------------------------------------------------------- live


def _live() -> None:
    """Progress, the curve while it trains, and the end of the log."""
    run_id = str(st.session_state["runs_open_id"])
    service = get_service()
    feed.watch(feed.BOARD, feed.board_mark(service.live.now()))
    try:
        detail = service.run_detail(run_id)
    except EspalierError:
        st.rerun(scope="app")
    status = detail.status
    if st.session_state.get("runs_open_state") != _seen(detail):
        st.rerun(scope="app")
    row = {name: getattr(status, name) for name in ("stage", "task", "done", "total", "unit", "eta_s", "spoke")}
    choice = st.session_state.get("runs_open_choice") or {}
    row |= {name: choice.get(name) for name in ("recovery", "kind")}
    if str(status.state) in say.QUEUED:
        waits = service.waits()
        if run_id not in waits:
            st.html('<p class="esp-left">Waiting for its turn.</p>')
        waits_for(service, run_id, waits)
        return
    st.html(feed.slot(f"run:{run_id}", say.progress_html(row, dense=not choice)))
    runs_recovery.live(service, run_id, status.stage)
    with st.expander("Log", key="runs_log_live", icon=":material/notes:", expanded=False):
        _log(service.log_tail(run_id, LOG_LINES))


def _log(text: str) -> None:
    long = text.count("\n") > 12
    st.code(text or "The log is empty.", language=None, height=320 if long else "content", wrap_lines=True)


# ----------------------------------------------------------------------------------------------------------------- body


def _body(service: Service, detail: RunDetail) -> None:
    tree, facts = st.columns([1, 1.65], gap="large")
    with tree:
        branches = _branches(detail)
        if branches:
            st.html(f'<h2 class="esp-section">{_figure_title(detail)}</h2>')
            theme.figure(branches)
            st.html(f'<p class="esp-fact">{theme.html(_size_line(detail))}</p>')
    with facts:
        method = str(_choice(detail).get("method") or "dense")
        runs_numbers.show(service, detail, pruned=bool(_choice(detail)))
        runs_recovery.show(service, detail, moving=str(detail.status.state) in (*say.ACTIVE, *say.QUEUED))
        runs_numbers.drift(detail, method)
        seconds = say.stage_seconds(detail)
        if seconds:
            total = theme.duration(sum(seconds.values()))
            st.html(f'<h2 class="esp-section">Stages<span>{total}</span></h2>{say.timings_html(seconds)}')


def _figure_title(detail: RunDetail) -> str:
    if not _choice(detail) or _choice(detail).get("kind") == "quantised":
        return "The model"
    if not detail.layers.empty:
        return "What it cut"
    if _choice(detail).get("kind") == "scan":
        return "What each layer loses, one at a time"
    over = str(detail.status.state) not in (*say.ACTIVE, *say.QUEUED)
    return "What it would have cut" if over else "What it will cut"


def _branches(detail: RunDetail) -> list[Branch]:
    if not detail.layers.empty:
        return branches_of_rows(say.records(detail.layers))
    if detail.plan is not None and detail.experiment is not None and detail.experiment.pruning is not None:
        return branches_of_plan(detail.plan, detail.experiment.pruning.parts)
    if detail.architecture is not None:
        return dense_branches((s.heads, s.kv_heads, s.mlp) for s in detail.architecture.layers)
    return []


def _size_line(detail: RunDetail) -> str:
    pruned = (detail.results or {}).get("pruning") or {}
    if _choice(detail).get("kind") == "scan":
        return "Every layer is put back before the next one: no model comes of it."
    if not pruned.get("params_before"):
        return f"planned: {_planned(detail)}" if detail.plan is not None else ""
    before, after = int(pruned["params_before"]), int(pruned["params_after"])
    share = float(pruned.get("achieved_model_ratio") or 0)
    if not _choice(detail):
        return f"{theme.count(before)} parameters"
    if _choice(detail).get("kind") == "quantised":
        held = theme.size(float(pruned.get("bytes") or 0))
        return f"{theme.count(before)} parameters, rounded to {_choice(detail)['method'].upper()}: a file of {held}"
    if after == before:
        return f"{theme.count(before)} parameters, {100 * share:.1f} % of them set to zero: not smaller"
    words = f"{theme.count(before)} → {theme.count(after)} parameters ({100 * share:.1f} % of the whole model removed)"
    return "; ".join([words, *say.whole_cuts(say.records(detail.layers))])


def _planned(detail: RunDetail) -> str:
    plan = detail.plan
    if plan is None:
        return ""
    return f"{100 * plan.achieved_model_ratio:.1f} % of the whole model"
