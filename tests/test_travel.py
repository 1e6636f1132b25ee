"""Studies that travel: packed, unpacked in another home, taken back; and files that nobody should trust."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest

from core import origins
from core.__main__ import main
from core.errors import InputError, Problem
from core.evaluation.outcomes import write_samples
from core.experiment import Experiment
from core.jobs.letters import Letters
from core.jobs.rundir import RunDirectory
from core.preview import settle
from core.service import Service
from core.storage import archive
from core.storage.store import Store
from core.study import Study, expand
from core.travel import Import

STUDY = """name: Packed
base: {pruning: {ratio: 0.5}, evaluation: {tasks: [piqa], fidelity: false}}
grid: {pruning.method: [l1, taylor, wanda]}
"""
RUNS = [f"20261123-20000{place}-0a1b2c3d-run{place}" for place in range(4)]
DOCS = 40
DOCUMENTS = "FROM (FROM t WHERE kind = 'document')"


def write_run(home: Path, run_id: str, experiment: Experiment, state: str = "COMPLETE") -> RunDirectory:
    """A run as its worker leaves it: numbers, units that went, a curve, and what became of documents."""
    folder = RunDirectory(home / "runs" / run_id)
    folder.write_experiment(experiment)
    (folder.study_file).write_text(json.dumps({"v": 1, "study": "packed"}))
    reason = {} if state == "COMPLETE" else {"reason": "No memory is left.", "advice": "Lower it."}
    events = [
        ("2026-11-23T20:00:00.000Z", {"state": "RUNNING"}),
        ("2026-11-23T20:09:00.000Z", {"state": state} | reason),
    ]
    rows = [{"v": 1, "seq": i, "attempt": 1, "time": t, "kind": "state", **e} for i, (t, e) in enumerate(events, 1)]
    folder.events_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder.state_file.write_text(
        json.dumps({"state": "WAITING", "hash": run_id, "created": "2026-11-23T19:00:00.000Z"})
    )
    folder.log_file.write_text("/a/path/of/that/machine\n")
    folder.model_dir.mkdir()
    (folder.model_dir / "model.safetensors").write_bytes(bytes(1 << 20))
    folder.write_stage("evaluate.task.piqa", {"seconds": 1.5, "key": "k", "metrics": [{"value": 1}]})
    if state != "COMPLETE":
        return folder
    place = RUNS.index(run_id)
    protocol = {"harness": "lm_eval 0.4.13", "shots": 0, "dtype": "float32", "limit": DOCS}
    value = {"stage": "pruned", "task": "piqa", "metric": "acc", "value": 1 / 3 + place, "stderr": 0.1, "n": DOCS}
    folder.write_results({
        "schema": 1, "run_id": run_id, "experiment": experiment.to_dict(),
        "environment": {"device": "cuda", "device_name": "NVIDIA T4", "dtype": "float16", "hash": run_id,
                        "packages": {"torch": "2.13.0"}, "model": {"fingerprint": "f" * 64}},
        "pruning": {"params_before": 100, "params_after": 90, "achieved_model_ratio": 0.1, "layers": [
            {"layer": 0, "heads_before": 9, "heads_after": 6, "removed": {"heads": [1, 4, 7]}}]},
        "metrics": [
            {**value, "protocol": protocol, "details": {"guessing": 0.5}},
            {**value, "metric": "acc_norm", "value": None, "stderr": None, "protocol": protocol},
        ],
        "timings": {"evaluate": 1.5},
    })  # fmt: skip
    (folder.recovery_dir).mkdir()
    (folder.recovery_dir / "curve.jsonl").write_text('{"step": 1, "loss": 2.5}\n')
    samples = [{"stage": "pruned", "task": "piqa", "doc": doc, "doc_hash": f"{doc:016x}", "target": "1",
                "choice": doc % 2, "choice_norm": 0, "correct": (doc + place) % 3 == 0, "correct_norm": doc % 2 == 0,
                "loglikelihoods": [-1.5, -2.5 - doc]} for doc in range(DOCS)]  # fmt: skip
    windows = [{"stage": "pruned", "task": "perplexity/passages", "doc": doc, "doc_hash": "w" * 16,
                "score": 3.1 + doc * place} for doc in range(7)]  # fmt: skip
    write_samples(folder.samples_file, [*samples, *windows])
    return folder


@pytest.fixture
def study() -> Study:
    return Study.from_yaml(STUDY)


@pytest.fixture
def here(home: Path, study: Study) -> Iterator[Service]:
    """A home in which three of a study's four runs are over, one of them without success."""
    (dense, *cut) = expand(study).runs
    for run_id, run, state in zip(RUNS, [dense, *cut], ["COMPLETE", "COMPLETE", "FAILED"], strict=False):
        write_run(home, run_id, run.experiment, state)
    service = Service(supervisor=False)
    yield service
    service.close()


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Service]:
    """Another machine's home."""
    service = Service(tmp_path / "there", supervisor=False)
    yield service
    service.close()


