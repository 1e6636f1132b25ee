"""Runs of a study whose weights are kept: entries that mark them, and the shortest ones that the pages write."""

import random
from typing import Any

import pytest

from core.errors import ExperimentError
from core.study import Study, expand, keeping, shipped

BASE: dict[str, Any] = {"pruning": {"layers": [4, 25]}, "evaluation": {"perplexity": ["passages"], "tasks": []}}
STUDY: dict[str, Any] = {
    "name": "Kept",
    "base": BASE,
    "grid": {"pruning.method": ["taylor", "wanda"], "pruning.ratio": [0.1, 0.3]},
    "runs": [{"pruning.method": "taylor", "pruning.ratio": 0.3, "recovery.kind": "lora"}],
}


def kept(study: Study) -> set[str]:
    return {
        run.name.removeprefix("Kept: ")
        for run in expand(study).runs
        if run.experiment.save_model and not run.experiment.dense
    }


def names(study: Study) -> list[str]:
    return [run.name for run in expand(study).runs if not run.experiment.dense]


def test_an_entry_marks_every_run_that_has_all_its_values() -> None:
    assert kept(Study.parse(STUDY)) == set()
    assert kept(Study.parse({**STUDY, "keep": [{"pruning.ratio": 0.3}]})) == {
        "Taylor 30 %", "Taylor 30 %, LoRA", "Wanda 30 %",
    }  # fmt: skip
    several: list[dict[str, Any]] = [{"pruning.ratio": 0.1, "recovery": None}, {"recovery.kind": "lora"}]
    assert kept(Study.parse({**STUDY, "keep": several})) == {"Taylor 10 %", "Wanda 10 %", "Taylor 30 %, LoRA"}
    whole = Study.parse({**STUDY, "keep": [{"evaluation.perplexity": ["passages"], "pruning.method": "wanda"}]})
    assert kept(whole) == {"Wanda 10 %", "Wanda 30 %"}  # however the value is written


def test_a_mark_changes_neither_what_is_computed_nor_what_runs_are_called() -> None:
    plain, marked = (expand(Study.parse({**STUDY, "keep": keep})) for keep in ([], [{"pruning.ratio": 0.3}]))
    assert [(run.key, run.name) for run in plain.runs] == [(run.key, run.name) for run in marked.runs]


def test_what_marks_nothing_is_listed_and_what_is_misspelt_is_an_error() -> None:
    (left,) = expand(Study.parse({**STUDY, "keep": [{"pruning.ratio": 0.9}]})).left_out
    assert (left.place, left.name) == ("keep.0", "pruning.ratio=0.9")
    with pytest.raises(ExperimentError, match=r"pruning\.ratoi.*Did you mean 'pruning\.ratio'"):
        Study.parse({**STUDY, "keep": [{"pruning.ratoi": 0.3}]})


LARGE = next(study for study in shipped() if study.id == "the-study-on-smollm2")


@pytest.mark.parametrize("study", [Study.parse(STUDY), LARGE], ids=lambda study: study.id)
def test_whichever_runs_are_chosen_the_entries_mark_them_alone_also_after_they_were_read_back(study: Study) -> None:
    study = study.model_copy(update={"base": {**study.base, "save_model": False}, "keep": []})
    draw, all_names = random.Random(0), names(study)
    for _ in range(3):
        chosen = set(draw.sample(all_names, min(3, len(all_names))))
        study = Study.from_yaml(keeping(study, chosen).to_yaml())  # on from the marks of the turn before
        marked = {run.name for run in expand(study).runs if run.experiment.save_model and not run.experiment.dense}
        assert marked == chosen
        assert not [each for each in expand(study).left_out if each.place.startswith("keep")]
    assert keeping(study, []).keep == []


def test_entries_are_short_and_those_that_still_hold_stay_as_they_were_written() -> None:
    study = Study.parse({**STUDY, "keep": [{"pruning.ratio": 0.3, "pruning.method": "wanda"}, {"pruning.ratio": 0.1}]})
    marked = keeping(study, {"Kept: Wanda 30 %", "Kept: Taylor 30 %, LoRA", "Kept: Taylor 10 %"})
    assert marked.keep == [
        {"pruning.ratio": 0.3, "pruning.method": "wanda"},
        {"pruning.method": "taylor", "pruning.ratio": 0.1},
        {"recovery.kind": "lora"},
    ]
