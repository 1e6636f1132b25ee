"""Rough time and memory of calibrating and cutting, by what each method, allocation and refit has to do.

The pipeline calls it calibration until the first layer is cut; masks read text while they go from layer to layer.
"""

from collections.abc import Iterable

import psutil

from core.estimate_work import (
    BYTES,
    CPU_BFLOAT16,
    LOGIT_BYTES,
    SECONDS_A_PASS,
    TOKENS_A_PASS,
    Work,
    activation_bytes,
    flops_a_second,
    weight_bytes,
)
from core.models.sizes import Architecture

TEXT_S = 3.0
"""Reading calibration text and drawing its windows."""
WEIGHTS_A_SECOND = 25e6
"""Scored and sorted by a mask method."""
SOLVING = 0.4
"""Of a device's float32 speed: factorisations and column-by-column updates are made of smaller products."""
BACKWARD = 3
"""Running a layer again and backwards through it, in forward passes."""
REFIT_PASSES = 3
MEASURED_TOKENS = {"cpu": 1024, "cuda": 8192}
CUTS_MEASURED = 4
"""Of each part of each layer, and the text they are measured on: core/pruning/measured.py."""
STORED, SUMMED = 0.15, 0.85  # limits of core/pruning/gradients.py, as shares of the weights' bytes
BACKWARD_TOKENS = {"cpu": 2048, "cuda": 4096}
BACKWARDS = {"gradients", "fisher", "curvature"}
"""Needs that take a backward pass."""
STREAM_SHARE = 0.6  # of free memory: core/models/streaming.py


# --- time


def cut_seconds(work: Work) -> dict[str, float]:
    """Seconds of the stages calibrate and prune."""
    pruning, cut = work.experiment.pruning, work.plan
    if pruning is None or cut is None or not cut.selected:
        return {}
    seconds = {"calibrate": TEXT_S if pruning.reads_text else 0.0, "prune": 1.0}
    below, through = range(cut.selected[0]), range(cut.selected[-1] + 1)
    if pruning.allocation == "owl":
        seconds["calibrate"] += _through(work, through)
    elif pruning.allocation == "measured":
        seconds["calibrate"] += _measuring_seconds(work)
    if work.needs & BACKWARDS:
        seconds["calibrate"] += _gradient_seconds(work)
    elif "loss" in work.needs:
        seconds["calibrate"] += _greedy_seconds(work)
    elif work.needs and cut.kind == "mask":
        seconds["calibrate"] += _through(work, below)
        seconds["prune"] += 2 * _through(work, cut.selected)  # each layer runs before and after its cut
    elif work.needs:
        seconds["calibrate"] += _through(work, through)
    gram = _gram_seconds(work) if work.needs & {"gram", "curvature"} else 0.0
    seconds["prune" if cut.kind == "mask" else "calibrate"] += gram
    if cut.kind == "mask" and not (work.method and work.method.rewrites):
        seconds["prune"] += len(cut.selected) / work.before.n_layers * work.before.params / WEIGHTS_A_SECOND
    if pruning.reconstruct:
        seconds["prune"] += REFIT_PASSES * _through(work, range(work.before.n_layers))
        seconds["prune"] += _gram_seconds(work, ("o", "down"))
    return seconds


def _tokens(work: Work) -> int:
    pruning = work.experiment.pruning
    return pruning.calibration.samples * pruning.calibration.length if pruning else 0


def _calibration_flops(work: Work) -> float:
    """FLOP/s of calibration passes."""
    faster = CPU_BFLOAT16 if work.pass_dtype != work.dtype else 1.0
    return flops_a_second(work.device, work.dtype) * faster


def _through(work: Work, layers: Iterable[int]) -> float:
    """Running these decoder layers once over the calibration text."""
    layers = list(layers)
    if not layers or work.experiment.pruning is None:
        return 0.0
    tokens, context = _tokens(work), work.experiment.pruning.calibration.length
    sizes = work.before.layers
    macs = sum(
        sum(rows * columns for rows, columns in work.before.matrix_shapes(i).values())
        + 2 * sizes[i].heads * work.before.head_dim * context
        for i in layers
    )
    kernels = tokens / TOKENS_A_PASS[work.device.kind] * SECONDS_A_PASS[work.device.kind]
    return 2 * tokens * macs / _calibration_flops(work) + kernels * len(layers) / work.before.n_layers


