"""The right side of Launch: what will happen, in a figure, in numbers and in words, and the button that starts it."""

from collections.abc import Sequence
from typing import Any

import streamlit as st

from core.errors import EspalierError, ExperimentError, Problem
from core.espalier import branches_of_plan, dense_branches
from core.experiment import Experiment
from core.service import Preview, Service
from pages._parts import launch_scan
from pages._parts.launch_build import experiments
from pages._parts.launch_form import Form
from pages._parts.launch_words import sentence
from pages._parts.theme import count, duration, figure, html, note, percent, plain, size

LOADS = "exported, loads in"
ENGINES = ("transformers", "vLLM", "llama.cpp")


def show(service: Service, form: Form, values: Any) -> None:
    """Draw the preview of what the form holds, and say beside each field what is wrong with it."""
    problems, made = list(form.problems), []
    if form.architecture is not None:
        try:
            made = experiments(values, form.methods, form.architecture.n_layers)
        except ExperimentError as error:
            problems += error.problems or [Problem(error.field, error.message, error.advice)]
    seen = [service.preview(experiment) for experiment in made]
    for preview in seen:
        problems += [*preview.problems, *preview.cautions]
    homeless = form.says.fill(problems)
    blocked = any(problem.level == "error" for problem in problems)
    dense = _baselines(service, made) if not blocked else []
    with st.container(key="preview", gap="small"):
        if seen:
            _figure(made, seen, form.architecture)
            _facts(made, seen, [service.preview(experiment) for experiment in dense])
        else:
            _nothing(form.architecture)
        for problem in homeless:
            st.html(note(str(problem), level=problem.level))
        for text in _warnings(seen):
            st.html(note(text))
        _queue(service, made, seen, total=len(made) + len(dense), blocked=blocked)
        if seen:
            _texts(made, seen)


def _warnings(seen: Sequence[Preview]) -> list[str]:
    """What is said nowhere else: not beside a field, and not under the limit, where its cost stands already."""
    said = {str(problem) for preview in seen for problem in preview.cautions}
    texts = dict.fromkeys(text for preview in seen for text in preview.warnings)
    return [text for text in texts if text not in said and "documents a task" not in text]


def _nothing(architecture: Any | None) -> None:
    st.html('<p class="esp-kicker">What will happen</p>')
    if architecture is not None:
        figure(dense_branches([(s.heads, s.kv_heads, s.mlp) for s in architecture.layers]))
    st.html('<p class="esp-fact">The preview comes back when the remarks beside the fields are dealt with.</p>')


# --- the figure


def _figure(made: Sequence[Experiment], seen: Sequence[Preview], architecture: Any) -> None:
    at = 0
    if len(made) > 1:
        at = st.selectbox(
            "Preview of",
            range(len(made)),
            format_func=lambda i: made[i].name if i < len(made) else "",
            key=f"launch_shown_{len(made)}",
            label_visibility="collapsed",
        )
    plan = seen[at].plan
    kicker = f'<p class="esp-kicker">{html(made[at].name)}</p>' if len(made) == 1 else ""
    st.html(kicker + _numbers(plan, architecture, made[at].model.quantised))
    if plan is None:
        figure(dense_branches([(s.heads, s.kv_heads, s.mlp) for s in architecture.layers]))
        return
    pruning = made[at].pruning
    figure(branches_of_plan(plan, pruning.parts if pruning else ()))
    st.html(f'<p class="esp-fact">{html(sentence(plan, pruning)).replace("–", "&#8288;–&#8288;")}</p>')


def _numbers(plan: Any | None, architecture: Any, quantised: str | None) -> str:
    if plan is None:
        what = "nothing is removed: the dense model, as a baseline"
        if quantised is not None:
            what = f"nothing is removed; every weight is rounded to {quantised.upper()}, and judged so"
        return f'<p class="esp-numbers"><strong>{count(architecture.params)}</strong><span>{html(what)}</span></p>'
    about = "" if plan.exact else "about "
    if plan.kind == "mask":
        return (
            f'<p class="esp-numbers"><strong>{count(plan.params_before)} <s>with</s> '
            f"{about}{count(plan.params_before - plan.nonzero_after)} <s>zeros</s></strong>"
            f"<span>{percent(plan.achieved_model_ratio)} of the whole model</span></p>"
        )
    return (
        f'<p class="esp-numbers"><strong>{count(plan.params_before)} <s>→</s> '
        f"{about}{count(plan.params_after)}</strong>"
        f"<span>−{percent(plan.achieved_model_ratio)} of the whole model</span></p>"
    )


# --- the facts


def _facts(made: Sequence[Experiment], seen: Sequence[Preview], dense: Sequence[Preview]) -> None:
    if len(made) > 1:
        st.html(_table(made, seen))
    rows = []
    if len(made) == 1:
        one = seen[0]
        rows = [("smaller on disk", one.smaller), ("faster", one.faster)]
    rows += _engines(made, seen)
    memory, seconds = max(p.memory_bytes for p in seen), sum(p.seconds for p in [*seen, *dense])
    where = "this GPU" if seen[0].device.startswith("cuda") else "this CPU"
    rows += [
        ("needs", f"about {size(memory)} of memory"),
        ("takes", f"about {duration(seconds)} on {where}{', with the dense model' if dense else ''}"),
        ("of that", _training(seen)),
    ]
    items = "".join(
        f"<dt>{name}</dt><dd>{value if name == LOADS else html(value)}</dd>" for name, value in rows if value
    )
    st.html(f'<dl class="esp-facts" title="{html(seen[0].seconds_basis)}">{items}</dl>')


