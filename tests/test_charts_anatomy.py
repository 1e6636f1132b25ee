"""Anatomy's charts, by their data."""

from typing import Any

import numpy as np
import pytest

from core import charts_anatomy, charts_importance, charts_inside, charts_scan
from core.anatomies import RunAnatomy
from core.models.catalogue import resolve
from core.sections import ModelChoice
from core.weights_view import Image, Region


def anatomy(layers: list[dict[str, Any]], **more: Any) -> RunAnatomy:
    fields: dict[str, Any] = {"method": "taylor", "kind": "width", "rows": [], "drift": {}, "drift_recovered": {}}
    return RunAnatomy("id", "<b>x</b>", layers=layers, **{**fields, "pruned": {}, **more})


def layer(index: int, heads: int = 9, mlp: int = 1536, **more: Any) -> dict[str, Any]:
    after = {"heads_after": heads, "kv_after": heads // 3, "mlp_after": mlp}
    return {"layer": index, "heads_before": 9, "kv_before": 3, "mlp_before": 1536, **after, **more}


def smollm2() -> Any:
    return resolve(ModelChoice()).architecture


def bars(figure: Any, name: str, axis: str) -> list[Any]:
    return [trace for trace in figure.data if trace.name == name and (trace.xaxis or "x") == axis]


def test_the_map_draws_each_head_where_it_was_and_channels_to_scale() -> None:
    scores = {"kind": "scores", "layer": 1, "name": "attention", "unit": "KV group", "values": [0.5, 0.1, 0.9]}
    scores |= {"least_kept": 0.5, "most_removed": 0.1}
    found = anatomy([layer(0), layer(1, 6, 1024, query_heads=[0, 1, 2, 6, 7, 8])], rows=[scores], selected=(1, 1))
    table = charts_anatomy.map_table(found)
    heads = table[(table["layer"] == 1) & (table["part"] == "heads")]
    assert list(heads["share"]) == [1, 1, 1, 0, 0, 0, 1, 1, 1]
    assert heads["says"].iloc[4] == "layer 1, head 4 of KV group 1: removed, importance 0.1 (the group's)"
    figure = charts_anatomy.espalier_map(found)
    (gone,) = bars(figure, "cut", "x")
    assert list(gone.base) == [pytest.approx(9 - 1 - head + 0.35 + 0.06) for head in (3, 4, 5)]
    assert gone.marker.color == "rgba(0,0,0,0)"
    (channels,) = bars(figure, "cut", "x2")
    assert (list(channels.base), list(channels.x)) == ([pytest.approx(1024)], [pytest.approx(512)])
    (kept,) = bars(figure, "kept", "x")
    assert set(kept.marker.opacity) == {0.3, 1.0}
    assert [opacity for opacity, y in zip(kept.marker.opacity, kept.y, strict=True) if y == 0] == [0.3] * 9


def test_layers_that_are_gone_are_stubs_and_a_narrower_stream_a_narrower_trunk() -> None:
    figure = charts_anatomy.espalier_map(
        anatomy([layer(0), layer(1, 0, 0)], kind="depth", pruned={"hidden_before": 576, "hidden_after": 432})
    )
    assert [list(trace.y) for trace in figure.data if trace.name == "removed"] == [[1], [1]]
    widths = [shape.x1 - shape.x0 for shape in figure.layout.shapes]
    assert widths[0] / widths[1] == pytest.approx(0.75)
    assert "removed: 1." in figure.layout.meta["alt"]


def test_masks_are_drawn_matrix_by_matrix_with_their_densities() -> None:
    densities = {"q": 0.5, "k": 1.0, "v": 1.0, "o": 1.0, "gate": 0.25, "up": 1.0, "down": 1.0}
    found = anatomy([layer(0, densities=densities)], matrices=list(densities), architecture=smollm2(), kind="mask")
    table = charts_anatomy.map_table(found).set_index("part")
    assert table.loc["gate", "share"] == 0.25
    assert table.loc["q", "says"] == "layer 0, q: 50.00 % zeros of 576 × 576 weights"
    figure = charts_anatomy.espalier_map(found)
    (gone,) = bars(figure, "cut", "x2")
    assert list(gone.x) == [pytest.approx(0.92 * 0.75)]


def test_names_of_people_are_shown_as_text() -> None:
    rows = [("<img src=x>", "taylor", {"layers": [{"layer": 0, "error": 0.1, "stderr": None, "removed": False}]})]
    figure = charts_inside.by_layer(charts_inside.layer_table(rows, "error"), "error")
    assert figure.data[0].name == "&lt;img src=x&gt;"


def test_parts_add_up_to_the_whole_model_before_and_after() -> None:
    architecture = smollm2()
    rows = [layer(i, 6, 1024) for i in range(30)]
    pruned = {"bytes_before": 2 * architecture.params, "params_before": architecture.params}
    found = anatomy(rows, architecture=architecture, pruned=pruned)
    table = charts_anatomy.parts_table(found)
    after = found.after()
    assert after is not None
    assert table["dense"].sum() == architecture.params
    assert table["pruned"].sum() == after.params
    assert table["dense_bytes"].sum() == 2 * architecture.params
    mlp = table.set_index("part").loc["MLP"]
    assert (mlp["dense"], mlp["pruned"]) == (30 * 3 * 576 * 1536, 30 * 3 * 576 * 1024)
    figure = charts_anatomy.parts_bars(table)
    assert [sum(x or 0 for x in trace.x) for trace in figure.data] == [after.params, architecture.params - after.params]


def test_zeros_of_a_mask_keep_their_bytes() -> None:
    densities = dict.fromkeys(("q", "k", "v", "o", "gate", "up", "down"), 0.5)
    rows = [layer(i, densities=densities) for i in range(30)]
    found = anatomy(rows, architecture=smollm2(), matrices=list(densities), kind="mask")
    table = charts_anatomy.parts_table(found).set_index("part")
    assert table.loc["MLP", "nonzero"] == table.loc["MLP", "dense"] / 2
    assert table.loc["MLP", "pruned_bytes"] == table.loc["MLP", "dense_bytes"]
    assert "the file stays" in charts_anatomy.parts_words(charts_anatomy.parts_table(found), masks=True)


def row(values: list[float], kept: list[bool], **more: Any) -> dict[str, Any]:
    stays = [value for value, k in zip(values, kept, strict=True) if k]
    gone = [value for value, k in zip(values, kept, strict=True) if not k]
    found = {"kind": "scores", "layer": 2, "name": "mlp", "unit": "MLP channel", "what": "importance"}
    found |= {"values": values, "kept": kept, "members": None, "scale": "linear"}
    return {**found, "least_kept": min(stays, default=None), "most_removed": max(gone, default=None), **more}


def test_the_histogram_of_importances_counts_every_unit_on_its_side_of_the_cut() -> None:
    values = np.random.default_rng(0).lognormal(size=400).tolist()
    line = sorted(values)[100]
    found = row(values, [value > line for value in values])
    figure = charts_importance.importance(found)
    counts = {trace.name: sum(y or 0 for y in trace.y) for trace in figure.data}
    assert counts == {"stays": 299, "removed": 101}
    low, high = charts_importance.cut_line(found) or (0, 0)
    assert low == high
    assert sorted(values)[100] < low < sorted(values)[101]
    assert figure.layout.shapes[0].x0 == pytest.approx(np.log10(low))


def test_few_units_are_bars_of_their_own_and_layers_keep_their_numbers() -> None:
    found = row([3.1, 3.4, 3.2], [True, True, False], members=[4, 5, 6], unit="decoder layer", name="layers", layer=-1)
    figure = charts_importance.importance({**found, "what": "loss without it"})
    stays, gone = figure.data
    assert (list(stays.x), list(gone.x), list(gone.y)) == ([4, 5], [6], [3.2])
    assert "later rounds are not" in charts_importance.words({**found, "what": "loss without it"})


def test_rows_with_lines_of_their_own_have_a_band() -> None:
    weights = {"kind": "weights", "layer": 0, "name": "q", "unit": "weight", "what": "importance", "scale": "log10"}
    weights |= {"values": [-2.0, -1.0, 0.0, 1.0], "stayed": [0, 3, 5], "removed": [4, 3, 0], "rows": 3, "columns": 5}
    weights |= {"least_kept": -1.2, "most_removed": -0.4}
    assert charts_importance.cut_line(weights) == (-1.2, -0.4)
    figure = charts_importance.importance(weights)
    assert (figure.layout.shapes[0].x0, figure.layout.shapes[0].x1) == (-1.2, -0.4)
    table = charts_importance.importance_table(weights)
    assert list(table["from"]) == pytest.approx([0.01, 0.1, 1.0])
    assert charts_importance.words(weights).startswith("7 of 15 weights set to zero")


def test_nothing_removed_has_no_cut_line() -> None:
    found = row([1.0, 2.0], [True, True])
    assert charts_importance.cut_line(found) is None
    assert not charts_importance.importance(found).layout.shapes


def test_a_region_is_shown_at_its_own_rows_and_columns() -> None:
    whole = Image(np.ones((2, 2)), Region(0, 576, 0, 192), (576, 192), exact=True)
    region = charts_inside.zoomed(whole, 4, 1.0, 0.5)
    assert region == Region(432, 576, 72, 120)
    image = Image(np.array([[1.0, 0.5], [0.0, 1.0]]), region, (576, 192), exact=True)
    figure = charts_inside.density(image, "layer 0, q")
    assert list(figure.data[0].y) == [468.0, 540.0]
    assert charts_inside.density_table(image).iloc[2].tolist() == [504, 72, 0.0]
    assert "37.5 % zeros" in figure.layout.meta["alt"]


SCAN = {
    "dense": {"perplexity": 18.0, "windows": 8},
    "protocol": {"corpus": "passages", "window": 512},
    "layers": [
        {"layer": i, "part": "layer", "perplexity": 18 * 2.718**cost, "stderr": 0.2, "cost": cost, "cost_stderr": 0.01,
         "removed": 1000}
        for i, cost in enumerate([2.0, 0.1, 0.1, 0.5, 0.1, 0.11, 0.1, 0.9])
    ],
}  # fmt: skip


def test_the_proposed_range_is_the_longest_without_a_dear_layer() -> None:
    assert charts_scan.proposed(charts_scan.scan_table(SCAN)) == (4, 6)
    assert charts_scan.proposed(charts_scan.scan_table({})) is None
    two = {"layers": [{"layer": 3, "part": "layer", "cost": 0.2}, {"layer": 4, "part": "layer", "cost": "x"}]}
    assert charts_scan.proposed(charts_scan.scan_table(two)) == (3, 3)


def test_the_scan_is_drawn_with_the_dense_level_and_the_chosen_range() -> None:
    figure = charts_scan.scan_curve(SCAN, "taylor", (4, 6))
    assert list(figure.data[0].x) == list(range(8))
    assert [(shape.type, shape.x0, shape.x1) for shape in figure.layout.shapes if shape.type == "rect"] == [
        ("rect", 3.5, 6.5)
    ]
    assert [shape.y0 for shape in figure.layout.shapes if shape.type == "line"] == [18.0]
    assert figure.data[0].error_y.array[1] == pytest.approx(1.96 * 0.01 * 18 * 2.718**0.1, rel=1e-3)  # paired
    assert "Dearest: layer 0" in figure.layout.meta["alt"]
    assert "cost 0.31 nats a token one by one" in charts_scan.together(SCAN, (4, 6))
    assert charts_scan.together({}, (0, 1)) == ""


def test_broken_rows_by_layer_are_left_out() -> None:
    found = {"layers": [{"layer": 0, "kl": 0.2}, {"layer": 1, "kl": None}, {"layer": "x", "kl": 1}, 5, {"layer": 2}]}
    table = charts_inside.layer_table([("a", "taylor", found), ("b", "l1", {"layers": "x"})], "kl")
    assert table[["layer", "value"]].to_numpy().tolist() == [[0, 0.2]]
    assert table["stderr"].isna().all()
