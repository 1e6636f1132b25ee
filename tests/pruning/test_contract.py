"""What every registered method must keep to. A new method is tested by being registered; nothing here names one."""

import copy
import re
from dataclasses import dataclass
from typing import Any, get_args

import pytest
import torch

from core.errors import Cancelled, InputError
from core.experiment import Pruning
from core.models.families import family
from core.models.plans import Plan, plan
from core.models.sizes import PART_MATRICES, Architecture
from core.pruning.prune import PruneOutcome, prune
from core.pruning.registry import Method, methods

LLAMA = family("llama")
SIZES: dict[str, Any] = {
    "num_hidden_layers": 4,
    "hidden_size": 24,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "intermediate_size": 24,
}


@dataclass(frozen=True)
class Case:
    """A method with one choice of its options and of the settings that apply to its kind."""

    method: Method
    options: dict[str, Any]
    settings: dict[str, Any]

    def __str__(self) -> str:
        return "-".join([self.method.name, *(str(v) for v in (*self.options.values(), *self.settings.values()))])

    def pruning(self, **changes: Any) -> Pruning:
        fields = {"options": self.options, **self.settings, **changes}
        if self.method.kind != "hidden":
            fields = {"layers": (1, 2), **fields}
        if fields.get("pattern", "unstructured") == "unstructured":
            fields.setdefault("ratio", 0.5 if self.method.kind == "depth" else 0.4)
        return Pruning(method=self.method.name, **fields)


def option_choices(method: Method) -> list[dict[str, Any]]:
    """The defaults, and each value of each option that is a choice between names."""
    choices: list[dict[str, Any]] = [{}]
    for name, info in method.options.model_fields.items():
        choices += [
            {name: value} for value in get_args(info.annotation) if isinstance(value, str) and value != info.default
        ]
    return choices


SETTINGS: dict[str, list[dict[str, Any]]] = {
    "mask": [
        {},
        {"pattern": "2:4"},
        {"pattern": "4:8"},
        {"parts": ["mlp"]},
        {"target": "model", "ratio": 0.2},
        {"allocation": "owl"},
    ],
    "width": [
        {"round_to": 1, "ratio": 0.5},
        {"round_to": 8, "ratio": 0.5, "heads": "query_heads"},
        {"round_to": 1, "ratio": 0.5, "parts": ["attention"]},
        {"round_to": 1, "ratio": 0.2, "target": "model"},
        {"round_to": 1, "ratio": 0.4, "allocation": "global"},
        {"round_to": 2, "ratio": 0.4, "allocation": "global", "heads": "query_heads"},
    ],
    "depth": [{}, {"target": "model", "ratio": 0.2}],
    "hidden": [{}, {"target": "model", "ratio": 0.2}],
}


