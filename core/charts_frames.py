"""From the store's tables to one long table of points, ready to be drawn or shown: pure pandas.

A *quality* is one thing measured in one way: task, metric and protocol (corpus, window, shots, documents …). Values of
different protocols are different qualities, so they never meet on one axis or in one difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from core.charts_runs import QUANTISED as QUANTISED
from core.charts_runs import describe_runs as describe_runs
from core.charts_words import canonical, differing_words, mapping, protocol_words
from core.evaluation.averages import AVERAGE_TASK, SEVEN_METRICS
from core.evaluation.metrics import text_key
from core.evaluation.paired import normal_p

PRIMARY = SEVEN_METRICS
"""The metric that the literature reports for each task."""
CHANCE = {
    "boolq": 1 / 2,
    "piqa": 1 / 2,
    "hellaswag": 1 / 4,
    "winogrande": 1 / 2,
    "arc_easy": 1 / 4,
    "arc_challenge": 1 / 4,
    "openbookqa": 1 / 4,
}
"""Accuracy of guessing where a run did not measure it on its documents (four choices in nearly all ARC questions)."""
Z95 = 1.959964
"""Half width of a 95 % interval in standard errors."""
MOST_DECADES = 3
"""A logarithmic axis ends this far above its lowest value: one broken model would press all others into a line."""
_LOWER_IS_BETTER = ("perplexity", "kl_", "loss", "milliseconds", "memory", "bytes", "nll", "macs", "bits_per_byte")
_FRACTIONS = ("acc", "agreement", "exact_match", "f1")
_UNITS = (
    ("tokens_per_second", "tokens/s"),
    ("milliseconds", "ms"),
    ("_bytes", "bytes"),
    ("macs", "MACs"),
    ("kl_per_token", "nats"),
)
_NAMES = {
    "prefill_tokens_per_second": "prefill speed",
    "decode_tokens_per_second": "decode speed",
    "first_token_milliseconds": "time to the first token",
    "peak_memory_bytes": "peak memory",
    "macs": "multiply-accumulates",
    "kl_per_token": "KL from dense",
    "top1_agreement": "top-1 agreement with dense",
}


@dataclass(frozen=True)
class Quality:
    """One thing measured in one way; `key` names it in URLs and tables."""

    key: str
    task: str
    metric: str
    protocol_key: str
    protocol: str
    """The protocol in words, short."""
    distinguish: bool
    """Whether another protocol of the same task and metric is on the page, so that the title must say which."""
    measured_chance: float | None = None
    """Accuracy of guessing on the documents themselves."""
    majority: float | None = None
    """Accuracy of always giving the most frequent answer, on the documents themselves."""

    @property
    def name(self) -> str:
        """Task and metric, without the protocol."""
        about, _, corpus = self.task.partition("/")
        name = _NAMES.get(self.metric, self.metric)
        if about in ("perplexity", "fidelity", "speed"):
            return f"{name}, {corpus}" if corpus else name
        return self.task if self.is_mean else f"{self.task} {name}"

    @property
    def label(self) -> str:
        """What stands on axes and in pickers."""
        return f"{self.name} ({self.protocol or self.protocol_key})" if self.distinguish else self.name

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller value is the better one."""
        return any(word in self.metric for word in _LOWER_IS_BETTER)

    @property
    def fraction(self) -> bool:
        """Whether values are shares between 0 and 1, shown in %."""
        return self.metric.split("_")[0] in _FRACTIONS or "agreement" in self.metric

    @property
    def unit(self) -> str:
        """Unit of the values, or ''."""
        if self.fraction:
            return "%"
        return next((unit for ending, unit in _UNITS if ending in self.metric), "")

    @property
    def is_task(self) -> bool:
        """Whether this is a share of right answers, with a level of guessing."""
        return self.metric.startswith("acc")

    @property
    def is_mean(self) -> bool:
        """Whether this is the mean over the seven tasks."""
        return self.task == AVERAGE_TASK

    @property
    def primary(self) -> bool:
        """Whether this is what is usually reported: perplexity, or the task's usual metric."""
        return self.metric == "perplexity" or PRIMARY.get(self.task, "acc") == self.metric

    @property
    def chance(self) -> float | None:
        """Accuracy of guessing, where it is known."""
        if self.measured_chance is not None:
            return self.measured_chance
        return CHANCE.get(self.task) if self.is_task else None


