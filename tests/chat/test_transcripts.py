"""What a transcript says when it is read again: retold, exported, damaged."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from core.chat.documents import as_json, as_markdown, fenced
from core.chat.replay import Replay
from core.chat.transcripts import Transcript, load
from core.errors import InputError

HOSTILE = "```\n# <img src=x onerror=alert(1)> ![i](http://x/y.png)\n````<script>x</script>"
MODELS = [{"key": "dense:m", "title": "m, dense"}, {"key": "run", "title": "<b>cut</b> *30 %*"}]


def prompt(transcript: Transcript, turn: int, text: str, attempt: int = 1) -> None:
    transcript.append("prompt", turn=turn, attempt=attempt, text=text, models=MODELS, sampling={"temperature": 0.0})


def said(transcript: Transcript, turn: int, side: int, text: str, attempt: int = 1, **more: Any) -> None:
    fields: dict[str, Any] = {"state": "done", "tokens": 4, "tokens_per_second": 40.0, "first_token_seconds": 0.1}
    model = MODELS[side]
    names = {"model": model["key"], "title": model["title"]}
    transcript.append("answer", turn=turn, attempt=attempt, side=side, text=text, **names, **{**fields, **more})


def vote(transcript: Transcript, turn: int, verdict: str, winner: str | None, attempt: int = 1) -> None:
    transcript.append(
        "vote", turn=turn, attempt=attempt, verdict=verdict, winner=winner, blind=True, streaming=False,
        order=["run", "dense:m"], titles=[MODELS[1]["title"], MODELS[0]["title"]],
    )  # fmt: skip


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Two turns, the second asked twice, votes on both attempts."""
    transcript = Transcript(tmp_path, "20261124-100000-abcd")
    prompt(transcript, 1, "hello")
    said(transcript, 1, 1, HOSTILE)
    said(transcript, 1, 0, "Hi there, you.", stats={"memory_bytes": 540_000_000})
    prompt(transcript, 2, "dropped")
    vote(transcript, 2, "A", "run")
    prompt(transcript, 2, "edited", attempt=2)
    said(transcript, 2, 0, "late line of the dropped attempt")
    said(transcript, 2, 0, "kept", attempt=2)
    said(transcript, 2, 1, "", attempt=2, state="failed", notice="Memory ran out.")
    vote(transcript, 2, "B", "dense:m", attempt=2)
    return transcript.path


def test_a_prompt_asked_again_counts_in_its_last_form(written: Path) -> None:
    saved = load(written)
    assert [turn.prompt for turn in saved.turns] == ["hello", "edited"]
    assert saved.turns[1].answers[0].text == "kept"
    assert saved.turns[1].vote is not None
    assert saved.turns[1].vote.winner == "dense:m"
    assert saved.turns[0].answers[0].memory_bytes == 540_000_000
    assert [(turn, cast.winner) for turn, cast in saved.votes] == [(2, "run"), (2, "dense:m")]  # a vote is never lost
    assert saved.titles == ("m, dense", "<b>cut</b> *30 %*")


def test_a_line_that_a_full_disk_tore_spoils_no_later_one(tmp_path: Path) -> None:
    transcript = Transcript(tmp_path, "torn")
    prompt(transcript, 1, "hello")
    with transcript.path.open("a") as file:
        file.write('{"v": 1, "kind": "ans')
    prompt(transcript, 2, "ünïcode")
    said(transcript, 2, 0, "kept")
    saved = load(transcript.path)
    assert [turn.prompt for turn in saved.turns] == ["hello", "ünïcode"]
    assert saved.turns[1].answers[0].text == "kept"


def test_a_damaged_transcript_still_shows_the_rest(written: Path) -> None:
    lines = written.read_bytes().split(b"\n")
    lines[1:1] = [b"{not json", b"[]", b'{"kind": "answer"}', b'{"kind":"prompt","turn":"x"}', b"\xff\xfe", b"7"]
    written.write_bytes(b"\n".join(lines) + b'{"v": 1, "kind": "vo')
    assert [turn.prompt for turn in load(written).turns] == ["hello", "edited"]


def test_nothing_a_model_said_is_markup_in_the_markdown(written: Path) -> None:
    document = as_markdown(load(written))
    inside = False
    fence = ""
    for line in document.splitlines():
        if not inside and line.startswith("```"):
            inside, fence = True, line.removesuffix("text")
        elif inside and line == fence:
            inside = False
        elif not inside:
            assert "<img" not in line
            assert "<b>" not in line
            assert "<script" not in line
    assert not inside
    assert HOSTILE in document
    assert "\\<b\\>cut\\</b\\> \\*30 %\\*" in document
    assert "Vote (blind): m, dense" in document
    assert "Memory ran out" in document
    assert fenced("a ````` b").startswith("``````text\n")


def test_the_json_holds_what_the_transcript_holds(written: Path) -> None:
    document = json.loads(as_json(load(written)))
    assert document["schema"] == 1
    assert document["turns"][0]["answers"][1]["text"] == HOSTILE
    assert document["turns"][1]["vote"]["winner"] == "dense:m"
    assert document["turns"][0]["models"] == MODELS


def test_a_replay_says_what_was_said_at_its_speed_and_writes_nothing(written: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    replay = Replay(load(written))
    conversation = replay.conversation()
    assert conversation.label.startswith("Replay of ")
    begun = time.monotonic()
    while replay.next_prompt(conversation) is not None:
        replay.play(conversation)
        for answer in conversation.turns[-1].answers:
            assert answer.ended.wait(60)
    assert time.monotonic() - begun >= 2 * 0.1
    first, second = conversation.turns
    assert [answer.text for answer in first.answers] == ["Hi there, you.", HOSTILE]
    assert first.answers[0].first_token_seconds == pytest.approx(0.1, abs=0.1)
    assert first.answers[0].tokens_per_second == pytest.approx(40.0)
    assert [answer.state for answer in second.answers] == ["done", "failed"]
    assert second.answers[1].notice == "Memory ran out."
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(InputError, match="at its end"):
        replay.play(conversation)


def test_a_replay_can_be_stopped(tmp_path: Path) -> None:
    transcript = Transcript(tmp_path, "slow")
    prompt(transcript, 1, "hello")
    said(transcript, 1, 0, "one two three four five", tokens=500, tokens_per_second=1.0)
    replay = Replay(load(transcript.path))
    conversation = replay.conversation()
    replay.play(conversation)
    answer = conversation.turns[0].answers[0]
    while not answer.text:
        time.sleep(0.02)
    conversation.stop()
    assert answer.ended.wait(60)
    assert answer.state == "stopped"
    assert answer.text == "one"


def test_an_empty_transcript_cannot_be_replayed(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("")
    with pytest.raises(InputError, match="holds no prompt"):
        Replay(load(tmp_path / "t.jsonl"))