def fits(method: Method, options: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Outliers are looked for in calibration text."""
    return settings.get("allocation") != "owl" or method.calibrated(options)


CASES = [
    Case(method, options, settings)
    for method in methods().values()
    for options in option_choices(method)
    for settings in SETTINGS[method.kind]
    if fits(method, options, settings)
]


def every(*kinds: str, exact: bool | None = None) -> Any:
    """All cases of these kinds. exact: only those whose plan, or whose scores, say what each layer loses."""
    chosen = [
        case
        for case in CASES
        if case.method.kind in kinds and exact in (None, case.settings.get("allocation", "uniform") == "uniform")
    ]
    return pytest.mark.parametrize("case", chosen, ids=str)


every_case = every("mask", "width", "depth", "hidden")
every_width_case = every("width")
every_mask_case = every("mask")


@pytest.fixture
def model(tiny_llama: Any) -> Any:
    return tiny_llama(**SIZES)


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.randint(0, 96, (4, 12), generator=torch.Generator().manual_seed(0))


def architecture(model: Any) -> Architecture:
    return Architecture.from_config(model.config.to_dict())


def cut(
    model: Any, pruning: Pruning, windows: torch.Tensor | None, seed: int = 0, **more: Any
) -> tuple[Any, PruneOutcome]:
    """A pruned copy and what was done to it."""
    pruned = copy.deepcopy(model)
    done = prune(pruned, pruning, architecture=architecture(model), windows=windows, seed=seed, device="cpu", **more)
    return pruned, done


def planned(model: Any, pruning: Pruning) -> Plan:
    return plan(architecture(model), pruning)


def linears(model: Any, layer: int) -> dict[str, torch.nn.Linear]:
    return LLAMA.linears(LLAMA.layers(model)[layer])


def same_weights(a: Any, b: Any) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


# ---------------------------------------------------------------------------------------------------- exact counts


@every("width", exact=True)
def test_the_kept_units_of_every_layer_are_as_many_as_planned(case: Case, model: Any, windows: torch.Tensor) -> None:
    pruned, done = cut(model, case.pruning(), windows)
    expected = planned(model, case.pruning())
    assert expected.params_after < expected.params_before
    for each in expected.cuts:
        assert LLAMA.sizes(LLAMA.layers(pruned)[each.layer], 4) == each.after
        report = done.layers[each.layer]
        assert (report["heads_after"], report["kv_after"], report["mlp_after"]) == (
            each.after.heads,
            each.after.kv_heads,
            each.after.mlp,
        )
    assert sum(p.numel() for p in pruned.parameters()) == expected.params_after == done.params_after


@every("width", exact=False)
def test_one_ranking_over_all_layers_removes_the_goal_to_within_a_unit_and_empties_no_layer(
    case: Case, model: Any, windows: torch.Tensor
) -> None:
    pruned, done = cut(model, case.pruning(), windows)
    expected = planned(model, case.pruning())
    gone = done.params_before - done.params_after
    heads = 1 if case.settings.get("heads") == "query_heads" else 3
    attention = 24 * 4 * (2 * 2 * heads if heads == 1 else 2 * heads + 2)  # the largest unit that goes at once
    assert abs(gone - expected.goal) <= attention
    assert expected.exact is False
    assert gone == sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in pruned.parameters())
    for layer in LLAMA.layers(pruned):
        sizes = LLAMA.sizes(layer, 4)
        assert sizes.heads >= sizes.kv_heads >= 1
        assert sizes.mlp >= 1


@every("mask", exact=False)
def test_layers_that_lose_different_shares_lose_the_planned_number_of_weights_in_all(
    case: Case, model: Any, windows: torch.Tensor
) -> None:
    pruned, _ = cut(model, case.pruning(), windows)
    zeros = {layer: sum(int((m.weight == 0).sum()) for m in linears(pruned, layer).values()) for layer in range(4)}
    assert zeros[0] == zeros[3] == 0
    assert zeros[1] != zeros[2]
    rounding = 7 * 24 if case.method.compare == "row" else 7  # half a weight in each row or matrix of two layers
    assert abs(zeros[1] + zeros[2] - sum(each.zeros for each in planned(model, case.pruning()).cuts)) <= rounding


@every("mask", exact=True)
def test_zeros_are_exactly_as_many_as_planned_in_every_layer(case: Case, model: Any, windows: torch.Tensor) -> None:
    pruned, done = cut(model, case.pruning(), windows)
    expected = planned(model, case.pruning())
    for each in expected.cuts:
        zeros = sum(int((linear.weight == 0).sum()) for linear in linears(pruned, each.layer).values())
        assert zeros == each.zeros
    assert done.nonzero_after == expected.nonzero_after
    assert done.params_after == expected.params_before


@every_mask_case
def test_zeros_stand_where_the_pattern_allows(case: Case, model: Any, windows: torch.Tensor) -> None:
    pruning = case.pruning()
    pruned, _ = cut(model, pruning, windows)
    for role in (role for part in pruning.parts for role in PART_MATRICES[part]):
        weight = linears(pruned, 1)[role].weight
        if pruning.pattern != "unstructured":
            n, m = (int(part) for part in pruning.pattern.split(":"))
            assert ((weight.view(-1, m) == 0).sum(dim=1) == m - n).all()
        elif case.method.compare == "row":
            assert len((weight == 0).sum(dim=1).unique()) == 1


@every("depth")
def test_as_many_selected_layers_go_as_planned_and_the_others_stay_bit_identical(
    case: Case, model: Any, windows: torch.Tensor
) -> None:
    pruned, done = cut(model, case.pruning(), windows)
    expected = planned(model, case.pruning())
    gone = [report["layer"] for report in done.layers if report["mlp_after"] == 0]
    assert len(gone) == expected.layers_removed == 1
    assert set(gone) <= {1, 2}
    stay = [LLAMA.layers(model)[index] for index in range(4) if index not in gone]
    for ours, theirs in zip(LLAMA.layers(pruned), stay, strict=True):
        assert same_weights(ours, theirs)
    outside = {name: value for name, value in model.state_dict().items() if ".layers." not in name}
    assert all(torch.equal(pruned.state_dict()[name], value) for name, value in outside.items())
    assert done.params_after == expected.params_after == sum(p.numel() for p in pruned.parameters())
    assert pruned.config.num_hidden_layers == 3


@every("hidden")
def test_one_set_of_channels_goes_from_all_that_reads_or_writes_the_stream(
    case: Case, model: Any, windows: torch.Tensor
) -> None:
    with torch.no_grad():
        for parameter in model.parameters():  # norms of random models are all ones
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    pruned, done = cut(model, case.pruning(), windows)
    expected = planned(model, case.pruning())
    assert done.hidden_after == pruned.config.hidden_size == expected.after.hidden_size == 18
    before, after = model.state_dict(), pruned.state_dict()
    table, left = before["model.embed_tokens.weight"], after["model.embed_tokens.weight"]
    kept = torch.tensor([c for c in range(24) if any(torch.equal(table[:, c], left[:, k]) for k in range(18))])
    assert len(kept) == 18
    for name, value in before.items():
        for axis, size in enumerate(value.shape):
            reads = axis == 1 and not re.search(r"(o|down)_proj", name)
            writes = axis == 0 and re.search(r"(o|down)_proj|norm", name)
            if (reads or writes) and size == 24:
                value = value.index_select(axis, kept)
        assert torch.equal(after[name], value), name
    assert done.params_after == expected.params_after == sum(p.numel() for p in pruned.parameters())
    with torch.no_grad():
        assert torch.isfinite(pruned(windows).logits).all()


@every("mask", exact=True)
def test_counts_are_exact_even_if_all_weights_are_equal(case: Case, model: Any, windows: torch.Tensor) -> None:
    for layer in (1, 2):
        for linear in linears(model, layer).values():
            torch.nn.init.constant_(linear.weight, 0.25)
    pruned, _ = cut(model, case.pruning(), windows)
    for each in planned(model, case.pruning()).cuts:
        assert sum(int((linear.weight == 0).sum()) for linear in linears(pruned, each.layer).values()) == each.zeros


# --------------------------------------------------------------------------------------------------- same function


@every_width_case
def test_the_cut_model_has_the_logits_of_the_same_mask_before_compaction(
    case: Case, model: Any, windows: torch.Tensor
) -> None:
    pruned, done = cut(model, case.pruning(), windows)
    masked = copy.deepcopy(model)
    for report in done.layers:
        of_layer = linears(masked, report["layer"])
        for name, role, block in (("query_heads", "o", 4), ("channels", "down", 1)):
            if name in report:
                keep = torch.zeros(of_layer[role].in_features // block, dtype=torch.bool)
                keep[report[name]] = True
                of_layer[role].weight.data *= keep.repeat_interleave(block)
    with torch.no_grad():
        torch.testing.assert_close(pruned(windows).logits, masked(windows).logits, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(pruned(windows).logits, model(windows).logits)


@every_width_case
def test_every_kv_group_keeps_as_many_query_heads_as_the_others(case: Case, model: Any, windows: torch.Tensor) -> None:
    _, done = cut(model, case.pruning(), windows)
    for report in done.layers[1:3]:
        if "query_heads" in report:
            groups = [head // 3 for head in report["query_heads"]]
            assert sorted(set(groups)) == report.get("kv_heads", [0, 1])
            assert len({groups.count(g) for g in groups}) == 1


@every("mask", "width")
def test_layers_that_were_not_selected_embeddings_norms_and_head_stay_bit_identical(
    case: Case, model: Any, windows: torch.Tensor
) -> None:
    pruned, _ = cut(model, case.pruning(), windows)
    after = pruned.state_dict()
    for name, before in model.state_dict().items():
        if not re.search(r"layers\.[12]\..*_proj", name):
            assert torch.equal(after[name], before), name


def _smaller(case: Case) -> dict[str, float]:
    """A ratio of the whole model that the MLPs of two layers can give."""
    return {"ratio": 0.1} if "target" in case.settings else {}


@every("mask", "width")
def test_parts_that_were_not_selected_stay_bit_identical(case: Case, model: Any, windows: torch.Tensor) -> None:
    pruned, _ = cut(model, case.pruning(parts=["mlp"], **_smaller(case)), windows)
    for layer in range(4):
        for role in PART_MATRICES["attention"]:
            assert torch.equal(linears(pruned, layer)[role].weight, linears(model, layer)[role].weight)


@every_case
def test_a_plan_that_removes_nothing_leaves_every_bit_as_it_was(case: Case, model: Any, windows: torch.Tensor) -> None:
    if "pattern" in case.settings:
        pytest.skip("n:m always removes half")
    pruned, done = cut(model, case.pruning(ratio=1e-6), windows)
    assert same_weights(pruned, model)
    assert done.achieved_ratio == done.achieved_model_ratio == 0
    assert done.params_after == done.params_before


# ------------------------------------------------------------------------------------------------------ repeatable


@every_case
def test_the_same_seed_gives_the_same_cut_bit_for_bit(case: Case, model: Any, windows: torch.Tensor) -> None:
    first, done = cut(model, case.pruning(), windows, seed=5)
    torch.manual_seed(99)  # whatever else draws random numbers must not matter
    torch.rand(7)
    second, again = cut(model, case.pruning(), windows, seed=5)
    assert same_weights(first, second)
    assert done == again


@every_case
def test_only_seeded_methods_look_at_the_seed(case: Case, model: Any, windows: torch.Tensor) -> None:
    seeded = case.method.seeded_for(case.options)
    seeds = range(6) if seeded else range(2)  # with two KV groups, or two layers, two seeds often agree
    cuts = [cut(model, case.pruning(), windows, seed=seed)[0] for seed in seeds]
    assert all(same_weights(cuts[0], other) for other in cuts[1:]) != seeded


@every_case
def test_the_global_random_state_is_left_alone(case: Case, model: Any, windows: torch.Tensor) -> None:
    before = torch.get_rng_state()
    cut(model, case.pruning(), windows)
    assert torch.equal(torch.get_rng_state(), before)


@every_case
def test_bfloat16_models_stay_bfloat16_and_get_exact_counts(case: Case, model: Any, windows: torch.Tensor) -> None:
    half = copy.deepcopy(model).to(torch.bfloat16)
    pruned, done = cut(half, case.pruning(), windows)
    assert {p.dtype for p in pruned.parameters()} == {torch.bfloat16}
    if case.settings.get("allocation") != "global":
        assert done.params_after == planned(model, case.pruning()).params_after
    with torch.no_grad():
        assert torch.isfinite(pruned(windows).logits).all()


# -------------------------------------------------------------------------------------------------- how it behaves


@every_case
def test_progress_rises_to_the_end_and_a_cancellation_comes_through(
    case: Case, model: Any, windows: torch.Tensor
) -> None:
    told: dict[str, list[tuple[float, float]]] = {"layers": [], "windows": [], "model": []}

    def listen(done: float, total: float, unit: str) -> None:
        told[unit].append((done, total))

    cut(model, case.pruning(), windows, progress=listen, calibrate_progress=listen)
    ends = {"mask": (2, 2), "width": (2, 2), "depth": (1, 1), "hidden": (1, 1)}
    assert told["model" if case.method.kind == "hidden" else "layers"][-1] == ends[case.method.kind]
    assert bool(told["windows"]) == case.method.calibrated(case.options)
    for unit in told.values():
        assert unit == sorted(unit)
        assert all(0 <= done <= total for done, total in unit)

    def cancel(done: float, total: float, unit: str) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        cut(model, case.pruning(), windows, progress=cancel)


@every_case
def test_calibrated_methods_ask_for_windows_and_the_others_never_read_them(
    case: Case, model: Any, windows: torch.Tensor
) -> None:
    if case.method.calibrated(case.options):
        with pytest.raises(InputError, match="calibration windows"):
            cut(model, case.pruning(), None)
    else:
        assert same_weights(cut(model, case.pruning(), None)[0], cut(model, case.pruning(), windows)[0])


@every_case
def test_weights_that_are_not_finite_are_an_error_and_no_silent_cut(
    case: Case, model: Any, windows: torch.Tensor
) -> None:
    if case.method.seeded_for(case.options) or case.method.name == "last":
        pytest.skip("chosen without looking at the weights")
    for role in ("q", "up"):
        linears(model, 1)[role].weight.data[0, 0] = float("nan")
    with pytest.raises(Exception, match="nan or inf"):
        cut(model, case.pruning(), windows)


# ------------------------------------------------------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@every_case
def test_a_gpu_cuts_exactly_as_planned_and_the_same_twice(case: Case, tiny_llama: Any, dtype: torch.dtype) -> None:
    model = tiny_llama(**SIZES | {"hidden_size": 384, "head_dim": 64, "intermediate_size": 512}).to(dtype)
    windows = torch.randint(0, 96, (6, 64), generator=torch.Generator().manual_seed(0))
    pruned = [copy.deepcopy(model) for _ in range(2)]
    done = [
        prune(each, case.pruning(), architecture=architecture(model), windows=windows, seed=0, device="cuda")
        for each in pruned
    ]
    assert done[0] == done[1]
    assert same_weights(*pruned)
    expected = planned(model, case.pruning())
    if expected.exact or expected.kind != "width":
        assert done[0].params_after == expected.params_after
    assert {p.device.type for p in pruned[0].parameters()} == {"cuda"}
    assert {p.dtype for p in pruned[0].parameters()} == {dtype}
    for each in expected.cuts if expected.kind == "mask" and expected.exact else ():
        zeros = sum(int((linear.weight == 0).sum()) for linear in linears(pruned[0], each.layer).values())
        natural = sum(int((linear.weight == 0).sum()) for linear in linears(model, each.layer).values())
        assert each.zeros <= zeros <= each.zeros + natural
