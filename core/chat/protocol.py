"""What the app and the inference worker say to each other: one JSON object a line, each of a type below.

Requests go to the worker's standard input, events come from its standard output. Every event that answers a request
carries its `id`. A request ends with exactly one of Finished, Loaded (for Load), Scored (for Score), Report or Failed.
Unknown fields are refused, so that two versions never half understand each other; a new kind of request is a new class
in `Request` and one branch in the worker.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class Wire(BaseModel):
    """Base of everything that crosses the pipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(Wire):
    """Where a model comes from.

    `directory`: a saved run, loaded by the project's classes; else `name` as in an Experiment. `quantised`: both, for
    the weights of `name` are those of the GGUF file of this format in `directory`.
    """

    key: str
    title: str
    name: str = ""
    directory: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    dtype: str = "auto"
    quantised: Literal["q8_0", "q4_0"] | None = None


class Message(Wire):
    """One turn of a conversation, as chat templates expect it."""

    role: Literal["system", "user", "assistant"]
    content: str


StopText = Annotated[str, Field(min_length=1, max_length=100)]


class Sampling(Wire):
    """How the next token is chosen. Temperature 0 is greedy. Equal seeds draw equal random numbers on every side.

    An answer ends before the first of `stop` that it would say, beside the model's own end.
    """

    max_tokens: int = Field(default=256, ge=1, le=32768)
    temperature: float = Field(default=0.0, ge=0.0, le=5.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    seed: int = Field(default=0, ge=0)
    stop: tuple[StopText, ...] = Field(default=(), max_length=8)


# --- requests -----------------------------------------------------------------------------------------------------


class Load(Wire):
    kind: Literal["load"] = "load"
    id: str
    source: Source


class Unload(Wire):
    """Let a model go, as soon as nothing is being generated with it."""

    kind: Literal["unload"] = "unload"
    id: str
    key: str


class Generate(Wire):
    """Answer the conversation; the model is loaded first where it is not.

    `owner` names who asks: those that ask share the device equally, whatever number of answers each asks for.
    """

    kind: Literal["generate"] = "generate"
    id: str
    source: Source
    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    owner: str = ""


class Score(Wire):
    """How surprised the model `dense` is by each token that `source` said in answer to `messages`.

    `ids` are the answer's tokens, as Finished gave them. Both models are loaded where they are not.
    """

    kind: Literal["score"] = "score"
    id: str
    source: Source
    dense: Source
    messages: tuple[Message, ...]
    ids: tuple[int, ...] = Field(min_length=1)
    owner: str = ""


class Cancel(Wire):
    """Stop the request with this id; it ends with Finished(reason="cancelled")."""

    kind: Literal["cancel"] = "cancel"
    id: str


class Ask(Wire):
    """Ask for a Report."""

    kind: Literal["ask"] = "ask"
    id: str


Request = Load | Unload | Generate | Score | Cancel | Ask

# --- events -------------------------------------------------------------------------------------------------------


class ModelInfo(Wire):
    """A loaded model. `memory_bytes` are its parameters and buffers; `context` its longest conversation in tokens."""

    key: str
    title: str
    params: int
    memory_bytes: int
    dtype: str
    device: str
    context: int
    chat_template: bool
    load_seconds: float


class Stats(Wire):
    """Of one answer. `seconds` runs from the first token to the last; `own_seconds` is the part of it that this answer
    computed.

    Tokens per second count the tokens after the first: the first one's wait is `first_token_seconds`, from the moment
    the model was ready, so that loading (`load_seconds`) is told apart from answering.
    """

    prompt_tokens: int
    reused_tokens: int
    tokens: int
    load_seconds: float
    first_token_seconds: float
    seconds: float
    own_seconds: float
    memory_bytes: int = 0
    """The model's weights and the keys and values of this conversation."""

    @property
    def tokens_per_second(self) -> float | None:
        """As seen by the reader, other answers streaming beside it included; None below two tokens."""
        return _rate(self.tokens, self.seconds)

    @property
    def own_tokens_per_second(self) -> float | None:
        """Of the time the device spent on this answer: what the model would do alone."""
        return _rate(self.tokens, self.own_seconds)


def _rate(tokens: int, seconds: float) -> float | None:
    return (tokens - 1) / seconds if tokens > 1 and seconds > 0 else None


class Ready(Wire):
    """The worker is up and knows its device."""

    kind: Literal["ready"] = "ready"
    id: str = ""
    pid: int
    device: str


PAUSED = "paused: a run measures speed on this device"
"""The reason of a Waiting while answers let a measurement have the device."""


class Waiting(Wire):
    """Nothing new yet; `reason` says what is being waited for. Without an id: what the worker's own start waits for."""

    kind: Literal["waiting"] = "waiting"
    id: str
    reason: str


class Loading(Wire):
    """A model is being loaded; `total` 0 = unknown."""

    kind: Literal["loading"] = "loading"
    id: str
    title: str
    done: float = 0.0
    total: float = 0.0
    unit: str = ""


class Evicted(Wire):
    """A model left memory."""

    kind: Literal["evicted"] = "evicted"
    id: str
    key: str
    title: str
    reason: str


class Loaded(Wire):
    kind: Literal["loaded"] = "loaded"
    id: str
    info: ModelInfo


class Started(Wire):
    """The prompt is known in tokens; `note` is a sentence for the reader or ''."""

    kind: Literal["started"] = "started"
    id: str
    prompt_tokens: int
    reused_tokens: int
    note: str = ""


class Piece(Wire):
    """More text. `tokens` so far, `seconds` since the first token."""

    kind: Literal["piece"] = "piece"
    id: str
    text: str
    tokens: int
    seconds: float


class Finished(Wire):
    """The answer ended: the model stopped, the length was reached, the context is full, or somebody cancelled.

    `ids` are all tokens it chose, the one that ended it included.
    """

    kind: Literal["finished"] = "finished"
    id: str
    reason: Literal["stop", "length", "context", "cancelled"]
    stats: Stats | None
    ids: tuple[int, ...] = ()


class Guess(Wire):
    """What a model would have said in a place, and with which probability."""

    text: str
    probability: float


class TokenScore(Wire):
    """One token of an answer: natural-log probabilities of who said it and of the dense model, given what stood before.

    `divergence` is KL(speaker ‖ dense) of the whole distribution in this place, in nats; `guesses` are the dense
    model's likeliest tokens, likeliest first. `text` is '' while a character is unfinished.
    """

    text: str
    log_probability: float
    dense_log_probability: float
    divergence: float
    guesses: tuple[Guess, ...]


class Scored(Wire):
    """The end of a Score: one entry a token."""

    kind: Literal["scored"] = "scored"
    id: str
    tokens: tuple[TokenScore, ...]
    seconds: float


class Failed(Wire):
    """The request ended without its answer. `worker`: the whole worker is gone, not only this request."""

    kind: Literal["failed"] = "failed"
    id: str
    message: str
    advice: str = ""
    worker: bool = False


class Report(Wire):
    """What the worker holds, least recently used first. `active` are ids of answers under way.

    `together`: whether several answers are computed at the same time, or in turn: what was measured to be faster.
    """

    kind: Literal["report"] = "report"
    id: str
    pid: int
    device: str
    models: tuple[ModelInfo, ...]
    active: tuple[str, ...]
    memory_bytes: int
    free_bytes: int
    together: bool = False


Event = Ready | Waiting | Loading | Evicted | Loaded | Started | Piece | Finished | Scored | Failed | Report
ENDS = (Loaded, Finished, Scored, Failed, Report)

_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="kind")])
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


def line(item: Request | Event) -> bytes:
    """One line of the wire, newline included."""
    return item.model_dump_json().encode() + b"\n"


def read_request(text: bytes) -> Request:
    """Parse one line of a request. pydantic.ValidationError (a ValueError) if it is none."""
    return _REQUEST.validate_json(text)


def read_event(text: bytes) -> Event:
    """Parse one line of an event. pydantic.ValidationError (a ValueError) if it is none."""
    return _EVENT.validate_json(text)


def conversation(messages: Sequence[tuple[str, str]]) -> tuple[Message, ...]:
    """(role, content) pairs as messages."""
    return tuple(Message.model_validate({"role": role, "content": content}) for role, content in messages)
