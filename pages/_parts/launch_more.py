"""What folds away on Launch: a default run needs none of it."""

from typing import Any

import streamlit as st

from core.experiment import describe
from core.service import Service
from pages._parts.launch_build import allocations, reads_text
from pages._parts.launch_says import Says
from pages._parts.launch_state import FILE
from pages._parts.launch_words import ALLOCATIONS, KINDS

PARTS = {"attention": "Attention heads", "mlp": "MLP channels"}
HEADS = {"kv_groups": "Whole KV groups", "query_heads": "Query heads in each group"}


def cut(chosen: list[Any], kinds: set[str], says: Says) -> None:
    """Everything else about the cut; depth and hidden-channel methods have nothing else."""
    if not kinds & {"mask", "width"}:
        return
    with st.expander("More about the cut", key="launch_fold_cut"):
        st.pills(
            "Parts",
            list(PARTS),
            selection_mode="multi",
            format_func=PARTS.__getitem__,
            key="launch_parts",
            persist_state="session",
            help=describe("pruning.parts"),
        )
        says.place("pruning.parts")
        if "width" in kinds:
            _width(says)
        _allocation(chosen)
        if "width" in kinds:
            _same_sizes(says)
            st.checkbox(
                "Refit what reads the removed units",
                key="launch_reconstruct",
                persist_state="session",
                help=describe("pruning.reconstruct"),
            )
        says.place("pruning.reconstruct", "pruning.allocation", "pruning")


def _allocation(chosen: list[Any]) -> None:
    """How the ratio is shared over the layers, where there is a choice."""
    offered = allocations(chosen, st.session_state)
    for kind, choices in offered.items():
        st.segmented_control(
            "Shared over the layers" + (f": {KINDS[kind].lower()}" if len(offered) > 1 else ""),
            choices,
            format_func=ALLOCATIONS.__getitem__,
            key=f"launch_allocation_{kind}",
            persist_state="session",
            required=True,
            help=describe("pruning.allocation"),
        )


def _width(says: Says) -> None:
    st.segmented_control(
        "Unit of attention",
        list(HEADS),
        format_func=HEADS.__getitem__,
        key="launch_heads",
        persist_state="session",
        required=True,
        help=describe("pruning.heads"),
    )
    says.place("pruning.heads")
    st.select_slider(
        "Kept MLP widths are multiples of",
        [1, 8, 16, 32, 64, 128, 256],
        key="launch_round_to",
        persist_state="session",
        help=describe("pruning.round_to"),
    )
    says.place("pruning.round_to")


def _same_sizes(says: Says) -> None:
    """Where one ranking runs over all layers, they do not end alike."""
    if st.session_state["launch_allocation_width"] == "uniform":
        st.checkbox(
            "Every layer ends with the same sizes",
            key="launch_same_sizes",
            persist_state="session",
            help=describe("pruning.same_sizes"),
        )
    says.place("pruning.same_sizes")


def calibration(service: Service, chosen: list[Any], says: Says) -> None:
    """The text, where anything about the cut reads it."""
    offered = allocations(chosen, st.session_state)
    owl = "mask" in offered and st.session_state["launch_allocation_mask"] == "owl"
    if owl or any(reads_text(method, st.session_state) for method in chosen):
        with st.expander("Calibration text", key="launch_fold_calibration"):
            _calibration(service, says)


def _calibration(service: Service, says: Says) -> None:
    corpora = {corpus.name: corpus for corpus in service.corpora()}
    left, right = st.columns(2)
    with left:
        corpus = st.selectbox(
            "Corpus",
            [*corpora, FILE],
            format_func=lambda name: "a text file" if name == FILE else name,
            key="launch_calibration_corpus",
            persist_state="session",
            help=describe("pruning.calibration.corpus"),
        )
    with right:
        if corpus == FILE:
            st.text_input(
                "Path",
                key="launch_calibration_path",
                persist_state="session",
                help=describe("pruning.calibration.path"),
            )
        else:
            splits = corpora[corpus].splits
            if st.session_state["launch_calibration_split"] not in splits:
                st.session_state["launch_calibration_split"] = splits[0]
            st.selectbox(
                "Split",
                splits,
                key="launch_calibration_split",
                persist_state="session",
                help=describe("pruning.calibration.split"),
            )
    says.place("pruning.calibration", "pruning.calibration.path", "pruning.calibration.corpus")
    for column, (key, label, low, high) in zip(
        st.columns(3),
        [("samples", "Windows", 1, 100_000), ("length", "Tokens in each", 8, 131_072), ("seed", "Seed", 0, 2**53 - 1)],
        strict=True,
    ):
        column.number_input(
            label,
            low,
            high,
            value=None if key == "seed" else "min",
            placeholder="the run's",
            key=f"launch_calibration_{key}",
            persist_state="session",
            help=describe(f"pruning.calibration.{key}"),
        )
    says.place("pruning.calibration.length", "pruning.calibration.samples", "pruning.calibration.seed")


def evaluation(says: Says) -> None:
    """Everything else about evaluation."""
    with st.expander("More about evaluation", key="launch_fold_evaluation"):
        left, right = st.columns(2)
        left.number_input(
            "Perplexity window, tokens",
            8,
            131_072,
            key="launch_perplexity_window",
            persist_state="session",
            help=describe("evaluation.perplexity.window"),
        )
        right.number_input(
            "At most, tokens",
            8,
            None,
            value=None,
            placeholder="all",
            key="launch_perplexity_max_tokens",
            persist_state="session",
            help=describe("evaluation.perplexity.max_tokens"),
        )
        says.place("evaluation.perplexity.window", "evaluation.perplexity.max_tokens")
        st.checkbox(
            "Begin each window with BOS",
            key="launch_perplexity_bos",
            persist_state="session",
            help=describe("evaluation.perplexity.bos"),
        )
        st.number_input(
            "Solved examples before each question",
            0,
            64,
            key="launch_shots",
            persist_state="session",
            help=describe("evaluation.shots"),
        )
        st.checkbox(
            "Chat template",
            key="launch_chat_template",
            persist_state="session",
            help=describe("evaluation.chat_template"),
        )
        says.place("evaluation.chat_template")
        st.checkbox(
            "Fidelity to the dense model",
            key="launch_fidelity",
            persist_state="session",
            help=describe("evaluation.fidelity"),
        )
        st.checkbox("Speed and memory", key="launch_speed", persist_state="session", help=describe("evaluation.speed"))


def run(says: Says) -> None:
    """Name, seed, device, and what stays on disk."""
    with st.expander("Name, seed, device", key="launch_fold_run"):
        st.text_input(
            "Name",
            key="launch_name",
            persist_state="session",
            max_chars=160,
            placeholder="from method and ratio",
            help=describe("name"),
        )
        left, middle, right = st.columns(3)
        left.number_input("Seed", 0, 2**53 - 1, key="launch_seed", persist_state="session", help=describe("seed"))
        middle.selectbox(
            "Device",
            ["auto", "cpu", "cuda"],
            accept_new_options=True,
            key="launch_device",
            persist_state="session",
            help=describe("device"),
        )
        right.selectbox(
            "Number format",
            ["auto", "float32", "bfloat16", "float16"],
            key="launch_dtype",
            persist_state="session",
            help=describe("model.dtype"),
        )
        says.place("device", "model.dtype", "seed", "name")
        st.checkbox(
            "Keep the pruned weights", key="launch_save_model", persist_state="session", help=describe("save_model")
        )
