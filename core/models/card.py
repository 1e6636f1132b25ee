"""The model card of an export: what was cut, how it was judged, what loads it, and how to repeat it.

Pure text. Names of runs, models and tasks come from people: they are shown as text, never as Markdown or HTML.
"""

import html
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.models.engines import Engine, zeros_in_words

_SPECIAL = re.compile(r"([\\`*_{}\[\]|~$]|^[#+\-=])")
_FRACTIONS = ("acc", "acc_norm", "exact_match", "f1", "top1_agreement")
_WORDS = {
    "kl_per_token": "KL to the dense model, nats a token",
    "top1_agreement": "same next token as the dense model",
    "peak_memory_bytes": "peak memory, MB",
    "prefill_tokens_per_second": "prefill, tokens a second",
    "decode_tokens_per_second": "decode, tokens a second",
    "first_token_milliseconds": "first token, ms",
}


@dataclass(frozen=True)
class CardFacts:
    """Everything the card says. Ratios are fractions removed, sizes bytes."""

    title: str
    model_name: str
    base_model: str | None
    """The hub's id of the dense model, None where it has none."""
    license: str | None
    format: str
    dtype: str
    architecture: str
    params: int
    engines: Sequence[Engine]
    seed: int | None = None
    recovery: str = ""
    """How it was trained after the cut, or ."""
    method: str | None = None
    method_title: str = ""
    method_url: str = ""
    kind: str = ""
    pattern: str | None = None
    ratio: float | None = None
    target: str = "selected"
    layers: tuple[int, int] | None = None
    n_layers: int | None = None
    parts: Sequence[str] = ()
    achieved_ratio: float | None = None
    achieved_model_ratio: float | None = None
    params_before: int | None = None
    nonzero: int | None = None
    metrics: Sequence[Mapping[str, Any]] = ()
    dense: Mapping[tuple[str, str, str], Mapping[str, Any]] = field(default_factory=dict)
    """Metrics of the dense model by (task, metric, protocol as text)."""
    checks: Sequence[str] = ()
    notes: Sequence[str] = ()
    yaml: str | None = None
    files: Sequence[str] = ()
    per_layer_code: bool = False
    version: str = ""