def _training(seen: Sequence[Preview]) -> str:
    """What training takes, where there is any; the second evaluation counts as evaluation."""
    seconds = sum(preview.stage_seconds.get("recover", 0.0) for preview in seen)
    return f"about {duration(seconds)} for recovery; the model is judged before and after" if seconds else ""


def _engines(made: Sequence[Experiment], seen: Sequence[Preview]) -> list[tuple[str, str]]:
    """How each engine loads the exported model; of several runs, those that no engine or not all of them load alike."""
    found: dict[tuple[str, str, bool], list[str]] = {}
    for experiment, preview in zip(made, seen, strict=True):
        for engine in preview.loads_in:
            found.setdefault((engine.name, engine.how, engine.loads), []).append(experiment.name)
    lines = []
    for name, how, loads in sorted(found, key=lambda key: ENGINES.index(key[0]) if key[0] in ENGINES else 9):
        runs = found[name, how, loads]
        which = "" if len(runs) == len(made) else f" ({', '.join(runs[:3])}{' …' if len(runs) > 3 else ''})"
        sign, word = ("✓", "yes") if loads else ("–", "no")
        lines.append(
            f'<li><i role="img" aria-label="{word}">{sign}</i><b>{html(name)}</b> {html(how)}<s>{html(which)}</s></li>'
        )
    return [(LOADS, f'<ul class="esp-engines">{"".join(lines)}</ul>')] if lines else []


def _table(made: Sequence[Experiment], seen: Sequence[Preview]) -> str:
    rows = []
    for experiment, preview in zip(made, seen, strict=True):
        plan = preview.plan
        quantised = experiment.model.quantised
        share = f"−{percent(plan.achieved_model_ratio)}" if plan else "rounded" if quantised else "dense"
        if plan and plan.kind == "mask":
            share = f"{percent(plan.achieved_model_ratio)} zeros"
        done = "done already" if preview.identical else duration(preview.seconds)
        rows.append(f"<tr><td>{html(experiment.name)}</td><td>{share}</td><td>{done}</td></tr>")
    head = "<tr><th>run</th><th>whole model</th><th>time</th></tr>"
    return f'<table class="esp-runs">{head}{"".join(rows)}</table>'


def _texts(made: Sequence[Experiment], seen: Sequence[Preview]) -> None:
    with st.container(horizontal=True, gap="small"):
        with st.popover("YAML", type="tertiary", key="launch_fold_yaml"):
            for experiment, preview in zip(made, seen, strict=True):
                if len(made) > 1:
                    st.html(f'<p class="esp-kicker">{html(experiment.name)}</p>')
                st.code(preview.yaml, language=None, wrap_lines=True)
        with st.popover("Command", type="tertiary", key="launch_fold_command"):
            st.html('<p class="esp-fact">The same run from a terminal; the file holds the YAML.</p>')
            st.code("\n".join(preview.command for preview in seen), language=None, wrap_lines=True)


# --- the button


def _queue(service: Service, made: Sequence[Experiment], seen: Sequence[Preview], *, total: int, blocked: bool) -> None:
    baseline = False
    if not all(experiment.dense for experiment in made):
        baseline = st.checkbox(
            "With the dense model, to compare",
            key="launch_baseline",
            persist_state="session",
            help="Adds a run of the same model and evaluation without a cut, unless there is one already.",
        )
    for experiment, preview in zip(made, seen, strict=True):
        if preview.identical:
            st.html(note(f"{experiment.name}: the same run is there already.", level="info"))
            st.page_link("runs.py", label="Open it", query_params={"run": preview.identical})
    st.button(
        f"Queue {total} run{'' if total == 1 else 's'}" if total else "Queue run",
        type="primary",
        width="stretch",
        disabled=blocked or not made or service.read_only,
        key="launch_queue",
        on_click=_submit,
        args=(service, list(made), baseline),
        help=_why_not(service, blocked),
    )
    if not blocked:
        launch_scan.button(service, made)
    _said()


def _baselines(service: Service, made: Sequence[Experiment]) -> list[Experiment]:
    """Dense runs that go along: wanted, and not there or in the queue already."""
    return service.missing_baselines(list(made)) if st.session_state["launch_baseline"] else []


def _why_not(service: Service, blocked: bool) -> str | None:
    if service.read_only:
        return "Another Espalier works on this folder; queue runs there."
    return "Deal with the remarks beside the fields first." if blocked else None


def _submit(service: Service, made: list[Experiment], baseline: bool) -> None:
    try:
        ids = service.submit(made, with_baseline=baseline)
    except EspalierError as error:
        st.session_state["launch_said"] = ("error", str(error), None)
    else:
        said = f"Queued {len(ids)} run{'' if len(ids) == 1 else 's'}."
        st.session_state["launch_said"] = ("info", said, ids[0] if ids else None)


def _said() -> None:
    """What came of the last click, once."""
    level, text, run_id = st.session_state.pop("launch_said", (None, "", None))
    if level is None:
        return
    st.html(note(text, level=level))
    if run_id:
        st.page_link("runs.py", label=plain("Watch on Runs"), icon=":material/arrow_forward:")
