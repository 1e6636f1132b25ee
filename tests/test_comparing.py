"""What Compare asks: baselines, points that are kept, configurations side by side."""

import pandas as pd

from core.comparing import Comparisons
from core.configurations import configurations, differences
from core.storage.finding import Wanted
from core.storage.store import Store
from tests.storage.test_finding import write

TAYLOR = {"method": "taylor", "ratio": 0.3, "layers": [4, 25]}


def rows(*experiments):
    return pd.DataFrame([{"id": f"r{i}", "experiment": text, "dtype": "float32"} for i, text in enumerate(experiments)])


def test_a_default_that_is_left_out_equals_the_one_that_is_written_down():
    table = configurations(rows("pruning: {method: l1, ratio: 0.3}", "pruning: {method: l1, ratio: 0.3}\nseed: 0"))
    assert table.loc["pruning.ratio"].tolist() == ["0.3", "0.3"]
    assert differences(table).empty


def test_only_settings_that_differ_are_left():
    table = configurations(
        rows("pruning: {method: l1, ratio: 0.3}", "pruning: {method: l1, ratio: 0.4, layers: [4, 25]}", "seed: 7")
    )
    found = differences(table)
    assert found.loc["pruning.ratio"].tolist() == ["0.3", "0.4", ""]
    assert found.loc["pruning.layers"].tolist() == ["none", "4, 25", ""]
    assert found.loc["seed"].tolist() == ["0", "0", "7"]
    assert "computed in" not in found.index
    assert "model.name" not in found.index


def test_an_experiment_that_cannot_be_read_says_so_or_shows_what_it_says():
    table = configurations(rows("seed: 3\nunknown: {key: 1}", "[", None))
    assert table.loc["unknown.key"].tolist() == ["1", "", ""]
    assert table.loc["experiment"].tolist() == ["", "cannot be read", ""]


def test_baselines_of_many_runs_are_found_at_once_and_a_pin_stands_for_all(home):
    dense = write(home, 1)
    cut, other = write(home, 2, TAYLOR), write(home, 3, TAYLOR, model={"name": "TinyLlama/TinyLlama-1.1B-Chat-v1.0"})
    store = Store.open(home)
    store.rows("UPDATE runs SET dtype = 'float32', device = 'cpu'")
    room = Comparisons(store, home, lambda: None, {})
    assert room.baselines([dense, cut, other]) == {dense: dense, cut: dense, other: None}
    assert room.baselines([dense, other], cut) == {dense: cut, other: cut}
    store.close()


def test_points_are_kept_until_the_store_changes(home):
    dense, cut = write(home, 1), write(home, 2, TAYLOR, value=40.0)
    store = Store.open(home)
    room = Comparisons(store, home, lambda: None, {})
    _, first = room.points([cut], {cut: dense})
    first["value"] = 0.0  # what was handed out is the caller's
    _, again = room.points([cut], {cut: dense})
    assert dict(zip(again["run_id"], again["value"], strict=True)) == {dense: 25.0, cut: 40.0}
    assert again.loc[again["run_id"] == cut, "delta"].tolist() == [15.0]
    third = write(home, 3, TAYLOR)
    store.sync(home)
    assert set(room.points([cut, third], {cut: dense, third: dense})[1]["run_id"]) == {dense, cut, third}
    assert room.offered().runs == 3
    store.close()


def test_only_runs_that_are_there_count(home):
    dense = write(home, 1)
    store = Store.open(home)
    room = Comparisons(store, home, lambda: None, {})
    assert room.known(["gone", dense, dense, "../../etc"]) == [dense]
    assert room.ending(dense[-13:]) == [dense]
    assert room.ending("x7y9") == []  # too short to name one run
    assert room.count(Wanted(states=("COMPLETE",))) == 1
    store.close()


def test_dense_runs_and_the_asked_for_can_be_pinned_and_a_failed_one_cannot(home):
    dense, newer = write(home, 1), write(home, 3)
    cut, failed = write(home, 2, TAYLOR), write(home, 4, TAYLOR, state="FAILED")
    store = Store.open(home)
    room = Comparisons(store, home, lambda: None, {})
    assert list(room.pinnable([cut, failed, dense, "no-such-run"])) == [newer, dense, cut]
    assert list(room.pinnable([cut], dense=1)) == [newer, cut]
    store.close()


def test_what_is_made_of_the_points_is_made_once_and_anew_when_store_or_question_change(home):
    dense, cut = write(home, 1), write(home, 2, TAYLOR)
    store = Store.open(home)
    room = Comparisons(store, home, lambda: None, {})
    made = []

    def make():
        made.append(len(made))
        return made[-1]

    def key(baseline):
        return room.points([cut], {cut: baseline})[0]

    assert [room.once(("chart", "dark", *key(dense)), make) for _ in range(3)] == [0, 0, 0]
    assert room.once(("chart", "light", *key(dense)), make) == 1
    assert room.once(("chart", "dark", *key(None)), make) == 2
    before = key(dense)
    write(home, 3)
    store.sync(home)
    assert room.once(("chart", "dark", *before), make) == 3  # of points that were read before: nobody else gets it
    assert room.once(("chart", "dark", *key(dense)), make) == 4
    store.close()
