"""Names of the stages of a run, in their order, and which of them a later attempt can use.

A stage's file is `stages/<name>.json`. Parts of the evaluation are stages of their own, so that a run that lost its
worker repeats at most one of them: `evaluate.perplexity.0` (place in the experiment's list), `evaluate.task.boolq`,
`evaluate.fidelity`, `evaluate.speed`, and `evaluate` when all are done.
"""

LOAD = "load"
CALIBRATE = "calibrate"
PRUNE = "prune"
SAVE = "save"
EVALUATE = "evaluate"
ORDER = (LOAD, CALIBRATE, PRUNE, SAVE, EVALUATE)


def part(kind: str, which: object = None) -> str:
    """The name of a part of the evaluation."""
    return f"{EVALUATE}.{kind}" if which is None else f"{EVALUATE}.{kind}.{which}"


def is_reusable(name: str) -> bool:
    """Whether the next attempt need not repeat a stage: its product is on disk, not in the memory of a worker."""
    return name in (SAVE, EVALUATE) or name.startswith(f"{EVALUATE}.")
