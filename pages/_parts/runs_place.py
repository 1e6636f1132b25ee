"""Where runs go: this machine, or a Ray cluster, chosen on Runs where the environment has not chosen."""

from __future__ import annotations

import streamlit as st

from core.errors import EspalierError
from core.service import ClusterView, Service, get_service
from pages._parts import theme
from pages._parts.runs_text import cluster_size

EVERY_S = 5


def show(service: Service) -> None:
    """A line to open, with what the cluster says of itself."""
    cluster = service.places.cluster()
    title = "Runs go to this machine" if cluster is None else "Runs go to a cluster"
    with st.expander(title, key="runs_place", icon=":material/dns:"):
        if cluster is not None:
            st.fragment(_state, run_every=EVERY_S, key="runs_place_state")()
        if service.places.fixed:
            st.html('<p class="esp-fact">ESPALIER_RAY_ADDRESS says so.</p>')
            return
        st.text_input(
            "Dashboard of a Ray cluster",
            service.places.address(),
            key="runs_place_address",
            placeholder="http://head:8265",
            help="All nodes and this app must see Espalier and its folder at the same path: docs/cluster.md. "
            "Empty: this machine.",
            disabled=service.read_only,
            max_chars=300,
        )
        word = "Send runs there"
        st.button(word, key="runs_place_set", disabled=service.read_only, on_click=_set, args=(service,))


def _state() -> None:
    """What the cluster says of itself now."""
    cluster = get_service().places.cluster()
    if cluster is not None:
        st.html(f'<p class="esp-fact">{_says(cluster)}</p>')


def _says(cluster: ClusterView) -> str:
    where = f"<code>{theme.html(cluster.address)}</code>"
    if not cluster.reachable:
        return f"{where} does not answer, and nothing is started: {theme.html(cluster.problem)}"
    return f"{where} has {theme.html(cluster_size(cluster))}. {theme.html(cluster.problem)}"


def _set(service: Service) -> None:
    try:
        service.places.set_address(st.session_state["runs_place_address"])
    except EspalierError as error:
        st.session_state["runs_problem"] = str(error)
