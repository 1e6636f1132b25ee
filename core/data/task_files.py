"""A task that a user wrote: one YAML file in lm-eval's form, and whether working with it would run code.

The harness reads such files with tags that import functions, and hands some of their values to libraries that run code.
So a file is parsed here, as plain data; the harness gets that data and never the file, unless code was allowed on the
command line. What would run code is refused by name; what is not known is taken to be such.

| in the file | what would run |
|---|---|
| `!function`, `class`, `custom_dataset` | the Python file that it names |
| `unsafe_code` | code that the model writes |
| a metric that is not lm-eval's own, `hf_evaluate` | code that the `evaluate` library fetches |
| `dataset_path` of another builder than json, csv, text, parquet, arrow | that builder; `pandas` reads pickles |

Templates (`doc_to_text: "{{question}}"`) are rendered in a sandbox: core/evaluation/tasks.py.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import InputError

MOST_BYTES = 1 << 20
MOST_FILES = 20
BUILDERS = ("json", "csv", "text", "parquet", "arrow")
METRICS = frozenset(
    {
        "acc", "acc_norm", "acc_bytes", "acc_all", "acc_mutual_info", "exact_match", "perplexity", "likelihood",
        "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "bypass", "mcc", "f1", "bleu", "chrf",
        "chrf++", "ter",
    }
)  # fmt: skip
_FIELDS = frozenset(
    {
        "task", "task_alias", "tag", "dataset_path", "dataset_name", "dataset_kwargs", "training_split",
        "validation_split", "test_split", "fewshot_split", "doc_to_text", "doc_to_target", "doc_to_choice",
        "description", "target_delimiter", "fewshot_delimiter", "fewshot_config", "num_fewshot", "metric_list",
        "output_type", "generation_kwargs", "repeats", "filter_list", "should_decontaminate",
        "doc_to_decontamination_query", "gen_prefix", "metadata", "unsafe_code",
    }
)  # fmt: skip
_HUB_DATA = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class Function:
    """What stands behind `!function`: a name, not imported."""

    name: str


@dataclass(frozen=True)
class TaskFile:
    """A read file, with what it includes. `runs`: what of it would run code, in words; empty for plain data."""

    path: Path
    name: str
    config: dict[str, Any]
    runs: tuple[str, ...]
    sha256: str

    @property
    def data_set(self) -> str:
        """The hub id of its data, or '' for files on this machine."""
        found = self.config.get("dataset_path")
        return found if isinstance(found, str) and found not in BUILDERS else ""


def is_file(name: str) -> bool:
    """Whether an entry of `evaluation.tasks` is a task's file rather than a name."""
    return name.endswith((".yaml", ".yml"))


def short_name(name: str) -> str:
    """An entry of `evaluation.tasks` for names of stages and for people: a path's last part, and a mark of the rest."""
    if not is_file(name):
        return name
    return f"{Path(name).stem[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def read(name: str) -> TaskFile:
    """Parse a task's file and what it includes. InputError if it is none; nothing of it is imported or fetched."""
    path = Path(name).expanduser().resolve()
    texts: dict[Path, bytes] = {}
    config = _merged(path, texts)
    task = config.get("task")
    if not isinstance(task, str) or "group" in config:
        raise InputError(f"{path.name} does not define one task.", "Give a file with `task: <name>`.")
    if not re.fullmatch(r"[\w.-]{1,100}", task):
        raise InputError(f"{path.name} names its task {task[:80]!r}.", "Use letters, digits, `_`, `-` and `.`.")
    digest = hashlib.sha256(b"\0".join(texts[each] for each in sorted(texts))).hexdigest()
    return TaskFile(path, task, config, tuple(dict.fromkeys(_runs(config))), digest)


def _merged(path: Path, texts: dict[Path, bytes]) -> dict[str, Any]:
    """The file's entries over those of the files that it includes, as the harness merges them."""
    if path in texts or len(texts) >= MOST_FILES:
        raise InputError(f"{path.name} includes itself, or too many files.", "Write its entries into one file.")
    config = _parsed(path, texts)
    includes = config.pop("include", [])
    merged: dict[str, Any] = {}
    for each in includes if isinstance(includes, list) else [includes]:
        if not isinstance(each, str):
            raise InputError(f"{path.name} includes something that is no path.", "Check its `include`.")
        merged |= _merged((path.parent / each).resolve(), texts)
    merged.pop("task_list", None)
    merged |= config
    files = merged.get("dataset_kwargs")
    if isinstance(files, dict) and "data_files" in files:
        merged["dataset_kwargs"] = {**files, "data_files": _placed(files["data_files"], path.parent)}
    return merged


def _placed(value: Any, folder: Path) -> Any:
    """Paths of data files that lie beside the task's file, in whole; others as they are."""
    if isinstance(value, str):
        return str((folder / value).resolve()) if (folder / value).is_file() else value
    if isinstance(value, list):
        return [_placed(each, folder) for each in value]
    if isinstance(value, dict):
        return {key: _placed(each, folder) for key, each in value.items()}
    return value


def _parsed(path: Path, texts: dict[Path, bytes]) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Plain data; functions by name."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):  # a few of them can stand for billions of entries
                raise InputError(f"{path.name} uses YAML aliases (`*name`).", "Write the entries out.")
            return super().compose_node(parent, index)

    Loader.add_constructor("!function", lambda loader, node: Function(str(loader.construct_scalar(node))))
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path} is too large for a task's file.", "Check the path.")
        texts[path] = path.read_bytes()
        config = yaml.load(texts[path], Loader=Loader)
    except OSError as error:
        raise InputError(f"The task's file {path} cannot be read: {error.strerror}.", "Check the path.") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path.name} is no YAML that can be read: {first}", "Check the file.") from error
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise InputError(f"{path.name} is no task's file: it is no mapping.", "Check the file.")
    return config


def _runs(config: Mapping[str, Any]) -> Iterator[str]:
    """What would run code, in words."""
    yield from (f"`!function {name}`" for name in _functions(config))
    if config.get("unsafe_code", False) is not False:
        yield "code that the model writes (`unsafe_code`)"
    for field in sorted(set(config) - _FIELDS):
        if not isinstance(config[field], Function):
            yield f"`{field}`"
    for entry in _listed(config.get("metric_list")):
        metric = entry.get("metric")
        if not isinstance(metric, Function) and (metric not in METRICS or entry.get("hf_evaluate")):
            yield f"the metric {metric!r} of another library"
    path, options = config.get("dataset_path"), config.get("dataset_kwargs")
    if not isinstance(path, str) or (path not in BUILDERS and (Path(path).exists() or not _HUB_DATA.fullmatch(path))):
        yield f"data from {path!r}"
    elif "/" not in path and path not in BUILDERS:
        yield f"the data builder {path!r}"
    if isinstance(options, Mapping) and options.get("trust_remote_code"):
        yield "the data set's own code (`trust_remote_code`)"


def _functions(value: Any) -> Iterator[str]:
    if isinstance(value, Function):
        yield value.name
    elif isinstance(value, Mapping):
        for each in (*value.keys(), *value.values()):
            yield from _functions(each)
    elif isinstance(value, list | tuple | set):
        for each in value:
            yield from _functions(each)


def _listed(value: Any) -> list[Mapping[str, Any]]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []
