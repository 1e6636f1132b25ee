"""The chat gives way to the queue: models that nobody talks to leave while a run waits for their memory. No torch."""

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.chat.client import ChatClient

ASK_S = 1.0
"""Seconds that the inference worker has to say what it holds; one that is too busy for that is not idle."""


def unload_idle(chat: "ChatClient", kinds: Collection[str]) -> bool:
    """Let the chat's models go if they lie on a device of these kinds (`cpu`, `cuda`) and no answer is being made.

    Whether any were there to go. A prompt that comes meanwhile is answered first: the worker lets a model go only when
    its last answer has ended, and loads it again for the next one. The worker itself stays.
    """
    report = chat.status(ASK_S).report
    if report is None or report.active or report.device.partition(":")[0] not in kinds:
        return False
    for model in report.models:
        chat.unload(model.key)
    return bool(report.models)
