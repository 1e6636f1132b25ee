"""What the queue is told of a run: the memory and disk that it takes while it works, in bytes (core/jobs/places.py)."""

from dataclasses import replace

from core.estimate import PROCESS_BYTES, Work, disk_bytes, layerwise, memory_bytes, weight_bytes


def needs(work: Work) -> dict[str, int]:
    """`device`: memory where it works; `host`: beside a GPU; `disk`: with the weights that go again when it is over."""
    beside = 0 if work.device.kind == "cpu" else PROCESS_BYTES["cpu"]
    if beside and not layerwise(work):
        beside += weight_bytes(work.before, work.dtype)
    keeping = replace(work, experiment=work.experiment.model_copy(update={"save_model": True}))
    return {"device": memory_bytes(work), "host": beside, "disk": disk_bytes(keeping)}
