"""The pinned baseline: what the chosen runs are held against."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from core.service import Service
from pages._parts import theme

AUTOMATIC = "each run's own dense model"
_TAIL = 13
"""Letters of an id that tell two runs of one name apart."""


def pin(service: Service, chosen: Sequence[str]) -> tuple[dict[str, str | None], str | None]:
    """(run id → what it is held against, the pinned run or None)."""
    names = _names(service, chosen)
    pinned = st.selectbox(
        "Baseline",
        [AUTOMATIC, *names],
        key="compare_baseline",
        width=520,
        bind="query-params",
        format_func=lambda option: option if option == AUTOMATIC else _label(names[option], option),
        help="What differences are taken against: one run for all, or, without a pin, the dense run of the same model, "
        "format and protocol.",
        icon=":material/push_pin:",
    )
    fixed = None if pinned == AUTOMATIC else str(pinned)
    return service.compare.baselines(chosen, fixed), fixed


def _names(service: Service, chosen: Sequence[str]) -> dict[str, str]:
    """Id → name of what can be pinned: dense runs, the chosen ones, and what the URL names."""
    asked = st.query_params.get("compare_baseline", "")
    now = str(st.session_state.get("compare_baseline", AUTOMATIC))
    ids = [*chosen, *service.compare.ending(asked.rpartition(" · ")[2]), now]
    return service.compare.pinnable(ids)


def _label(name: str, run_id: str) -> str:
    return f"{name} · {run_id[-_TAIL:]}"


def without_baseline(service: Service, baselines: dict[str, str | None]) -> None:
    """Where chosen runs have no dense run: say so, and offer it."""
    bare = [run_id for run_id, baseline in baselines.items() if baseline is None]
    if not bare:
        return
    names = service.compare.runs(bare).set_index("id").loc[bare, "name"].astype(str).tolist()
    st.html(theme.note(f"No dense run was judged like {_list(names)}: no differences for them."))
    if service.read_only:
        return
    if st.button("Queue the dense baseline", key="compare_queue_dense"):
        service.submit_baselines(bare)
        st.switch_page("runs.py", query_params={})


def _list(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
