"""Names of the stages of a run, in their order, and which of them a later attempt can use.

A stage's file is `stages/<name>.json`. Parts of the evaluation are stages of their own, so that a run that lost its
worker repeats at most one of them: `evaluate.perplexity.0` (place in the experiment's list), `evaluate.task.boolq`,
`evaluate.fidelity`, `evaluate.speed`, and `evaluate` when all are done; `judge_recovered` likewise, of the model that
`recover` left. A run that scans has `scan` in place of everything behind the calibration, and `scan.layer.7` for each
layer that is done.
"""

LOAD = "load"
CALIBRATE = "calibrate"
PRUNE = "prune"
SCAN = "scan"
SAVE = "save"
EVALUATE = "evaluate"
RECOVER = "recover"
JUDGE_RECOVERED = "judge_recovered"
ORDER = (LOAD, CALIBRATE, PRUNE, SCAN, SAVE, EVALUATE, RECOVER, JUDGE_RECOVERED)


def part(kind: str, which: object = None, of: str = EVALUATE) -> str:
    """The name of a part of an evaluation."""
    return f"{of}.{kind}" if which is None else f"{of}.{kind}.{which}"


def is_reusable(name: str) -> bool:
    """Whether the next attempt need not repeat a stage: its product is on disk, not in the memory of a worker."""
    return name in (SAVE, RECOVER) or name.partition(".")[0] in (EVALUATE, JUDGE_RECOVERED, SCAN)
