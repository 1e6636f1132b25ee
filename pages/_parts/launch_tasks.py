"""Which tasks a model is judged on: the chosen ones, and a search through all that lm-eval knows."""

from typing import Any

import streamlit as st

from core.experiment import describe
from core.service import Service
from pages._parts.launch_says import Says
from pages._parts.theme import html, plain

SHOWN = 18
HERE = ":material/download_done:"  # its data is on this machine


def show(service: Service, says: Says) -> None:
    """The chosen tasks, and beneath them the search."""
    offline = [task.name for task in service.tasks() if task.offline]  # the others are thousands: searched, not listed
    st.multiselect(
        "Tasks",
        list(dict.fromkeys([*offline, *st.session_state["launch_tasks"]])),
        accept_new_options=True,
        key="launch_tasks",
        persist_state="session",
        help=describe("evaluation.tasks")
        + " Others are found by the search; the path of a task's YAML file can be typed.",
        wrap=True,
        placeholder="No tasks: perplexity alone",
    )
    says.place("evaluation.tasks")
    _search(service)


def _search(service: Service) -> None:
    known = len(service.tasks())
    with st.popover("Search all tasks", icon=":material/search:", type="tertiary", key="launch_fold_tasks"):
        text = st.text_input(
            "Part of a name, such as mmlu, lambada or german",
            key="launch_task_search",
            persist_state="session",
            help="Names of tasks, groups and tags, from a list that is kept: no data is loaded for it.",
        )
        chosen = st.session_state["launch_tasks"]
        found = [task for task in service.tasks(text or "") if task.name not in chosen][:SHOWN]
        offered = {task.name: task for task in found if not task.unsafe}
        if offered:
            st.pills(
                "Add",
                list(offered),
                selection_mode="multi",
                format_func=lambda name: label(offered[name]) if name in offered else plain(name),
                key="launch_task_found",
                on_change=_add,
                label_visibility="collapsed",
                wrap=True,
            )
        st.html(f'<p class="esp-fact">{html(said(known, text or "", found))}</p>')


def label(task: Any) -> str:
    """`mmlu · 57 tasks`, marked where its data is on this machine."""
    mark = f"{HERE} " if task.offline else ""
    many = f" · {len(task.members)} tasks" if task.members else ""
    return f"{mark}{plain(task.name)}{plain(many)}"


def said(known: int, text: str, found: list[Any]) -> str:
    """What stands beneath the results."""
    if known <= 7:
        return "The list of all tasks is being made, once, in about ten seconds: until then only these are known."
    refused = [task.name for task in found if task.unsafe]
    words = [f"{known:,} names are known." if not text.strip() else "" if found else "No other name has that in it."]
    if text.strip() and len(found) >= SHOWN:
        words.append("More have it: another word narrows them.")
    if refused:
        names = ", ".join(refused[:3]) + (f" and {len(refused) - 3} more" if len(refused) > 3 else "")
        words.append(f"{names}: code that the model writes would be run, which only the command line can allow.")
    words.append("Marked ones are on this machine; the data of the others is fetched before pruning starts.")
    return " ".join(word for word in words if word)


def _add() -> None:
    """Take what was picked into the tasks, and clear the pick."""
    picked = st.session_state["launch_task_found"] or []
    st.session_state["launch_tasks"] = list(dict.fromkeys([*st.session_state["launch_tasks"], *picked]))
    st.session_state["launch_task_found"] = []