def _head(work: Work) -> float:
    """The vocabulary's logits over the calibration text."""
    return 2 * _tokens(work) * work.before.vocab_size * work.before.hidden_size / _calibration_flops(work)


def _gradient_seconds(work: Work) -> float:
    """All layers forwards for each group of layers whose gradients fit at once, and backwards to the group's lowest."""
    n = work.before.n_layers
    return sum(
        _through(work, range(n)) + BACKWARD * (_head(work) + _through(work, range(min(group), n)))
        for group in _gradient_groups(work)
    )


def _greedy_seconds(work: Work) -> float:
    """Every candidate of every round runs the layers above it, half of the model on average, and the head."""
    cut = work.plan
    assert cut is not None
    n, rounds = work.before.n_layers, cut.layers_removed
    one = _through(work, range(n)) / n
    passes = sum((n - layer) * (1 - taken / len(cut.selected)) for taken in range(rounds) for layer in cut.selected)
    questions = sum(len(cut.selected) - taken for taken in range(rounds)) + 1
    return (n + passes) * one + questions * _head(work)


def _measuring_seconds(work: Work) -> float:
    """Each cut runs the layers above it and half of the head, over a few windows; a refit sums over all of them."""
    pruning, cut = work.experiment.pruning, work.plan
    assert pruning is not None
    assert cut is not None
    n = work.before.n_layers
    one = _through(work, range(n)) / n
    share = min(1.0, MEASURED_TOKENS[work.device.kind] / _tokens(work))
    cuts = CUTS_MEASURED * len(pruning.parts)
    seconds = share * cuts * sum((n - layer) * one + _head(work) / 2 for layer in cut.selected)
    return seconds + (n * one + _gram_seconds(work, ("o", "down")) if pruning.reconstruct else 0.0)


def _gram_seconds(work: Work, roles: Iterable[str] = ()) -> float:
    """XᵀX of each layer's inputs in float32, one half of it; and what is solved with it: inverse, then each matrix."""
    cut = work.plan
    assert cut is not None
    readers = tuple(roles) or (("o", "down") if cut.kind == "width" else ("q", "o", "gate", "down"))
    tokens, flops = _tokens(work), 0.0
    for layer in cut.selected:
        shapes = work.before.matrix_shapes(layer)
        for rows, columns in (shapes[role] for role in readers):
            flops += tokens * (columns**2 + (rows**2 if "curvature" in work.needs else 0))
        inverses = sum(3.0 * shapes[role][1] ** 3 for role in readers)
        matrices = shapes.values() if cut.kind == "mask" else [shapes[role] for role in readers]
        flops += (inverses + _turns(work) * sum(rows * columns**2 for rows, columns in matrices)) / SOLVING
    return flops / flops_a_second(work.device, "float32")


def _turns(work: Work) -> float:
    """How often each weight is looked at anew: by methods that go round in turns, as their options say."""
    if work.method is None or work.experiment.pruning is None:
        return 1.0
    options = work.method.options(**work.experiment.pruning.options)
    return 1.0 + 2.0 * (getattr(options, "iterations", 0) + 2 * getattr(options, "refinements", 0)) * SOLVING


# --- memory


def cut_bytes(work: Work) -> int:
    """What calibrating and cutting take on the device beyond the weights."""
    pruning = work.experiment.pruning
    if pruning is None or work.plan is None or not work.plan.selected:
        return 0
    element = BYTES.get(work.pass_dtype, 4)
    largest = max(_matrices(work.before, i) for i in work.plan.selected)
    total = 3 * 4 * largest
    if not pruning.reads_text:
        return total
    hidden = _tokens(work) * work.before.hidden_size * element
    if work.needs & BACKWARDS:
        tokens = max(pruning.calibration.length, _micro_batch(work) * pruning.calibration.length)
        total += _gradient_bytes(work) + 2 * activation_bytes(work, tokens) + 4 * LOGIT_BYTES["cpu"]
    else:
        streams = 4 if "loss" in work.needs else 2
        total += streams * hidden + activation_bytes(work, TOKENS_A_PASS[work.device.kind])
    if work.needs & {"gram", "curvature"} or pruning.reconstruct:
        widest = max(shape[1] for i in work.plan.selected for shape in work.before.matrix_shapes(i).values())
        total += 4 * 4 * widest**2
    if pruning.reconstruct:
        total += 2 * hidden
    return total


