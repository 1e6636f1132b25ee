"""Conversations side by side, with the real worker: histories, stopping, and the transcript on disk."""

import json
from contextlib import closing
from pathlib import Path

import pytest

from core.chat.client import ChatClient
from core.chat.conversation import Conversation, Turn
from core.chat.protocol import Sampling
from core.chat.transcripts import read

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


def test_a_torn_last_line_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"v": 1}) + "\n" + '{"v": 1, "ki', encoding="utf-8")
    assert list(read(path)) == [{"v": 1}]


def test_nothing_is_written_before_the_first_prompt(talk: Conversation) -> None:
    assert not talk.path.exists()