def plain(text: object) -> str:
    """Text for Markdown, shown as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def card(facts: CardFacts) -> str:
    """README.md of the export, with the front matter that a hub reads."""
    parts = [
        front_matter(facts),
        f"# {plain(facts.title)}\n",
        _what(facts),
        _use(facts),
        _numbers(facts),
        _engines(facts),
        _bullets("Checked before it was written", [f"{text}." for text in facts.checks]),
        _bullets("Notes", [f"{text[:1].upper()}{text[1:]}." for text in facts.notes]),
        _licence(facts),
        _repeat(facts),
    ]
    return "\n".join(part for part in parts if part)


def front_matter(facts: CardFacts) -> str:
    """The YAML head between `---` lines: base_model, library_name, license, tags."""
    from huggingface_hub import ModelCardData

    tags = ["espalier"]
    if facts.method is not None:
        tags += ["pruned", facts.method] + (["sparse"] if facts.kind == "mask" else [])
    tags += ["gguf"] if facts.format == "gguf" else []
    tags += ["custom_code"] if facts.per_layer_code else []
    relation: dict[str, Any] = {}
    if facts.base_model is not None and facts.format == "gguf" and facts.method is None:
        relation = {"base_model_relation": "quantized"}
    data = ModelCardData(
        base_model=facts.base_model,
        library_name="gguf" if facts.format == "gguf" else "transformers",
        license=facts.license.lower() if facts.license else None,
        pipeline_tag="text-generation",
        tags=tags,
        **relation,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _what(facts: CardFacts) -> str:
    base = plain(facts.base_model or facts.model_name)
    if facts.method is None:
        return f"{base}, not pruned: the dense model as {facts.format} in {facts.dtype}, {facts.params:,} parameters.\n"
    rows = [("Dense model", base)]
    title = plain(facts.method_title or facts.method)
    rows.append(("Method", f"[{title}]({facts.method_url})" if facts.method_url.startswith("https://") else title))
    rows.append(("Ratio asked", _asked(facts)))
    verb = "set to zero" if facts.kind == "mask" else "removed"
    if facts.achieved_ratio is not None:
        rows.append((f"Achieved, of what was selected ({verb})", _percent(facts.achieved_ratio)))
    if facts.achieved_model_ratio is not None:
        rows.append((f"Achieved, of the whole model ({verb})", _percent(facts.achieved_model_ratio)))
    rows.append(("Layers", _layers(facts)))
    rows.append(("Parts", plain(", ".join(facts.parts)) or "–"))
    rows.append(("Parameters", _parameters(facts)))
    rows += [("Recovery", plain(facts.recovery))] if facts.recovery else []
    if facts.seed is not None:
        rows.append(("Seed", str(facts.seed)))
    rows.append(("Format", f"{facts.format}, {facts.dtype}, architecture {plain(facts.architecture)}"))
    text = "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows)
    if facts.kind == "mask" and facts.pattern:
        text += f"\n{zeros_in_words(facts.pattern)}\n"
    return text


def _asked(facts: CardFacts) -> str:
    if facts.pattern and facts.pattern != "unstructured":
        return facts.pattern
    asked = "–" if facts.ratio is None else _percent(facts.ratio)
    return f"{asked} of {'the whole model' if facts.target == 'model' else 'the selected layers'}"


def _layers(facts: CardFacts) -> str:
    total = "" if facts.n_layers is None else f" of 0–{facts.n_layers - 1}"
    return f"all{total}" if facts.layers is None else f"{facts.layers[0]}–{facts.layers[1]}{total}"


def _parameters(facts: CardFacts) -> str:
    text = f"{facts.params:,}"
    if facts.params_before is not None and facts.params_before != facts.params:
        text = f"{facts.params_before:,} → {text}"
    if facts.nonzero is not None and facts.kind == "mask":
        text += f", {facts.nonzero:,} of them not zero"
    return text


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _use(facts: CardFacts) -> str:
    if facts.format == "gguf":
        name = next((name for name in facts.files if name.endswith(".gguf")), "model.gguf")
        return f"## Use\n\n```sh\nllama-cli -m {name}\n```\n"
    trust = ", trust_remote_code=True" if facts.per_layer_code else ""
    why = (
        "The layers differ in size, which no stock class holds: two short code files in this folder build each layer "
        "from its own sizes. Read them before you allow them.\n"
    )
    return (
        "## Use\n\n```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder"{trust})\n'
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")\n```\n' + (f"\n{why}" if trust else "")
    )


def _numbers(facts: CardFacts) -> str:
    rows = [metric for metric in facts.metrics if metric.get("stage") != "dense"]
    if not rows:
        return ""
    beside = {key for metric in rows if (key := metric_key(metric)) in facts.dense}
    head = "| task | metric | value ± standard error |" + (" dense |" if beside else "") + " measured on |\n"
    lines = ["## Numbers\n\n" + head + "|---|---|---|" + ("---|" if beside else "") + "---|\n"]
    for metric in rows:
        name = str(metric.get("metric"))
        cells = [plain(metric.get("task")), plain(_WORDS.get(name, name)), _value(metric)]
        if beside:
            other = facts.dense.get(metric_key(metric))
            cells.append("–" if other is None else _value(other))
        cells.append(plain(_protocol(metric.get("protocol") or {})))
        lines.append("| " + " | ".join(cells) + " |\n")
    if facts.format == "gguf" or facts.dtype not in {str((m.get("protocol") or {}).get("dtype")) for m in rows}:
        lines.append("\nMeasured with transformers on the model as the run saved it, before this export.\n")
    return "".join(lines)


def metric_key(metric: Mapping[str, Any]) -> tuple[str, str, str]:
    """Task, metric and protocol: numbers with different keys do not belong beside one another."""
    protocol = {name: str(value) for name, value in sorted((metric.get("protocol") or {}).items())}
    return str(metric.get("task")), str(metric.get("metric")), str(protocol)


def _value(metric: Mapping[str, Any]) -> str:
    value, error, name = metric.get("value"), metric.get("stderr"), str(metric.get("metric"))
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    scale, unit = (100.0, " %") if name in _FRACTIONS else (1e-6, "") if name.endswith("_bytes") else (1.0, "")
    digits = 1 if scale == 100.0 else 0 if scale < 1 else 4 if abs(value) < 1 else 2
    text = f"{scale * value:,.{digits}f}"
    if isinstance(error, int | float) and math.isfinite(error):
        text += f" ± {scale * error:,.{digits}f}"
    return f"{text}{unit}"


def _protocol(protocol: Mapping[str, Any]) -> str:
    names = ("corpus", "split", "window", "tokens", "harness", "task_version", "shots", "limit", "chat_template",
             "data", "batch", "prompt", "device", "dtype")  # fmt: skip
    words = []
    for name in names:
        value = protocol.get(name)
        if value is None or value is False or (value is True and name != "chat_template"):
            continue
        number = f"{value:g}" if isinstance(value, int | float) else str(value)
        plain_words = {
            "shots": f"{number} shots",
            "limit": f"first {number} documents",
            "chat_template": "chat template",
        }
        known = name in ("corpus", "split", "harness", "data", "device", "dtype")
        words.append(plain_words.get(name, number if known else f"{name.replace('_', ' ')} {number}"))
    return ", ".join(words)


def _engines(facts: CardFacts) -> str:
    if facts.format == "gguf":
        return f"## Loads in\n\n- llama.cpp, and what is built on it: architecture {plain(facts.architecture)}\n"
    lines = [f"- {each.name}{'' if each.loads else ' does not load it'}: {each.how}" for each in facts.engines]
    return "## Loads in\n\n" + "\n".join(lines) + "\n"


def _bullets(title: str, lines: Sequence[str]) -> str:
    return f"## {title}\n\n" + "".join(f"- {plain(line)}\n" for line in lines) if lines else ""


def _licence(facts: CardFacts) -> str:
    base = plain(facts.base_model or facts.model_name)
    if facts.license is None:
        return f"## Licence\n\nThat of the dense model, {base}: look there before you pass this on.\n"
    return f"## Licence\n\n{plain(facts.license)}, the licence of the dense model, {base}.\n"


def _repeat(facts: CardFacts) -> str:
    made = f"Made with Espalier {facts.version}, a workbench for pruning language models.\n"
    if facts.yaml is None:
        return f"## Repeat it\n\n{made}"
    longest = max((len(run) for run in re.findall(r"`+", facts.yaml)), default=0)
    fence = "`" * max(3, longest + 1)
    command = "python -m core run experiment.yaml"
    return f"## Repeat it\n\n{made}\n```sh\n{command}\n```\n\n{fence}yaml\n{facts.yaml.rstrip()}\n{fence}\n"
