"""Conversations side by side, with the real worker: histories, stopping, and the transcript on disk."""

import errno
import json
import os
import time
from contextlib import closing
from pathlib import Path

import pytest

from core.chat.client import ChatClient
from core.chat.conversation import Conversation, Turn
from core.chat.protocol import Sampling
from core.chat.transcripts import Transcript, load, read
from core.errors import InputError
from pages._parts.chat_view import footer
from tests.chat.conftest import write_model

Folders = dict[str, str]


@pytest.fixture
def talk(client: ChatClient, folders: Folders) -> Conversation:
    return client.conversation([(folders["one"], "One"), (folders["two"], "<b>Two</b>")], Sampling(max_tokens=20))


def run(conversation: Conversation, prompt: str) -> Turn:
    turn = conversation.ask(prompt)
    for side in range(len(turn.answers)):
        for _ in conversation.stream(turn, side):
            pass
    return turn


def test_every_side_answers_and_keeps_its_own_history(talk: Conversation) -> None:
    first = run(talk, "hello")
    assert [answer.state for answer in first.answers] == ["done", "done"]
    assert [len(answer.text) for answer in first.answers] == [20, 20]
    second = talk.ask("and now?")
    for side in (0, 1):
        said = [(message.role, message.content) for message in talk.messages(second, side)]
        assert said == [("user", "hello"), ("assistant", first.answers[side].text), ("user", "and now?")]
    assert first.answers[0].text != first.answers[1].text


def test_an_answer_is_measured_as_its_reader_sees_it(talk: Conversation) -> None:
    answer = run(talk, "hello").answers[0]
    assert answer.tokens == 20
    assert answer.stats is not None
    assert answer.tokens_per_second == answer.stats.tokens_per_second
    assert answer.first_token_seconds is not None
    assert answer.first_token_seconds >= answer.stats.first_token_seconds


def test_a_stopped_answer_keeps_what_was_said_and_is_history(talk: Conversation, client: ChatClient) -> None:
    talk.sampling = Sampling(max_tokens=6000)
    turn = talk.ask("hello")
    with closing(talk.stream(turn, 0)) as snapshots:
        for snapshot in snapshots:
            if snapshot.tokens > 5:
                break
    answer = turn.answers[0]
    assert answer.state == "stopped"
    assert 5 < len(answer.text) < 6000
    assert talk.messages(talk.ask("more"), 0)[1].content == answer.text


def test_a_prompt_that_a_side_failed_to_answer_is_left_out_of_its_history(client: ChatClient, folders: Folders) -> None:
    talk = client.conversation([(folders["one"], "One"), (folders["nan"], "Ruined")], Sampling(max_tokens=5))
    turn = run(talk, "hello")
    assert [answer.state for answer in turn.answers] == ["done", "failed"]
    assert "not finite" in turn.answers[1].notice
    second = talk.ask("again")
    assert [message.content for message in talk.messages(second, 1)] == ["again"]
    assert len(talk.messages(second, 0)) == 3


def test_the_transcript_holds_prompts_and_answers_however_they_ended(talk: Conversation, shared_home: Path) -> None:
    run(talk, "a <script>alert(1)</script> ünïcode\nline")
    talk.sampling = Sampling(max_tokens=6000)
    turn = talk.ask("second")
    with closing(talk.stream(turn, 1)) as snapshots:
        next(snapshot for snapshot in snapshots if snapshot.tokens > 2)
    assert talk.path.parent == shared_home / "chat"
    lines = list(read(talk.path))
    assert [line["kind"] for line in lines] == ["prompt", "answer", "answer", "prompt", "answer"]
    assert lines[0]["text"] == "a <script>alert(1)</script> ünïcode\nline"
    assert lines[0]["sampling"]["max_tokens"] == 20
    assert [line["side"] for line in lines if line["kind"] == "answer"] == [0, 1, 1]
    assert lines[2]["title"] == "<b>Two</b>"
    assert lines[2]["stats"]["tokens"] == 20
    assert lines[4]["state"] == "stopped"
    assert lines[4]["text"] == turn.answers[1].text
    assert all(line["conversation"] == talk.id and line["v"] == 1 for line in lines)


def test_one_side_is_stopped_and_the_other_goes_on(talk: Conversation) -> None:
    talk.sampling = Sampling(max_tokens=6000)
    turn = talk.ask("hello")
    talk.start(turn)
    one, two = turn.answers
    while min(one.tokens, two.tokens) < 3:
        time.sleep(0.01)
    talk.stop(turn, 0)
    assert one.ended.wait(60)
    assert one.state == "stopped"
    assert one.stats is not None  # it ended in an orderly way, with its figures
    seen = two.tokens
    while two.tokens < seen + 20:
        assert two.live
        time.sleep(0.01)
    talk.stop()
    assert two.ended.wait(60)
    assert not talk.busy


