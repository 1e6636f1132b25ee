"""The one door for pages: previews, the queue, live runs, comparisons, all without torch."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from core.chat.client import ChatClient
from core.chat.protocol import Piece, Sampling
from core.errors import ExperimentError, InputError, ModelError, QueueError
from core.experiment import Experiment
from core.jobs import pipeline
from core.jobs.rundir import RunDirectory
from core.presets import dense_like
from core.preview import file_name, settle
from core.service import Service, close_service, get_service
from tests.chat.conftest import write_model

FINISHED = {"COMPLETE", "FAILED", "CANCELLED"}
QUICK = {"perplexity": [], "tasks": [], "speed": False, "fidelity": False}


def experiment(**data):
    return Experiment.parse({"evaluation": QUICK, **data})


def pruned(ratio=0.5, method="l1", **data):
    return experiment(pruning={"method": method, "ratio": ratio}, **data)


def finished_run(service, chosen, *, metrics=(), state="COMPLETE", stages=None, number=0):
    """A run directory as a worker leaves it, without the work."""
    setting = settle(chosen)
    directory = RunDirectory.of(service.home / "runs", f"20261123-2018{number:02d}-{setting.hash[:8]}-x7y9")
    directory.write_experiment(chosen)
    times = ("2026-11-23T20:19:00.000Z", f"2026-11-23T20:20:{number:02d}.000Z")
    events = [
        {"v": 1, "seq": i, "attempt": 1, "kind": "state", "state": each, "time": time_, "hash": setting.hash}
        for i, (each, time_) in enumerate(zip(("RUNNING", state), times, strict=True), 1)
    ]
    directory.events_file.write_text("".join(json.dumps(event) + "\n" for event in events))
    if state == "COMPLETE":
        device = service.status_line().device
        environment = {"device": "cpu", "device_name": device, "dtype": "float32", "hash": setting.hash}
        measured = [
            {"stage": "pruned", "task": task, "metric": metric, "value": 1.0, "protocol": protocol}
            for task, metric, protocol in metrics
        ]
        for name, seconds in (stages or {}).items():
            directory.write_stage(name, {"seconds": seconds})
        directory.write_results({"schema": 1, "environment": environment, "pruning": {}, "metrics": measured})
    service._store.sync(service.home)
    return directory.id


@pytest.fixture
def shown(home):
    """A service that runs no queue."""
    service = Service(supervisor=False)
    yield service
    service.close()


@pytest.fixture
def paused(home):
    """A service that owns the queue, and starts nothing."""
    service = Service()
    service.pause()
    yield service
    service.close()


# --- preview


def test_a_preview_says_what_is_cut_and_where_the_model_will_load(shown):
    preview = shown.preview(experiment(pruning={"method": "taylor", "ratio": 0.34, "layers": [4, 25]}))
    assert preview.problems == []
    assert {(cut.after.kv_heads, cut.after.mlp) for cut in preview.plan.cuts if cut.selected} == {(2, 1024)}
    assert preview.plan.params_after < preview.plan.params_before
    assert preview.smaller.startswith("yes")
    assert preview.faster.startswith("yes")
    assert preview.loads_in
    assert preview.seconds > 0
    assert preview.memory_bytes > 4 * preview.plan.params_after
    assert Experiment.from_yaml(preview.yaml).pruning.ratio == 0.34


def test_masks_are_never_sold_as_size_or_speed(shown):
    for pattern in ("unstructured", "2:4"):
        preview = shown.preview(experiment(pruning={"method": "wanda", "ratio": 0.5, "pattern": pattern}))
        assert preview.smaller.startswith("no")
        assert not preview.faster.startswith("yes")


def test_what_cannot_work_is_said_by_field_and_not_raised(shown):
    beyond = shown.preview(experiment(pruning={"method": "l1", "layers": [4, 30]}))
    assert [(problem.field, "0–29" in problem.message) for problem in beyond.problems] == [("pruning.layers", True)]
    assert beyond.plan is None
    unknown = shown.preview(experiment(model={"name": "no such model"}))
    assert [problem.field for problem in unknown.problems] == ["model.name"]
    task = shown.preview(experiment(evaluation={"tasks": ["piqua"]}))
    assert [problem.field for problem in task.problems] == ["evaluation.tasks"]


def test_what_should_be_known_is_a_warning(shown):
    few = shown.preview(experiment(evaluation={**QUICK, "tasks": ["piqa"], "limit": 100}))
    assert any("±10 points" in sentence for sentence in few.warnings)
    no_head = shown.preview(pruned(ratio=0.3))
    assert any("no head" in sentence for sentence in no_head.warnings)
    assert [problem.field for problem in no_head.cautions] == ["pruning.ratio"]


def test_leakage_is_said_once(shown):
    text = {"corpus": "passages", "split": "train"}
    chosen = {"pruning": {"method": "taylor", "ratio": 0.5, "calibration": text}, "evaluation": {"perplexity": [text]}}
    assert sum("calibration" in sentence.lower() for sentence in shown.preview(experiment(**chosen)).warnings) == 1
    shared = {**chosen, "evaluation": {"perplexity": [{"path": __file__}]}}
    assert not any("calibration" in sentence.lower() for sentence in shown.preview(experiment(**shared)).warnings)


def test_the_hash_of_a_preview_is_the_hash_of_the_run(shown):
    for chosen in (experiment(), pruned(), pruned(method="taylor"), pruned(seed=3, device="cpu")):
        assert settle(chosen).hash == pipeline.settle(chosen).hash
        known = settle(chosen).resolved()
        assert set(known.pop("needs")) == {"device", "disk", "host"}  # what the queue waits for room for
        assert known == pipeline.settle(chosen).resolved


def test_an_identical_complete_run_is_pointed_out_whatever_it_is_called(shown):
    assert shown.preview(pruned()).identical is None
    run_id = finished_run(shown, pruned(name="the first"))
    assert shown.preview(pruned(name="another name", save_model=False)).identical == run_id
    assert shown.preview(pruned(ratio=0.6)).identical is None


def test_a_failed_run_is_no_identical_one(shown):
    finished_run(shown, pruned(), state="FAILED")
    assert shown.preview(pruned()).identical is None


def test_earlier_runs_on_this_device_correct_the_estimate_and_are_named(shown):
    chosen = experiment(device="cpu")
    before = shown.preview(chosen)
    assert "No run has finished" in before.seconds_basis
    finished_run(shown, chosen, stages={"load": 2 * before.stage_seconds["load"]})
    after = shown.preview(chosen)
    assert "one earlier run" in after.seconds_basis
    assert after.stage_seconds["load"] == pytest.approx(2 * before.stage_seconds["load"])


def test_a_preview_of_a_warm_service_takes_no_time(shown):
    chosen = experiment(pruning={"method": "taylor"}, evaluation={})
    shown.preview(chosen)
    start = time.perf_counter()
    for _ in range(5):
        shown.preview(chosen)
    assert (time.perf_counter() - start) / 5 < 0.5


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "--help", "a; rm -rf /", "", "\u202e…", "x" * 5000, "30 % Taylor"]
)
def test_no_name_becomes_a_path_or_an_option(name):
    made = file_name(name)
    assert 0 < len(made) <= 60
    assert set(made) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert not made.startswith("-")


def test_the_quick_look_is_ready_to_queue(shown):
    runs = shown.quick_look()
    assert [run.pruning is None for run in runs].count(True) == 1
    assert all(shown.preview(run).problems == [] for run in runs)


# --- the queue


def test_submitted_runs_wait_in_order_with_their_experiment_hash_and_settings(paused):
    ids = paused.submit([pruned(0.4), pruned(0.5)])
    table = paused.run_list()
    assert table.id.tolist() == ids
    assert table.state.tolist() == ["WAITING", "WAITING"]
    assert table.position.tolist() == [1, 2]
    state = RunDirectory.of(paused.home / "runs", ids[0]).read_state()
    assert state["hash"] == settle(pruned(0.4)).hash
    assert state["resolved"]["dtype"] in {"float32", "bfloat16", "float16"}
    assert paused.status_line().queue_length == 2
    assert paused.status_line().paused


def test_nothing_is_queued_if_one_run_cannot_work(paused):
    with pytest.raises(ExperimentError, match="0–29"):
        paused.submit([pruned(), experiment(pruning={"method": "l1", "layers": [0, 99]})])
    assert paused.run_list().empty
    assert not list(paused.home.glob("runs/2*"))


def test_a_baseline_goes_first_and_only_once(paused):
    ids = paused.submit([pruned(0.4), pruned(0.5)], with_baseline=True)
    assert [paused.run_detail(run_id).experiment.pruning is None for run_id in ids] == [True, False, False]
    assert len(paused.submit([pruned(0.6)], with_baseline=True)) == 1


def test_a_baseline_that_is_complete_is_not_made_again(paused):
    finished_run(paused, dense_like(pruned()))
    assert len(paused.submit([pruned()], with_baseline=True)) == 1


def test_runs_without_a_baseline_get_one_between_them(paused):
    ids = paused.submit([pruned(0.4), pruned(0.6)])
    (baseline,) = paused.submit_baselines(ids)
    assert paused.run_detail(baseline).experiment.pruning is None
    assert paused.submit_baselines(ids) == []


def test_waiting_runs_move_and_leave(paused):
    first, second = paused.submit([pruned(0.4), pruned(0.5)])
    paused.move(second, -1)
    assert paused.run_list().id.tolist() == [second, first]
    paused.cancel(second)
    table = paused.run_list().set_index("id")
    assert table.state.to_dict() == {first: "WAITING", second: "CANCELLED"}
    paused.delete(second)
    assert paused.run_list().id.tolist() == [first]
    assert not (paused.home / "runs" / second).exists()


def test_a_retried_run_is_a_new_one_with_the_same_experiment(paused):
    (run_id,) = paused.submit([pruned(name="once more")])
    with pytest.raises(QueueError, match="WAITING"):
        paused.retry(run_id)
    paused.cancel(run_id)
    again = paused.retry(run_id)
    assert again != run_id
    assert paused.run_detail(again).experiment == paused.run_detail(run_id).experiment


@pytest.mark.parametrize("run_id", ["../../etc", "", "20261123-201854-1a2b3c4d-x7y9", "/etc/passwd", "x\x00y"])
def test_ids_that_are_no_run_are_refused_everywhere(paused, run_id):
    for ask in (paused.run_detail, paused.log_tail, paused.cancel, paused.delete, paused.retry):
        with pytest.raises(InputError):
            ask(run_id)


def test_a_link_in_the_runs_folder_is_no_run(paused, tmp_path):
    (run_id,) = paused.submit([pruned()])
    paused.cancel(run_id)
    outside = tmp_path / "elsewhere"
    (paused.home / "runs" / run_id).rename(outside)
    (paused.home / "runs" / run_id).symlink_to(outside)
    with pytest.raises(InputError):
        paused.delete(run_id)
    assert outside.exists()


def test_a_second_service_on_the_same_home_shows_all_and_changes_nothing(paused):
    (run_id,) = paused.submit([pruned()])
    second = Service()
    try:
        assert second.read_only
        assert second.status_line().read_only
        assert second.status_line().queue_length == 1
        assert second.status_line().paused
        assert second.run_list().position.tolist() == [1]
        for change in (lambda: second.submit([pruned()]), lambda: second.cancel(run_id), second.pause):
            with pytest.raises(QueueError):
                change()
    finally:
        second.close()
    assert not paused.read_only


# --- runs and comparisons


def test_a_damaged_experiment_still_opens_with_its_text(shown):
    run_id = finished_run(shown, pruned())
    (shown.home / "runs" / run_id / "experiment.yaml").write_text("pruning: [", encoding="utf-8")
    detail = shown.run_detail(run_id)
    assert detail.experiment is None
    assert detail.yaml == "pruning: ["
    assert detail.plan is None


def test_the_baseline_is_the_dense_run_with_the_same_protocol(shown):
    acc, other = ("piqa", "acc", {"shots": 0}), ("piqa", "acc", {"shots": 5})
    dense = dense_like(pruned())
    finished_run(shown, dense_like(pruned(seed=1)), metrics=[other], number=1)
    wanted = finished_run(shown, dense, metrics=[acc, ("boolq", "acc", {})], number=2)
    mine = finished_run(shown, pruned(), metrics=[acc, ("boolq", "acc", {})], number=3)
    alone = finished_run(shown, pruned(0.6), metrics=[("piqa", "acc", {"shots": 25})], number=4)
    assert shown.baseline_for(mine) == wanted
    assert shown.baseline_for(alone) is None
    assert shown.baseline_for(wanted) is None
    assert shown.run_detail(mine).baseline == wanted


def test_a_baseline_is_the_same_model_by_content_whatever_it_is_called(shown):
    acc = ("piqa", "acc", {"shots": 0})

    def with_fingerprint(run_id, fingerprint):
        path = shown.home / "runs" / run_id / "results.json"
        results = json.loads(path.read_text())
        results["environment"]["model"] = {"fingerprint": fingerprint}
        path.write_text(json.dumps(results))
        shown._store.ingest(path.parent)
        return run_id

    changed = with_fingerprint(finished_run(shown, dense_like(pruned()), metrics=[acc], number=1), "older weights")
    mine = with_fingerprint(finished_run(shown, pruned(), metrics=[acc], number=2), "these weights")
    assert shown.baseline_for(mine) is None
    with_fingerprint(changed, "these weights")
    assert shown.baseline_for(mine) == changed


def test_ids_that_are_no_runs_are_refused_wherever_pairs_are_asked_for(shown):
    mine = finished_run(shown, pruned(), number=1)
    assert shown.pair(mine, mine).problem
    for other in ("../../etc", "20261123-201800-00000000-gone"):
        with pytest.raises(InputError):
            shown.pair(mine, other)
        with pytest.raises(InputError):
            shown.flips(other, mine, "piqa", "acc", True)
    assert shown.differences({mine: None, "nobody": "knows"}).empty


def test_finished_runs_come_newest_first_after_the_queue(paused):
    old, new = finished_run(paused, pruned(0.4), number=1), finished_run(paused, pruned(0.5), number=2)
    (waiting,) = paused.submit([pruned(0.6)])
    assert paused.run_list().id.tolist() == [waiting, new, old]


def test_models_to_talk_to_are_the_dense_one_and_saved_runs_that_are_there(shown):
    run_id = finished_run(shown, pruned(name="<b>small</b>"))
    assert [model.key for model in shown.chat_models()] == ["dense:builtin:smollm2-135m-instruct"]
    folder = shown.home / "runs" / run_id / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    dense, saved = shown.chat_models()
    assert dense.params == 134_515_008
    assert (saved.key, saved.path, saved.title) == (run_id, folder, "<b>small</b>")


def test_a_recovered_run_can_be_talked_to_before_and_after_and_a_failed_recovery_leaves_what_was_before(shown):
    tuned = pruned(name="tuned").with_changes({"recovery": {"kind": "lora"}})
    after, failed = finished_run(shown, tuned, number=1), finished_run(shown, tuned, number=2, state="FAILED")
    for run_id in (after, failed):
        for name in ("model", "recovered"):
            folder = shown.home / "runs" / run_id / name
            folder.mkdir()
            (folder / "config.json").write_text("{}")
    judged = RunDirectory.of(shown.home / "runs", failed)
    assert [model.run_id for model in shown.chat_models()[1:]] == [after, after]  # nothing was judged yet
    judged.write_results({"schema": 1, "environment": {}, "pruning": {"params_after": 10}, "metrics": []})
    shown._store.ingest(judged.path)
    found = {model.key: (model.title, model.path.name, model.run_id) for model in shown.chat_models()[1:]}
    assert found == {
        after: ("tuned, recovered", "recovered", after),
        f"{after}:pruned": ("tuned, before recovery", "model", after),
        f"{failed}:pruned": ("tuned, before recovery", "model", failed),
    }
    client = shown.chat_client()
    folder = shown.home / "runs" / after
    sources = [client.source(key).directory for key in (after, f"{after}:pruned")]
    assert sources == [str(folder / "recovered"), str(folder / "model")]
    assert client.source("../runs:pruned").directory is None  # no id, so no folder of a run
    with pytest.raises(ModelError, match="no saved model"):
        client.source(f"{finished_run(shown, tuned, number=3)}:pruned")


def test_a_run_that_waits_for_memory_gets_that_of_models_nobody_talks_to(paused, tmp_path):
    assert not paused._make_room(frozenset({"cpu", "cuda"}))  # nobody chats, and no worker is started for it
    chat = ChatClient(paused.home, device="cpu")
    paused._chat = chat  # the service closes it
    one, two = (str(write_model(tmp_path / name, 0)) for name in ("one", "two"))
    assert not paused._make_room(frozenset({"cpu"}))
    assert not chat.status().running
    for key in (one, two):
        chat.load(key)

    def held():
        return [model.key for model in chat.status(30).report.models]

    assert not paused._make_room(frozenset({"cuda"}))  # room on a CPU is none on a GPU
    with chat.generate(one, [("user", "go on")], Sampling(max_tokens=8000)) as answer:
        assert any(isinstance(event, Piece) for event in answer)
        assert not paused._make_room(frozenset({"cpu"}))
        assert held() == [two, one]
    until = time.monotonic() + 60
    while not paused._make_room(frozenset({"cpu"})):  # the answer was stopped: its last token is being made
        assert time.monotonic() < until
    assert held() == []
    assert not paused._make_room(frozenset({"cpu"}))
    assert chat.load(one).key == one  # the worker stays, and loads it again


def test_many_threads_may_ask_at_once(paused):
    paused.submit([pruned(0.4), pruned(0.5)])

    def ask(_):
        return len(paused.run_list()), paused.status_line().queue_length, len(paused.runs())

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(40))) == {(2, 2, 2)}


def test_there_is_one_service_a_process(home):
    try:
        with ThreadPoolExecutor(4) as pool:
            services = set(pool.map(lambda _: get_service(), range(8)))
        assert len(services) == 1
    finally:
        close_service()
    close_service()


# --- the real thing


def test_a_real_run_and_its_baseline_go_through_the_queue_to_comparable_numbers(home, tiny_folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 40, encoding="utf-8")
    chosen = Experiment.parse(
        {
            "name": "tiny",
            "model": {"name": str(tiny_folder())},
            "pruning": {"method": "l1", "ratio": 0.5, "round_to": 8},
            "evaluation": {**QUICK, "perplexity": [{"path": str(text), "window": 16, "max_tokens": 256}]},
            "device": "cpu",
        }
    )
    service = Service()
    try:
        dense, run_id = service.submit([chosen], with_baseline=True)
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and not set(service.run_list().state) <= FINISHED:
            time.sleep(0.5)
        table = service.run_list().set_index("id")
        assert table.state.to_dict() == {dense: "COMPLETE", run_id: "COMPLETE"}, service.log_tail(run_id)
        assert service.baseline_for(run_id) == dense
        numbers = service.metrics([dense, run_id]).set_index("run_id")
        assert (numbers.value > 0).all()
        planned = service.preview(chosen)
        assert planned.identical == run_id
        assert table.params_after[run_id] == planned.plan.params_after
        cut = service.layers([run_id])
        assert cut.heads_after.tolist() == [layer.after.heads for layer in planned.plan.cuts]
        assert cut.mlp_after.tolist() == [layer.after.mlp for layer in planned.plan.cuts]
        assert run_id in [model.key for model in service.chat_models()]
        content = service._store.dump()
        service._store.reindex(service.home)
        assert service._store.dump() == content
    finally:
        service.close()


def test_who_answers_for_a_run(shown):
    dense, cut = finished_run(shown, experiment()), finished_run(shown, pruned(), number=1)
    going = finished_run(shown, experiment(seed=1), state="RUNNING", number=2)
    assert shown.talker(dense) in {model.key for model in shown.chat_models() if model.run_id is None}
    assert shown.talker(cut) is None  # it kept no weights
    assert shown.talker(going) is None
    assert shown.talker("20261123-201899-0123abcd-x7y9") is None
    write_model(shown.home / "runs" / cut / "model", seed=0)
    assert shown.talker(cut) == cut
