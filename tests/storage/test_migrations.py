"""The shape of results.duckdb grows by numbered steps."""

import duckdb
import pytest

from core.errors import StoreError
from core.storage import migrations
from core.storage.reading import LAYER_COLUMNS, METRIC_COLUMNS, RUN_COLUMNS, STAGE_COLUMNS


@pytest.fixture
def connection():
    with duckdb.connect() as open_connection:
        yield open_connection


def columns(connection, table):
    return dict(connection.execute(f"SELECT column_name, column_type FROM (DESCRIBE {table})").fetchall())


def test_an_empty_database_gets_every_step_once(connection):
    assert migrations.migrate(connection) == list(migrations.steps())
    assert migrations.migrate(connection) == []


def test_the_tables_have_the_columns_that_are_written(connection):
    migrations.migrate(connection)
    assert columns(connection, "runs") == RUN_COLUMNS
    assert columns(connection, "metrics") == METRIC_COLUMNS
    assert columns(connection, "layers") == LAYER_COLUMNS
    assert columns(connection, "stages") == STAGE_COLUMNS


def test_a_database_of_the_first_version_gains_the_stream_s_width_and_keeps_its_rows(connection):
    first = migrations.steps()[1]
    migrations.applied(connection)
    first(connection)
    connection.execute("INSERT INTO migrations VALUES (1, 'first')")
    connection.execute("INSERT INTO layers (run_id, layer, heads_before) VALUES ('a', 0, 9)")
    assert migrations.migrate(connection) == [number for number in migrations.steps() if number > 1]
    assert connection.execute("SELECT heads_before, hidden_after FROM layers").fetchall() == [(9, None)]


def test_runs_of_an_earlier_version_say_how_they_recover(connection):
    from core.experiment import Experiment

    migrations.applied(connection)
    for number in (1, 2, 3):
        migrations.steps()[number](connection)
        connection.execute("INSERT INTO migrations VALUES (?, 'earlier')", [number])
    pruning = {"method": "l2", "ratio": 0.3}
    for name, recovery in (("none", None), ("tuned", {"kind": "lora"}), ("taught", {"kind": "distillation"})):
        text = Experiment.parse({"pruning": pruning, "recovery": recovery}).to_yaml()
        connection.execute("INSERT INTO runs (id, name, state, experiment) VALUES (?, '', '', ?)", [name, text])
    migrations.migrate(connection)
    found = dict(connection.execute("SELECT id, recovery FROM runs").fetchall())
    assert found == {"none": None, "tuned": "lora", "taught": "distillation"}


def test_a_number_taken_twice_is_an_error():
    taken = next(iter(migrations.steps()))
    with pytest.raises(ValueError, match="twice"):
        migrations.step(taken)(lambda connection: None)


def test_numbers_begin_at_one_and_leave_no_gap():
    assert list(migrations.steps()) == list(range(1, len(migrations.steps()) + 1))


def test_a_step_that_fails_leaves_nothing_behind(connection, monkeypatch):
    migrations.migrate(connection)

    def broken(connection):
        connection.execute("CREATE TABLE half (x INTEGER)")
        raise RuntimeError("power cut")

    monkeypatch.setitem(migrations._steps, 999, broken)
    with pytest.raises(RuntimeError, match="power cut"):
        migrations.migrate(connection)
    tables = {row[0] for row in connection.execute("SHOW TABLES").fetchall()}
    assert "half" not in tables
    assert 999 not in migrations.applied(connection)


def test_a_database_of_a_newer_espalier_is_refused_with_both_numbers(connection):
    migrations.migrate(connection)
    connection.execute("INSERT INTO migrations VALUES (4711, 'from the future')")
    with pytest.raises(StoreError, match="4711") as caught:
        migrations.migrate(connection)
    assert "Update Espalier" in caught.value.advice
