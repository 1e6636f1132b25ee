"""Conversations and votes in the store: read from their files, level with them, and rebuilt from them."""

import json
from pathlib import Path

import duckdb

from core.chat.client import ChatClient
from core.chat.transcripts import Transcript
from core.storage.store import Store, reindex
from core.talks import Talks


def talk(home: Path, name: str, *votes: str) -> Transcript:
    """A conversation with one prompt, asked again for each further vote, all on attempts of their own turn."""
    transcript = Transcript(home / "chat", name)
    models = [{"key": "dense:m", "title": "m, dense"}, {"key": "run", "title": 'cut\'s "30 %"'}]
    for turn, verdict in enumerate(votes, 1):
        transcript.append("prompt", turn=turn, attempt=1, text=f"prompt {turn} 🌿", models=models, sampling={})
        for side, model in enumerate(models):
            transcript.append(
                "answer", turn=turn, attempt=1, side=side, model=model["key"], title=model["title"], text="x",
                state="done", tokens=3, tokens_per_second=None, first_token_seconds=0.5,
                stats={"memory_bytes": 2**33},
            )  # fmt: skip
        winner = {"A": "run", "B": "dense:m"}.get(verdict)
        transcript.append(
            "vote", turn=turn, attempt=1, verdict=verdict, winner=winner, blind=True, streaming=turn == 1,
            order=["run", "dense:m"], titles=["cut", "m"],
        )  # fmt: skip
    return transcript


def test_votes_and_answers_come_from_the_files_and_follow_them(home: Path) -> None:
    talk(home, "one", "A", "tie")
    store = Store.open(home)
    try:
        assert store.rows("SELECT conversation, prompts, first_prompt FROM chats") == [("one", 2, "prompt 1 🌿")]
        rows = store.rows("SELECT turn, winner, verdict, streaming, models FROM chat_votes ORDER BY turn")
        assert [row[:4] for row in rows] == [(1, "run", "A", True), (2, None, "tie", False)]
        assert json.loads(rows[0][4]) == ["run", "dense:m"]
        answers = store.rows(
            "SELECT side, title, memory_bytes, tokens_per_second FROM chat_answers ORDER BY turn, side"
        )
        assert answers[1] == (1, 'cut\'s "30 %"', 2**33, None)
        before = store.version
        store.sync(home)
        assert store.version == before
        talk(home, "two", "B")
        store.sync(home)
        assert store.rows("SELECT count(*) FROM chat_votes") == [(3,)]
        (home / "chat" / "one.jsonl").unlink()
        store.sync(home)
        assert store.rows("SELECT DISTINCT conversation FROM chat_answers") == [("two",)]
    finally:
        store.close()


def test_a_vote_counts_also_where_the_prompt_was_asked_again_after_it(home: Path) -> None:
    transcript = talk(home, "one", "A")
    models = [{"key": "dense:m", "title": "m, dense"}, {"key": "run", "title": "cut"}]
    transcript.append("prompt", turn=1, attempt=2, text="edited", models=models, sampling={})
    transcript.append(
        "vote", turn=1, attempt=2, verdict="B", winner="dense:m", blind=True, streaming=False,
        order=["run", "dense:m"], titles=["cut", "m"],
    )  # fmt: skip
    transcript.append("prompt", turn=1, attempt=3, text="edited", models=models, sampling={})
    store = Store.open(home)
    try:
        rows = store.rows("SELECT turn, winner, verdict FROM chat_votes ORDER BY time, verdict")
        assert sorted(rows) == [(1, "dense:m", "B"), (1, "run", "A")]
        assert store.rows("SELECT prompts, first_prompt FROM chats") == [(1, "edited")]
        talks = Talks(store, home, lambda: None, lambda: ChatClient(home))
        assert {each.key: (each.votes, each.won) for each in talks.standings()} == {"dense:m": (2, 1), "run": (2, 1)}
    finally:
        store.close()


def test_files_that_an_older_version_read_are_read_anew(home: Path) -> None:
    talk(home, "one", "A")
    store = Store.open(home)
    store.close()
    with duckdb.connect(str(home / "results.duckdb")) as connection:
        connection.execute("UPDATE chat_sources SET signature = regexp_replace(signature, '^2:', '')")
        connection.execute("DELETE FROM chat_votes")
    store = Store.open(home)
    try:
        store.sync(home)
        assert store.rows("SELECT count(*) FROM chat_votes") == [(1,)]
    finally:
        store.close()


def test_a_lost_database_is_rebuilt_with_all_conversations(home: Path) -> None:
    for number, votes in enumerate((("A", "B"), ("bad",), ())):
        talk(home, f"talk-{number}", *votes)
    (home / "chat" / "torn.jsonl").write_text('{"v": 1, "kind": "prom')
    (home / "chat" / "worker.log").write_text("no conversation")
    (home / "chat" / "link.jsonl").symlink_to(home / "chat" / "talk-0.jsonl")
    store = Store.open(home)
    kept = store.dump()
    store.close()
    assert len(kept["chat_votes"]) == 3
    assert len(kept["chats"]) == 2  # nothing was asked in the third
    (home / "results.duckdb").unlink()
    reindex(home)
    store = Store.open(home)
    assert store.dump() == kept
    store.close()
