"""The signature figure: what it draws follows from the layers, and from nothing else."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from core.espalier import Branch, branches_of_plan, branches_of_rows, dense_branches, espalier_svg, summary
from core.experiment import Pruning
from core.models.plans import plan
from core.models.sizes import Architecture, LayerSizes

ROOT = Path(__file__).resolve().parent.parent
SMOL = Architecture("llama", 576, 64, 49152, True, (LayerSizes(9, 3, 1536),) * 30)
SVG = "{http://www.w3.org/2000/svg}"


def branch(layer: int = 0, **changes: object) -> Branch:
    values: dict[str, object] = {"selected": True, "heads": (4, 2), "kv_heads": (2, 1), "mlp": (100, 60), **changes}
    return Branch(layer, **values)  # type: ignore[arg-type]


def boxes(svg: str, side: int, colour: str) -> list[tuple[float, float, float, float]]:
    """(x, y, width, height) of the shapes of one colour, heads (0) or channels (1)."""
    inner = ET.fromstring(svg).findall(f"{SVG}svg")[side]
    paths = [p.get("d", "") for p in inner if colour in (p.get("fill"), p.get("stroke"))]
    found = re.findall(r"M([\d.e-]+) ([\d.e-]+)h([\d.e-]+)v([\d.e-]+)h-[\d.e-]+z", "".join(paths))
    return [(float(x), float(y), float(w), float(h)) for x, y, w, h in found]


LEAF, CUT = "#2F6B57", "#C8553D"


def test_as_many_cells_are_filled_as_heads_stay_and_the_others_are_outlines() -> None:
    svg = espalier_svg([branch(0), branch(1, heads=(4, 4), kv_heads=(2, 2))], dark=False)
    assert len(boxes(svg, 0, LEAF)) == 2 + 4
    assert len(boxes(svg, 0, CUT)) == 2


def test_bars_are_as_long_as_their_channels_and_outlines_take_up_the_rest() -> None:
    svg = espalier_svg([branch(0, mlp=(100, 60)), branch(1, mlp=(200, 200))], dark=False)
    assert sorted((x, w) for x, _, w, _ in boxes(svg, 1, LEAF)) == [(0, 60), (0, 200)]
    assert [(x, w) for x, _, w, _ in boxes(svg, 1, CUT)] == [(60, 40)]
    assert ET.fromstring(svg).findall(f"{SVG}svg")[1].get("viewBox", "").split()[2] == "200"


def test_cut_kv_groups_stand_together_at_the_tip_and_cut_query_heads_in_every_group() -> None:
    groups = espalier_svg([branch(heads=(6, 3), kv_heads=(2, 1))], dark=False)
    assert max(x for x, *_ in boxes(groups, 0, CUT)) < min(x for x, *_ in boxes(groups, 0, LEAF))
    within = espalier_svg([branch(heads=(6, 4), kv_heads=(2, 2))], dark=False)
    cells = sorted([(x, "cut") for x, *_ in boxes(within, 0, CUT)] + [(x, "leaf") for x, *_ in boxes(within, 0, LEAF)])
    assert [what for _, what in cells] == ["cut", "leaf", "leaf"] * 2


def test_known_heads_are_drawn_at_their_own_place_left_to_right() -> None:
    svg = espalier_svg([branch(heads=(4, 2), kv_heads=(2, 1), kept_heads=(0, 1))], dark=False)
    assert max(x for x, *_ in boxes(svg, 0, LEAF)) < min(x for x, *_ in boxes(svg, 0, CUT))


def test_a_mask_thins_the_filling_to_its_density_and_keeps_the_outline() -> None:
    thin = branch(heads=(4, 4), kv_heads=(2, 2), mlp=(100, 100), attention_density=0.25, mlp_density=0.5)
    svg = espalier_svg([thin], dark=False)
    whole = espalier_svg([branch(heads=(4, 4), kv_heads=(2, 2), mlp=(100, 100))], dark=False)
    assert boxes(svg, 1, LEAF)[0][3] == pytest.approx(boxes(whole, 1, LEAF)[0][3] * 0.5)
    assert boxes(svg, 0, LEAF)[0][3] == pytest.approx(boxes(whole, 0, LEAF)[0][3] * 0.25)
    assert len(boxes(svg, 0, CUT)) == 4


def test_layers_outside_the_range_stay_pale() -> None:
    untouched = branch(heads=(4, 4), kv_heads=(2, 2), mlp=(100, 100), selected=False)
    root = ET.fromstring(espalier_svg([untouched], dark=False))
    fills = [p.get("opacity") for side in root.findall(f"{SVG}svg") for p in side]
    assert fills == ["0.3", "0.3"]


def stubs(svg: str) -> list[float]:
    """Tops of the hollow stubs of removed layers."""
    groups = [g for g in ET.fromstring(svg).findall(f"{SVG}g") if g.get("stroke") == CUT]
    return [float(r.get("y", "0")) for g in groups for r in g.findall(f"{SVG}rect")]


@pytest.mark.parametrize("scale", ["small", "medium", "large"])
def test_a_removed_layer_is_a_hollow_stub_on_each_side_in_its_own_row(scale: str) -> None:
    whole = branch(heads=(4, 4), kv_heads=(2, 2), mlp=(100, 100))
    gone = branch(1, heads=(4, 0), kv_heads=(2, 0), mlp=(100, 0))
    svg = espalier_svg([whole, gone], scale=scale, dark=False)  # type: ignore[arg-type]
    assert boxes(svg, 1, CUT) == []
    kept = [y for _, y, _, _ in boxes(svg, 1, LEAF)]
    assert len(kept) == 1
    assert len(stubs(svg)) == 2
    assert min(stubs(svg)) > kept[0]
    assert stubs(espalier_svg([whole], scale=scale, dark=False)) == []  # type: ignore[arg-type]


def test_stubs_of_rows_that_touch_share_an_outline() -> None:
    whole, gone = {}, {"heads": (4, 0), "kv_heads": (2, 0), "mlp": (100, 0)}
    deep = [branch(i, **(gone if i in (10, 11, 12, 20) else whole)) for i in range(30)]
    assert len(stubs(espalier_svg(deep, scale="small", dark=False))) == 2 * 2
    assert len(stubs(espalier_svg(deep, dark=False))) == 2 * 4


def test_removed_layers_are_said_in_words() -> None:
    gone = branch(3, heads=(4, 0), kv_heads=(2, 0), mlp=(100, 0))
    assert gone.sentence() == "Layer 3: removed"
    assert summary([branch(0), gone]) == "2 layers, 1 of them removed: 3."
    assert ">removed</text>" in espalier_svg([gone])


def test_layers_that_the_scores_will_choose_are_drawn_as_an_example() -> None:
    branches = branches_of_plan(plan(SMOL, Pruning(method="block_influence", ratio=0.2, layers=(4, 25))))
    assert [b.layer for b in branches if b.dropped] == [22, 23, 24, 25]
    assert summary(branches) == "30 layers, 4 of them removed: the scores decide which."
    assert ">e.g. removed</text>" in espalier_svg(branches)
    certain = branches_of_plan(plan(SMOL, Pruning(method="last", ratio=0.2)))
    assert ">removed</text>" in espalier_svg(certain)


def test_even_examples_of_a_global_ranking_are_marked_as_about() -> None:
    about = branches_of_plan(plan(SMOL, Pruning(method="l2", ratio=0.4, layers=(4, 25), allocation="global")))
    even = branches_of_plan(plan(SMOL, Pruning(method="l2", ratio=0.4, layers=(4, 25))))
    assert "≈ " in espalier_svg(about)
    assert "≈ " not in espalier_svg(even)
    assert about[4].sentence().startswith("Layer 4: about 9 → ")
    assert about[0].sentence() == even[0].sentence()


def test_a_narrower_stream_is_a_narrower_trunk_in_its_old_outline_and_thinner_branches() -> None:
    branches = branches_of_plan(plan(SMOL, Pruning(method="hidden", ratio=0.25)))
    assert all(b.changed and b.hidden == (576, 432) for b in branches)
    for scale in ("small", "medium"):
        svg = espalier_svg(branches, scale=scale, dark=False)  # type: ignore[arg-type]
        whole = espalier_svg(dense_branches([(9, 3, 1536)] * 30), scale=scale, dark=False)  # type: ignore[arg-type]
        outlines = [r for r in ET.fromstring(svg).findall(f"{SVG}rect") if r.get("stroke") == CUT]
        assert len(outlines) == 2
        assert boxes(svg, 1, CUT) == []
        thinner = 0.75 if scale == "medium" else 1  # in a small figure rows touch, and thin ones would be stripes
        assert boxes(svg, 1, LEAF)[0][3] == pytest.approx(thinner * boxes(whole, 1, LEAF)[0][3])
    assert "stream 576 → 432" in espalier_svg(branches)
    assert "576 → 432 channels of the stream" in branches[0].sentence()


def test_rows_of_runs_that_removed_layers_or_channels_give_the_same_figure_as_their_plans() -> None:
    for pruning in (Pruning(method="last", ratio=0.2), Pruning(method="hidden", ratio=0.25)):
        made = plan(SMOL, pruning)
        rows = [
            {
                "layer": c.layer, "heads_before": c.before.heads, "heads_after": c.after.heads,
                "kv_before": c.before.kv_heads, "kv_after": c.after.kv_heads,
                "mlp_before": c.before.mlp, "mlp_after": c.after.mlp, "density": None,
                "hidden_before": made.before.hidden_size, "hidden_after": made.after.hidden_size,
            }
            for c in made.cuts
        ]  # fmt: skip
        assert espalier_svg(branches_of_rows(rows)) == espalier_svg(branches_of_plan(made))


def test_a_plan_is_drawn_with_its_own_counts() -> None:
    made = plan(SMOL, Pruning(method="taylor", ratio=0.35, layers=(4, 25)))
    branches = branches_of_plan(made)
    assert [b.layer for b in branches if b.changed] == list(range(4, 26))
    assert (branches[4].heads, branches[4].kv_heads, branches[4].mlp) == ((9, 6), (3, 2), (1536, 1024))
    assert "Layer 4: 9 → 6 heads, 3 → 2 KV heads, 1,536 → 1,024 MLP channels" in espalier_svg(branches)


def test_a_mask_of_one_part_thins_that_part_alone() -> None:
    pruning = Pruning(method="magnitude", ratio=0.5, parts=("mlp",))
    branches = branches_of_plan(plan(SMOL, pruning), pruning.parts)
    assert {b.attention_density for b in branches} == {1.0}
    assert {b.mlp_density for b in branches} == {0.5}


def test_rows_of_the_store_give_the_same_figure_as_the_plan() -> None:
    made = plan(SMOL, Pruning(method="l1", ratio=0.35, layers=(0, 29)))
    rows = [
        {
            "layer": c.layer, "heads_before": c.before.heads, "heads_after": c.after.heads,
            "kv_before": c.before.kv_heads, "kv_after": c.after.kv_heads,
            "mlp_before": c.before.mlp, "mlp_after": c.after.mlp, "density": float("nan"),
        }
        for c in reversed(made.cuts)
    ]  # fmt: skip
    assert espalier_svg(branches_of_rows(rows)) == espalier_svg(branches_of_plan(made))


def test_every_text_is_escaped_and_the_figure_is_one_line_of_well_formed_xml() -> None:
    for scale in ("small", "medium", "large"):
        svg = espalier_svg(dense_branches([(4, 2, 100)]), scale=scale, label='<img src=x> "run"')  # type: ignore[arg-type]
        assert "\n" not in svg
        assert "<img" not in svg
        assert ET.fromstring(svg).get("aria-label") == '<img src=x> "run"'


def test_small_figures_carry_no_text_and_merge_outlines_of_layers_that_are_alike() -> None:
    branches = branches_of_plan(plan(SMOL, Pruning(method="taylor", ratio=0.35)))
    svg = espalier_svg(branches, scale="small", dark=False)
    assert "<text" not in svg
    assert len(boxes(svg, 1, CUT)) == 1
    assert len(boxes(svg, 0, CUT)) == 1


def test_colours_follow_the_page_unless_they_are_fixed() -> None:
    branches = dense_branches([(4, 2, 100)])
    assert "light-dark(#2F6B57,#7FB69A)" in espalier_svg(branches)
    assert "light-dark" not in espalier_svg(branches, dark=True)
    assert "#7FB69A" in espalier_svg(branches, dark=True)


def test_a_very_deep_model_stays_a_figure_of_a_page() -> None:
    deep = dense_branches([(64, 8, 28672)] * 126)
    assert float(ET.fromstring(espalier_svg(deep)).get("height", "0")) < 700
    assert len(espalier_svg(deep, scale="small")) < 60_000


def test_no_layers_and_nothing_removed_are_said_in_words() -> None:
    assert summary([]) == "No layers."
    assert summary(dense_branches([(4, 2, 100)] * 3)) == "3 layers, nothing removed."
    assert espalier_svg([]).startswith("<svg")


def test_drawing_needs_neither_torch_nor_anything_else_of_core() -> None:
    code = "import sys, core.espalier; print([m for m in sys.modules if m in ('torch', 'pydantic', 'core.models')])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
