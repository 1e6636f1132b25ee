"""The shape of results.duckdb, as numbered steps, each applied once and in a transaction of its own.

A step is never edited once it has shipped: a change of shape is a new step. The database holds nothing that has no
file, so a step only needs to make tables; `Store` reads the run directories again after any step it applied.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from core.errors import StoreError

if TYPE_CHECKING:
    import duckdb

Step = Callable[["duckdb.DuckDBPyConnection"], None]
_steps: dict[int, Step] = {}


def step(number: int) -> Callable[[Step], Step]:
    """Register the decorated function as migration `number`; numbers are unique."""

    def decorate(function: Step) -> Step:
        if number in _steps:
            raise ValueError(f"migration {number} is there twice: {_steps[number].__name__}, {function.__name__}")
        _steps[number] = function
        return function

    return decorate


def steps() -> dict[int, Step]:
    """All migrations in the order in which they are applied."""
    return dict(sorted(_steps.items()))


def applied(connection: "duckdb.DuckDBPyConnection") -> set[int]:
    """Numbers of the migrations that this database has seen."""
    connection.execute("CREATE TABLE IF NOT EXISTS migrations (number INTEGER NOT NULL, name VARCHAR NOT NULL)")
    return {row[0] for row in connection.execute("SELECT number FROM migrations").fetchall()}


def migrate(connection: "duckdb.DuckDBPyConnection") -> list[int]:
    """Apply what is missing, in order; returns the numbers applied now.

    StoreError if the database was made by a newer Espalier. A step that raises leaves the database as it was before it.
    """
    done = applied(connection)
    newer = done - set(_steps)
    if newer:
        raise StoreError(
            f"results.duckdb has migration {max(newer)}, this Espalier knows {max(_steps)}.",
            "Update Espalier; the run directories hold everything, so nothing is lost.",
        )
    missing = [number for number in steps() if number not in done]
    for number in missing:
        connection.execute("BEGIN")
        try:
            _steps[number](connection)
            connection.execute("INSERT INTO migrations VALUES (?, ?)", [number, _steps[number].__name__])
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
    return missing


# No primary keys: DuckDB checks them before it has seen the deletion of the same transaction, and a run is always
# replaced as delete + insert. `Store` is the one writer and keeps ids unique.


@step(1)
def runs_with_metrics_layers_and_stages(connection: "duckdb.DuckDBPyConnection") -> None:
    """What the first version's pages ask for. Times are UTC; ratios are fractions removed; sizes are bytes."""
    connection.execute("""
        CREATE TABLE runs (
            id VARCHAR NOT NULL, name VARCHAR NOT NULL, state VARCHAR NOT NULL,
            created TIMESTAMP, started TIMESTAMP, finished TIMESTAMP, seconds DOUBLE,
            model VARCHAR, method VARCHAR, kind VARCHAR, ratio DOUBLE,
            layer_first INTEGER, layer_last INTEGER, model_layers INTEGER, pattern VARCHAR, target VARCHAR,
            seed BIGINT, hash VARCHAR, device VARCHAR, device_name VARCHAR, dtype VARCHAR,
            params_before BIGINT, params_after BIGINT, nonzero_after BIGINT,
            achieved_ratio DOUBLE, achieved_model_ratio DOUBLE, bytes BIGINT, layout VARCHAR,
            reason VARCHAR, advice VARCHAR, experiment VARCHAR, study VARCHAR)""")
    connection.execute("""
        CREATE TABLE metrics (
            run_id VARCHAR NOT NULL, stage VARCHAR NOT NULL, task VARCHAR NOT NULL, metric VARCHAR NOT NULL,
            value DOUBLE, stderr DOUBLE, n BIGINT, protocol VARCHAR NOT NULL, protocol_key VARCHAR NOT NULL)""")
    connection.execute("""
        CREATE TABLE layers (
            run_id VARCHAR NOT NULL, layer INTEGER NOT NULL, heads_before INTEGER, heads_after INTEGER,
            kv_before INTEGER, kv_after INTEGER, mlp_before INTEGER, mlp_after INTEGER, density DOUBLE)""")
    connection.execute("""
        CREATE TABLE stages (
            run_id VARCHAR NOT NULL, position INTEGER NOT NULL, stage VARCHAR NOT NULL, seconds DOUBLE)""")
    connection.execute("CREATE TABLE sources (run_id VARCHAR NOT NULL, signature VARCHAR NOT NULL)")


@step(2)
def channels_of_the_stream_in_layers(connection: "duckdb.DuckDBPyConnection") -> None:
    """Hidden-channel pruning: the same for all layers of a run, beside what each of them holds."""
    for column in ("hidden_before", "hidden_after"):
        connection.execute(f"ALTER TABLE layers ADD COLUMN {column} INTEGER")


@step(3)
def details_of_metrics_and_fingerprints_of_models(connection: "duckdb.DuckDBPyConnection") -> None:
    """What is known of one value besides its protocol, as JSON; and whether two runs had the same dense model."""
    connection.execute("ALTER TABLE metrics ADD COLUMN details VARCHAR")
    connection.execute("ALTER TABLE runs ADD COLUMN fingerprint VARCHAR")


@step(4)
def kind_of_recovery_of_runs(connection: "duckdb.DuckDBPyConnection") -> None:
    """`lora` or `distillation`, for runs that train after the cut; runs that are there say so in their experiment."""
    connection.execute("ALTER TABLE runs ADD COLUMN recovery VARCHAR")
    pattern = r"(?m)^recovery:\s*(?:\{\s*|\n\s+)kind:\s*(lora|distillation)"
    connection.execute("UPDATE runs SET recovery = nullif(regexp_extract(experiment, ?, 1), '')", [pattern])


@step(5)
def scans_of_single_layers(connection: "duckdb.DuckDBPyConnection") -> None:
    """What pruning a layer, or a part of it, by itself costs: perplexity, and nats a token beside the dense model."""
    connection.execute("""
        CREATE TABLE scans (
            run_id VARCHAR NOT NULL, layer INTEGER NOT NULL, part VARCHAR NOT NULL, perplexity DOUBLE, stderr DOUBLE,
            cost DOUBLE, cost_stderr DOUBLE, removed BIGINT)""")


@step(6)
def conversations_and_votes(connection: "duckdb.DuckDBPyConnection") -> None:
    """What chat/*.jsonl holds; lists of models and titles are JSON."""
    connection.execute("""
        CREATE TABLE chats (
            conversation VARCHAR NOT NULL, created TIMESTAMP, prompts INTEGER, first_prompt VARCHAR, titles VARCHAR)""")
    connection.execute("""
        CREATE TABLE chat_answers (
            conversation VARCHAR NOT NULL, turn INTEGER, side INTEGER, model VARCHAR, title VARCHAR, prompt VARCHAR,
            text VARCHAR, state VARCHAR, tokens INTEGER, tokens_per_second DOUBLE, first_token_seconds DOUBLE,
            memory_bytes BIGINT)""")
    connection.execute("""
        CREATE TABLE chat_votes (
            conversation VARCHAR NOT NULL, turn INTEGER, time TIMESTAMP, verdict VARCHAR, winner VARCHAR,
            blind BOOLEAN, streaming BOOLEAN, models VARCHAR, titles VARCHAR)""")
    connection.execute("CREATE TABLE chat_sources (conversation VARCHAR NOT NULL, signature VARCHAR NOT NULL)")
