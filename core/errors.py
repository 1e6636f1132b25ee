"""Every error that Espalier raises on purpose.

    EspalierError
    ├── InputError (also ValueError)      what the caller asked for cannot be done
    │   ├── ExperimentError               a field of an Experiment is wrong
    │   ├── UnknownNameError              a name that nothing is registered under
    │   ├── ModelError                    a model that cannot be chosen or loaded
    │   │   └── GatedModelError           a model whose licence must be accepted first
    │   ├── DataError                     text or task data that cannot be had
    │   └── NotAvailableError             part of the schema, but not built yet
    ├── RunError                          a run that was started cannot go on
    │   ├── VerificationError             a saved model does not reload to the same model
    │   ├── NumericalError                nan, inf, a factorisation that fails
    │   ├── DeviceError                   a device that is shown but cannot be used
    │   ├── OutOfMemoryError              device or host memory is exhausted
    │   ├── DiskFullError                 no room left where the runs lie
    │   └── Cancelled                     somebody asked for it to stop
    ├── StoreError                        results.duckdb
    └── QueueError                        the queue, or another process that holds it

`message` is one sentence for people (what, which value); `advice` says what to do.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, Self


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with an input: the dotted field, what and which value, what to do."""

    field: str
    message: str
    advice: str = ""
    level: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        return f"{self.message} {self.advice}".strip()


class EspalierError(Exception):
    """Base of all errors raised on purpose; `str()` joins message and advice."""

    def __init__(self, message: str, advice: str = "") -> None:
        super().__init__(message, advice)
        self.message = message
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.message} {self.advice}".strip()


class InputError(EspalierError, ValueError):
    """The caller's mistake."""


class ExperimentError(InputError):
    """A field of an Experiment is wrong; `field` is its dotted path, or ''. `problems` lists all that was found."""

    def __init__(self, message: str, advice: str = "", field: str = "") -> None:
        super().__init__(message, advice)
        self.field = field
        self.problems: list[Problem] = [Problem(field, message, advice)]

    @classmethod
    def of(cls, problems: list[Problem]) -> Self:
        """One error that lists several problems."""
        first = problems[0]
        error = cls(
            " ".join(str(p) for p in problems) if len(problems) > 1 else first.message,
            "" if len(problems) > 1 else first.advice,
            first.field,
        )
        error.problems = problems
        return error


class UnknownNameError(InputError):
    """A name that nothing is registered under; lists what there is and suggests the nearest."""

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = get_close_matches(name, names, n=1, cutoff=0.6)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        super().__init__(f"There is no {what} {name!r}.", f"{hint}Known: {', '.join(names) or 'none'}.")
        self.name = name


class ModelError(InputError):
    """A model that cannot be chosen or loaded."""


class GatedModelError(ModelError):
    """A model whose licence must be accepted, or that needs a login, before it can be had."""


class DataError(InputError):
    """Text or task data that cannot be had."""


class NotAvailableError(InputError):
    """Part of the schema from the start, but not built yet."""


class RunError(EspalierError):
    """A run that was started cannot go on."""


class VerificationError(RunError):
    """A saved model does not reload to the same model."""


class NumericalError(RunError):
    """nan or inf where a number was needed, or a factorisation that fails."""


class DeviceError(RunError):
    """A device that is shown but cannot be used."""


class OutOfMemoryError(RunError):
    """Device or host memory is exhausted."""


class DiskFullError(RunError):
    """No room is left where the runs lie."""


class Cancelled(RunError):
    """Somebody asked for the run to stop."""

    def __init__(self, message: str = "Cancelled.", advice: str = "") -> None:
        super().__init__(message, advice)


class StoreError(EspalierError):
    """results.duckdb cannot be opened, migrated or written."""


class QueueError(EspalierError):
    """The queue, or another process that holds it."""
