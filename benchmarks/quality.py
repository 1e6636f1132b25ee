"""Perplexity after pruning SmolLM2-135M, under one protocol for all methods.

    python -m benchmarks.quality --valid wiki.valid.tokens --test wiki.test.tokens [--only taylor …] [--device cuda:0]

Protocol P: float32 weights; calibration on 32 windows of 512 tokens at random places (seed 0) of WikiText-2's
validation text; perplexity of the first 64 windows of 512 tokens of its test text, no BOS token; both read as one
string. The dense model has 26.15.
"""

import argparse
import copy
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common import cut, drawn_windows, row, smollm2, token_stream
from core.experiment import Pruning

ALL = {"ratio": 0.5}
MODEL = {"target": "model", "round_to": 32}
MLPS = {**MODEL, "parts": ("mlp",)}
STRUCTURED = {"method": "wanda_structured", **MLPS, "reconstruct": True}
GLOBAL = {"allocation": "global"}
MEASURED = {"allocation": "measured"}
OBS = {"method": "obs", "reconstruct": True}
CASES: dict[str, dict[str, Any]] = {
    "magnitude 50 %": {"method": "magnitude", **ALL},
    "wanda 50 %": {"method": "wanda", **ALL},
    "sparsegpt 50 %": {"method": "sparsegpt", **ALL},
    "admm 50 %": {"method": "admm", **ALL},
    "ria 50 %": {"method": "ria", **ALL},
    "random weights 50 %": {"method": "random_weights", **ALL},
    "wanda 50 %, owl": {"method": "wanda", **ALL, "allocation": "owl"},
    "sparsegpt 50 %, owl": {"method": "sparsegpt", **ALL, "allocation": "owl"},
    "admm 50 %, owl": {"method": "admm", **ALL, "allocation": "owl"},
    "wanda 2:4": {"method": "wanda", "pattern": "2:4"},
    "sparsegpt 2:4": {"method": "sparsegpt", "pattern": "2:4"},
    "admm 2:4": {"method": "admm", "pattern": "2:4"},
    "taylor first, layers 4–25": {"method": "taylor", "ratio": 0.4, "layers": (4, 25), "round_to": 1},
    "taylor first, product, layers 4–25": {
        "method": "taylor", "ratio": 0.4, "layers": (4, 25), "round_to": 1, "options": {"reduction": "product"},
    },
    "taylor first, 77.8 %": {"method": "taylor", "ratio": 0.222, **MODEL},
    "taylor first, refit, 77.8 %": {"method": "taylor", "ratio": 0.222, **MODEL, "reconstruct": True},
    "taylor first, MLPs, refit, 77.8 %": {"method": "taylor", "ratio": 0.222, **MLPS, "reconstruct": True},
    "wanda structured, MLPs, refit, 77.8 %": {**STRUCTURED, "ratio": 0.222},
    "flap, MLPs, 77.8 %": {"method": "flap", "ratio": 0.222, **MLPS},
    "flap, MLPs, refit, 77.8 %": {"method": "flap", "ratio": 0.222, **MLPS, "reconstruct": True},
    "flap, MLPs, global, refit, 77.8 %": {"method": "flap", "ratio": 0.222, **MLPS, **GLOBAL, "reconstruct": True},
    "flap, global, refit, 77.8 %": {"method": "flap", "ratio": 0.222, **MODEL, **GLOBAL, "reconstruct": True},
    "obs, MLPs, refit, 77.8 %": {**OBS, **MLPS, "ratio": 0.222},
    "obs, global, refit, 77.8 %": {**OBS, **MODEL, **GLOBAL, "ratio": 0.222},
    "obs, measured, refit, 77.8 %": {**OBS, **MODEL, **MEASURED, "ratio": 0.222},
    "flap, measured, refit, 77.8 %": {"method": "flap", **MODEL, **MEASURED, "ratio": 0.222, "reconstruct": True},
    "taylor, MLPs, global, refit, 77.8 %": {"method": "taylor", "ratio": 0.222, **MLPS, **GLOBAL, "reconstruct": True},
    "taylor first, MLPs, refit, 91.3 %": {"method": "taylor", "ratio": 0.087, **MLPS, "reconstruct": True},
    "wanda structured, MLPs, refit, 91.3 %": {**STRUCTURED, "ratio": 0.087},
    "flap, MLPs, refit, 91.3 %": {"method": "flap", "ratio": 0.087, **MLPS, "reconstruct": True},
    "flap, MLPs, global, refit, 91.3 %": {"method": "flap", "ratio": 0.087, **MLPS, **GLOBAL, "reconstruct": True},
    "obs, measured, refit, 91.3 %": {**OBS, **MODEL, **MEASURED, "ratio": 0.087},
    "hidden l2, 77.8 %": {"method": "hidden", "ratio": 0.222, "target": "model", "options": {"criterion": "l2"}},
    "hidden taylor, 77.8 %": {
        "method": "hidden", "ratio": 0.222, "target": "model", "options": {"criterion": "taylor"},
    },
    "block influence, 77.8 %": {"method": "block_influence", "ratio": 0.222, "target": "model"},
    "perplexity greedy, 77.8 %": {"method": "perplexity_greedy", "ratio": 0.222, "target": "model"},
    "last layers, 77.8 %": {"method": "last", "ratio": 0.222, "target": "model"},
    "random layers, 77.8 %": {"method": "random_layers", "ratio": 0.222, "target": "model"},
}  # fmt: skip


@torch.inference_mode()
def perplexity(model: Any, windows: Tensor) -> float:
    """exp(mean NLL of tokens 2 … L) over windows (n, L), float32."""
    total, tokens = 0.0, 0
    for batch in torch.split(windows, 4):
        ids = batch.to(model.device)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        total += float(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum"))
        tokens += ids[:, 1:].numel()
    return math.exp(total / tokens)


def main(arguments: list[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--valid", type=Path, required=True, help="WikiText-2's validation text")
    parser.add_argument("--test", type=Path, required=True, help="WikiText-2's test text")
    parser.add_argument("--only", nargs="*", default=[], help="words that a case's name must hold one of")
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args(arguments)
    loaded = smollm2()
    model = loaded.model
    calibration = drawn_windows(token_stream(chosen.valid, loaded.tokenizer), 32, 512)
    text = token_stream(chosen.test, loaded.tokenizer)[: 64 * 512].view(64, 512)
    dense = perplexity(model.to(chosen.device), text)
    row("method", "parameters kept", "non-zero", "perplexity", "of the dense model's", "s to prune")
    row("---", *["---"] * 5)
    row("dense", "100.0 %", "100.0 %", f"{dense:.2f}", "1.00", "")
    for name, fields in CASES.items():
        if chosen.only and not any(word in name for word in chosen.only):
            continue
        pruned = copy.deepcopy(model).to("cpu")
        begun = time.perf_counter()
        done = cut(pruned, Pruning(**fields), calibration, chosen.device)
        seconds = time.perf_counter() - begun
        value = perplexity(pruned.to(chosen.device), text)
        kept, nonzero = done.params_after / done.params_before, done.nonzero_after / done.params_before
        row(name, f"{kept:.1%}", f"{nonzero:.1%}", f"{value:.2f}", f"{value / dense:.2f}", f"{seconds:.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])