def packed(here: Service, study: Study, tmp_path: Path, **how: Any) -> Path:
    return here.travel.pack(study, tmp_path / "packed.parquet", **how).file


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def rows(frame: pd.DataFrame, *without: str) -> list[dict[Any, Any]]:
    return frame.drop(columns=list(without)).astype(object).where(frame.notna(), None).to_dict("records")


def test_results_open_on_another_machine(here: Service, there: Service, study: Study, tmp_path: Path) -> None:
    found = here.travel.pack(study, tmp_path / "packed.parquet", origin="measured in the cellar")
    assert (found.runs, found.missing) == (3, 1)
    assert found.bytes < 40_000
    came = there.travel.take_in(found.file)
    assert came.runs == tuple(RUNS[:3])
    assert (came.study, came.origin, came.devices) == ("packed", "measured in the cellar", ("NVIDIA T4",))
    assert came.packages == {"torch": "2.13.0"}
    assert came.espalier
    assert came.packed.endswith("Z")
    for ask in ("runs", "metrics", "layers", "stages"):
        mine, other = ((getattr(one, ask)() if ask == "runs" else getattr(one, ask)(RUNS)) for one in (here, there))
        assert rows(other) == rows(mine), ask
        assert len(other) >= 2
    counts = there.studies.status(there.studies.find("packed")).counts
    assert counts == {"COMPLETE": 2, "FAILED": 1, "NOT QUEUED": 1}
    mine, other = here.pair(*RUNS[:2]), there.pair(*RUNS[:2])
    assert other == mine
    assert other.tasks[0].paired.n == DOCS
    assert there.recovery.curve(RUNS[1])[0]["loss"] == 2.5
    assert there.run_detail(RUNS[1]).results == here.run_detail(RUNS[1]).results
    assert there.run_detail(RUNS[2]).status.reason == "No memory is left."


