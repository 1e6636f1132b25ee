"""The speed of a quantised baseline: llama.cpp on the run's GGUF file and on the dense model's, in turn.

Dequantised weights in the model's own class are as fast as the dense ones, which would say nothing; what a quantised
file is worth shows in the engine that it is made for.
"""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from core.device_use import Use
from core.errors import NumericalError, VerificationError
from core.jobs.journal import Journal
from core.progress import Progress

if TYPE_CHECKING:
    from core.evaluation.metrics import Metric
    from core.jobs.pipeline import Setting

TASK = "speed/llama.cpp"
DISTURBED = "‡ The speed in llama.cpp was measured beside other work, and may be too low: {}."
PROMPT, DECODED, ROUNDS = 256, 64, 5
NOT_INSTALLED = "The speed of the quantised file was not measured: the package xllamacpp (llama.cpp) is not installed."


def speeds(setting: "Setting", journal: Journal, progress: Progress) -> "tuple[list[Metric], list[str]]":
    """Prefill and decode tokens/s of the run's file (`pruned`) and of the dense model in float16 (`dense`).

    Also the multiply-accumulates, which rounding leaves as they are; and warnings. Without llama.cpp the run says so,
    and no speed.
    """
    from core.evaluation import macs
    from core.models import llamacpp

    architecture = setting.source.architecture
    work = [metric for stage in ("pruned", "dense") for metric in macs.measured(stage, architecture)]
    found, warning = _timed(setting, journal, progress) if llamacpp.installed() else ([], NOT_INSTALLED)
    if warning:
        journal.warn(warning)
    return [*found, *work], [warning] if warning else []


def _timed(setting: "Setting", journal: Journal, progress: Progress) -> "tuple[list[Metric], str]":
    """The metrics, and what is to be said of them, or ''."""
    import torch

    from core.evaluation.load import watch
    from core.models import llamacpp
    from core.models.gguf_rounded import the_file

    quantised = setting.experiment.model.quantised
    threads, vocabulary = torch.get_num_threads(), setting.source.architecture.vocab_size
    prompt = min(PROMPT, setting.source.architecture.max_positions - DECODED)
    ids = torch.randint(vocabulary, (prompt,), generator=torch.Generator().manual_seed(0)).tolist()
    with TemporaryDirectory(prefix="dense-", dir=journal.directory.path) as folder:
        dense, dtype = _dense_file(setting, Path(folder), progress)
        files = {"pruned": the_file(journal.directory.model_dir), "dense": dense}
        with _on_the_cpu(setting, journal, progress) as alone:
            watcher = watch("cpu")
            try:
                rounds = llamacpp.speeds(list(files.values()), ids, DECODED, ROUNDS, progress, threads)
            except VerificationError as error:  # what was judged so far holds without it
                return [], f"The speed of the quantised file was not measured: {error.message}"
            disturbed = ("" if alone else "another run did not pause") or watcher.verdict()
        sizes = {stage: path.stat().st_size for stage, path in files.items()}
    protocol = {
        "engine": llamacpp.engine_name(),
        "device": "cpu",
        "threads": threads,
        "batch": 1,
        "prompt": prompt,
        "decoded": DECODED,
    }
    said = {"disturbed": disturbed} if disturbed else {}
    formats = {"pruned": quantised, "dense": dtype}
    found = [
        _metric(stage, name, [row[place][name] for row in rounds], protocol,
                {"format": formats[stage], "file_bytes": sizes[stage], **said})
        for place, stage in enumerate(files)
        for name in ("prefill", "decode")
    ]  # fmt: skip
    return found, DISTURBED.format(disturbed) if disturbed else ""


@contextmanager
def _on_the_cpu(setting: "Setting", journal: Journal, progress: Progress) -> Iterator[bool]:
    """Have the CPU alone, where llama.cpp works, on whatever device the run does."""
    use = journal.use if setting.device == "cpu" else Use("cpu")
    try:
        with use.alone(lambda: progress(0, 1, "waits for the device")) as alone:
            yield alone
    finally:
        if use is not journal.use:
            use.close()


def _dense_file(setting: "Setting", folder: Path, progress: Progress) -> tuple[Path, str]:
    """The dense model as GGUF in float16, or in bfloat16 where float16 does not hold its weights."""
    from core.models.gguf_rounded import write_rounded
    from core.models.loading import weights_directory

    source = weights_directory(setting.source, setting.experiment.model.trust_remote_code)
    try:
        return write_rounded(source, folder, "float16", "dense", progress).path, "float16"
    except NumericalError:
        return write_rounded(source, folder, "bfloat16", "dense", progress).path, "bfloat16"


def _metric(stage: str, name: str, values: list[float], protocol: dict[str, Any], details: dict[str, Any]) -> "Metric":
    from core.evaluation.metrics import Metric
    from core.evaluation.speed import median_error, quartiles

    details = {"quartiles": list(quartiles(values)), **details}
    value, error = statistics.median(values), median_error(values)
    return Metric(stage, TASK, f"{name}_tokens_per_second", value, error, len(values), protocol, details)
