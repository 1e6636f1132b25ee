"""The client and a real inference worker: events, fairness, stopping, memory, crashes, and the end of either side."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.chat.client import ChatClient
from core.chat.conversation import Answer
from core.chat.lens import measure, strength, within
from core.chat.protocol import (
    PAUSED,
    Event,
    Evicted,
    Failed,
    Finished,
    Load,
    Loaded,
    Loading,
    Piece,
    Sampling,
    Started,
    Waiting,
    conversation,
)
from core.device_use import Use
from core.errors import InputError, ModelError

ASK = [("user", "what grows on a wall?")]
LONG = Sampling(max_tokens=6000)
Folders = dict[str, str]


def ask(client: ChatClient, key: str, **sampling: Any) -> list[Event]:
    return list(client.generate(key, ASK, Sampling(**sampling)))


def text(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Piece))


def eventually(condition: Callable[[], bool], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_an_answer_comes_as_started_pieces_finished_and_counts_what_it_did(
    client: ChatClient, folders: Folders
) -> None:
    events = [event for event in ask(client, folders["one"], max_tokens=12) if not isinstance(event, Waiting | Loading)]
    assert isinstance(events[0], Started)
    assert all(isinstance(event, Piece) for event in events[1:-1])
    end = events[-1]
    assert isinstance(end, Finished)
    assert end.reason == "length"
    assert end.stats is not None
    assert end.stats.tokens == 12 == len(text(events))
    assert end.stats.prompt_tokens == len("user: what grows on a wall?. assistant: ") == events[0].prompt_tokens
    assert end.stats.seconds >= end.stats.own_seconds > 0


def test_the_same_prompt_gets_the_same_answer_and_another_model_another(client: ChatClient, folders: Folders) -> None:
    first, again = (text(ask(client, folders["one"], max_tokens=30)) for _ in range(2))
    assert first == again != text(ask(client, folders["two"], max_tokens=30))


def test_two_answers_run_at_once_and_get_equal_shares(client: ChatClient, folders: Folders) -> None:
    for name in ("one", "two"):
        client.load(folders[name])
    order: list[str] = []
    ends: dict[str, Event] = {}

    def listen(name: str) -> None:
        for event in client.generate(folders[name], ASK, Sampling(max_tokens=400)):
            if isinstance(event, Piece):
                order.append(name)
            ends[name] = event

    threads = [threading.Thread(target=listen, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    both = order[max(order.index("one"), order.index("two")) : 400]  # while neither can have finished
    assert len(both) > 100
    assert 0.3 < both.count("one") / len(both) < 0.7
    for end in ends.values():
        assert isinstance(end, Finished)
        assert end.stats is not None
        assert end.stats.own_seconds < 0.85 * end.stats.seconds  # the rest was the other's


def test_answers_made_together_are_those_made_in_turn(client: ChatClient, home: Path, folders: Folders) -> None:
    wanted = {name: text(ask(client, folders[name], max_tokens=150)) for name in ("one", "two")}
    both = ChatClient(home, device="cpu", decoding="together")
    try:
        for name in ("one", "two"):
            both.load(folders[name])
        streams = [both.generate(folders[name], ASK, Sampling(max_tokens=150)) for name in ("one", "two")]
        events = [list(stream) for stream in streams]
        assert [text(each) for each in events] == [wanted["one"], wanted["two"]]
        report = both.status().report
        assert report is not None
        assert report.together
    finally:
        both.close()


def test_what_a_model_said_is_scored_by_another_over_the_pipe(client: ChatClient, folders: Folders) -> None:
    end = ask(client, folders["one"], max_tokens=30)[-1]
    assert isinstance(end, Finished)
    assert len(end.ids) == 30
    assert end.stats is not None
    weights = client.load(folders["one"]).memory_bytes
    keys_and_values = 2 * 2 * 2 * 4 * 4  # two of each, layers, heads, width, bytes
    assert end.stats.memory_bytes == weights + keys_and_values * (end.stats.prompt_tokens + 29)
    said: list[str] = []
    client.unload(folders["two"])
    one, two = (client.source(folders[name]) for name in ("one", "two"))
    turns = conversation(ASK)
    tokens = measure(client, one, two, turns, end.ids, said=said.append)
    assert len(tokens) == 30
    assert said[0] == "loading two"
    assert any(abs(strength(token, "surprise")) > 0.1 for token in tokens)
    assert all(token.divergence > 0 for token in tokens)
    assert all(strength(token, "divergence") == 0 for token in measure(client, one, one, turns, end.ids))
    assert within(tokens, tokens[0].text + tokens[1].text) == list(tokens[:2])
    with pytest.raises(InputError, match="these models hold 40"):
        measure(client, one, client.source(folders["short"]), turns, end.ids)
    assert isinstance(ask(client, folders["short"], max_tokens=1)[-1], Failed)  # nothing is left in use
    client.unload(folders["short"])
    assert eventually(lambda: folders["short"] not in held(client))


def held(client: ChatClient) -> list[str]:
    report = client.status().report
    assert report is not None
    return [model.key for model in report.models]


def test_cancel_stops_within_a_token_and_says_how_far_it_came(client: ChatClient, folders: Folders) -> None:
    generation = client.generate(folders["one"], ASK, LONG)
    pieces = 0
    for event in generation:
        if isinstance(event, Piece):
            pieces += 1
            if pieces == 5:
                client.cancel(generation.id)
    assert isinstance(event, Finished)
    assert event.reason == "cancelled"
    assert event.stats is not None
    assert event.stats.tokens < 3000  # far from the 6,000 asked for; the pipe may hold some that were on their way


def test_closing_a_stream_stops_the_model(client: ChatClient, folders: Folders) -> None:
    generation = client.generate(folders["one"], ASK, LONG)
    with generation:
        for event in generation:
            if isinstance(event, Piece):
                break
    assert eventually(lambda: (report := client.status().report) is not None and report.active == ())


def test_a_side_that_fails_does_not_stop_the_other(client: ChatClient, folders: Folders) -> None:
    good = client.generate(folders["one"], ASK, Sampling(max_tokens=300))
    bad = list(client.generate(folders["short"], ASK, Sampling(max_tokens=5)))
    assert isinstance(bad[-1], Failed)
    assert "40 tokens long, but this model holds 40" in bad[-1].message
    assert not bad[-1].worker
    assert isinstance(list(good)[-1], Finished)


def test_output_that_is_not_finite_fails_that_answer_in_words(client: ChatClient, folders: Folders) -> None:
    end = ask(client, folders["nan"], max_tokens=5)[-1]
    assert isinstance(end, Failed)
    assert "not finite" in end.message


def test_a_folder_that_holds_no_model_fails_with_the_reason(client: ChatClient, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    end = ask(client, str(tmp_path / "nothing"), max_tokens=5)[-1]
    assert isinstance(end, Failed)
    assert "config.json" in end.message + end.advice
    with pytest.raises(InputError):
        client.load(str(tmp_path / "nothing"))


def test_a_run_without_a_saved_model_is_refused_by_name(client: ChatClient, shared_home: Path) -> None:
    (shared_home / "runs" / "20261123-000000-0a1b2c3d-0000").mkdir(parents=True)
    with pytest.raises(ModelError, match="20261123-000000-0a1b2c3d-0000 has no saved model"):
        client.source("20261123-000000-0a1b2c3d-0000")


def test_status_lists_what_is_loaded_and_unload_lets_it_go(client: ChatClient, folders: Folders) -> None:
    client.unload(folders["two"])
    info = client.load(folders["two"], "Model two")
    assert info.title == "Model two"
    assert info.dtype == "float32"
    assert 0 <= info.memory_bytes - 4 * info.params < 256  # the rotary embedding's frequencies
    report = client.status().report
    assert report is not None
    assert folders["two"] in [model.key for model in report.models]
    client.unload(folders["two"])
    report = client.status().report
    assert report is not None
    assert folders["two"] not in [model.key for model in report.models]


def test_the_least_recently_used_model_leaves_before_the_next_loads(
    client: ChatClient, home: Path, folders: Folders
) -> None:
    size = client.load(folders["one"]).memory_bytes
    tight = ChatClient(home, device="cpu", memory_limit=int(1.5 * size))
    try:
        tight.load(folders["one"])
        events = ask(tight, folders["two"], max_tokens=5)
        left = next(i for i, event in enumerate(events) if isinstance(event, Evicted))
        assert isinstance(events[left], Evicted)
        assert events[left].key == folders["one"]
        assert left < next(i for i, event in enumerate(events) if isinstance(event, Started))
        report = tight.status().report
        assert report is not None
        assert [model.key for model in report.models] == [folders["two"]]

        busy = tight.generate(folders["two"], ASK, Sampling(max_tokens=1500))
        waits = ask(tight, folders["one"], max_tokens=5)  # needs the room of a model that is answering
        assert any(isinstance(event, Waiting) and "still answering" in event.reason for event in waits)
        assert isinstance(waits[-1], Finished)
        assert isinstance(list(busy)[-1], Finished)

        with pytest.raises(InputError, match=r"needs .* GB, but .* GB are free"):
            tight.load(folders["large"])
    finally:
        tight.close()


def test_a_worker_that_is_killed_is_said_and_starts_again_by_itself(home: Path, folders: Folders) -> None:
    client = ChatClient(home, device="cpu")
    try:
        client.load(folders["one"])
        first = client.status().pid
        assert first is not None
        generation = client.generate(folders["one"], ASK, LONG)
        events: list[Event] = []
        for event in generation:
            events.append(event)
            if isinstance(event, Piece) and psutil.pid_exists(first):
                os.kill(first, signal.SIGKILL)
        end = events[-1]
        assert isinstance(end, Failed)
        assert end.worker
        assert "SIGKILL, most likely because memory ran out" in end.message
        assert eventually(lambda: client.status().pid not in (None, first))
        assert isinstance(ask(client, folders["one"], max_tokens=5)[-1], Finished)
        assert "SIGKILL" in client.status().last_crash
    finally:
        client.close()


def test_closing_the_client_ends_the_worker_and_what_it_was_doing(home: Path, folders: Folders) -> None:
    client = ChatClient(home, device="cpu")
    generation = client.generate(folders["one"], ASK, LONG)
    while not isinstance(next(generation), Piece):
        pass
    pid = client.status().pid
    assert pid is not None
    client.close()
    assert gone(pid)
    assert isinstance(list(generation)[-1], Finished)
    assert not client.status().running


def test_the_worker_ends_when_the_app_is_killed(home: Path, folders: Folders) -> None:
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from core.chat.client import ChatClient\n"
        f"client = ChatClient(Path({str(home)!r}), device='cpu')\n"
        f"client.load({folders['one']!r})\n"
        "print(client.status().pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    app = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert app.stdout is not None
        pid = int(app.stdout.readline())
        assert psutil.pid_exists(pid)
    finally:
        app.kill()
        app.wait()
        app.stdout.close()  # type: ignore[union-attr]
    assert eventually(lambda: gone(pid), 10)


def test_a_worker_that_cannot_start_says_why_and_is_not_tried_again_and_again(home: Path, folders: Folders) -> None:
    client = ChatClient(home, device="cuda:7")
    try:
        end = ask(client, folders["one"])[-1]
        assert isinstance(end, Failed)
        assert "cuda:7" in end.message
        assert not client.status().running
    finally:
        client.close()


def test_answers_pause_and_say_so_while_a_run_measures_speed(client: ChatClient, folders: Folders) -> None:
    use = Use("cpu")
    with client.generate(folders["one"], ASK, Sampling(max_tokens=400)) as answer:
        for event in answer:
            if isinstance(event, Piece):
                break
        with use.alone() as alone:
            assert alone
            shown = Answer(client.source(folders["one"]), state="streaming")
            said: list[Event] = []
            deadline = time.monotonic() + 60
            while not any(isinstance(event, Waiting) and event.reason == PAUSED for event in said):
                assert time.monotonic() < deadline
                said.append(next(answer))
                shown.hear(said[-1])
            assert shown.notice == PAUSED
            later = [next(answer) for _ in range(3)]
            assert not any(isinstance(event, Piece) for event in later)
        rest = list(answer)
        for event in rest:
            shown.hear(event)
    use.close()
    end = rest[-1]
    assert isinstance(end, Finished)
    assert end.stats is not None
    assert end.stats.tokens == 400
    assert shown.notice == ""


def test_no_model_is_loaded_while_a_run_measures_speed_and_that_wait_can_be_stopped(
    client: ChatClient, folders: Folders
) -> None:
    def held() -> set[str]:
        report = client.status().report
        assert report is not None
        return {model.key for model in report.models}

    client.load(folders["two"])
    client.unload(folders["two"])
    assert eventually(lambda: folders["two"] not in held())
    load = partial(Load, source=client.source(folders["two"]))
    use = Use("cpu")
    with use.alone() as alone:
        assert alone
        stopped = client.request(lambda i: load(id=i))
        while not (isinstance(event := next(stopped), Waiting) and event.reason == PAUSED):
            assert not isinstance(event, Loaded)
        client.cancel(stopped.id)
        end = list(stopped)[-1]
        assert isinstance(end, Finished)
        assert end.reason == "cancelled"

        waits = client.request(lambda i: load(id=i))
        said = [next(waits) for _ in range(8)]
        assert not any(isinstance(event, Loading | Loaded) for event in said)
        assert any(isinstance(event, Waiting) and event.reason == PAUSED for event in said)
        assert folders["two"] not in held()
    assert isinstance(list(waits)[-1], Loaded)
    with use.alone(patience=5.0) as alone:
        assert alone  # the loader lets go of the device once it has loaded
    use.close()


def test_a_paused_answer_can_be_stopped(client: ChatClient, folders: Folders) -> None:
    use = Use("cpu")
    with use.alone():
        answer = client.generate(folders["one"], ASK, Sampling(max_tokens=400))
        while not (isinstance(event := next(answer), Waiting) and event.reason == PAUSED):
            pass
        client.cancel(answer.id)
        end = list(answer)[-1]
    use.close()
    assert isinstance(end, Finished)
    assert end.reason == "cancelled"
