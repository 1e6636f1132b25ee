"""Pydantic's report of what is wrong, as one ExperimentError in the words of this project: every problem, by field."""

from difflib import get_close_matches
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from core.errors import ExperimentError, InputError, Problem

S = TypeVar("S", bound=BaseModel)


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section class inside an annotation such as `Pruning | None` or `tuple[PerplexityCorpus, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := section_of(inner)) is not None), None)


def validated(section: type[S], data: Any, where: str) -> S:
    """Validate, turning pydantic's report into one ExperimentError that lists every problem by field."""
    try:
        return section.model_validate(data)
    except ValidationError as error:
        problems = [problem for item in error.errors() for problem in _problems(section, item, where)]
        raise ExperimentError.of(problems) from None


def _problems(section: type[BaseModel], item: Any, where: str) -> list[Problem]:
    path = ".".join(str(part) for part in item["loc"] if not _is_union_tag(part))
    field = f"{where}.{path}".strip(".") if where else path
    cause = item.get("ctx", {}).get("error")
    if isinstance(cause, ExperimentError) and cause.problems:
        return [Problem(field, problem.message, problem.advice) for problem in cause.problems]
    if isinstance(cause, InputError):
        return [Problem(field, cause.message, cause.advice)]
    if item["type"] == "extra_forbidden":
        *parents, last = path.split(".")
        known = _fields_at(section, parents)
        near = get_close_matches(last, known, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
        return [Problem(field, f"There is no setting {field!r}.", hint)]
    if item["type"] == "missing":
        return [Problem(field, f"{field} is missing.", "Give it a value.")]
    message = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
    shown = "" if cause is not None else f" {_shown(item['input'])}"
    return [Problem(field, f"{field or 'The experiment'}{shown[:80]}: {message}.".replace("..", "."))]


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except (ValueError, RecursionError):  # Python writes no integers of more than 4300 digits
        return "that value"


def _is_union_tag(part: Any) -> bool:
    return isinstance(part, str) and (part.startswith(("literal[", "constrained-")) or part == "int")


def _fields_at(section: type[BaseModel], parents: list[str]) -> list[str]:
    current: type[BaseModel] | None = section
    for name in parents:
        if current is None or name.isdigit():
            continue
        info = current.model_fields.get(name)
        current = section_of(info.annotation) if info else None
    return list(current.model_fields) if current else []
