"""What the chat page and Compare ask about conversations: kept ones, votes, one's own prompts, who uses the device."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from core import board, roots
from core import device as hardware
from core.chat import documents, lens, sources
from core.chat.difference import Parting, Run, first_words, parting, runs
from core.chat.prepare import Prepared, Room, prepare, room
from core.chat.prompts import OFFERED, OwnPrompts
from core.chat.replay import Replay
from core.chat.transcripts import SUFFIX, Saved, load
from core.chat.votes import Duel, Standing, Vote, duels, standings
from core.errors import EspalierError, InputError
from core.estimate_work import BYTES, weight_bytes
from core.jobs.rundir import RunDirectory
from core.jobs.states import State
from core.models import catalogue
from core.storage.store import Store
from core.views import ChatModel

if TYPE_CHECKING:
    from core.chat.answers import Answer, Turn
    from core.chat.client import ChatClient
    from core.chat.conversation import Conversation
    from core.chat.protocol import TokenScore

LADDER = (0.1, 0.3, 0.5)
NEAR = 0.025
"""Ratios that count as one of the ladder's."""


@dataclass(frozen=True)
class Rung:
    """One step of the preset: a ratio and the model that has it, or None where no saved run has."""

    ratio: float
    model: ChatModel | None


class Talks:
    """A room of the service (core/service.py). Safe to call from many threads at once."""

    offered_prompts = OFFERED

    def __init__(self, store: Store, home: Path, sync: Callable[[], None], client: Callable[[], "ChatClient"]) -> None:
        self._store, self._home, self._sync, self._client = store, home, sync, client
        self.prompts = OwnPrompts(home / "chat")

    # --- kept conversations

    def saved(self, most: int = 200) -> pd.DataFrame:
        """Conversations on disk, newest first: conversation, created (UTC), prompts, first_prompt, titles (a list)."""
        self._sync()
        found = self._store.frame(
            "SELECT conversation, created, prompts, first_prompt, titles FROM chats "
            "ORDER BY created DESC NULLS LAST, conversation DESC LIMIT ?",
            [most],
        )
        found["titles"] = [json.loads(titles) for titles in found["titles"]]
        return found

    def transcript(self, conversation: str) -> Saved:
        """One of them. InputError if there is none of this name."""
        path = self._home / "chat" / f"{conversation}{SUFFIX}"
        if Path(conversation).name != conversation or not path.is_file() or path.is_symlink():
            raise InputError(f"There is no conversation {conversation!r}.", "Choose one from the list.")
        return load(path)

    def replay(self, conversation: str) -> Replay:
        """One of them, to be told again. InputError if it holds no prompt."""
        return Replay(self.transcript(conversation))

    def as_json(self, conversation: str) -> str:
        """One of them as a JSON document."""
        return documents.as_json(self.transcript(conversation))

    def as_markdown(self, conversation: str) -> str:
        """One of them as Markdown in which nothing a model said is markup."""
        return documents.as_markdown(self.transcript(conversation))

    # --- votes

    def votes(self) -> list[Vote]:
        """All blind votes, oldest first."""
        self._sync()
        rows = self._store.rows("SELECT models, titles, winner, verdict FROM chat_votes WHERE blind ORDER BY time")
        return [Vote(tuple(json.loads(m)), tuple(json.loads(t)), winner, verdict) for m, t, winner, verdict in rows]

    def standings(self) -> list[Standing]:
        """How often each model was chosen, with intervals; the most chosen first."""
        return standings(self.votes())

    def duels(self) -> list[Duel]:
        """Model against model."""
        return duels(self.votes())

    # --- who works where

    def device(self) -> str:
        """The device that answers are computed on."""
        return hardware.resolve_device(self._client().device)

    def at_work(self) -> str | None:
        """The name of a run that computes on the chat's GPU now; None on a CPU, which shares itself."""
        device = self.device()
        if device == "cpu":
            return None
        for status in board.live(self._store, self._home):
            if status.state is State.RUNNING and self._device_of(status.id, status.place) == device:
                names = self._store.rows("SELECT name FROM runs WHERE id = ?", [status.id])
                return str(names[0][0]) if names and names[0][0] else status.id
        return None

    def _device_of(self, run_id: str, place: str) -> str:
        if place:
            return place
        try:
            return hardware.resolve_device(RunDirectory.of(self._home / "runs", run_id).experiment().device)
        except EspalierError:
            return ""

    def move(self, device: str, mine: str = "", *, even_others: bool = False) -> int:
        """Answer on `cpu` or `auto` from now on; the models load there with the next prompt. Answers as `free`."""
        return self._client().leave(mine, device=device, even_others=even_others)

    def free(self, mine: str = "", *, even_others: bool = False) -> int:
        """End the worker, and with it all that its models hold and say.

        While it answers others than the conversation `mine`, nothing is done unless `even_others`, and the answer is
        how many answers and models they wait for; else it is 0.
        """
        return self._client().leave(mine, even_others=even_others)

    def others(self, mine: str = "") -> int:
        """How many answers and models others than the conversation `mine` wait for."""
        return self._client().others(mine)

    def room(self, models: Sequence[tuple[str, str]], device: str | None = None) -> Room:
        """Whether models given as (key, title) fit beside each other on the chat's device, or on another.

        Counted as the worker counts before it loads: a model's weights by its config, whether a run made it or not.
        """
        where = self.device() if device is None else hardware.resolve_device(device)
        size = BYTES[hardware.resolve_dtype("auto", where)]
        counted = {key: self._params(key) for key, _ in models}
        needed = {key: count * size for key, count in counted.items() if count is not None}
        unknown = tuple(title for key, title in models if counted[key] is None)
        return room(self._client(), needed, hardware.info(where).free_bytes, where, unknown)

    def _params(self, key: str) -> int | None:
        """Weights of a model; None where its config cannot be had or read."""
        try:
            return sources.params(self._client().source(key))
        except (EspalierError, OSError, ValueError):
            return None

    def prepare(
        self, models: Sequence[tuple[str, str]], said: Callable[[str], None] = lambda _: None
    ) -> Iterator[Prepared]:
        """Load and warm models given as (key, title); one entry a model as it is ready. `said` hears what it waits
        for."""
        return prepare(self._client(), models, said)

    # --- what is on stage

    def ladder(self, models: Sequence[ChatModel], runs_of: pd.DataFrame) -> list[Rung]:
        """The dense model and its runs at 10, 30 and 50 %: of the model and method that have most of them, newest
        first; rungs that no saved run stands on have no model."""
        saved = {model.run_id: model for model in models if model.run_id == model.key}
        dense = {model.key.removeprefix("dense:"): model for model in models if model.run_id is None}
        best: tuple[int, str, dict[float, ChatModel]] | None = None
        wanted = runs_of[runs_of["id"].isin(list(saved)) & runs_of["model"].isin(list(dense))]
        for (name, _), group in wanted.groupby(["model", "method"], sort=False):
            steps: dict[float, ChatModel] = {}
            for run_id, ratio in zip(group["id"], group["ratio"], strict=True):  # newest first
                rung = next((step for step in LADDER if abs(step - float(ratio or 0)) <= NEAR), None)
                if rung is not None:
                    steps.setdefault(rung, saved[run_id])
            if best is None or len(steps) > best[0]:
                best = (len(steps), str(name), steps)
        first = dense.get(best[1]) if best else next(iter(dense.values()), None)
        steps = best[2] if best else {}
        return [Rung(0.0, first), *(Rung(step, steps.get(step)) for step in LADDER)]

    # --- reading closer

    def look_closer(
        self,
        conversation: "Conversation",
        turn: "Turn",
        side: int,
        dense: ChatModel,
        said: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Fill the token lens of one answer: how surprised the dense model is by each of its tokens.

        `said` hears what is waited for.
        """
        answer = turn.answers[side]
        client = self._client()
        answer.scores = lens.measure(
            client,
            answer.source,
            client.source(dense.key, dense.title),
            conversation.messages(turn, side),
            answer.ids,
            owner=conversation.id,
            said=said,
        )

    def dense_of(self, key: str, models: Sequence[ChatModel], runs_of: pd.DataFrame) -> ChatModel | None:
        """The dense model that `key` was made from: itself, its run's, or, for a folder, the first that there is."""
        dense = [model for model in models if model.run_id is None]
        itself = next((model for model in dense if model.key == key), None)
        known = next((model for model in models if model.key == key), None)
        if itself is not None or known is None:
            return itself or next(iter(dense), None)
        names = runs_of.loc[runs_of["id"] == known.run_id, "model"]
        return next((model for model in dense if len(names) and model.key == f"dense:{names.iloc[0]}"), None)

    @staticmethod
    def shown_scores(answer: "Answer") -> "list[TokenScore]":
        """Scores of the tokens that make up the shown text."""
        return lens.within(answer.scores or (), answer.text)

    @staticmethod
    def strength(token: "TokenScore", by: lens.Measure) -> float:
        """How strongly a token is coloured, −1 to 1."""
        return lens.strength(token, by)

    @staticmethod
    def difference(text: str, other: str) -> list[Run]:
        """`text` in stretches that `other` shares or has not, word by word."""
        return runs(text, other)

    @staticmethod
    def parting(text: str, other: str) -> Parting:
        """Where two answers part."""
        return parting(text, other)

    @staticmethod
    def next_words(text: str, at: int) -> str:
        """The first words of `text` from a place on."""
        return first_words(text, at)

    def file_bytes(self, key: str) -> int | None:
        """Bytes of the weight files in a typed folder; of a hub id as its config says, as of listed models.

        None for what cannot be told, or is a folder that pages may not read.
        """
        if roots.inside(key) and (folder := Path(key).expanduser()).is_dir():
            return sum(file.stat().st_size for file in folder.glob("*.safetensors")) or None
        try:
            roots.require_model(key)
            return weight_bytes(catalogue.resolve(sources.choice(self._client().source(key))).architecture)
        except (EspalierError, ValueError):
            return None
