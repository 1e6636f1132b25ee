"""The wire: what is said comes out as it went in, on one line, and nothing unknown is let through."""

import pytest
from pydantic import ValidationError

from core.chat.protocol import (
    Ask,
    Cancel,
    Event,
    Evicted,
    Failed,
    Finished,
    Generate,
    Guess,
    Load,
    Loaded,
    Loading,
    Message,
    ModelInfo,
    Piece,
    Ready,
    Report,
    Request,
    Sampling,
    Score,
    Scored,
    Source,
    Started,
    Stats,
    TokenScore,
    Unload,
    Waiting,
    line,
    read_event,
    read_request,
)

SOURCE = Source(key="20261123-000000-0a1b2c3d-ffff", title="taylor 30 %", directory="/a/b c")
INFO = ModelInfo(
    key="k", title="t", params=1, memory_bytes=4, dtype="float32", device="cpu", context=8, chat_template=True,
    load_seconds=0.5,
)  # fmt: skip
STATS = Stats(
    prompt_tokens=9, reused_tokens=0, tokens=11, load_seconds=0, first_token_seconds=0.2, seconds=2.0, own_seconds=1.0
)
HARD = 'line\nbreak \u2028 "quote" \\ <b>🌿</b> \x00'

SCORE = TokenScore(
    text=HARD, log_probability=-0.5, dense_log_probability=-1.5, divergence=0.25,
    guesses=(Guess(text=HARD, probability=0.5),),
)  # fmt: skip

REQUESTS: list[Request] = [
    Load(id="1", source=SOURCE),
    Unload(id="2", key="k"),
    Generate(id="3", source=SOURCE, messages=(Message(role="user", content=HARD),), sampling=Sampling(seed=3)),
    Generate(id="3", source=SOURCE, messages=(), sampling=Sampling(stop=("\n\n", HARD)), owner="me"),
    Score(id="5", source=SOURCE, dense=SOURCE, messages=(Message(role="user", content=HARD),), ids=(1, 2)),
    Cancel(id="3"),
    Ask(id="4"),
]
EVENTS: list[Event] = [
    Ready(pid=1, device="cpu"),
    Waiting(id="1", reason="r"),
    Loading(id="1", title="t", done=1, total=2, unit="tensors"),
    Evicted(id="1", key="k", title="t", reason="r"),
    Loaded(id="1", info=INFO),
    Started(id="1", prompt_tokens=3, reused_tokens=1),
    Piece(id="1", text=HARD, tokens=2, seconds=0.1),
    Finished(id="1", reason="stop", stats=STATS),
    Finished(id="1", reason="stop", stats=STATS, ids=(1, 2)),
    Scored(id="1", tokens=(SCORE,), seconds=0.5),
    Failed(id="1", message="m", advice="a", worker=True),
    Report(id="1", pid=1, device="cpu", models=(INFO,), active=("2",), memory_bytes=1, free_bytes=2),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: r.kind)
def test_a_request_crosses_the_pipe_unchanged_on_one_line(request_: Request) -> None:
    text = line(request_)
    assert text.count(b"\n") == 1
    assert text.endswith(b"\n")
    assert read_request(text) == request_


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: e.kind)
def test_an_event_crosses_the_pipe_unchanged_on_one_line(event: Event) -> None:
    text = line(event)
    assert text.count(b"\n") == 1
    assert read_event(text) == event


@pytest.mark.parametrize(
    "text", [b"", b"{", b'{"kind":"load"}', b'{"kind":"dance","id":"1"}', b'{"kind":"ask","id":"1","extra":1}']
)
def test_what_is_not_a_request_is_refused(text: bytes) -> None:
    with pytest.raises(ValidationError):
        read_request(text)


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -0.1}, {"top_p": 0}, {"max_tokens": 0}, {"seed": -1}, {"stop": [""]}, {"stop": ["x"] * 9}],
)
def test_sampling_outside_its_range_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Sampling.model_validate(wrong)


def test_speed_counts_the_tokens_after_the_first() -> None:
    assert STATS.tokens_per_second == 5.0
    assert STATS.own_tokens_per_second == 10.0
    assert STATS.model_copy(update={"tokens": 1}).tokens_per_second is None
