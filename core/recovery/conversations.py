"""Instruction rows and chats in tokens: framed by the model's own chat template; what the assistant says is learned."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.errors import DataError

Message = dict[str, str]


@dataclass
class _Framed:
    """A conversation as text, and where in it the learned stretches stand: [start, stop) in characters."""

    text: str = ""
    spans: list[tuple[int, int]] = field(default_factory=list)


def instruction(row: Mapping[str, Any], where: str) -> list[Message]:
    """{instruction, input, output} as a question and an answer. DataError where the row is not of this form."""
    asked = text_of(row, where, "instruction")
    more = text_of(row, where, "input", needed=False)
    question = f"{asked}\n\n{more}" if more.strip() else asked
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": text_of(row, where, "output")},
    ]


def chat(row: Mapping[str, Any], where: str) -> list[Message]:
    """Chat messages, under `messages` or `conversations`. DataError where there are none."""
    found = row.get("messages", row.get("conversations"))
    good = isinstance(found, list) and all(
        isinstance(each, dict) and isinstance(each.get("role"), str) and isinstance(each.get("content"), str)
        for each in found
    )
    if not good or found is None:
        raise DataError(
            f"{where} has no list `messages` of {{role, content}}.",
            "Choose the format that the file has: recovery.data.format.",
        )
    return [{"role": each["role"], "content": each["content"]} for each in found]


def text_of(row: Mapping[str, Any], where: str, key: str, *, needed: bool = True) -> str:
    """The text under a key of a row; '' where it may be missing. DataError where it is no text."""
    value = row.get(key)
    if value is None and not needed:
        return ""
    if not isinstance(value, str):
        raise DataError(
            f"{where} has no text under `{key}` (its keys: {', '.join(map(str, row)) or 'none'}).",
            "Choose the format that the file has: recovery.data.format.",
        )
    return value


def conversation(messages: list[Message], tokenizer: Any, where: str) -> Iterator[tuple[list[int], list[bool]]]:
    """(tokens, which of them are learned) of a conversation; of several where its template rewrites what stood before.

    The whole text is tokenised at once, as it will be when somebody talks to the model. Without a template roles are
    headings, and the end token follows each answer. DataError where the template refuses the messages.
    """
    from jinja2 import TemplateError

    framed = _templated if getattr(tokenizer, "chat_template", None) else _headed
    try:
        found = framed(messages, tokenizer)
    except TemplateError as error:
        raise DataError(
            f"{where} does not fit the model's chat template: {error}.",
            "Leave such rows out, or give each as the model's family wants its roles.",
        ) from error
    for each in found:
        yield _tokens(each.text, each.spans, tokenizer)


def _templated(messages: list[Message], tokenizer: Any) -> list[_Framed]:
    """The text up to an answer is the template with its prompt for one; what an answer adds to that is learned.

    Some templates prompt for what an answer then does not have (an empty thought): it begins where both part. Some
    write earlier answers differently once there is a later one: that one then stands in a text of its own.
    """

    def text(upto: int, *, prompt: bool) -> str:
        made: str = tokenizer.apply_chat_template(messages[:upto], tokenize=False, add_generation_prompt=prompt)
        return made

    found = [_Framed()]
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompted, answered = text(number, prompt=True), text(number + 1, prompt=False)
        start = len(prompted)
        if not answered.startswith(prompted):
            start = _shared(prompted, answered)
            if not answered.startswith(text(number, prompt=False)):
                continue  # it cannot be told where the answer begins
        if not answered.startswith(found[-1].text):
            found.append(_Framed())
        found[-1].text = answered
        found[-1].spans.append((start, len(answered)))
    return found


def _shared(one: str, other: str) -> int:
    """How many characters both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _headed(messages: list[Message], tokenizer: Any) -> list[_Framed]:
    found, end = _Framed(), tokenizer.eos_token or ""
    for message in messages:
        found.text += f"### {message['role'].capitalize()}:\n"
        start = len(found.text)
        if message["role"] == "assistant":
            found.text += message["content"] + end
            found.spans.append((start, len(found.text)))
        else:
            found.text += message["content"] + "\n\n"
    return [found]


def _tokens(text: str, spans: Sequence[tuple[int, int]], tokenizer: Any) -> tuple[list[int], list[bool]]:
    """Tokens of a text; those that begin in a span are learned."""
    if getattr(tokenizer, "is_fast", False):
        made = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        places = [place for place, _ in made["offset_mapping"]]
        return list(made["input_ids"]), [any(start <= place < stop for start, stop in spans) for place in places]
    ids: list[int] = []
    learned: list[bool] = []
    place = 0
    for start, stop in [*spans, (len(text), len(text))]:  # a tokenizer that does not tell places: stretch by stretch
        for part, mine in ((text[place:start], False), (text[start:stop], True)):
            some = tokenizer(part, add_special_tokens=False)["input_ids"] if part else []
            ids += some
            learned += [mine] * len(some)
        place = stop
    return ids, learned
