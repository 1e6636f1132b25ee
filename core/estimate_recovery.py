"""Rough time and memory of training after the cut, from shapes alone.

A training step is a forward pass, a backward pass through the activations, and the products that give gradients of the
trained weights: 4 + 2·share FLOPs a parameter and token, share being what is trained of all weights. Distillation adds
a forward pass of the dense model. `recovery.max_minutes` caps it.
"""

from collections.abc import Mapping
from pathlib import Path

from core.estimate_work import BYTES, Work, pass_seconds, weight_bytes
from core.experiment import Recovery
from core.models.sizes import PART_MATRICES, Architecture

PASSAGES_TOKENS = 276_637
"""Of the passages that recovery may read, by SmolLM2's tokenizer; so are all that follow."""
CORPUS_TOKENS = {"passages": PASSAGES_TOKENS, "wikitext2": 2_600_000, "ptb": 1_200_000, "c4": 1_900_000}
SAMPLE_TOKENS = 107
"""Mean of an Alpaca row in a chat template, cut at 256 tokens."""
ALPACA_ROWS = 51_760
BYTES_A_TOKEN = {"text": 4.3, "instructions": 3.9, "chat": 3.9}
GENERATED_DOCUMENTS = 2048  # core/recovery/generated.py
GENERATED_AT_ONCE = {"cpu": 16, "cuda": 2048}
GENERATED_STEP_S = {"cpu": 0.0, "cuda": 0.03}
"""What launching the kernels of one written token takes."""
VALIDATIONS = 12  # core/recovery/watching.py: one before, ten on the way, one at the end
MARGIN = 0.6  # of free memory that a micro-batch may take there
MOST_TOKENS = {"cpu": 2048, "cuda": 65536}
LOAD_S = {"cpu": 6.0, "cuda": 12.0}
"""Importing the trainer, and verifying the saved model in a fresh process."""
DISK_BYTES_A_SECOND = 300e6
STATES = 4
"""float32 numbers that a trained weight takes: itself, its gradient, and AdamW's two moments."""
PARTS = {"all-linear": ("attention", "mlp"), "attention": ("attention",), "mlp": ("mlp",)}


def recovery_seconds(work: Work) -> float:
    """Seconds of the stage `recover`: writing text, training, saving, verifying; 0 without recovery."""
    recovery = work.experiment.recovery
    if recovery is None or work.plan is None:
        return 0.0
    kind = work.device.kind
    around = LOAD_S[kind] + (weight_bytes(work.before) + 5 * weight_bytes(work.after)) / DISK_BYTES_A_SECOND
    return around + _writing_seconds(work, recovery) + training_seconds(work, recovery)


def training_seconds(work: Work, recovery: Recovery) -> float:
    """Seconds of the optimiser steps and of validation, at most the minutes allowed."""
    tokens = int(data_tokens(recovery) * (1 - recovery.validation))
    length = recovery.cutoff
    once = pass_seconds(work, work.after, tokens, length)
    seconds = recovery.epochs * once * (2 + trained_share(work, recovery))
    if recovery.kind == "distillation":
        seconds += recovery.epochs * pass_seconds(work, work.before, tokens, length)
    seconds += VALIDATIONS * recovery.validation * once
    return seconds if recovery.max_minutes is None else min(seconds, 60 * recovery.max_minutes)


def capped(stages: Mapping[str, float], work: Work) -> dict[str, float]:
    """Seconds of stages as corrected by earlier runs, with the training held to the minutes allowed for it."""
    recovery = work.experiment.recovery
    if recovery is None or recovery.max_minutes is None or "recover" not in stages:
        return dict(stages)
    rest = recovery_seconds(work) - training_seconds(work, recovery)
    return {**stages, "recover": min(stages["recover"], 60 * recovery.max_minutes + rest)}


