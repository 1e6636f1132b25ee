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

    A model is the same by its content's fingerprint, whatever it is called; by its name where a run knows none.
    """
    found = store.rows(
        """
        WITH this AS (SELECT * FROM runs WHERE id = ? AND method IS NOT NULL),
             measured AS (SELECT DISTINCT task, metric, protocol_key FROM metrics WHERE run_id = ?)
        SELECT dense.id
        FROM runs dense
            JOIN this ON dense.dtype = this.dtype
                AND coalesce(dense.fingerprint = this.fingerprint, dense.model = this.model)
                AND split_part(dense.device, ':', 1) = split_part(this.device, ':', 1)
            JOIN metrics m ON m.run_id = dense.id
            JOIN measured USING (task, metric, protocol_key)
        WHERE dense.method IS NULL AND dense.state = 'COMPLETE'
        GROUP BY dense.id, dense.finished
        ORDER BY count(*) DESC, dense.finished DESC
        LIMIT 1""",
        [run_id, run_id],
    )
    return str(found[0][0]) if found else None


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
