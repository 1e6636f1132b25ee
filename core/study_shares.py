"""What the runs of a study share, in words: each of it is computed once, by whichever run comes first. Pure, no torch.

| shared | by | kept in |
|---|---|---|
| the dense model's evaluation | all that are compared with it | its run; parts for other studies too (jobs/baselines) |
| scores of units | runs that differ in ratio, allocation, recovery | the cache (pruning/scores) |
| the pruned model's evaluation | runs that saved the same weights | the first one's stages (jobs/baselines) |

Masks rank weights by what already pruned layers hand on, so their statistics differ from ratio to ratio: nothing there
can be shared but the calibration text.
"""

import json
from collections import Counter
from collections.abc import Sequence

from core.experiment import Experiment
from core.pruning import registry


def shared(runs: Sequence[Experiment]) -> list[str]:
    """A sentence for each thing that several of these runs share."""
    cut = [run for run in runs if run.pruning is not None]
    dense = [run for run in runs if run.dense]
    found = []
    if dense and len(cut) > 1:
        often = "once" if len(dense) == 1 else f"{len(dense)} times, once for each model and way of judging"
        found.append(f"The dense model is judged {often}, for all {len(cut)} runs that are compared with it.")
    titles = Counter(key for run in cut if (key := _scored(run)) is not None)
    several = Counter[str]()
    for key, times in titles.items():
        if times > 1:
            several[registry.get(json.loads(key)["method"]).title] += times
    for title, times in several.items():
        sets = sum(1 for key, n in titles.items() if n > 1 and registry.get(json.loads(key)["method"]).title == title)
        once = "once" if sets == 1 else f"{sets} times, once for each setting"
        found.append(f"Scores of {title} are computed {once}, for {times} runs that differ in how much they remove.")
    judged = Counter(_judged(run) for run in cut)
    repeated = sum(times - 1 for times in judged.values() if times > 1)
    if repeated:
        what = "a pruned model" if repeated == 1 else f"{repeated} pruned models"
        found.append(f"The evaluation of {what} before recovery is taken from the run without recovery.")
    return found


def _scored(run: Experiment) -> str | None:
    """What determines the scores of a run's units, as far as the experiment says it; None where none are kept."""
    pruning = run.pruning
    if pruning is None:
        return None
    method = registry.get(pruning.method)
    needs = method.needs_for(pruning.options)
    if not needs or method.kind == "mask" or "loss" in needs:
        return None
    chosen = pruning.calibration.model_dump(mode="json", exclude={"seed"})
    return json.dumps({
        "method": method.name, "model": run.model.model_dump(mode="json"), "device": run.device,
        "options": dict(pruning.options), "heads": pruning.heads, "text": chosen, "drawn": run.calibration_seed,
        "seed": run.seed if method.seeded_for(pruning.options) else None,
    }, sort_keys=True, default=str)  # fmt: skip


def _judged(run: Experiment) -> str:
    """What determines the evaluation of the model as it was saved before recovery."""
    data = run.to_dict()
    return json.dumps({key: value for key, value in data.items() if key not in ("name", "save_model", "recovery")},
                      sort_keys=True, default=str)  # fmt: skip
