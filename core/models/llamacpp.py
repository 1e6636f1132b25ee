"""The gate of a GGUF export: llama.cpp must read the file, cut text as the tokenizer does, and compute the model.

Runs where the package xllamacpp (llama.cpp, ready-built) is installed, in a process of its own. What is asked: after
each token of a few fixed texts, which token comes next? transformers answers in float32 on the CPU from the weights as
they are stored. An answer of llama.cpp *agrees* if it is the same token; it is *near* if transformers holds it almost
as likely as its own, by what the format's rounding may move. Measured on SmolLM2-135M: q and k
rows in the wrong order leave 65 % of the answers near in float32 and 68 % in q8_0, where a right file has 99 %. q4_0's
own rounding hides such a slip (82 % near, 97 % if right): there the order of rows rests on the comparison of values in
core/models/gguf_export.py.
"""

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from core.errors import VerificationError
from core.models.gguf_layout import GgufDtype
from core.models.verification import TEXT, _float32_on_cpu
from core.progress import Progress, silent

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGE = "xllamacpp"
POSITIONS = 32  # tokens of each text that are answered
NEAR = {"float32": 0.02, "float16": 0.05, "bfloat16": 0.3, "q8_0": 0.4, "q4_0": 3.0}  # nats
ENOUGH = {"float32": 0.98, "float16": 0.98, "bfloat16": 0.95, "q8_0": 0.9, "q4_0": 0.7}  # share of near answers
_SCRIPT = Path(__file__).with_name("llamacpp_process.py")
PASSAGES = (
    "The old gardener walked along the wall in the early morning. He cut back the weak branches of the pear tree, tied "
    "the strong ones to the wires, and told the children that a tree bears more fruit when it has less wood.",
    "Water boils at 100 degrees Celsius at sea level. On a high mountain the air pressure is lower, so water boils at "
    "a lower temperature, and cooking takes longer than it does at home.",
    "def mean(values):\n    total = 0\n    for value in values:\n        total += value\n    return total / len(values)"
    "\n\n\ndef largest(values):\n    best = values[0]\n",
)


@dataclass(frozen=True)
class Reference:
    """What transformers says: token ids of the texts, of the chat, and log-probabilities after each position.

    `log_probs`: one tensor (positions, vocabulary) float32 a passage.
    """

    texts: tuple[str, ...]
    token_ids: list[list[int]]
    chat: tuple[str, list[int]] | None
    prompts: list[list[int]]
    log_probs: "list[torch.Tensor]"


@dataclass(frozen=True)
class Agreement:
    """How llama.cpp's answers compare. `positions` were asked; `agree` and `near` are shares of them.

    `chat_ids_equal`: whether a chat, framed by the template, is cut into the same ids, too; None without a template.
    """

    positions: int
    agree: float
    near: float
    near_nats: float
    chat_ids_equal: bool | None
    engine: str
    seconds: float


def installed() -> bool:
    """Whether llama.cpp can be asked on this machine."""
    return importlib.util.find_spec(PACKAGE) is not None


def engine_name() -> str:
    """The package and its version."""
    return f"{PACKAGE} {metadata.version(PACKAGE)}"


def reference(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    stored: "torch.dtype",
    positions: int = POSITIONS,
    progress: Progress = silent,
) -> Reference:
    """Ask transformers. `stored` is the format of the weights on disk; arithmetic is float32 on the CPU."""
    import torch

    texts = (TEXT, *PASSAGES)
    ids = [list(tokenizer(text)["input_ids"]) for text in texts]
    prompts = [found[:positions] for found in ids[1:] if found]
    with _float32_on_cpu(model, stored, lambda: progress(0, 1, "steps")), torch.inference_mode():
        log_probs = [
            torch.log_softmax(model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0].float(), dim=-1)
            for prompt in prompts
        ]
    return Reference(texts, ids, _chat(tokenizer), prompts, log_probs)


