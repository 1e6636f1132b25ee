"""Any input gives a valid Experiment or Study, or a clear error of ours: never another traceback.

`ESPALIER_FUZZ=20000` looks longer than the default suite does.
"""

import json
import os
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from core import yaml_text
from core.errors import EspalierError, ExperimentError, InputError
from core.experiment import Experiment, Resolved, experiment_hash
from core.pruning.registry import methods
from core.service import Service

EXAMPLES = int(os.environ.get("ESPALIER_FUZZ", "60"))
HARD = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
RESOLVED = Resolved(model="abc", dtype="float32", device_type="cpu", n_layers=30)


def names(value: Any) -> set[str]:
    """Every key in a nested mapping."""
    if isinstance(value, dict):
        return set(value) | {name for inner in value.values() for name in names(inner)}
    return {name for inner in value for name in names(inner)} if isinstance(value, list) else set()


FULL = {
    "name": "x",
    "model": {"name": "builtin:smollm2-135m-instruct", "revision": None, "dtype": "auto", "trust_remote_code": False},
    "pruning": {
        "method": "taylor", "ratio": 0.3, "target": "selected", "layers": [4, 18], "parts": ["attention", "mlp"],
        "heads": "kv_groups", "round_to": 32, "allocation": "uniform", "same_sizes": False, "reconstruct": False,
        "options": {"order": "first"}, "calibration": {"corpus": "passages", "samples": 32, "length": 512},
    },
    "recovery": {"kind": "lora", "data": {"corpus": "passages", "format": "text"}, "rank": 8, "epochs": 1},
    "evaluation": {"perplexity": [{"corpus": "passages", "window": 512}], "tasks": ["piqa"], "limit": 10, "shots": 0},
    "save_model": True, "seed": 0, "device": "cpu",
}  # fmt: skip
KEYS = sorted(names(FULL) | {"pattern", "path", "split", "max_tokens", "bos", "batch_size", "fidelity", "quantised"})
WORDS = [
    *methods(), "auto", "cpu", "cuda", "cuda:999", "2:4", "4:8", "0:0", "999999999:2", "model", "selected", "global",
    "owl", "measured", "query_heads", "kv_groups", "distillation", "lora", "passages", "heldout", "piqa", "-1", "",
    "../../etc/passwd", "/dev/zero", "/etc/passwd", "builtin:", "builtin:x", "a/b", "~", "~nobody/x", "\x00",
    "<script>", "a\x00b", "*", "x" * 5000, "task.yaml", "/proc/self/environ", "ﬁ", "\u202e", "1e400",
]  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(10**400), 10**400), st.floats(), st.sampled_from(WORDS),
    st.text(max_size=20), st.dates(date(1, 1, 1)),
    st.sampled_from([0, 1, -1, 0.5, 0.999, 1.0, 2**31, 2**63, 2**64, 1e-320]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), inner, max_size=5)
    ),
    max_leaves=12,
)


@st.composite
def changed(draw: st.DrawFn) -> dict[str, Any]:
    """A whole experiment in which a few entries are something else, or gone."""
    data = json.loads(json.dumps(FULL))
    for _ in range(draw(st.integers(1, 4))):
        node = data
        while True:
            key = draw(st.sampled_from(sorted(node) or ["name"]))
            if not isinstance(node.get(key), dict) or draw(st.booleans()):
                break
            node = node[key]
        what = draw(st.integers(0, 4))
        if what == 0:
            node.pop(key, None)
        else:
            node[draw(st.sampled_from(KEYS)) if what == 1 else key] = draw(
                VALUES if what < 4 else st.sampled_from(WORDS)
            )
    return data


def require_clear(error: EspalierError) -> None:
    """It says something, and not a page of it."""
    problems = error.problems if isinstance(error, ExperimentError) else [error]
    assert problems
    assert all(0 < len(problem.message) < 2000 for problem in problems)


def understood(data: Any) -> Experiment | None:
    """The experiment, which must then survive its own YAML and have a hash; or None where it was refused clearly."""
    try:
        made = Experiment.parse(data)
    except ExperimentError as error:
        require_clear(error)
        return None
    assert Experiment.from_yaml(made.to_yaml()) == made
    assert len(experiment_hash(made, RESOLVED)) == 64
    return made


@HARD
@given(st.one_of(VALUES, changed(), st.binary(max_size=5), st.sets(st.integers())))
def test_any_data_is_an_experiment_or_a_clear_error(data: Any) -> None:
    understood(data)


PIECES = st.sampled_from(
    [
        *"abc:- \n\t[]{}&*!|>'\"%@`#,?0.~\\\x00\x85\ufeff\ud800",
        "name: ",
        "pruning:\n  ",
        "!!python/object/apply:os.system ",
    ]
) | st.sampled_from(KEYS)


@HARD
@given(st.one_of(st.lists(PIECES, max_size=40).map("".join), st.text(max_size=60)))
@example("a: &x [*x]")
@example("!!python/object/apply:os.system ['touch /tmp/espalier-was-here']")
@example("name: !!binary '\xff'")
@example("? [a]\n: b")
@example("? {a: b}\n: c")
@example("1: 2")
@example("a: 2026-99-99")
@example("a: !!timestamp x")
@example("a: !!int x")
@example("a: !!float x")
@example("a: 0b")
@example("a: 1:60:60")
@example("a: " + "9" * 5000)
@example("seed: 0x" + "f" * 5000)
@example("%YAML 9.9\n---\na: b")
@example("--- a\n--- b")
@example("<<: {a: b}")
@example("[" * 3000)
@example("a: " + "{a: " * 900)
@example("-\n" * 20_000)
@example("\ud800")
def test_any_text_is_an_experiment_or_a_clear_error(text: str) -> None:
    try:
        made = Experiment.from_yaml(text)
    except ExperimentError as error:
        require_clear(error)
    else:
        assert Experiment.from_yaml(made.to_yaml()) == made


@HARD
@given(st.text(st.characters(exclude_characters=""), max_size=20))
def test_any_value_of_a_command_line_is_a_value_or_a_clear_error(text: str) -> None:
    try:
        yaml_text.load_value(text)
    except ExperimentError as error:
        require_clear(error)


@HARD
@given(st.dictionaries(st.lists(st.sampled_from([*KEYS, "", "x"]), max_size=4).map(".".join), VALUES, max_size=3))
def test_any_change_is_an_experiment_or_a_clear_error(changes: dict[str, Any]) -> None:
    try:
        Experiment.parse(FULL).with_changes(changes)
    except InputError as error:
        require_clear(error)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("home"), supervisor=False)
    yield service
    service.close()


@HARD
@given(data=changed())
def test_what_is_valid_can_be_previewed_whatever_it_names(shown: Service, data: dict[str, Any]) -> None:
    made = understood(data)
    if made is not None:
        shown.preview(made)  # what is wrong with it is in the preview


@HARD
@given(data=changed())
def test_any_study_is_a_study_or_a_clear_error(shown: Service, data: dict[str, Any]) -> None:
    from core.study import Study

    try:
        text = yaml_text.dump({"name": "s", "base": data, "grid": {"pruning.ratio": [0.1, 0.2], **data}})
    except Exception:  # noqa: BLE001 - what cannot be written as YAML at all cannot be given as YAML either
        return
    try:
        Study.from_yaml(text)
    except EspalierError as error:
        require_clear(error)


def test_nothing_of_all_this_was_run() -> None:
    assert not Path("/tmp/espalier-was-here").exists()