def points(
    runs: pd.DataFrame,
    metrics: pd.DataFrame,
    baselines: Mapping[str, str | None],
    titles: Mapping[str, str] | None = None,
    paired: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """One row per run and quality.

    runs, metrics: the store's tables (core/storage/store.py). baselines: run id → id of the run that it is held
    against, its dense run or any other that is among `runs`; or None.
    titles: method name → the title shown to people. paired: differences on shared documents (core/pairs.py).
    Columns: run_id, label, name, series, method, kind ('dense' for the dense model), ratio, removed (share of the whole
    model removed, or zeroed), parameters, bytes, seed, task, metric, stage, value, stderr, n, protocol (JSON), quality
    (key), details (JSON), baseline, against (its label; 'dense' of a dense one), dense (the baseline's value),
    dense_stderr, delta, delta_stderr, p (of the difference, not corrected), paired, before, before_stderr, beside (of
    the dense model, measured in the same run).
    Rows without a finite value are left out. Of a run that was measured before and after recovery, the later value
    counts, and the earlier one stands in `before`.
    Where `paired`, delta_stderr and p are taken on the same documents; else they take the two values as
    independent, which is cautious. What a run measured on the dense model beside its own (stage 'dense', such as speed)
    is that row's dense value, unless it is held against a run that is not dense.
    """
    if runs.empty or metrics.empty:
        return pd.DataFrame(columns=_POINT_COLUMNS)
    about = describe_runs(runs, titles)
    table = metrics.merge(about, on="run_id", how="inner", suffixes=("", "_run"))
    table["value"] = pd.to_numeric(table["value"], errors="coerce")
    table["stderr"] = pd.to_numeric(table["stderr"], errors="coerce")
    table = table[table["value"].map(math.isfinite)].copy()
    table["quality"] = (
        table["task"].astype(str) + "|" + table["metric"].astype(str) + "|" + table["protocol_key"].astype(str)
    )
    of_dense = table["stage"].eq("dense") & table["kind"].ne("dense")
    beside, table = table[of_dense], table[~of_dense]
    late = table["stage"].eq("recovered")
    early = table.loc[table["stage"].eq("pruned"), ["run_id", "quality", "value", "stderr"]]
    early = early.drop_duplicates(["run_id", "quality"]).rename(columns={"value": "before", "stderr": "before_stderr"})
    table = (
        table.assign(_late=late).sort_values("_late", kind="stable").drop_duplicates(["run_id", "quality"], keep="last")
    )
    table = table.merge(early, on=["run_id", "quality"], how="left")
    for column in ("before", "before_stderr"):
        table[column] = table[column].where(table["stage"].eq("recovered"))
    table["baseline"] = table["run_id"].map(lambda run_id: baselines.get(run_id))
    own = _by_run_and_quality(beside) | _beside_kernels(table, beside)
    keys = list(zip(table["run_id"], table["quality"], strict=True))
    table["beside"] = [own.get(key, (math.nan, math.nan))[0] for key in keys]
    kinds = dict(zip(about["run_id"], about["kind"], strict=True))
    labels = dict(zip(about["run_id"], about["label"], strict=True))
    pinned = {run_id: str(labels[run_id]) for run_id, kind in kinds.items() if kind != "dense"}
    table["against"] = [pinned.get(str(baseline), "dense") for baseline in table["baseline"]]
    matched = _baseline_values(table, own, kinds)
    table["dense"], table["dense_stderr"] = [value for value, _ in matched], [error for _, error in matched]
    table["delta"] = table["value"] - table["dense"]
    table["delta_stderr"] = (table["stderr"] ** 2 + table["dense_stderr"] ** 2) ** 0.5
    table["details"] = table.get("details", "{}")
    table = _with_pairs(table, paired)[_POINT_COLUMNS].reset_index(drop=True)
    # Plain objects: rows are taken from this table a hundred times a page, and Arrow's strings are slow at that.
    texts = [name for name in table.columns if pd.api.types.is_string_dtype(table[name].dtype)]
    return table.astype(dict.fromkeys(texts, object))


def _with_pairs(table: pd.DataFrame, paired: pd.DataFrame | None) -> pd.DataFrame:
    """Differences on shared documents in place of those of independent values, where all documents are shared."""
    if paired is None or paired.empty:
        table["paired"] = False
    else:
        same = ["run_id", "task", "metric", "baseline", "n", "text"]
        table["text"] = [perplexity_text(*row) for row in zip(table["metric"], table["protocol"], strict=True)]
        found = paired.drop_duplicates(same).astype({"n": "float64"})
        table = table.astype({"n": "float64"}).merge(found, on=same, how="left")
        table["paired"] = table["paired_stderr"].notna() & table["delta"].notna() & table["stage"].ne("dense")
        table["delta_stderr"] = table["paired_stderr"].where(table["paired"], table["delta_stderr"])
    own = [normal_p(delta, error) for delta, error in zip(table["delta"], table["delta_stderr"], strict=True)]
    table["p"] = pd.Series(own, index=table.index, dtype="float64")
    if table["paired"].any():
        table["p"] = table["paired_p"].where(table["paired"], table["p"])
    return table


def perplexity_text(metric: str, protocol: str) -> str:
    """Which windows a perplexity was measured on, as core/pairs.py names them; '' for all else."""
    return text_key(mapping(protocol)) if metric == "perplexity" else ""


_Values = dict[tuple[str, str], tuple[float, float]]


def _by_run_and_quality(rows: pd.DataFrame) -> _Values:
    """(run id, quality key) → value and stderr."""
    columns = (rows[name] for name in ("run_id", "quality", "value", "stderr"))
    return {(str(run), str(quality)): (value, error) for run, quality, value, error in zip(*columns, strict=True)}


def _beside_kernels(table: pd.DataFrame, beside: pd.DataFrame) -> _Values:
    """Of what was timed on kernels of its own (`speed/2:4`) the dense model's value: it was timed without them."""
    special = table[table["task"].astype(str).str.startswith("speed/")]
    if special.empty:
        return {}
    timed = beside.loc[beside["task"].eq("speed"), ["run_id", "metric", "protocol", "value", "stderr"]]
    plain = {
        (str(run), str(metric), canonical(mapping(protocol))): (value, error)
        for run, metric, protocol, value, error in timed.itertuples(index=False)
    }
    found = {}
    for row in special.itertuples():
        protocol = {key: value for key, value in mapping(row.protocol).items() if key != "kernels"}
        known = plain.get((str(row.run_id), str(row.metric), canonical(protocol)))
        if known is not None:
            found[str(row.run_id), str(row.quality)] = known
    return found


def _baseline_values(table: pd.DataFrame, own: _Values, kinds: Mapping[str, str]) -> list[tuple[float, float]]:
    """Of each row the baseline's value and stderr: of a dense one what was measured beside it in its run (speed)."""
    known = _by_run_and_quality(table)
    found = []
    for run_id, baseline, quality in zip(table["run_id"], table["baseline"], table["quality"], strict=True):
        beside = own.get((run_id, quality)) if kinds.get(str(baseline), "dense") == "dense" else None
        found.append(beside or known.get((str(baseline), quality), (math.nan, math.nan)))
    return found


_POINT_COLUMNS = [
    "run_id", "label", "name", "series", "method", "kind", "ratio", "removed", "parameters", "bytes", "seed", "task",
    "metric", "stage",
    "value", "stderr", "n", "protocol", "protocol_key", "quality", "baseline", "dense", "dense_stderr", "delta",
    "delta_stderr", "details", "p", "paired", "before", "before_stderr", "beside",
    "against",
]  # fmt: skip


def qualities(table: pd.DataFrame) -> list[Quality]:
    """What can be put on an axis, the usual first: perplexity, the tasks' usual metrics, then the rest.
    Of several protocols those that calibration did not read come first, then the one that most runs share."""
    if table.empty:
        return []
    found: list[Quality] = []
    unique = table.drop_duplicates(["quality"])
    known = ((str(key), mapping(text)) for key, text in zip(table["quality"], table["details"], strict=True))
    rates: dict[str, dict[str, Any]] = {}
    leaky: set[str] = set()
    for key, details in known:
        if "chance" in details:
            rates[key] = details
        if details.get("leakage"):
            leaky.add(key)
    alike: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in unique.itertuples():
        alike.setdefault((str(row.task), str(row.metric)), []).append(mapping(row.protocol))
    for row in unique.itertuples():
        others = alike[str(row.task), str(row.metric)]
        own = mapping(row.protocol)
        words = differing_words(others, own) if len(others) > 1 else protocol_words(own, str(row.task))
        details = rates.get(str(row.quality), {})
        found.append(
            Quality(
                key=str(row.quality),
                task=str(row.task),
                metric=str(row.metric),
                protocol_key=str(row.protocol_key),
                protocol=words,
                distinguish=len(others) > 1,
                measured_chance=details.get("chance"),
                majority=details.get("majority"),
            )
        )
    order = {task: index for index, task in enumerate(PRIMARY)}
    runs = table["quality"].value_counts()

    def place(q: Quality) -> tuple[Any, ...]:
        return (
            not q.primary,
            q.metric != "perplexity",
            -1 if q.is_mean else order.get(q.task, 99),
            q.task,
            q.metric,
            q.key in leaky,
            -int(runs[q.key]),
            q.key,
        )

    return sorted(found, key=place)


def at(table: pd.DataFrame, quality: Quality) -> pd.DataFrame:
    """The rows of one quality, in the order of `at_order`."""
    return at_order(table[table["quality"] == quality.key])


def at_order(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the dense model first, then by method and by what was removed."""
    if len(rows) < 2:
        return rows
    by = zip(*(rows[name] for name in ("kind", "series", "removed", "run_id")), strict=True)
    keys = [(row[0] != "dense", *((True, 0) if pd.isna(value) else (False, value) for value in row)) for row in by]
    return rows.iloc[sorted(range(len(keys)), key=keys.__getitem__)]  # sort_values takes ten times as long


def missing(table: pd.DataFrame, quality: Quality) -> list[str]:
    """Labels of the runs that have no value of this quality."""
    have = set(table.loc[table["quality"] == quality.key, "run_id"])
    rest = table[~table["run_id"].isin(have)].drop_duplicates("run_id")
    return [str(label) for label in rest["label"]]