def data_tokens(recovery: Recovery) -> int:
    """Tokens in one pass over the data; a file's from its size, 0 for one that is not there."""
    data, most = recovery.data, recovery.data.max_samples
    each = recovery.cutoff if data.format == "text" else min(SAMPLE_TOKENS, recovery.cutoff)
    if data.path is not None:
        file = Path(data.path).expanduser()
        known = int(file.stat().st_size / BYTES_A_TOKEN[data.format]) if file.is_file() else 0
    elif data.corpus == "generated":
        known = (most or GENERATED_DOCUMENTS) * recovery.cutoff
    elif data.format == "text":
        corpus = (data.corpus or "passages").removesuffix("-joined")
        known = CORPUS_TOKENS.get(corpus, PASSAGES_TOKENS)
    else:
        known = ALPACA_ROWS * each
    return known if most is None else min(known, most * each)


def _writing_seconds(work: Work, recovery: Recovery) -> float:
    """Text by the dense model, where it is to learn from that; kept for the next run, which is not known here."""
    if recovery.prompt is None:
        return 0.0
    kind = work.device.kind
    rows = recovery.data.max_samples or GENERATED_DOCUMENTS
    batches = -(-rows // GENERATED_AT_ONCE[kind])
    step = GENERATED_STEP_S[kind] + pass_seconds(work, work.before, min(rows, GENERATED_AT_ONCE[kind]), recovery.cutoff)
    return batches * (recovery.cutoff - recovery.prompt) * step


# --- memory


def trained_parameters(work: Work, recovery: Recovery) -> int:
    """Numbers that training changes: LoRA's matrices, or the weights of the cut layers themselves."""
    after, parts = work.after, PARTS[recovery.target_modules]
    if recovery.kind == "distillation" and recovery.full_weights:
        cut = [c.layer for c in work.plan.cuts if c.selected and not c.removed] if work.plan is not None else []
        layers = [i for i in cut if i < after.n_layers] or list(range(after.n_layers))
        return sum(out * into for i in layers for out, into in _shapes(after, i, parts))
    shapes = (shape for i in range(after.n_layers) for shape in _shapes(after, i, parts))
    return sum(recovery.rank * (out + into) for out, into in shapes)


def trained_share(work: Work, recovery: Recovery) -> float:
    """What is trained, as a share of all weights."""
    return trained_parameters(work, recovery) / max(work.after.params, 1)


def recovery_bytes(work: Work) -> int:
    """What the training adds to the process on its device; 0 without recovery.

    The pruned model, the dense one where it teaches, the trained weights with their gradients and moments, and the
    activations and logits of a micro-batch, which is fitted to the free memory.
    """
    recovery = work.experiment.recovery
    if recovery is None or work.plan is None:
        return 0
    full = recovery.kind == "distillation" and recovery.full_weights
    dtype = "float32" if full or work.device.kind == "cpu" else work.dtype
    held = weight_bytes(work.after, dtype) + STATES * BYTES["float32"] * trained_parameters(work, recovery)
    if recovery.kind == "distillation":
        held += weight_bytes(work.before, dtype)
    row = _row_bytes(work, recovery)
    free = max(MARGIN * (work.device.free_bytes - held), 0)
    if isinstance(recovery.micro_batch, int):
        rows = min(recovery.micro_batch, recovery.batch_size)
    else:
        most = max(1, MOST_TOKENS[work.device.kind] // recovery.cutoff)
        rows = max(1, min(int(free // row), most, recovery.batch_size))
    return held + rows * row


def _row_bytes(work: Work, recovery: Recovery) -> int:
    """A row in the pass that keeps its activations: logits and what each layer leaves, in float32."""
    after = work.after
    logits = 4 * after.vocab_size * (6 if recovery.kind == "distillation" else 4)
    wide = max(layer.mlp for layer in after.layers)
    layer = 4 * (8 * after.hidden_size + 4 * min(max(wide, 1), 4 * after.hidden_size))
    return recovery.cutoff * (logits + after.n_layers * layer)


def _shapes(architecture: Architecture, layer: int, parts: tuple[str, ...]) -> list[tuple[int, int]]:
    shapes = architecture.matrix_shapes(layer)
    return [shapes[role] for part in parts for role in PART_MATRICES[part] if role in shapes]
