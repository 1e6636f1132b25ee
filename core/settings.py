"""Where things lie. Every function reads the environment when it is called, so that tests and workers can differ.

| variable | meaning | default |
|---|---|---|
| ESPALIER_HOME | runs/, studies/, chat/, documents/, queue.json, results.duckdb | the repository |
| ESPALIER_CACHE | converted models, corpora, scores | ~/.cache/espalier |
| ESPALIER_STREAM | 1: prune a layer at a time from and to disk, whatever memory there is | not set |
| ESPALIER_PRICE_PER_HOUR | what an hour of this machine costs, in any currency: studies say what they cost | not set |
| ESPALIER_RUNS_PER_GPU | how many runs a GPU takes at once, while its memory suffices | 1 |
| ESPALIER_CPU_RUNS | how many runs the CPU takes at once, while its memory suffices | one for every 8 cores |
| ESPALIER_SILENT_MINUTES | a worker that did nothing for so long is ended and started again; 0: never | 30 |
| ESPALIER_TOKEN | who gives it may use the app; needed, or a login, to listen beyond 127.0.0.1 | not set |
| ESPALIER_USERS | who may use the app after Streamlit's login: `ann@x.org, @y.org`; `*` is everybody | not set |
| ESPALIER_HOSTS | names that the app is reached under, besides this machine's: `prune.x.org` | not set |
| ESPALIER_ROOTS | folders pages may read models and texts from, `:` between them; `/` is everywhere | core/roots.py |
| ESPALIER_RAY_ADDRESS | dashboard of a Ray cluster that runs go to: `http://head:8265` (docs/cluster.md) | not set |
| ESPALIER_RAY_CPUS | processor cores that a run asks of the cluster; it gets as many threads | 1 |
| ESPALIER_PLACE | set for a worker by the queue: the device that it was given | not set |
| ESPALIER_REFERENCE | 0: do not take the reference study in when a home is opened the first time | not set |
| HF_HUB_OFFLINE | 1: never ask a model or data hub | not set |
"""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
_TRUE = {"1", "true", "yes", "on"}


def _folder(variable: str, default: Path) -> Path:
    value = os.environ.get(variable, "").strip()
    return Path(value).expanduser().resolve() if value else default


def home() -> Path:
    """Folder that holds everything Espalier wrote for the user."""
    return _folder("ESPALIER_HOME", REPOSITORY)


def cache() -> Path:
    """Folder of what can be made again: converted models, corpora, scores."""
    return _folder("ESPALIER_CACHE", Path.home() / ".cache" / "espalier")


def runs_dir() -> Path:
    """One folder a run."""
    return home() / "runs"


def documents_dir() -> Path:
    """Texts of the documents that runs answered, once for all runs."""
    return home() / "documents"


def studies_dir() -> Path:
    """One YAML file a study."""
    return home() / "studies"


def chat_dir() -> Path:
    """Transcripts, one JSON-lines file a conversation."""
    return home() / "chat"


def reference_file() -> Path | None:
    """The packed study that comes with Espalier; None where it is not wanted."""
    wanted = os.environ.get("ESPALIER_REFERENCE", "").strip() != "0"
    return REPOSITORY / "studies" / "smollm2-reference.parquet" if wanted else None


def queue_file() -> Path:
    """What waits, in order."""
    return home() / "queue.json"


def database_file() -> Path:
    """The store; a view that can be rebuilt from the files."""
    return home() / "results.duckdb"


def offline() -> bool:
    """Whether model and data hubs must not be asked."""
    return any(os.environ.get(name, "").lower() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def always_stream() -> bool:
    """Whether pruning reads layers from disk one at a time even where the model would fit into memory."""
    return os.environ.get("ESPALIER_STREAM") == "1"


def child_environment() -> dict[str, str]:
    """The environment for processes that work with models: without the key to the app."""
    return {name: value for name, value in os.environ.items() if name != "ESPALIER_TOKEN"}


def price_per_hour() -> float | None:
    """What an hour of this machine costs; None where nobody said, or no number."""
    try:
        price = float(os.environ.get("ESPALIER_PRICE_PER_HOUR", ""))
    except ValueError:
        return None
    return price if 0 <= price < float("inf") else None


def silent_minutes() -> float:
    """After how many minutes of doing nothing a worker is ended; 0: never. What is no number counts as the default."""
    try:
        minutes = float(os.environ.get("ESPALIER_SILENT_MINUTES", ""))
    except ValueError:
        return 30.0
    return minutes if 0 <= minutes < float("inf") else 30.0


def ray_address() -> str:
    """Dashboard of the cluster that runs go to, without its last slash; '' where the environment names none."""
    return os.environ.get("ESPALIER_RAY_ADDRESS", "").strip().rstrip("/")


def ray_cpus() -> float:
    """Processor cores that a run asks of a cluster."""
    try:
        cpus = float(os.environ.get("ESPALIER_RAY_CPUS", ""))
    except ValueError:
        return 1.0
    return cpus if 0 < cpus < 10_000 else 1.0


def runs_per_gpu() -> int:
    """How many runs may work on one GPU side by side."""
    return _number("ESPALIER_RUNS_PER_GPU") or 1


def cpu_runs() -> int | None:
    """How many runs may work on the CPU side by side; None: as its cores suggest."""
    return _number("ESPALIER_CPU_RUNS")


def _number(variable: str) -> int | None:
    """A small positive number; None where none is set, or what is set is none."""
    value = os.environ.get(variable, "").strip()
    return int(value) if value.isdigit() and 0 < int(value) <= 64 else None