def compare(path: Path, said: Reference, dtype: GgufDtype, progress: Progress = silent, threads: int = 1) -> Agreement:
    """Ask llama.cpp the same. VerificationError if it cannot read the file, cuts text differently, or computes another
    model."""
    start = time.monotonic()
    chat = [said.chat[0]] if said.chat else []
    request = {"texts": [*said.texts, *chat], "prompts": said.prompts, "continue": None}
    answer = ask(path, request, progress, threads)
    cut = answer["token_ids"]
    for text, wanted, found in zip(said.texts, said.token_ids, cut, strict=False):
        if wanted != found:
            raise VerificationError(
                f"llama.cpp cuts text differently from the model's tokenizer: {text[:40]!r} is {found[:12]}, not "
                f"{wanted[:12]}.",
                "The file was not kept; please report this model's tokenizer.",
            )
    agree = near = 0
    for log_probs, picks in zip(said.log_probs, answer["picks"], strict=True):
        for row, token in zip(log_probs, picks, strict=True):
            best = float(row.max())
            agree += token == int(row.argmax())
            near += best - float(row[token]) <= NEAR[dtype]
    positions = sum(len(prompt) for prompt in said.prompts)
    if near < ENOUGH[dtype] * positions:
        raise VerificationError(
            f"llama.cpp computes another model from the file: only {near} of {positions} answers are near those of "
            f"transformers ({agree} are the same).",
            "The file was not kept; please report this model.",
        )
    same_chat = cut[-1] == said.chat[1] if said.chat else None
    return Agreement(
        positions, agree / positions, near / positions, NEAR[dtype], same_chat, engine_name(), time.monotonic() - start
    )


def ask(path: Path, request: dict[str, Any], progress: Progress = silent, threads: int = 1) -> dict[str, Any]:
    """Run llama.cpp on the file in a process of its own; see llamacpp_process.py for request and answer."""
    longest = max((len(ids) for ids in request["prompts"]), default=0)
    more = request.get("continue")
    longest = max(longest, len(more["ids"]) + more["tokens"] if more else 0)
    return _run({"path": str(path), "threads": threads, "context": max(longest + 8, 64), **request}, progress)


def speeds(
    paths: Sequence[Path], ids: Sequence[int], tokens: int, rounds: int, progress: Progress = silent, threads: int = 1
) -> list[list[dict[str, float]]]:
    """Time GGUF files in turn in one process: `rounds` rounds, in each one {prefill, decode} a file, in tokens/s.

    `ids`: the prompt; `tokens`: how many are written after it. On the CPU. VerificationError if a file cannot be used.
    """
    speed = {"paths": [str(path) for path in paths], "ids": list(ids), "tokens": tokens, "rounds": rounds}
    request = {"threads": threads, "context": len(ids) + tokens + 8, "speed": speed}
    found: list[list[dict[str, float]]] = _run(request, progress)["rounds"]
    return found


def _run(content: dict[str, Any], progress: Progress) -> dict[str, Any]:
    with TemporaryDirectory(prefix="espalier-llamacpp-") as scratch:
        question, log = Path(scratch) / "request.json", Path(scratch) / "log.txt"
        question.write_text(json.dumps(content), encoding="utf-8")
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-I", str(_SCRIPT), str(question)],
                cwd=scratch,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
            try:
                while process.poll() is None:
                    progress(0, 1, "llama.cpp")
                    time.sleep(0.1)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    if process.returncode != 0 or not lines:
        print(text, file=sys.stderr)  # noqa: T201 - the export's log
        reason = _reason(lines) or f"exit code {process.returncode}"
        raise VerificationError(f"llama.cpp cannot use the file: {reason}", "The whole message is in the log.")
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


def _reason(lines: Sequence[str]) -> str:
    told = [line for line in lines if "error" in line.lower() or "assert" in line.lower()]
    return (told or lines or [""])[-1].strip()


def _chat(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, list[int]] | None:
    """A short chat as its template frames it, and its ids; None without a template, or where it refuses."""
    if not tokenizer.chat_template:
        return None
    from jinja2 import TemplateError

    messages = [{"role": "user", "content": "What is an espalier?"}]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except (TemplateError, ValueError):
        return None
    return text, list(tokenizer(text)["input_ids"])
