"""The stage: chat for a projector. Large text, nothing else on the page; models made ready before people watch."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from core.errors import EspalierError
from core.service import Service
from pages._parts import chat_choose, chat_view, theme

if TYPE_CHECKING:
    from core.chat.conversation import Conversation
    from core.chat.replay import Replay

STYLES = Path(__file__).with_name("stage.css")
REPLAY, RETOLD, SAID, READY = "chat_replay", "chat_retold", "chat_stage_said", "chat_stage_ready"


def on() -> bool:
    """Whether the page is the stage. The switch is drawn further down, so its state is read here."""
    if "chat_stage" in st.session_state:
        return bool(st.session_state["chat_stage"])
    return st.query_params.get("chat_stage") == "true"


def switch() -> None:
    """The way onto the stage and back; in the address, so that it can be opened at once."""
    st.toggle(
        "Stage", key="chat_stage", bind="query-params", help="For a projector: full width, large text, nothing else.",
    )  # fmt: skip


def dress() -> None:
    """Full width and large text."""
    st.html(STYLES)


def bar(service: Service, chosen: Sequence[tuple[str, str]]) -> bool:
    """The preset, and the button that makes ready; whether that was pressed."""
    with st.container(key="chat_stage_bar", horizontal=True, vertical_alignment="center", width="content"):
        st.button(
            "0 · 10 · 30 · 50 %", key="chat_ladder", icon=":material/stairs:", on_click=_ladder, args=(service,),
            help="The dense model beside its runs at 10, 30 and 50 %.",
        )  # fmt: skip
        return st.button(
            "Prepare", key="chat_prepare", icon=":material/check_circle:", disabled=not chosen,
            help="Checks memory, then loads and warms all chosen models, so that the first prompt need not wait.",
        )  # fmt: skip


def readiness(service: Service, chosen: Sequence[tuple[str, str]], *, prepare: bool) -> None:
    """Make the models ready, or say that they are; and what the preset could not find."""
    if (said := st.session_state.pop(SAID, "")) != "":
        st.html(theme.note(said, level="info"))
    if prepare:
        _prepare(service, chosen)
    elif st.session_state.get(READY, ("", ""))[0] == _names(service, chosen):
        said = st.session_state[READY][1]
        if not _in_memory(service, chosen):
            said = "No longer ready: not all of these models are in memory. Prepare again."
        st.html(f'<p class="esp-fact esp-ready" role="status">{theme.html(said)}</p>')


def _names(service: Service, chosen: Sequence[tuple[str, str]]) -> str:
    """What was made ready: these models, where answers are computed."""
    return "\n".join([service.chat_client().device, *(key for key, _ in chosen)])


def _in_memory(service: Service, chosen: Sequence[tuple[str, str]]) -> bool:
    """Whether the worker holds all of them now: after a crash, *Free memory* or another's models it may not."""
    report = service.chat_client().status().report
    return report is not None and {key for key, _ in chosen} <= {model.key for model in report.models}


def _prepare(service: Service, chosen: Sequence[tuple[str, str]]) -> None:
    """Memory first, then one model after the other; what is ready stays said. Not beside a run on the same GPU."""
    if (run := service.talks.at_work()) is not None:
        said = f"Not prepared: {run} works on this GPU. Prepare when it has ended, or answer on the CPU."
        st.html(theme.note(said, level="error"))
        return
    room = service.talks.room(chosen)
    if room.unknown:
        said = f"The size of {', '.join(room.unknown)} is not known: memory was checked without it."
        st.html(theme.note(said))
    if not room.enough:
        st.html(
            theme.note(
                f"Not prepared: these models need {theme.size(room.need)} more, but {theme.size(max(room.free, 0))} "
                "are free. Choose fewer or smaller ones, or end other programs.",
                level="error",
            )
        )
        return
    total = 0
    waits: list[float] = []
    problems: list[str] = []
    place = st.empty()

    def say(text: str) -> None:
        place.html(f'<p class="esp-fact esp-ready" role="status">{theme.html(text)}</p>')

    for count, ready in enumerate(service.talks.prepare(chosen, say), 1):
        if ready.problem:
            problems.append(f"{ready.title}: {ready.problem}")
        total, waits = total + ready.memory_bytes, [*waits, ready.first_seconds]
        say(f"{count} of {len(chosen)} models are warm")
    place.empty()
    if problems:
        st.html("".join(theme.note(problem, level="error") for problem in problems))
        return
    said = f"Ready: {len(chosen)} models, {theme.size(total)} of memory, first token after {max(waits):.2f} s at most."
    st.session_state[READY] = (_names(service, chosen), said)
    st.html(f'<p class="esp-fact esp-ready" role="status">{theme.html(said)}</p>')


def _ladder(service: Service) -> None:
    """Choose the preset's models; say which rungs no saved run stands on."""
    rungs = service.talks.ladder(service.chat_models(), service.runs())
    found = [rung.model.key for rung in rungs if rung.model is not None]
    missing = [f"{rung.ratio:.0%}".replace("%", " %") for rung in rungs if rung.model is None]
    chat_choose.forget()
    chat_choose.put(found)
    if missing:
        st.session_state[SAID] = f"No saved run at {', '.join(missing)}: queue it on Launch, with its model kept."


# --- replays


def begin(service: Service, conversation: str) -> None:
    """Leave the live conversation for a kept one."""
    try:
        replay = service.talks.replay(conversation)
    except EspalierError as error:
        st.session_state[SAID] = str(error)
        return
    st.session_state[REPLAY] = replay
    st.session_state[RETOLD] = replay.conversation()


def leave() -> None:
    """Back to what is live."""
    retold: Conversation | None = st.session_state.pop(RETOLD, None)
    if retold is not None:
        retold.stop()
    st.session_state.pop(REPLAY, None)


def replaying() -> "Replay | None":
    """The replay under way, if there is one."""
    found: Replay | None = st.session_state.get(REPLAY)
    return found


def play(service: Service, replay: "Replay") -> None:
    """A kept conversation, prompt by prompt, always labelled as what it is."""
    told: Conversation = st.session_state[RETOLD]
    following = replay.next_prompt(told)
    with st.container(key="chat_replay", horizontal=True, vertical_alignment="center"):
        st.html(f'<p class="esp-replay" role="status"><b>{theme.html(told.label)}</b> · no model is answering now</p>')
        st.button(
            "Next prompt", key="chat_replay_next", icon=":material/skip_next:", type="primary",
            disabled=following is None, on_click=replay.play, args=(told,),
        )  # fmt: skip
        st.button("Leave the replay", key="chat_replay_leave", icon=":material/close:", on_click=leave)
    if following is None and told.turns:
        st.html('<p class="esp-fact">The transcript ends here.</p>')
    chat_view.show(service, told, fixed=True)
