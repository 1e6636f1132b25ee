"""How much a model computes: multiply-accumulates of one forward pass, from its shapes alone. No torch."""

from core.evaluation.metrics import Metric
from core.models.families import families
from core.models.sizes import Architecture

TASK = "speed"
LENGTH = 512


def macs(architecture: Architecture, length: int) -> int:
    """Multiply-accumulates of a pass over one sequence of `length` tokens, with the logits of every position.

    Counted: the matrices of attention (each query head and KV group as it is) and MLP, scores and weighted values over
    all pairs of positions, as attention kernels are counted, and the head. Not counted: norms, rotations, softmax,
    products of single elements. Weights that are zero count like others: nothing skips them.
    """
    return architecture.macs(length)


def measured(stage: str, architecture: Architecture, length: int = LENGTH) -> list[Metric]:
    """`macs` as a metric of a stage; nothing for a family whose shapes this program does not know."""
    if architecture.model_type not in families():
        return []
    length = min(length, architecture.max_positions)
    protocol = {"batch": 1, "length": length, "logits": "every position"}
    return [Metric(stage, TASK, "macs", float(macs(architecture, length)), None, 1, protocol)]
