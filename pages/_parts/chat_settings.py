"""How answers are made: the same for all sides."""

from dataclasses import dataclass
from typing import Any

import streamlit as st

_ENDS = "Texts that end an answer, one a line; at most eight"


@dataclass(frozen=True)
class Settings:
    """`sampling` are fields of the protocol's Sampling; `system` stands before every conversation."""

    sampling: dict[str, Any]
    system: str


def show() -> Settings:
    """The popover with all of them."""
    kept: dict[str, Any] = {"persist_state": "session"}
    with st.popover("Answers", icon=":material/tune:", key="chat_answers"):
        system = st.text_area(
            "System prompt", key="chat_system", max_chars=8000, height=90, placeholder="none",
            help="Stands before the conversation, where the model's chat template has a place for it.", **kept,
        )  # fmt: skip
        left, right = st.columns(2)
        temperature = left.slider(
            "Temperature", 0.0, 2.0, 0.0, 0.1, key="chat_temperature", **kept,
            help="0: always the likeliest token, so that the same prompt gets the same answer. Above: drawn by chance, "
            "with the same random numbers on all sides.",
        )  # fmt: skip
        top_p = right.slider(
            "Top-p", 0.05, 1.0, 1.0, 0.05, key="chat_top_p", disabled=temperature == 0, **kept,
            help="Only the likeliest tokens that have this much probability together. 1: all.",
        )  # fmt: skip
        left, right = st.columns(2)
        length = left.number_input("Longest answer, in tokens", 1, 4096, 256, step=64, key="chat_max_tokens", **kept)
        seed = right.number_input("Seed", 0, 2**31 - 1, 0, key="chat_seed", disabled=temperature == 0, **kept)
        ends = st.text_area(_ENDS, key="chat_stop", max_chars=900, height=70, placeholder="none", **kept)
        st.html('<p class="esp-fact">All sides have the same settings and the same seed.</p>')
    stop = tuple(line[:100] for line in str(ends or "").split("\n") if line.strip())[:8]
    sampling = {
        "max_tokens": int(length),
        "temperature": float(temperature),
        "top_p": float(top_p),
        "seed": int(seed),
        "stop": tuple(text.replace("\\n", "\n") for text in stop),
    }
    return Settings(sampling, str(system or ""))


def blind() -> bool:
    """Whether the next prompts are answered by sides without names."""
    return st.toggle(
        "Blind",
        key="chat_blind",
        persist_state="session",
        help="Sides are shuffled with each prompt and have no names until you have voted. All are shown at the pace of "
        "the slowest, so that speed tells nothing.",
    )
