"""Questions about single documents: DuckDB over the Parquet files beside the runs. Nothing is copied into the store.

A run without the file has no rows. Columns that are empty in one file have no type there, so all are cast. Of a run
that was judged before and after recovery, the later answers count ('recovered' comes after 'pruned').
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from core.storage.store import Store

RIGHT = {"acc": "correct", "acc_norm": "correct_norm"}
CHOSEN = {"acc": "choice", "acc_norm": "choice_norm"}
_ROWS = """SELECT parse_path(filename)[-2] AS run, task, doc, doc_hash, target, choice::INTEGER AS choice,
        choice_norm::INTEGER AS choice_norm, correct::BOOLEAN AS correct, correct_norm::BOOLEAN AS correct_norm,
        loglikelihoods::DOUBLE[] AS loglikelihoods, score::DOUBLE AS score
    FROM (FROM read_parquet(?::VARCHAR[], union_by_name = true, filename = true)
        UNION ALL BY NAME SELECT NULL::VARCHAR AS stage WHERE false)
    """
_LATER = "QUALIFY coalesce(stage, 'pruned') = max(coalesce(stage, 'pruned')) OVER (PARTITION BY filename, task)"
_SIDES = f"a AS ({_ROWS}{_LATER}), b AS ({_ROWS}{_LATER})"
_BEFORE_AND_AFTER = f"a AS ({_ROWS}WHERE coalesce(stage, 'pruned') = 'pruned'), b AS ({_ROWS}WHERE stage = 'recovered')"
_COUNTED = ("run", "task", "metric", "n", "both_right", "lost", "won")
_WINDOWS = ("run", "task", "text", "doc", "first", "second")


def samples_file(home: Path, run_id: str) -> Path | None:
    """Where a run's rows are, if it has any."""
    path = home / "runs" / run_id / "samples.parquet"
    return path if path.is_file() else None


def counts(store: Store, home: Path, first: str, others: Sequence[str]) -> pd.DataFrame:
    """On the documents that each of the others shares with the first run: how many there are, how many both, only the
    first, only the other got right. One row a run, task and metric: run, task, metric, n, both_right, lost, won.

    The first run alone as the other one: before recovery, and after it.
    """
    files = _files(home, first, others)
    if files is None:
        return pd.DataFrame(columns=list(_COUNTED))
    parts = [
        f"""
        SELECT b.run, b.task, '{metric}' AS metric, count(*) AS n,
            count(*) FILTER (a.{right} AND b.{right}) AS both_right,
            count(*) FILTER (a.{right} AND NOT b.{right}) AS lost,
            count(*) FILTER (b.{right} AND NOT a.{right}) AS won
        FROM a JOIN b USING (task, doc, doc_hash)
        WHERE a.{right} IS NOT NULL AND b.{right} IS NOT NULL
        GROUP BY b.run, b.task"""
        for metric, right in RIGHT.items()
    ]
    query = f"WITH {_sides(first, others)} {' UNION ALL '.join(parts)} ORDER BY run, task, metric"
    return store.frame(query, files)


def _files(home: Path, first: str, others: Sequence[str]) -> list[list[str]] | None:
    """The files of both sides; None where one has none."""
    sides = [[str(path) for run in runs if (path := samples_file(home, run)) is not None] for runs in ([first], others)]
    return sides if all(sides) else None


def _sides(first: str, others: Sequence[str]) -> str:
    return _BEFORE_AND_AFTER if list(others) == [first] else _SIDES


def windows(store: Store, home: Path, first: str, others: Sequence[str]) -> pd.DataFrame:
    """Mean NLL of each window that each of the others shares with the first run: run, task, text
    (core/evaluation/metrics.py: text_key), doc, first, second. The first run alone: before recovery, and after it.

    Rows of former versions have the hash of the tokens alone: its windows are counted. Where such a run read one text
    in windows of several lengths, they are left out: which window is of which length cannot be told any more.
    """
    files = _files(home, first, others)
    if files is None:
        return pd.DataFrame(columns=list(_WINDOWS))
    return store.frame(
        f"""
        WITH {_sides(first, others)}, {_windows_of("a")}, {_windows_of("b")}
        SELECT b_windows.run, task, text, doc, a_windows.score AS first, b_windows.score AS second
        FROM a_windows JOIN b_windows USING (task, text, doc)
        ORDER BY run, task, text, doc""",
        files,
    )


def _windows_of(side: str) -> str:
    """The windows of a side, each text named as `text_key` does."""
    return f"""{side}_windows AS (
        SELECT run, task, doc, score, CASE WHEN contains(doc_hash, '/') THEN doc_hash
            ELSE doc_hash || '/' || count(*) OVER of_text END AS text
        FROM {side} WHERE starts_with(task, 'perplexity/') AND score IS NOT NULL
        WINDOW of_text AS (PARTITION BY run, task, doc_hash)
        QUALIFY count(*) OVER of_text = count(DISTINCT doc) OVER of_text)"""


def flips(
    store: Store, home: Path, first: str, second: str, task: str, metric: str, lost: bool, *, limit: int, offset: int
) -> list[dict[str, Any]]:
    """Documents of a task that only the first run (`lost`), or only the second, got right, in the task's order.

    Each with doc, doc_hash, target, first_choice, second_choice and both runs' log-likelihoods.
    """
    files = _files(home, first, [second])
    if files is None or metric not in RIGHT:
        return []
    right, chosen = RIGHT[metric], CHOSEN[metric]
    frame = store.frame(
        f"""
        WITH {_SIDES}
        SELECT doc, doc_hash, a.target, a.{chosen} AS first_choice, b.{chosen} AS second_choice,
            a.loglikelihoods AS first_logs, b.loglikelihoods AS second_logs
        FROM a JOIN b USING (task, doc, doc_hash)
        WHERE task = ? AND a.{right} = ? AND b.{right} = ?
        ORDER BY doc LIMIT ? OFFSET ?""",
        [*files, task, lost, not lost, limit, offset],
    )
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def texts(
    store: Store, home: Path, task_folders: Sequence[Path], hashes: Sequence[str]
) -> dict[str, Mapping[str, Any]]:
    """prompt, choices and target of documents by hash, from the folders of one task, the first that has them."""
    found: dict[str, Mapping[str, Any]] = {}
    root = (home / "documents").resolve()
    for folder in task_folders:
        files = sorted(str(path) for path in folder.glob("*.parquet") if root in path.resolve().parents)
        missing = [each for each in hashes if each not in found]
        if not files or not missing:
            continue
        rows = store.rows(
            "SELECT doc_hash, prompt, choices, target FROM read_parquet(?::VARCHAR[], union_by_name = true)"
            " WHERE list_contains(?::VARCHAR[], doc_hash)",
            [files, missing],
        )
        for doc_hash, prompt, choices, target in rows:
            found.setdefault(str(doc_hash), {"prompt": prompt, "choices": list(choices or ()), "target": target})
    return found