def _matrices(architecture: Architecture, layer: int) -> int:
    """Weights of a layer's largest matrix."""
    return max(rows * columns for rows, columns in architecture.matrix_shapes(layer).values())


def _wanted(work: Work) -> tuple[int, ...]:
    """Layers whose gradients are asked for."""
    assert work.plan is not None
    return tuple(range(work.before.n_layers)) if work.plan.kind == "hidden" else work.plan.selected


def _micro_batch(work: Work) -> int:
    """Windows in one backward pass."""
    assert work.experiment.pruning is not None
    calibration = work.experiment.pruning.calibration
    if "fisher" in work.needs:
        return 1
    if calibration.batch_size != "auto":
        return int(calibration.batch_size)
    return max(1, BACKWARD_TOKENS[work.device.kind] // calibration.length)


def _summed(work: Work, layer: int) -> int:
    """Bytes of one layer's gradients in float32, and of their squares; or of the moments that make a curvature."""
    shapes = work.before.matrix_shapes(layer)
    if "curvature" in work.needs:
        return sum(4 * (rows**2 + columns**2) for rows, columns in (shapes["o"], shapes["down"]))
    weights = sum(rows * columns for rows, columns in shapes.values())
    return weights * (8 if "fisher" in work.needs else 4)


def _stored(work: Work) -> tuple[int, int]:
    """Bytes of the layer inputs of one micro-batch, and of all of them."""
    assert work.experiment.pruning is not None
    calibration = work.experiment.pruning.calibration
    element = BYTES.get("float32" if work.pass_dtype == "float16" else work.pass_dtype, 4)
    layers = work.before.n_layers - min(_wanted(work)) + 2
    of_one = calibration.length * work.before.hidden_size * element * layers
    batch = min(_micro_batch(work), calibration.samples)
    return batch * of_one, calibration.samples * of_one


def _in_one_chunk(work: Work) -> bool:
    batch, everything = _stored(work)
    return everything <= max(batch, STORED * weight_bytes(work.before, work.dtype))


def _gradient_groups(work: Work) -> list[list[int]]:
    """Layers whose gradients are summed at once; all, where one chunk of the text's layer inputs is all of them."""
    wanted = _wanted(work)
    if _in_one_chunk(work):
        return [list(wanted)]
    limit = SUMMED * weight_bytes(work.before, work.dtype)
    groups: list[list[int]] = []
    held = 0
    for layer in sorted(wanted, reverse=True):
        size = _summed(work, layer)
        if not groups or held + size > limit:
            groups.append([])
            held = 0
        groups[-1].append(layer)
        held += size
    return groups


def _gradient_bytes(work: Work) -> int:
    """Layer inputs and summed gradients: at most about what the weights take, however much text there is."""
    batch, everything = _stored(work)
    if _in_one_chunk(work):
        return everything + max(_summed(work, layer) for layer in _wanted(work))
    stored = max(batch, min(everything, int(STORED * weight_bytes(work.before, work.dtype))))
    return stored + max(sum(_summed(work, layer) for layer in group) for group in _gradient_groups(work))


# --- models that do not fit


def streamed(work: Work) -> bool:
    """Whether the model is pruned a layer at a time from disk, as `core.models.streaming.must_stream` decides."""
    if work.plan is None:
        return False
    stored = work.before.params * (4 if work.before.dtype == "float32" else 2)
    return bool(stored >= STREAM_SHARE * psutil.virtual_memory().available)


def layerwise(work: Work) -> bool:
    """Whether layers come to the device one at a time: from disk, or because a GPU has no room for all of them."""
    if work.plan is None:
        return False
    if streamed(work):
        return True
    needed = weight_bytes(work.before, work.dtype) + cut_bytes(work)
    return work.device.kind == "cuda" and 1.5 * needed > work.device.free_bytes


def layer_bytes(work: Work) -> int:
    """What is on the device where layers come one at a time: the tables, the layer and a copy of it."""
    largest = max(work.before.layer_params(i) for i in range(work.before.n_layers))
    return (work.before.embedding_params + 2 * largest) * BYTES.get(work.dtype, 4)
