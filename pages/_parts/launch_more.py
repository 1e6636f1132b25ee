"""What folds away on Launch: a default run needs none of it."""

from typing import Any, Literal, get_args, get_origin

import streamlit as st

from core.experiment import describe
from core.service import Service
from pages._parts.launch_says import Says
from pages._parts.launch_state import FILE

LATER = "Part of the file format already; a later version of Espalier does it."
PARTS = {"attention": "Attention heads", "mlp": "MLP channels"}
HEADS = {"kv_groups": "Whole KV groups", "query_heads": "Query heads in each group"}


def options(methods: list[Any]) -> None:
    """The methods' own options, drawn from their types."""
    kept: dict[str, dict[str, Any]] = dict(st.session_state["launch_options"])
    for method in methods:
        values = dict(kept.get(method.name, {}))
        for name, field in method.options.model_fields.items():
            value = values.get(name, field.get_default(call_default_factory=True))
            label = name.replace("_", " ").capitalize()
            if len(methods) > 1:
                label = f"{method.title}: {label.lower()}"
            values[name] = _option(field, label, value, f"launch_option_{method.name}_{name}")
        kept[method.name] = values
    st.session_state["launch_options"] = kept


def _option(field: Any, label: str, value: Any, key: str) -> Any:
    if key not in st.session_state:
        st.session_state[key] = value
    text = field.description
    if get_origin(field.annotation) is Literal:
        return st.segmented_control(
            label, get_args(field.annotation), key=key, persist_state="session", required=True, help=text
        )
    if field.annotation is bool:
        return st.checkbox(label, key=key, persist_state="session", help=text)
    if field.annotation in (int, float):
        return st.number_input(
            label, key=key, persist_state="session", help=text, step=1 if field.annotation is int else None
        )
    return st.text_input(label, key=key, persist_state="session", help=text)


def cut(service: Service, chosen: list[Any], kinds: set[str], says: Says) -> None:
    """Everything else about the cut."""
    with st.expander("More about the cut", key="launch_fold_cut"):
        if kinds & {"mask", "width"}:
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
        _later()
        if any(method and method.calibrated(_given(method)) for method in chosen):
            _calibration(service, says)


def _given(method: Any) -> dict[str, Any]:
    given: dict[str, Any] = st.session_state["launch_options"].get(method.name, {})
    return given


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
    st.checkbox(
        "Every layer ends with the same sizes",
        key="launch_same_sizes",
        persist_state="session",
        help=describe("pruning.same_sizes"),
    )
    says.place("pruning.same_sizes")


def _later() -> None:
    """Settings of later versions: shown, so that they can be found, and switched off, with the reason."""
    st.radio(
        "The ratio is a fraction of",
        ["these layers", "the whole model"],
        horizontal=True,
        disabled=True,
        key="launch_target",
        persist_state="session",
        help=f"{describe('pruning.target')} {LATER}",
    )
    st.radio(
        "Shared over the layers",
        ["the same in each", "one ranking over all", "by outlier share"],
        horizontal=True,
        disabled=True,
        key="launch_allocation",
        persist_state="session",
        help=f"{describe('pruning.allocation')} {LATER}",
    )
    st.checkbox(
        "Refit what reads the removed units",
        disabled=True,
        key="launch_reconstruct",
        persist_state="session",
        help=f"{describe('pruning.reconstruct')} {LATER}",
    )
    st.html('<p class="esp-fact">What is greyed out comes in a later version.</p>')


def _calibration(service: Service, says: Says) -> None:
    st.html('<p class="esp-kicker">Calibration text</p>')
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
