"""Recovery in an opened run: its curve, live while it trains; what it brought back; where its adapter lies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from core import charts, charts_recovery
from core.experiment import Experiment, Recovery
from core.service import RunDetail, Service
from pages._parts import runs_text as say
from pages._parts import theme

TRAINS = ("recover", "judge_recovered")
"""Stages while which, and after which, there is a curve."""


def plan_words(recovery: Recovery) -> str:
    """What is trained and on what: `LoRA, rank 8, on alpaca-cleaned`, `distillation on passages`."""
    kind = say.RECOVERIES[recovery.kind]
    if recovery.kind == "distillation" and recovery.full_weights:
        kind += ", weights of the cut layers"
    else:
        kind += f", rank {recovery.rank}"
    data = recovery.data
    name = data.path.rpartition("/")[2] if data.path is not None else data.corpus or "passages"
    return f"{kind}, on {name}"


def live(service: Service, run_id: str, stage: str | None) -> None:
    """The curve so far, inside what draws itself anew; nothing before training begins."""
    if str(stage).partition(".")[0] in TRAINS:
        _curve(service, run_id)


def show(service: Service, detail: RunDetail, *, moving: bool) -> None:
    """The whole part. While the run moves, the curve stands with its progress, not here."""
    experiment = detail.experiment
    if experiment is None or experiment.recovery is None:
        return
    found = _mapping((detail.results or {}).get("recovery"))
    training = _mapping(found.get("training"))
    began = bool(training) or (not moving and bool(service.recovery.curve(detail.status.id)))
    if not began:
        return
    words = theme.html(plan_words(experiment.recovery))
    st.html(f'<h2 class="esp-section">Recovery<span>{words}</span></h2>{_facts_html(training, found)}')
    _table(service, detail)
    if not moving:
        _curve(service, detail.status.id)
    _elsewhere(service, detail, experiment, found)


# ------------------------------------------------------------------------------------------------------------- training


def _curve(service: Service, run_id: str) -> None:
    points = service.recovery.curve(run_id)
    if not points:
        return
    chart = charts_recovery.training_curve(points, dark=theme.dark())
    st.plotly_chart(
        chart, theme=None, width="stretch", key="runs_curve", config=charts.config("training"), alt=charts.alt(chart)
    )


def _facts_html(training: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """How training went, in one quiet line; why it ended early, as a remark. '' where it did not end."""
    if not training:
        return '<p class="esp-fact">Training did not end. What it had reached is in the curve.</p>'
    lines = "".join(f'<p class="esp-fact">{theme.html(" · ".join(words))}</p>' for words in _facts(training, found))
    if training.get("diverged"):
        lines += theme.note(
            f"Called off: {training['diverged']}. What was judged is the model of step {training.get('steps')}."
        )
    return lines


def _facts(training: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What was learned, and how it was computed."""
    data = _mapping(found.get("data"))
    steps = f"{_whole(training, 'steps'):,} of {_whole(training, 'planned_steps'):,} steps"
    words = [f"{steps}, ended {training['stopped']}" if training.get("stopped") else steps]
    words.append(f"{_whole(training, 'tokens'):,} tokens learned from {_documents(data, 'documents')}")
    before, after = training.get("validation_before"), training.get("validation_after")
    if isinstance(before, float) and isinstance(after, float):
        held = _documents(data, "validation_documents", "held-out ")
        words.append(f"validation {before:.3f} → {after:.3f} nats a token on {held}")
    seconds = training.get("seconds")
    how = [f"trained for {say.took(float(seconds))}"] if isinstance(seconds, int | float) else []
    how.append(f"{theme.count(_whole(training, 'trained_parameters'))} parameters")
    how.append(f"micro-batches of {training.get('micro_batch')} rows, {training.get('accumulation')} a step")
    how.append(str(training.get("precision")))
    how += ["activations computed twice to save memory"] if training.get("gradient_checkpointing") else []
    return words, how


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _whole(values: Mapping[str, Any], name: str) -> int:
    """A count from a file that somebody may have edited."""
    value = values.get(name)
    return int(value) if isinstance(value, int | float) and value == value else 0


