"""Documents' outcomes and texts on disk."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.data.tasks import OFFLINE_TASKS
from core.evaluation.chance import rates_of_samples
from core.evaluation.outcomes import COLUMNS, join_samples, read_samples, write_documents, write_samples
from core.evaluation.tasks import evaluate_task

CHANCE = {"boolq": 1 / 2, "piqa": 1 / 2, "hellaswag": 1 / 4, "winogrande": 1 / 2, "openbookqa": 1 / 4}


def row(task: str, doc: int, **more: Any) -> dict[str, Any]:
    return {"task": task, "doc": doc, "doc_hash": f"{doc:016x}", "target": "1", **more}


def text(doc: int, prompt: str = "which?") -> dict[str, Any]:
    return {"doc_hash": f"{doc:016x}", "prompt": prompt, "choices": ["a", "b"], "target": "1"}


def test_rows_of_all_kinds_fit_one_file_whatever_they_lack(tmp_path: Path) -> None:
    write_samples(tmp_path / "a.parquet", [row("piqa", 0, choice=1, correct=True, loglikelihoods=[-1.5, -0.25])])
    write_samples(tmp_path / "b.parquet", [row("perplexity/x", 0, score=3.25), row("perplexity/x", 1, score=2.5)])
    join_samples([tmp_path / "a.parquet", tmp_path / "b.parquet"], tmp_path / "all.parquet")
    table = pq.read_table(tmp_path / "all.parquet")
    assert table.column_names == list(COLUMNS)
    assert table["loglikelihoods"].to_pylist() == [[-1.5, -0.25], None, None]
    assert [each["score"] for each in read_samples(tmp_path / "all.parquet", ["perplexity/x"])] == [3.25, 2.5]
    assert read_samples(tmp_path / "none.parquet", ["piqa"]) == []


def test_rows_of_an_earlier_version_join_in(tmp_path: Path) -> None:
    old = [{**row("piqa", 0), "loglikelihoods": [-1.0], "response": None, "score": None}]
    pq.write_table(pa.Table.from_pylist(old), tmp_path / "old.parquet")
    write_samples(tmp_path / "new.parquet", [row("gsm8k", 0, response="18", score=1.0)])
    join_samples([tmp_path / "old.parquet", tmp_path / "new.parquet"], tmp_path / "all.parquet")
    assert pq.read_table(tmp_path / "all.parquet")["response"].to_pylist() == [None, "18"]


def test_ten_thousand_documents_take_little_room(tmp_path: Path) -> None:
    import hashlib
    import random

    draw = random.Random(0)
    rows = [
        row("hellaswag", doc, choice=draw.randrange(4), correct=True, loglikelihoods=[draw.random() for _ in range(4)])
        | {"doc_hash": hashlib.sha256(str(doc).encode()).hexdigest()[:16]}
        for doc in range(10_000)
    ]
    write_samples(tmp_path / "a.parquet", rows)
    assert (tmp_path / "a.parquet").stat().st_size < 50 * 10_000


def test_texts_are_kept_once_and_never_twice(tmp_path: Path) -> None:
    few, many = [text(i) for i in range(3)], [text(i) for i in range(10)]
    first = write_documents(tmp_path, "lm_eval 0.4.13", "piqa", few)
    assert first is not None
    assert write_documents(tmp_path, "lm_eval 0.4.13", "piqa", list(reversed(few))) is None
    assert write_documents(tmp_path, "lm_eval 0.4.13", "piqa", many) is not None
    assert write_documents(tmp_path, "lm_eval 0.4.13", "piqa", few[1:]) is None
    assert write_documents(tmp_path, "lm_eval 0.5", "piqa", few) is not None
    assert write_documents(tmp_path, "lm_eval 0.5", "piqa", []) is None
    assert pq.read_table(first).to_pylist() == few


def test_names_of_tasks_are_never_paths(tmp_path: Path) -> None:
    path = write_documents(tmp_path / "documents", "lm_eval/../..", "../../evil", [text(1)])
    assert path is not None
    assert (tmp_path / "documents").resolve() in path.resolve().parents


@pytest.mark.parametrize("name", list(OFFLINE_TASKS))
def test_texts_rates_and_right_answers_of_the_seven(tiny_llama: Any, tiny_tokenizer: Any, name: str) -> None:
    result = evaluate_task(tiny_llama(max_position_embeddings=4096), tiny_tokenizer(), name, limit=3)
    rows, texts = result.samples, result.documents[name]
    assert [each["doc_hash"] for each in texts] == [each["doc_hash"] for each in rows]
    for sample, document in zip(rows, texts, strict=True):
        assert len(document["choices"]) == len(sample["loglikelihoods"])
        assert document["target"] == sample["target"]
        assert max(map(len, document["choices"])) > 1
    found = rates_of_samples(rows)
    assert found is not None
    assert found.chance == pytest.approx(CHANCE.get(name, 1 / 4))
    for metric in result.metrics:
        assert metric.details == {"chance": found.chance, "majority": found.majority}
        assert not {"chance", "majority"} & set(metric.protocol)
    if name == "winogrande":
        assert texts[0]["choices"][0].startswith("Sarah was a much better surgeon than Maria so Sarah always got the")
