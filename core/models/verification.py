"""The gate of every save: a fresh process reloads the folder as a stranger would, and must find the same model.

The process knows nothing of Espalier (isolated mode, an empty cache for code files, no network). It loads with
`AutoModelForCausalLM.from_pretrained` in float32 on the CPU, and its logits on fixed token ids are compared with those
that the model in memory gives, computed in float32 on the CPU from the weights as they were stored.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from core.errors import VerificationError
from core.progress import Progress, silent

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOLERANCE = 1e-4  # largest allowed difference of a logit, float32
SEQUENCES, LENGTH = 2, 64
TEXT = "Sphinx of black quartz, judge my vow: 3 trees, «été» 2024!\n\tdef f(x): return x"
_SCRIPT = Path(__file__).with_name("verify_process.py")


@dataclass(frozen=True)
class VerifyReport:
    """What the fresh process found. `tokens` counts the positions whose logits were compared."""

    max_abs_difference: float
    tolerance: float
    tokens: int
    model_class: str
    transformers: str
    trust_remote_code: bool
    seconds: float


def verify(
    directory: Path,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    progress: Progress = silent,
    *,
    offload: bool = False,
) -> VerifyReport:
    """Reload `directory` in a fresh process and compare with the model in memory.

    offload: the process reads each layer from disk when it runs, for a model larger than memory.

    VerificationError if it does not load, if a logit differs by more than TOLERANCE, or if the tokenizer cuts text
    or frames a chat differently. Takes about as long as importing transformers and loading the model; progress counts
    steps.
    """
    import torch
    from safetensors.torch import load_file, save_file

    start = time.monotonic()
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    trusted = "auto_map" in config
    ids = _token_ids(model.config)
    progress(0, 3, "steps")
    stored = getattr(torch, config["dtype"])
    with _float32_on_cpu(model, stored, lambda: progress(0, 3, "steps")), torch.inference_mode():
        expected = model(input_ids=ids, use_cache=False).logits
    progress(1, 3, "steps")
    with TemporaryDirectory(prefix="espalier-verify-") as scratch:
        request, answer = Path(scratch) / "ids.safetensors", Path(scratch) / "logits.safetensors"
        save_file({"ids": ids}, request)
        flags = [str(int(trusted)), str(int(offload))]
        said = _ask([str(directory), str(request), str(answer), *flags, TEXT], Path(scratch), progress)
        found = load_file(answer)["logits"]
    progress(2, 3, "steps")
    difference = compare(expected, found)
    if said["text_ids"] != list(tokenizer(TEXT)["input_ids"]) or said["chat_template"] != tokenizer.chat_template:
        raise VerificationError(
            "The saved tokenizer is not the one in memory: it cuts text, or frames a chat, in another way.",
            "The run's model folder cannot be used; please report this model.",
        )
    progress(3, 3, "steps")
    return VerifyReport(
        difference, TOLERANCE, ids.numel(), said["class"], said["transformers"], trusted, time.monotonic() - start
    )


def compare(expected: "torch.Tensor", found: "torch.Tensor") -> float:
    """Largest absolute difference of two logit tensors. VerificationError if it is above TOLERANCE, nan, or no pair."""
    if expected.shape != found.shape:
        raise VerificationError(
            f"The saved model gives logits of shape {tuple(found.shape)}, the one in memory {tuple(expected.shape)}."
        )
    difference = float((expected - found).abs().max())
    if not difference <= TOLERANCE:  # so that nan fails, too
        raise VerificationError(
            f"The saved model is not the one in memory: logits differ by up to {difference:.3g} "
            f"(allowed: {TOLERANCE:g}).",
            "The run's model folder cannot be used; nan means that the pruned model itself computes nan.",
        )
    return difference


def _token_ids(config: Any) -> "torch.Tensor":
    """Fixed ids all over the vocabulary, (SEQUENCES, at most LENGTH) int64."""
    import torch

    length = min(LENGTH, config.max_position_embeddings)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, config.vocab_size, (SEQUENCES, length), generator=generator)


@contextmanager
def _float32_on_cpu(model: "PreTrainedModel", stored: "torch.dtype", tick: Callable[[], None]) -> Iterator[None]:
    """While open, each module computes in float32 on the CPU from its weights rounded to `stored`, after a `tick`.

    One module at a time is converted and put back, so that no second copy of the model is needed. A scale of the
    embedding, which a half-precision model holds rounded, is that of the config.
    """
    import torch

    held: dict[torch.nn.Module, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def own(module: torch.nn.Module) -> list[torch.Tensor]:
        return [*module.parameters(recurse=False), *module.buffers(recurse=False)]

    def enter(module: torch.nn.Module, _inputs: Any) -> None:
        tick()
        held[module] = [(each, each.data) for each in own(module)]
        for weight in module.parameters(recurse=False):
            weight.data = weight.data.to("cpu", stored).float()
        for buffer in module.buffers(recurse=False):
            buffer.data = buffer.data.to("cpu")
        if hasattr(module, "scalar_embed_scale"):
            module.embed_scale.data = torch.tensor(module.scalar_embed_scale, dtype=torch.float32)

    def leave(module: torch.nn.Module, _inputs: Any = None, _outputs: Any = None) -> None:
        for each, data in held.pop(module):
            each.data = data

    hooks = []
    for module in model.modules():
        if own(module):
            hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in list(held):
            leave(module)


def _ask(arguments: list[str], scratch: Path, progress: Progress) -> dict[str, Any]:
    """Run the fresh process to its end, looking in on `progress` so that it can be cancelled. Returns its JSON."""
    import torch

    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(scratch / "modules"),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    log = scratch / "log.txt"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-I", str(_SCRIPT), *arguments],
            cwd=scratch,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
        try:
            while process.poll() is None:
                progress(1, 3, "steps")
                time.sleep(0.2)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    text = log.read_text(encoding="utf-8", errors="replace")
    if process.returncode != 0:
        print(text, file=sys.stderr)  # noqa: T201 - the run's log.txt
        last = next((line for line in reversed(text.splitlines()) if line.strip()), f"exit code {process.returncode}")
        raise VerificationError(
            f"The saved model does not load in a fresh process: {last.strip()}",
            "The whole message is in the run's log.",
        )
    answer: dict[str, Any] = json.loads(text.splitlines()[-1])
    return answer
