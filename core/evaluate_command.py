"""`python -m core evaluate MODEL`: judge any causal language model as it is, in the way of a run.

The options are fields of the Experiment; whatever is left out takes its default there. No torch.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.errors import InputError
from core.experiment import Experiment
from core.sections import SEVEN_TASKS

NONE = "none"
SEVEN = "seven"


def add(commands: Any, function: Callable[[argparse.Namespace], int], common: Callable[[Any], None]) -> None:
    """Add the command to the parser's `commands`; `common` adds the options that it shares with `run`."""
    command = commands.add_parser("evaluate", help="judge a model that is there: a folder, a hub id, a run's model")
    command.add_argument(
        "model", metavar="MODEL", help="folder in Hugging Face form, hub id, built-in name, or a run's id"
    )
    command.add_argument(
        "--tasks",
        metavar="NAMES",
        help=f"separated by commas; {SEVEN} (the default) or {NONE}; also a task's YAML file",
    )
    command.add_argument("--perplexity", metavar="TEXTS", help=f"corpora or text files, separated by commas; or {NONE}")
    command.add_argument("--window", metavar="TOKENS", type=int, help="of each perplexity window")
    command.add_argument("--max-tokens", metavar="N", type=int, help="read at most so many tokens of each text")
    command.add_argument("--limit", metavar="N", type=int, help="only the first N documents of each task")
    command.add_argument("--shots", metavar="N", type=int, help="solved examples before each question")
    command.add_argument("--chat-template", action="store_true", help="wrap each question in the model's template")
    command.add_argument("--no-speed", action="store_true", help="do not measure speed")
    command.add_argument("--batch-size", metavar="N", type=int, help="sequences in one forward pass")
    command.add_argument("--quantised", choices=("q8_0", "q4_0"), help="judge the weights rounded to this GGUF format")
    command.add_argument("--revision", metavar="COMMIT", help="of a hub model")
    command.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16", "float16"), help="of the weights in the run"
    )
    command.add_argument("--trust-remote-code", action="store_true", help="let the model's own code run: read it first")
    command.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or cuda:1")
    command.add_argument("--seed", metavar="N", type=int, help="of few-shot examples")
    command.add_argument("--name", metavar="TEXT", help="what the run is called")
    common(command)
    command.set_defaults(function=function)


def experiment_of(options: argparse.Namespace) -> Experiment:
    """What the options say. ExperimentError or InputError for what cannot be."""
    name = model_name(options.model)
    model = {
        "name": name,
        "revision": options.revision,
        "dtype": options.dtype,
        "trust_remote_code": options.trust_remote_code or None,
        "quantised": options.quantised,
    }
    evaluation = {
        "perplexity": _texts(options),
        "tasks": _tasks(options.tasks),
        "limit": options.limit,
        "shots": options.shots,
        "chat_template": options.chat_template or None,
        "speed": False if options.no_speed else None,
        "batch_size": options.batch_size,
    }
    top = {
        "name": options.name,
        "model": _given(model),
        "evaluation": {**_given(evaluation), "fidelity": options.quantised is not None},
        "device": options.device,
        "seed": options.seed,
    }
    return Experiment.parse(_given(top))


def model_name(text: str) -> str:
    """What the Experiment calls it: folders by their whole path, a run's id by the folder of its saved model."""
    from core.jobs.rundir import is_run_id
    from core.settings import runs_dir

    if is_run_id(text) and not Path(text).is_dir():
        folder = runs_dir() / text / "model"
        if not (folder / "config.json").is_file():
            raise InputError(f"Run {text} kept no model.", "Give a folder, a hub id, or another run.")
        return str(folder)
    folder = Path(text).expanduser()
    return str(folder.resolve()) if folder.is_dir() else text


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


def _words(text: str) -> list[str]:
    return [word for part in text.split(",") if (word := part.strip())]


def _tasks(text: str | None) -> list[str] | None:
    if text is None or text == NONE:
        return None if text is None else []
    return [name for word in _words(text) for name in (SEVEN_TASKS if word == SEVEN else (_file(word),))]


def _file(word: str) -> str:
    """A task's file by its whole path, so that a worker in another folder finds it; names as they are."""
    return str(Path(word).expanduser().resolve()) if word.endswith((".yaml", ".yml")) else word


def _texts(options: argparse.Namespace) -> list[dict[str, Any]] | None:
    how = _given({"window": options.window, "max_tokens": options.max_tokens})
    if options.perplexity is None:
        return [how] if how else None
    if options.perplexity == NONE:
        return []
    return [{**_text(word), **how} for word in _words(options.perplexity)]


def _text(word: str) -> dict[str, Any]:
    path = Path(word).expanduser()
    return {"path": str(path.resolve())} if path.is_file() else {"corpus": word}
