"""The model card: everything it must say, and nothing that a name could make it say."""

from dataclasses import replace
from typing import Any

import pytest
from huggingface_hub import ModelCard

from core.models.card import CardFacts, card, metric_key, plain
from core.models.engines import loads_in
from core.models.sizes import Architecture, LayerSizes

SIZES = Architecture("llama", 576, 64, 49152, True, (LayerSizes(9, 3, 1536), LayerSizes(9, 3, 1088)))
PROTOCOL = {"harness": "lm_eval 0.4.13", "shots": 0, "limit": 20, "chat_template": False, "dtype": "float32"}


def metric(task: str, name: str, value: float, stderr: float | None, **more: Any) -> dict[str, Any]:
    return {
        "stage": "pruned",
        "task": task,
        "metric": name,
        "value": value,
        "stderr": stderr,
        "protocol": PROTOCOL,
        **more,
    }


def facts(**changes: Any) -> CardFacts:
    rows = [metric("piqa", "acc", 0.7, 0.105), metric("perplexity/passages", "perplexity", 37.906, 1.469)]
    dense = metric("piqa", "acc", 0.75, 0.0993)
    values: dict[str, Any] = {
        "title": "SmolLM2, Taylor 30 %", "model_name": "SmolLM2-135M-Instruct",
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct", "license": "Apache-2.0", "format": "hf",
        "dtype": "float32", "architecture": "PerLayerLlamaForCausalLM", "params": 117_483_840,
        "engines": loads_in(SIZES), "seed": 3, "method": "taylor", "method_title": "Taylor (LLM-Pruner)",
        "method_url": "https://arxiv.org/abs/2305.11627", "kind": "width", "ratio": 0.3, "layers": (4, 25),
        "n_layers": 30, "parts": ["attention", "mlp"], "achieved_ratio": 0.21875, "achieved_model_ratio": 0.1266,
        "params_before": 134_515_008, "nonzero": 117_163_998, "metrics": rows, "dense": {metric_key(dense): dense},
        "checks": ["reloaded"], "yaml": "name: x\npruning: {method: taylor}\n", "per_layer_code": True,
        "version": "0.1.0",
    }  # fmt: skip
    return CardFacts(**{**values, **changes})


def test_it_says_what_was_cut_how_it_was_judged_and_how_to_repeat_it() -> None:
    text = card(facts())
    for said in (
        "[Taylor (LLM-Pruner)](https://arxiv.org/abs/2305.11627)", "30.0 % of the selected layers", "21.9 %", "12.7 %",
        "4–25 of 0–29", "134,515,008 → 117,483,840", "| Seed | 3 |",
        "| piqa | acc | 70.0 ± 10.5 % | 75.0 ± 9.9 % | lm\\_eval 0.4.13, 0 shots, first 20 documents, float32 |",
        "| perplexity/passages | perplexity | 37.91 ± 1.47 | – |", "trust_remote_code=True",
        "Apache-2.0, the licence of the dense model", "name: x\npruning: {method: taylor}", "- reloaded.",
        "llama.cpp: as GGUF, architecture deci", "vLLM does not load it",
    ):  # fmt: skip
        assert said in text, said


def test_the_front_matter_is_what_a_hub_reads() -> None:
    data = ModelCard(card(facts())).data.to_dict()
    assert data == {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct", "library_name": "transformers", "license": "apache-2.0",
        "pipeline_tag": "text-generation", "tags": ["espalier", "pruned", "taylor", "custom_code"],
    }  # fmt: skip
    quantised = ModelCard(card(facts(format="gguf", method=None, dtype="q8_0", per_layer_code=False))).data.to_dict()
    assert quantised["base_model_relation"] == "quantized"
    assert quantised["tags"] == ["espalier", "gguf"]
    alone = ModelCard(card(facts(base_model=None, license=None))).data.to_dict()
    assert "base_model" not in alone
    assert "license" not in alone


@pytest.mark.parametrize(
    ("pattern", "said"), [("2:4", "vLLM removed its 2:4 kernels"), ("unstructured", "No common engine gains")]
)
def test_masks_are_called_neither_smaller_nor_faster(pattern: str, said: str) -> None:
    text = card(facts(kind="mask", pattern=pattern, method="wanda", params_before=117_483_840, per_layer_code=False))
    assert "not smaller and not faster" in text
    assert said in text
    assert "(set to zero)" in text
    assert "117,163,998 of them not zero" in text
    assert "not smaller" not in card(facts())


NASTY = "<script>alert(1)</script> | [x](http://evil) **b** `c` \n# head\n---\n![i](u)"


def test_names_are_shown_as_text() -> None:
    text = card(
        facts(title=NASTY, model_name=NASTY, base_model=None, notes=[NASTY], metrics=[metric(NASTY, "acc", 0.5, None)])
    )
    body = text.split("---\n", 2)[2]
    assert "<script" not in body
    assert "[x](" not in body.replace("\\[x\\](", "")
    assert "\n# head" not in body
    rows = [line for line in body.splitlines() if line.startswith("| ") and "alert" in line]
    assert all(line.replace("\\|", "").count("|") in (3, 5) for line in rows), rows
    assert ModelCard(text).data.to_dict()["tags"][0] == "espalier"
    assert plain("a_b*c") == "a\\_b\\*c"


def test_a_yaml_with_a_fence_in_it_stays_one_block() -> None:
    text = card(facts(yaml="name: '```\n# out'\n"))
    assert "\n````yaml\nname: '```\n# out'\n````\n" in text


def test_the_dense_model_alone_has_a_card_too() -> None:
    text = card(
        replace(facts(), method=None, metrics=[], format="gguf", dtype="q4_0", files=["a-Q4_0.gguf"], yaml=None)
    )
    assert "not pruned: the dense model as gguf in q4_0" in text
    assert "llama-cli -m a-Q4_0.gguf" in text
    assert "## Numbers" not in text