def test_asking_again_replaces_the_last_prompt_and_draws_anew(talk: Conversation) -> None:
    talk.sampling = Sampling(max_tokens=20, temperature=1.0, seed=3)
    first = run(talk, "hello").answers[0].text
    talk.start(turn := talk.again())
    for answer in turn.answers:
        assert answer.ended.wait(60)
    assert [each.number for each in talk.turns] == [1]
    assert (turn.attempt, turn.sampling.seed) == (2, 4)
    assert turn.answers[0].text != first
    edited = talk.again("goodbye")
    assert [message.content for message in talk.messages(edited, 0)] == ["goodbye"]
    assert [turn.prompt for turn in load(talk.path).turns] == ["goodbye"]


def test_a_disk_that_is_full_is_said_and_every_answer_still_ends(
    client: ChatClient, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = client.conversation([(folders["one"], "One"), (folders["nan"], "Ruined")], Sampling(max_tokens=5))
    turn = talk.ask("hello")

    def full(self: Transcript, kind: str, **fields: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Transcript, "append", full)
    talk.start(turn)
    assert all(answer.ended.wait(60) for answer in turn.answers)
    assert not talk.busy
    kept, ruined = turn.answers
    assert (kept.state, len(kept.text)) == ("done", 5)
    assert kept.notice == "not kept in the conversation's file: No space left on device"
    assert "not finite" in ruined.notice
    assert "No space left on device" in ruined.notice


def test_a_model_without_a_chat_template_continues_the_text_and_says_so(client: ChatClient, tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", 5)
    (base / "chat_template.jinja").unlink()
    talk = client.conversation([(str(base), "Base")], Sampling(max_tokens=5))
    answer = run(talk, "once upon").answers[0]
    assert answer.state == "done"
    assert answer.stats is not None
    assert answer.stats.prompt_tokens == len("once upon")  # nothing stands around it
    assert answer.notice == "No chat template in this model: it continues the text."
    assert answer.notice in footer(answer)
    told = client.conversation([(write_model(tmp_path / "chatty", 5).as_posix(), "Chatty")], Sampling(max_tokens=5))
    assert run(told, "once upon").answers[0].notice == ""


def test_the_system_prompt_stands_before_every_history(talk: Conversation) -> None:
    talk.system = "Answer in verse."
    turn = talk.ask("hello")
    assert [(m.role, m.content) for m in talk.messages(turn, 0)] == [("system", "Answer in verse."), ("user", "hello")]
    talk.system = "  "
    assert [message.role for message in talk.messages(turn, 0)] == ["user"]


def test_blind_sides_are_shuffled_and_a_vote_names_the_model_not_the_place(talk: Conversation) -> None:
    talk.blind = True
    orders = {tuple(talk.ask("hello").order) for _ in range(40)}
    assert orders == {(0, 1), (1, 0)}
    turn = next(turn for turn in talk.turns if turn.order == [1, 0])
    assert turn.hidden
    talk.vote(turn, "A")
    assert not turn.hidden
    assert turn.winner == 1
    with pytest.raises(InputError, match="voted on already"):
        talk.vote(turn, "B")
    other = talk.turns[-1]
    for wrong in ("C", "", "AB", "TIE"):
        with pytest.raises(InputError, match="no vote"):
            talk.vote(other, wrong)
    talk.vote(other, "bad")
    votes = [line for line in read(talk.path) if line["kind"] == "vote"]
    assert votes[0]["winner"] == talk.sources[1].key
    assert votes[0]["order"] == [talk.sources[1].key, talk.sources[0].key]
    assert votes[1]["winner"] is None


def test_an_answer_waits_while_it_is_held_and_can_be_stopped_meanwhile(talk: Conversation) -> None:
    talk.hold = lambda: "waiting for run x"
    turn = talk.ask("hello")
    talk.start(turn)
    one, two = turn.answers
    deadline = time.monotonic() + 60
    while one.notice != "waiting for run x":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    talk.stop(turn, 1)
    assert two.ended.wait(60)
    assert (two.state, two.text) == ("stopped", "")
    talk.hold = lambda: ""
    assert one.ended.wait(60)
    assert one.state == "done"


def test_an_answer_that_nobody_looks_at_any_more_stops(talk: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.chat.conversation.UNSEEN", 1.5)
    talk.sampling = Sampling(max_tokens=6000)
    turn = talk.ask("hello")
    talk.start(turn)
    for _ in range(25):  # longer than that, but seen
        talk.look()
        time.sleep(0.1)
    assert all(answer.live for answer in turn.answers)
    assert all(answer.ended.wait(60) for answer in turn.answers)
    assert [answer.state for answer in turn.answers] == ["stopped", "stopped"]


def test_a_torn_last_line_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"v": 1}) + "\n" + '{"v": 1, "ki', encoding="utf-8")
    assert list(read(path)) == [{"v": 1}]


def test_nothing_is_written_before_the_first_prompt(talk: Conversation) -> None:
    assert not talk.path.exists()