def _documents(data: Mapping[str, Any], name: str, which: str = "") -> str:
    number = _whole(data, name)
    return f"{number:,} {which}document{'' if number == 1 else 's'}"


# ----------------------------------------------------------------------------------------------------- before and after


def _table(service: Service, detail: RunDetail) -> None:
    run_id = detail.status.id
    dense = detail.baseline
    runs = service.runs()
    wanted = [run_id, *([dense] if dense else [])]
    table = charts.points(runs[runs["id"].isin(wanted)], service.metrics(wanted), {run_id: dense})
    rows = charts_recovery.gains(table[table["run_id"] == run_id], service.recovery.gains([run_id]))
    if rows.empty:
        return
    qualities = [quality for quality in charts.qualities(table) if not quality.task.startswith("speed")]
    marks = charts_recovery.gain_marks(rows, qualities)
    by_key = {str(row["quality"]): row for _, row in rows.iterrows()}
    compared = bool(rows["dense"].notna().any())
    body = "".join(
        _row(by_key[quality.key], quality, marks.get((run_id, quality.key), ""), compared)
        for quality in qualities
        if quality.key in by_key
    )
    head = '<th></th><th class="dense">pruned</th><th>recovered</th><th>gain</th>'
    head += '<th class="dense">came back</th>' if compared else ""
    st.html(f'<div class="esp-scroll"><table class="esp-table">{_tr(head)}{body}</table></div>{_key(rows, compared)}')


def _row(row: pd.Series, quality: charts.Quality, mark: str, compared: bool) -> str:
    interval = charts_recovery.interval_words(row, quality)
    early = theme.html(charts.measured(row["before"], row["before_stderr"], quality))
    cells = [
        f"<td>{theme.html(quality.label)}</td>",
        f'<td class="dense">{early}</td>',
        f"<td>{theme.html(charts.measured(row['value'], row['stderr'], quality))}"
        f'<small class="narrow">from {early}</small></td>',
        f'<td class="gain">{theme.html(charts_recovery.gain_words(row, quality, mark))}'
        f"<small>{theme.html(interval and f'95 %: {interval}')}</small></td>",
    ]
    if compared:
        cells.append(f'<td class="dense">{theme.html(charts_recovery.regained_words(row, quality))}</td>')
    return _tr("".join(cells))


def _tr(cells: str) -> str:
    return f"<tr>{cells}</tr>"


def _key(rows: pd.DataFrame, compared: bool) -> str:
    words = [
        "Values ± standard error. ▲ better, ▼ worse than before recovery at 5 %, corrected by Holm;",
        "single tasks are not marked.",
    ]
    if rows["gain_paired"].any():
        words.append("A 95 % interval stands where the gain was taken on the same documents and windows.")
    if compared:
        words.append("Came back: the share of what the cut cost.")
    return f'<p class="esp-fact">{" ".join(words)}</p>'


# -------------------------------------------------------------------------------------------------------------- adapter


def _elsewhere(service: Service, detail: RunDetail, experiment: Experiment, found: Mapping[str, Any]) -> None:
    """How the adapter is used without this tool, where there is one."""
    place = service.recovery.adapter(detail.status.id)
    if place is None or place.name != "adapter" or not found:
        return
    folder = place.parent.parent
    with st.expander("The adapter elsewhere", key="runs_adapter", icon=":material/extension:"):
        st.html(
            '<p class="esp-fact">The recovered model is whole and needs no adapter. It is kept beside it: peft loads '
            "it onto the pruned model.</p>"
        )
        trust = ", trust_remote_code=True" if found.get("layout") == "per_layer" else ""
        st.code(
            "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{folder / "model"}"{trust})\n'
            f'model = PeftModel.from_pretrained(model, "{place}")',
            language="python",
            wrap_lines=True,
        )
        if _masked(service, experiment):
            st.html(theme.note("peft alone would fill this mask’s zeros: take the whole model, or set them again."))


def _masked(service: Service, experiment: Experiment) -> bool:
    method = experiment.pruning.method if experiment.pruning is not None else ""
    return any(known.name == method and known.kind == "mask" for known in service.methods())