def test_a_run_that_stands_for_two_entries_travels_once(
    home: Path, there: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # `auto` is the CPU where there is no GPU
    both = Study.parse({"name": "Packed", "base": {"pruning": {"method": "l1"}}, "grid": {"device": ["auto", "cpu"]}})
    run = next(run for run in expand(both).runs if run.experiment.device == "cpu" and run.experiment.pruning)
    folder = write_run(home, RUNS[0], run.experiment)
    folder.state_file.write_text(json.dumps({"state": "WAITING", "hash": settle(run.experiment).hash}))
    results = folder.results() or {}
    results["environment"]["hash"] = settle(run.experiment).hash
    folder.write_results(results)
    with closing(Service(supervisor=False)) as service:
        rows = service.studies.status(both).rows
        assert list(rows["run_id"]).count(RUNS[0]) == 2
        assert service.studies.run_ids(both) == [RUNS[0]]
        found = service.travel.pack(both, tmp_path / "packed.parquet")
    assert (found.runs, found.missing) == (1, len(rows) - 2)
    assert there.travel.take_in(found.file).runs == (RUNS[0],)


def test_an_import_names_all_devices_and_versions_of_its_runs(
    here: Service, there: Service, study: Study, tmp_path: Path
) -> None:
    file = packed(here, study, tmp_path)
    there.travel.take_in(file)
    folder = RunDirectory(here.home / "runs" / RUNS[1])
    results = folder.results() or {}
    results["environment"] |= {"device_name": "AMD EPYC", "packages": {"torch": "2.11.0", "peft": "0.21.0"}}
    folder.write_results(results)
    with closing(Service(tmp_path / "third", supervisor=False)) as third:
        came = third.travel.take_in(packed(here, study, tmp_path))
    assert set(came.devices) == {"NVIDIA T4", "AMD EPYC"}
    assert came.packages == {"torch": "2.13.0 / 2.11.0", "peft": "0.21.0"}
    shutil.rmtree(there.home / "runs" / RUNS[1])  # a later file brings it, as it is now
    again = there.travel.take_in(packed(here, study, tmp_path))
    assert (set(again.devices), dict(again.packages)) == (set(came.devices), dict(came.packages))


def test_what_came_complete_is_neither_made_again_nor_left_out(
    here: Service, there: Service, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Queued(list[str]):
        def enqueue(self, run_id: str, **_: Any) -> None:
            self.append(run_id)

        def cancel(self, run_id: str) -> None:
            raise AssertionError(run_id)

    there.travel.take_in(packed(here, study, tmp_path))
    found = there.studies.preview(study)  # the runs came from a T4: here they would have another hash
    assert (found.to_do, sum(found.rows["done"] != "")) == (2, 2)
    queue = Queued()
    assert there.studies.queue(study, queue) == queue
    methods = [there.run_detail(run_id).experiment for run_id in queue]
    assert [each.pruning.method for each in methods if each and each.pruning] == ["taylor", "wanda"]

    problem = Problem("evaluation", "It cannot be had here.")
    look = there.studies._preview
    monkeypatch.setattr(there.studies, "_preview", lambda one: replace(look(one), problems=[problem, problem]))
    rows = there.studies.preview(study).rows
    assert rows["problem"].tolist() == ["", "", str(problem), str(problem)]  # said once each


def test_weights_and_logs_stay_where_they_are(here: Service, there: Service, study: Study, tmp_path: Path) -> None:
    file = packed(here, study, tmp_path)
    assert b"/a/path/of/that/machine" not in file.read_bytes()
    there.travel.take_in(file)
    folder = RunDirectory(there.home / "runs" / RUNS[0])
    assert not folder.model_dir.exists()
    assert "another machine" in folder.log_tail()
    assert "key" not in (folder.stage("evaluate.task.piqa") or {})  # no run here takes numbers from there as its own


def test_the_store_equals_its_files_after_every_step(
    here: Service, there: Service, study: Study, tmp_path: Path
) -> None:
    file = packed(here, study, tmp_path)

    def level() -> bool:
        fresh = Store()
        fresh.reindex(there.home)
        try:
            return fresh.dump() == there._store.dump()
        finally:
            fresh.close()

    there.travel.take_in(file)
    assert level()
    assert len(there.runs()) == 3
    there.travel.remove("packed")
    assert level()
    assert there.runs().empty
    assert there.travel.all() == []
    assert "packed" not in [one.id for one in there.studies.all()]
    assert not list((there.home / "runs").glob(".importing*"))
    there.travel.take_in(file)
    assert level()
    assert set(there.travel.runs()) == set(RUNS[:3])


def test_what_is_here_already_stays_as_it_is(here: Service, study: Study, tmp_path: Path) -> None:
    file = packed(here, study, tmp_path)
    found = here.travel.take_in(file)
    assert found.runs == ()
    assert found.here_before == 3
    assert here.travel.of_run(RUNS[0]) is None
    assert (here.home / "runs" / RUNS[0] / "model" / "model.safetensors").is_file()
    here.travel.remove("packed")
    assert len(here.runs()) == 3


def test_a_second_file_of_a_study_brings_what_is_new(
    here: Service, there: Service, study: Study, tmp_path: Path
) -> None:
    there.travel.take_in(packed(here, study, tmp_path))
    write_run(here.home, RUNS[3], expand(study).runs[3].experiment)
    again = there.travel.take_in(packed(here, study, tmp_path))
    assert set(again.runs) == set(RUNS)
    assert again.here_before == 0
    assert len(there.travel.all()) == 1


def test_another_study_of_that_name_is_left_alone(here: Service, there: Service, study: Study, tmp_path: Path) -> None:
    other = study.model_copy(update={"note": "my own"})
    there.studies.save(other)
    found = there.travel.take_in(packed(here, study, tmp_path))
    assert (found.study, found.name) == ("packed-imported", "Packed (imported)")
    assert there.studies.find("packed") == other
    assert there.studies.status(there.studies.find("packed-imported")).counts["COMPLETE"] == 2
    there.travel.remove("packed-imported")
    assert there.studies.find("packed") == other


def test_what_comes_with_espalier_is_offered_once(here: Service, there: Service, study: Study, tmp_path: Path) -> None:
    file = packed(here, study, tmp_path)
    assert there.travel.take_in_once(tmp_path / "nothing.parquet") is None
    assert there.travel.take_in_once(file) is not None
    there.travel.remove("packed")
    assert there.travel.take_in_once(file) is None
    assert there.runs().empty
    there.travel.take_in(file)
    assert len(there.runs()) == 3
    newer = packed(here, study, tmp_path, origin="measured again")
    assert there.travel.take_in_once(newer) is not None


def test_how_much_of_each_document_goes_along(here: Service, study: Study, tmp_path: Path) -> None:
    counted = {}
    for detail in archive.DETAILS:
        file = packed(here, study, tmp_path, documents=detail)
        query = f"SELECT count(*), count(correct), count(loglikelihoods) FROM '{file}' WHERE kind = 'document'"
        counted[detail] = duckdb.sql(query).fetchall()[0]
    of = 2 * DOCS
    assert counted == {"none": (0, 0, 0), "outcomes": (of + 14, of, 0), "full": (of + 14, of, of)}
    with pytest.raises(InputError, match="outcomes"):
        packed(here, study, tmp_path, documents="most")


def test_a_damaged_samples_file_is_named(here: Service, study: Study, tmp_path: Path) -> None:
    (here.home / "runs" / RUNS[0] / "samples.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=f"{RUNS[0]}.*damaged"):
        packed(here, study, tmp_path)
    assert names(tmp_path / "home" / "runs")
    assert not list(tmp_path.glob("*.parquet"))
    assert packed(here, study, tmp_path, documents="none").is_file()


def test_documents_without_log_likelihoods_are_still_shown(
    here: Service, there: Service, study: Study, tmp_path: Path
) -> None:
    there.travel.take_in(packed(here, study, tmp_path))
    flips = there.flips(*RUNS[:2], "piqa", "acc", lost=True)
    assert [flip.doc for flip in flips] == [flip.doc for flip in here.flips(*RUNS[:2], "piqa", "acc", lost=True)]
    assert flips[0].first_logs == ()


def test_the_file_answers_questions_by_itself(here: Service, study: Study, tmp_path: Path) -> None:
    file = packed(here, study, tmp_path)
    query = f"SELECT run, value FROM '{file}' WHERE kind = 'metric' AND metric = 'acc' ORDER BY value"
    assert duckdb.sql(query).fetchall() == [(RUNS[0], 1 / 3), (RUNS[1], 4 / 3)]


def test_the_command_line_packs_imports_and_removes(
    here: Service, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(STUDY)
    file = tmp_path / "out" / "it [1]*.parquet"  # no pattern, whatever DuckDB makes of such
    assert main(["study", "pack", str(tmp_path / "mine.yaml"), "-o", str(file), "--origin", "me"]) == 0
    assert "3 runs in" in (said := capsys.readouterr().out)
    assert "1 of the study are not over" in said
    monkeypatch.setenv("ESPALIER_HOME", str(tmp_path / "else'where"))
    assert main(["study", "import", str(file)]) == 0
    assert "3 runs of Packed on NVIDIA T4" in capsys.readouterr().out
    assert main(["study", "status", "packed"]) == 0
    assert "2 complete" in capsys.readouterr().out
    assert main(["study", "remove", "packed"]) == 0
    assert "3 runs" in capsys.readouterr().out
    assert main(["study", "remove", "packed"]) == 2
    assert main(["study", "import", str(tmp_path / "nothing.parquet")]) == 2


# --- files that nobody should trust


@pytest.fixture
def forged(here: Service, study: Study, tmp_path: Path) -> Callable[[str], Path]:
    """A packed study in which one thing was changed by SQL over the table `t`, by somebody who knows its sum."""

    def make(statement: str) -> Path:
        source, target = packed(here, study, tmp_path), tmp_path / "forged.parquet"
        with duckdb.connect() as connection:
            connection.execute(f"CREATE TABLE t AS FROM '{source}'")
            connection.execute(statement)
            if "COLUMN" not in statement:
                [(total,)] = connection.execute(f"SELECT {archive.sum_of('t')}".replace("FROM t", DOCUMENTS)).fetchall()
                rows = connection.execute(f"SELECT {', '.join(archive.THINGS)} FROM t WHERE kind <> 'document'")
                things = [dict(zip(archive.THINGS, row, strict=True)) for row in rows.fetchall()]
                connection.execute("UPDATE t SET name = ? WHERE kind = 'archive'", [archive.digest(things, total)])
            connection.execute(f"COPY t TO '{target}' (FORMAT parquet)")
        return target

    return make


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE t SET run = '../../../../tmp/x' WHERE run = (SELECT min(run) FROM t)", "a run called '../../"),
        ("UPDATE t SET run = '..' WHERE kind = 'document'", "numbers of runs that it does not hold"),
        ("UPDATE t SET run = '20261123-200009-0a1b2c3d-eeee' WHERE kind = 'metric'", "does not hold"),
        ("UPDATE t SET text = 'a: &a [*a]' WHERE kind = 'study'", "study cannot be read"),
        ("UPDATE t SET text = 'name: x\ngrid: {pruning.ratoi: [1]}' WHERE kind = 'study'", "ratoi"),
        ("UPDATE t SET text = '!!python/object:os.system {}' WHERE kind = 'run'", "experiment of run"),
        ("UPDATE t SET text = repeat('x', 70000) WHERE kind = 'run'", "experiment of run"),
        ("UPDATE t SET text = repeat('[', 100000) WHERE kind = 'results'", "results of run"),
        ("UPDATE t SET text = '{\"state\": \"RUNNING\"}' WHERE kind = 'state'", "is said to be 'RUNNING'"),
        ("UPDATE t SET text = 'nonsense' WHERE kind = 'metric'", "a number of run"),
        ("UPDATE t SET text = '{\"format\": 2}' WHERE kind = 'archive'", "format 2"),
        ("UPDATE t SET kind = 'pickle' WHERE kind = 'curve'", "does not know"),
        ("DELETE FROM t WHERE kind = 'state'", "is not whole"),
        ("DELETE FROM t WHERE kind = 'study'", "no study, or more than one"),
        ("INSERT INTO t SELECT * FROM t WHERE kind = 'run'", "a run called"),
        ("ALTER TABLE t DROP COLUMN score", "no packed study"),
        ("ALTER TABLE t ADD COLUMN more INTEGER", "no packed study"),
        ("UPDATE t SET text = repeat('x', 400_000) WHERE kind = 'curve'", "more text than any study"),
        ("INSERT INTO t (kind) SELECT 'metric' FROM range(6_000)", "more text than any study"),
        ("INSERT INTO t (kind, run) SELECT 'document', NULL FROM range(21_000)", "more than any study"),
        (r"""UPDATE t SET text = '{"state": "COMPLETE", "stages": {"' || repeat('a', 300) || '": {}}}'
             WHERE kind = 'state'""", "cannot be the name of a stage"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_as_it_should_be_is_refused_whole(
    there: Service,
    forged: Callable[[str], Path],
    statement: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(archive, "MAX_ROWS", 20_000)
    monkeypatch.setattr(archive, "MAX_THINGS", 5_000)
    monkeypatch.setattr(archive, "MAX_TEXT_BYTES", 300_000)
    file = forged(statement)
    before = {path for path in tmp_path.rglob("*") if "there" not in path.parts}
    with pytest.raises(InputError, match=said.replace("..", r"\.\.")):
        there.travel.take_in(file)
    assert {path for path in tmp_path.rglob("*") if "there" not in path.parts} == before
    assert names(there.home / "runs") == []
    assert not (there.home / "studies").exists()
    assert there.runs().empty


def test_stages_cannot_leave_their_folder(there: Service, forged: Callable[[str], Path], tmp_path: Path) -> None:
    name = "../../../../outside"
    there.travel.take_in(
        forged(f"""UPDATE t SET text = '{{"state": "COMPLETE", "stages": {{"{name}": {{}}}}}}' WHERE kind = 'state'""")
    )
    assert not list(tmp_path.rglob("outside*"))
    (file,) = (there.home / "runs" / RUNS[0] / "stages").iterdir()
    assert file.name == "..%2F..%2F..%2F..%2Foutside.json"


def test_a_repeated_text_does_not_fill_the_memory(there: Service, tmp_path: Path) -> None:
    """A dictionary of one long text and many rows that point at it: a small file, a petabyte of text."""
    file = tmp_path / "bomb.parquet"
    columns = ", ".join(
        f"NULL::{kind} AS {name}" for name, kind in archive.COLUMNS.items() if name not in ("kind", "text")
    )
    with duckdb.connect() as connection:
        connection.execute(
            f"COPY (SELECT {', '.join(archive.COLUMNS)} FROM (SELECT 'curve' AS kind, repeat('x', 1_000_000) AS text, "
            f"{columns} FROM range(3000))) TO '{file}' (FORMAT parquet, COMPRESSION zstd)"
        )
    assert file.stat().st_size < 5_000_000
    with pytest.raises(InputError):
        there.travel.take_in(file)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(2000) + b"PAR1", b"name: x\n"])
def test_what_is_no_parquet_is_refused(there: Service, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.parquet"
    file.write_bytes(content)
    with pytest.raises(InputError, match="no packed study"):
        there.travel.take_in(file)


def test_a_file_that_is_too_large_is_not_opened(there: Service, tmp_path: Path) -> None:
    file = tmp_path / "large.parquet"
    with file.open("wb") as opened:
        opened.truncate(archive.MAX_FILE_BYTES + 1)
    with pytest.raises(InputError, match="too large"):
        there.travel.take_in(file)


def test_a_cut_file_leaves_nothing_behind(here: Service, there: Service, study: Study, tmp_path: Path) -> None:
    file = packed(here, study, tmp_path)
    data = file.read_bytes()
    for at in (len(data) // 3, len(data) - 9):
        file.write_bytes(data[:at])
        with pytest.raises(InputError):
            there.travel.take_in(file)
    refused = 0
    for at in range(400, len(data) // 2, len(data) // 16):
        file.write_bytes(data[:at] + bytes(64) + data[at + 64 :])
        try:
            there.travel.take_in(file)
        except InputError:
            refused += 1
        else:  # it hit what nobody reads
            assert there.metrics(RUNS).equals(here.metrics(RUNS))
            assert there.differences({RUNS[1]: RUNS[0]}).equals(here.differences({RUNS[1]: RUNS[0]}))
            there.travel.remove("packed")
    assert refused >= 4
    assert names(there.home / "runs") == []


def test_a_forged_record_names_no_run_of_this_machine(
    here: Service, there: Service, study: Study, tmp_path: Path
) -> None:
    """Taking an import back deletes only what came with one, whatever its record says."""
    there.travel.take_in(packed(here, study, tmp_path))
    record = there.home / "studies" / "packed.import.json"
    own = "20261123-210000-0a1b2c3d-mine"
    write_run(there.home, RUNS[3], expand(study).runs[3].experiment).path.rename(there.home / "runs" / own)
    content = json.loads(record.read_text())
    content["runs"] += [own, "../../etc"]
    record.write_text(json.dumps(content))
    there.travel.remove("packed")
    assert names(there.home / "runs") == [own]


def test_a_record_is_plain_data(there: Service) -> None:
    (there.home / "studies").mkdir()
    (there.home / "studies" / "x.import.json").write_text('{"study": "y", "runs": []}')
    (there.home / "studies" / "z.import.json").write_text("[")
    assert there.travel.all() == []
    assert isinstance(Import("a", "b", "c", "d", "e").runs, tuple)


def test_leave_to_run_a_model_s_code_does_not_travel(
    here: Service, there: Service, forged: Callable[[str], Path], tmp_path: Path
) -> None:
    """What somebody ticked on another machine is not ticked on this one: the run is refused like any other."""
    trusting = STUDY.replace("base: {", "base: {model: {name: X, trust_remote_code: true}, ")
    folder = tmp_path / "model"
    folder.mkdir()
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16, "num_hidden_layers": 2,
              "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 96,
              "auto_map": {"AutoModelForCausalLM": "evil.Evil"}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(bytes(8))
    text = trusting.replace("X", str(folder)).replace("'", "''")
    run = f"model: {{name: {folder}, trust_remote_code: true}}"
    file = forged(f"UPDATE t SET text = CASE WHEN kind = 'study' THEN '{text}' ELSE '{run}' END "
                  "WHERE kind IN ('study', 'run')")  # fmt: skip
    there.travel.take_in(file)
    imported = there.studies.find("packed")
    with pytest.raises(InputError, match="code"):
        there.studies.queue(imported, by=Letters(there.home))
    own = imported.model_copy(update={"name": "My own"})
    refused: list[str] = []
    try:
        there.studies.queue(own, by=Letters(there.home))
    except InputError as error:
        refused = [str(error)]
    assert not any("code" in each for each in refused)  # ticked here, code is no reason
    directory = RunDirectory(there.home / "runs" / RUNS[0])
    assert directory.experiment().model.trust_remote_code
    assert not origins.experiment_to_run(directory).model.trust_remote_code
