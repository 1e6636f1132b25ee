"""Several browser sessions on one real worker: fair shares, nobody ends what another is told, how a worker starts."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.chat.client import STARTING, ChatClient
from core.chat.protocol import PAUSED, Event, Failed, Finished, Load, Loaded, Piece, Sampling, Waiting
from core.device_use import Use
from tests.chat.test_client import ASK, LONG, Folders, eventually, held


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatClient]:
    """A client whose worker these tests may end."""
    made = ChatClient(tmp_path_factory.mktemp("home"), device="cpu")
    yield made
    made.close()


def test_two_sessions_are_answered_at_once_in_equal_shares_and_end_nothing_of_each_other(
    client: ChatClient, folders: Folders
) -> None:
    pair = [(folders["one"], "One"), (folders["two"], "Two")]
    for key, title in pair:
        client.load(key, title)
    alone = client.conversation(pair[:1], Sampling(max_tokens=800))
    alone.start(turn := alone.ask("hello"))
    assert turn.answers[0].ended.wait(60)

    greedy, modest = client.conversation(pair, LONG), client.conversation(pair[:1], Sampling(max_tokens=800))
    wants, asked = greedy.ask("a very long story"), modest.ask("hello")
    greedy.start(wants)
    modest.start(asked)
    (theirs,) = asked.answers
    assert eventually(lambda: all(answer.tokens for answer in (*wants.answers, theirs)))
    before = [sum(answer.tokens for answer in wants.answers), theirs.tokens]
    assert eventually(lambda: theirs.tokens > before[1] + 400)  # what is on its way of either is a part of that
    made = [sum(answer.tokens for answer in wants.answers) - before[0], theirs.tokens - before[1]]
    assert 0.5 < made[0] / made[1] < 2  # as much for one answer as for the other session's two together

    greedy.stop(wants, 0)
    assert wants.answers[0].ended.wait(60)
    assert wants.answers[1].live
    greedy.stop()  # as *Stop all*, *New conversation* and other models do
    assert wants.answers[1].ended.wait(60)
    for key, _ in pair:
        client.unload(key)
    far = theirs.tokens
    assert theirs.live
    assert eventually(lambda: theirs.tokens > far or not theirs.live)
    assert client.others(greedy.id) == 1
    assert theirs.ended.wait(60)
    assert (theirs.state, theirs.reason, theirs.tokens) == ("done", "length", 800)
    assert theirs.text == turn.answers[0].text
    assert eventually(lambda: folders["one"] not in held(client))  # unloaded, once nobody was told by it
    assert client.others(greedy.id) == 0


def test_a_worker_starts_only_when_nobody_measures_speed_and_that_wait_can_be_stopped(
    own: ChatClient, folders: Folders
) -> None:
    own.close()
    use = Use("cpu")
    with use.alone() as alone:
        assert alone
        stopped = own.generate(folders["one"], ASK, LONG)
        waits = own.generate(folders["one"], ASK, Sampling(max_tokens=5))
        said: list[Event] = [next(waits)]
        deadline = time.monotonic() + 60
        while said[-1] != Waiting(id=waits.id, reason=PAUSED):
            assert said[-1] == Waiting(id=waits.id, reason=STARTING)
            assert time.monotonic() < deadline
            said.append(next(waits))
        maps = Path(f"/proc/{own.status().pid}/maps")
        assert "libtorch" not in maps.read_text()
        own.cancel(stopped.id)
        begun = time.monotonic()
        end = list(stopped)[-1]
        assert isinstance(end, Finished)
        assert end.reason == "cancelled"
        assert time.monotonic() - begun < 30  # not until the measurement is over, which it never is here
        assert next(waits) == Waiting(id=waits.id, reason=PAUSED)
    assert isinstance(list(waits)[-1], Finished)
    assert "libtorch" in maps.read_text()
    assert eventually(lambda: (report := own.status().report) is not None and report.active == ())
    with use.alone(patience=5.0) as alone:
        assert alone  # it lets go of the device once it has started
    use.close()


def test_the_worker_is_not_ended_under_others_unless_that_was_said(own: ChatClient, folders: Folders) -> None:
    mine, theirs = (own.generate(folders["one"], ASK, LONG, owner=owner) for owner in ("me", "them"))
    while not isinstance(next(theirs), Piece):
        pass
    pid = own.status().pid
    assert own.leave("me") == own.leave("me", device="auto") == 1
    assert own.leave("nobody") == 2
    load = own.request(lambda i: Load(id=i, source=own.source(folders["two"])))
    assert own.leave("me") == 2  # somebody prepares a model
    assert isinstance(list(load)[-1], Loaded)
    assert (own.status().pid, own.device) == (pid, "cpu")
    while not isinstance(next(theirs), Piece):  # it went on
        pass
    assert own.leave("me", even_others=True) == 0
    ends = [list(stream)[-1] for stream in (mine, theirs)]
    assert isinstance(ends[0], Finished)
    assert ends[0].reason == "cancelled"
    assert isinstance(ends[1], Failed)
    assert "Somebody else ended all answers" in ends[1].message
    assert not own.status().running
    assert own.leave("me") == 0
