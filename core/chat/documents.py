"""Conversations to take away: one JSON document, or Markdown in which nothing a model said is markup."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from core.chat.transcripts import Saved, SavedAnswer, SavedTurn

_TICKS = re.compile(r"`+")
_SIGNS = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|~$:&^=@])")


def as_json(saved: Saved) -> str:
    """Everything the transcript holds, in its last form."""
    turns = []
    for turn in saved.turns:
        content: dict[str, Any] = asdict(turn)
        content["models"] = [{"key": key, "title": title} for key, title in turn.models]
        content["answers"] = [asdict(turn.answers[side]) for side in sorted(turn.answers)]
        turns.append(content)
    document = {"schema": 1, "conversation": saved.id, "created": saved.created, "turns": turns}
    return json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def as_markdown(saved: Saved) -> str:
    """A document to read. Prompts and answers stand in fences longer than any in them: text stays text."""
    parts = [f"# Conversation {plain(saved.id)}", ""]
    if saved.created:
        parts += [f"{saved.created[:16].replace('T', ' ')} UTC · {' · '.join(map(plain, saved.titles))}", ""]
    for turn in saved.turns:
        parts += _turn(turn)
    return "\n".join(parts).rstrip() + "\n"


def plain(text: str) -> str:
    """Text for a line of Markdown, shown as it is."""
    return _SIGNS.sub(r"\\\1", " ".join(text.split()))


def fenced(text: str) -> str:
    """Text in a fence that nothing in it can close."""
    fence = "`" * max(3, 1 + max((len(found) for found in _TICKS.findall(text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def _turn(turn: SavedTurn) -> list[str]:
    parts = [f"## Prompt {turn.number}", "", fenced(turn.prompt), "", f"*{_settings(turn)}*", ""]
    if turn.system:
        parts += ["System prompt:", "", fenced(turn.system), ""]
    for side in sorted(turn.answers):
        answer = turn.answers[side]
        parts += [f"### {plain(answer.title)}", "", fenced(answer.text), "", f"*{_measures(answer)}*", ""]
    if turn.vote is not None:
        who = {"tie": "a tie", "bad": "all bad"}.get(turn.vote.verdict)
        names = dict(zip(turn.vote.order, turn.vote.titles, strict=False))
        blind = "blind" if turn.vote.blind else "not blind"
        parts += [f"Vote ({blind}): {who or plain(names.get(turn.vote.winner or '', turn.vote.verdict))}", ""]
    return parts


def _settings(turn: SavedTurn) -> str:
    sampling: Mapping[str, Any] = turn.sampling
    said = [f"{name.replace('_', ' ')} {sampling[name]}" for name in ("temperature", "top_p", "max_tokens", "seed")
            if name in sampling]  # fmt: skip
    stop = [repr(text) for text in sampling.get("stop", [])]
    return plain(", ".join([*said, *([f"stop {', '.join(stop)}"] if stop else [])])) or "settings not recorded"


def _measures(answer: SavedAnswer) -> str:
    said = [answer.state]
    if answer.tokens_per_second is not None:
        said.append(f"{answer.tokens_per_second:.1f} tokens/s")
    said.append(f"{answer.tokens} tokens")
    if answer.first_token_seconds is not None:
        said.append(f"first after {answer.first_token_seconds:.2f} s")
    if answer.memory_bytes:
        said.append(f"{answer.memory_bytes / 1e6:.0f} MB")
    if answer.notice:
        said.append(answer.notice)
    return plain(" · ".join(said))
