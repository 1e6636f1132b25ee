"""Run directories become rows, whatever state their files are in."""

import json

import pytest

from core.experiment import Experiment
from core.storage.reading import LAYER_COLUMNS, METRIC_COLUMNS, RUN_COLUMNS, protocol_key, read_run, signature

RUN_ID = "20261123-201854-1a2b3c4d-x7y9"


@pytest.fixture
def directory(home):
    folder = home / "runs" / RUN_ID
    folder.mkdir(parents=True)
    return folder


def write_experiment(directory, **changes):
    data = {"name": "taylor 30 %", "pruning": {"method": "taylor", "ratio": 0.3, "layers": [4, 25]}, **changes}
    directory.joinpath("experiment.yaml").write_text(Experiment.parse(data).to_yaml(), encoding="utf-8")


def write_pruned(directory, layers, **pruned):
    content = {"pruning": {"model_layers": 2, "layers": layers, **pruned}}
    directory.joinpath("results.json").write_text(json.dumps(content), encoding="utf-8")


def layer(number, heads, mlp):
    """One entry of results.json's layers; what stays is given."""
    before = {"heads_before": 4, "kv_before": 2, "mlp_before": 96}
    return {"layer": number, **before, "heads_after": heads, "kv_after": heads // 2, "mlp_after": mlp, "density": 1.0}


def layer_rows(directory):
    return [dict(zip(LAYER_COLUMNS, row, strict=True)) for row in read_run(directory).layers]


def write_events(directory, *events):
    lines = [json.dumps({"v": 1, "seq": i + 1, "attempt": 1, **event}) for i, event in enumerate(events)]
    directory.joinpath("events.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def finished_events(directory, state="COMPLETE", **more):
    write_events(
        directory,
        {"kind": "state", "state": "RUNNING", "time": "2026-11-23T20:18:55.000Z", "pid": 1},
        {"kind": "state", "state": state, "time": "2026-11-23T20:20:25.500Z", **more},
    )


def test_a_folder_without_an_experiment_is_no_run(directory):
    assert read_run(directory) is None


def test_a_finished_run_gives_its_choices_times_and_seconds(directory):
    write_experiment(directory)
    finished_events(directory)
    row = read_run(directory).run
    assert list(row) == list(RUN_COLUMNS)
    assert (row["id"], row["state"], row["name"]) == (RUN_ID, "COMPLETE", "taylor 30 %")
    assert (row["method"], row["kind"], row["ratio"]) == ("taylor", "width", 0.3)
    assert (row["layer_first"], row["layer_last"]) == (4, 25)
    assert row["seconds"] == 90.5
    assert row["created"].isoformat() == "2026-11-23T20:18:55"
    assert row["pattern"] is None


def test_the_dense_model_has_no_method(directory):
    write_experiment(directory, pruning=None)
    row = read_run(directory).run
    assert row["method"] is None
    assert row["ratio"] is None
    assert row["model"] == "builtin:smollm2-135m-instruct"


def test_a_removed_layer_is_a_row_of_zeros_after_the_cut(directory):
    write_experiment(directory, pruning={"method": "last", "ratio": 0.5})
    finished_events(directory)
    write_pruned(directory, [layer(1, 0, 0), layer(0, 4, 96)], hidden_before=16, hidden_after=16)
    first, second = layer_rows(directory)
    assert (first["layer"], first["heads_after"], first["mlp_after"]) == (0, 4, 96)
    assert (second["heads_before"], second["heads_after"], second["kv_after"], second["mlp_after"]) == (4, 0, 0, 0)
    run = read_run(directory).run
    assert (run["kind"], run["layer_first"], run["layer_last"]) == ("depth", 0, 1)


def test_the_width_of_the_stream_stands_in_every_layer_and_no_layers_are_said_to_be_chosen(directory):
    write_experiment(directory, pruning={"method": "hidden", "ratio": 0.25})
    finished_events(directory)
    write_pruned(directory, [layer(0, 4, 96), layer(1, 4, 96)], hidden_before=16, hidden_after=12)
    assert [(row["hidden_before"], row["hidden_after"]) for row in layer_rows(directory)] == [(16, 12)] * 2
    run = read_run(directory).run
    assert (run["kind"], run["layer_first"], run["layer_last"]) == ("hidden", None, None)


def test_results_of_an_older_version_leave_the_width_of_the_stream_empty(directory):
    write_experiment(directory)
    write_pruned(directory, [layer(0, 2, 64)])
    assert [(row["hidden_before"], row["hidden_after"]) for row in layer_rows(directory)] == [(None, None)]


def test_a_run_without_a_name_is_called_by_what_it_does(directory):
    write_experiment(directory, name="")
    assert read_run(directory).run["name"] == "builtin:smollm2-135m-instruct, taylor 30 %, layers 4–25"
    write_experiment(directory, name="", pruning={"method": "l1", "ratio": 0.2, "target": "model"})
    assert read_run(directory).run["name"] == "builtin:smollm2-135m-instruct, l1 20 % of the model"


def test_a_failed_run_keeps_its_reason_and_advice(directory):
    write_experiment(directory)
    finished_events(directory, "FAILED", reason="Memory ran out.", advice="Lower batch_size.")
    row = read_run(directory).run
    assert (row["state"], row["reason"], row["advice"]) == ("FAILED", "Memory ran out.", "Lower batch_size.")


def test_metrics_come_with_their_protocol_and_its_key(directory):
    write_experiment(directory)
    protocol = {"window": 512, "corpus": "passages"}
    entry = {"stage": "pruned", "task": "perplexity/passages", "metric": "perplexity", "value": 29.97, "stderr": 0.31}
    results = {"metrics": [{**entry, "n": 100, "protocol": protocol}]}
    directory.joinpath("results.json").write_text(json.dumps(results))
    (metric,) = read_run(directory).metrics
    row = dict(zip(METRIC_COLUMNS, metric, strict=True))
    assert (row["value"], row["stderr"], row["n"]) == (29.97, 0.31, 100)
    assert json.loads(row["protocol"]) == protocol
    assert row["protocol_key"] == protocol_key({"corpus": "passages", "window": 512})
    assert row["protocol_key"] != protocol_key({"corpus": "passages", "window": 1024})


def test_details_stand_beside_a_value_and_do_not_set_it_apart(directory):
    write_experiment(directory)
    entry = {"task": "piqa", "metric": "acc", "value": 0.7, "protocol": {"shots": 0}}
    results = {"metrics": [entry, {**entry, "details": {"chance": 0.5}}, {**entry, "details": [1]}]}
    directory.joinpath("results.json").write_text(json.dumps(results))
    rows = [dict(zip(METRIC_COLUMNS, metric, strict=True)) for metric in read_run(directory).metrics]
    assert [json.loads(row["details"]) for row in rows] == [{}, {"chance": 0.5}, {}]
    assert len({row["protocol_key"] for row in rows}) == 1


def test_the_dense_model_is_known_by_its_fingerprint(directory):
    write_experiment(directory)
    assert read_run(directory).run["fingerprint"] is None
    directory.joinpath("results.json").write_text(json.dumps({"environment": {"model": {"fingerprint": "ab12"}}}))
    assert read_run(directory).run["fingerprint"] == "ab12"


@pytest.mark.parametrize(
    "results",
    [
        "[]",
        '{"metrics": {"a": 1}, "pruning": [1, 2], "timings": "soon", "environment": 7}',
        '{"metrics": [null, 3, {"task": 5, "metric": "acc"}, {"task": "t"}]}',
        '{"pruning": {"layers": [{"layer": "x"}, 4]}}',
        '{"pruning": {"params_before": 1e400, "achieved_ratio": "much", "bytes": true}}',
        '{"pruning": {"params_after": 9999999999999999999}}',
        '{"metrics": [',
        "\x00\xff",
    ],
)
def test_results_of_any_shape_are_read_without_an_error(directory, results):
    write_experiment(directory)
    directory.joinpath("results.json").write_bytes(results.encode("latin-1"))
    rows = read_run(directory)
    assert rows.metrics == []
    assert rows.layers == []
    assert rows.run["params_before"] is None
    assert rows.run["params_after"] is None
    assert rows.run["bytes"] is None


def test_an_experiment_that_cannot_be_read_keeps_its_text_and_says_why(directory):
    text = "pruning: {method: telepathy}\n"
    directory.joinpath("experiment.yaml").write_text(text)
    row = read_run(directory).run
    assert row["experiment"] == text
    assert row["name"] == RUN_ID
    assert "telepathy" in row["reason"]


def test_values_that_are_not_finite_are_left_empty(directory):
    write_experiment(directory)
    results = '{"metrics": [{"task": "t", "metric": "m", "value": Infinity, "stderr": NaN}]}'
    directory.joinpath("results.json").write_text(results)
    (metric,) = read_run(directory).metrics
    row = dict(zip(METRIC_COLUMNS, metric, strict=True))
    assert row["value"] is None
    assert row["stderr"] is None


def test_the_signature_changes_with_every_file_that_rows_come_from(directory):
    seen = {signature(directory)}
    write_experiment(directory)
    seen.add(signature(directory))
    finished_events(directory)
    seen.add(signature(directory))
    directory.joinpath("results.json").write_text("{}")
    seen.add(signature(directory))
    directory.joinpath("state.json").write_text("{}")
    seen.add(signature(directory))
    assert len(seen) == 5
