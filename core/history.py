"""Questions about earlier runs: which one computed the same, which one to compare with, how long their stages took."""

from collections.abc import Sequence

from core import estimate
from core.device import DeviceInfo
from core.errors import EspalierError
from core.experiment import Experiment
from core.models.catalogue import resolve
from core.models.plans import plan
from core.storage.store import Store

RUNS_FOR_PACE = 8


def identical(store: Store, hash_: str, states: Sequence[str] = ("COMPLETE",)) -> str | None:
    """Id of the newest run that computes the same and is in one of `states`."""
    query = "SELECT id FROM runs WHERE hash = ? AND list_contains(?::VARCHAR[], state) ORDER BY id DESC LIMIT 1"
    found = store.rows(query, [hash_, list(states)])
    return str(found[0][0]) if found else None


def baseline_for(store: Store, run_id: str) -> str | None:
    """The complete dense run that shares most numbers with a run: same model, dtype, kind of device, and protocol.

    None for a dense run. A model is the same by its content's fingerprint, whatever it is called; by its name where a
    run knows none.
    """
    return _dense_runs(store, [run_id]).get(run_id)


def baselines_for(store: Store, run_ids: Sequence[str]) -> dict[str, str | None]:
    """The same of many runs at once; a dense run is its own baseline."""
    rows = store.rows("SELECT id FROM runs WHERE method IS NULL AND list_contains(?::VARCHAR[], id)", [list(run_ids)])
    found: dict[str, str | None] = {**_dense_runs(store, run_ids), **{str(row[0]): str(row[0]) for row in rows}}
    return {run_id: found.get(run_id) for run_id in run_ids}


def _dense_runs(store: Store, run_ids: Sequence[str]) -> dict[str, str]:
    found = store.rows(
        """
        WITH these AS (SELECT * FROM runs WHERE method IS NOT NULL AND list_contains(?::VARCHAR[], id)),
             dense AS (SELECT * FROM runs WHERE method IS NULL AND state = 'COMPLETE'),
             alike AS (
                SELECT these.id AS run, dense.id AS baseline, dense.finished FROM these JOIN dense
                ON dense.dtype = these.dtype
                AND coalesce(dense.fingerprint = these.fingerprint, dense.model = these.model)
                AND split_part(dense.device, ':', 1) = split_part(these.device, ':', 1)),
             measured AS (SELECT DISTINCT run_id, task, metric, protocol_key FROM metrics
                WHERE run_id IN (SELECT run FROM alike) OR run_id IN (SELECT baseline FROM alike)),
             shared AS (SELECT run, baseline, finished, count(*) AS n FROM alike
                JOIN measured mine ON mine.run_id = run
                JOIN measured theirs ON theirs.run_id = baseline
                AND theirs.task = mine.task AND theirs.metric = mine.metric AND theirs.protocol_key = mine.protocol_key
                GROUP BY ALL)
        SELECT run, baseline FROM shared
        QUALIFY row_number() OVER (PARTITION BY run ORDER BY n DESC, finished DESC NULLS LAST, baseline DESC) = 1""",
        [list(run_ids)],
    )
    return {str(run): str(baseline) for run, baseline in found}


def pace(store: Store, device: DeviceInfo, dtype: str) -> estimate.Pace:
    """How the newest complete runs on this device went, against what the model of the estimate says of them."""
    found = store.rows(
        """
        SELECT id, experiment FROM runs
        WHERE state = 'COMPLETE' AND device_name = ? AND split_part(device, ':', 1) = ? AND dtype = ?
        ORDER BY finished DESC LIMIT ?""",
        [device.name, device.kind, dtype, RUNS_FOR_PACE],
    )
    stages = store.stages([run_id for run_id, _ in found])
    pairs = []
    for run_id, text in found:
        mine = stages[stages.run_id == run_id]
        measured = estimate.by_kind(zip(mine.stage, mine.seconds, strict=True))
        try:
            modelled = estimate.stage_seconds(_work(Experiment.from_yaml(text), device, dtype))
        except EspalierError:  # its model or method is not to be had any more
            continue
        pairs.append((modelled, measured))
    return estimate.Pace.of(pairs)


def _work(experiment: Experiment, device: DeviceInfo, dtype: str) -> estimate.Work:
    architecture = resolve(experiment.model).architecture
    cut = None if experiment.pruning is None else plan(architecture, experiment.pruning)
    return estimate.Work(experiment, architecture, cut, device, dtype)
