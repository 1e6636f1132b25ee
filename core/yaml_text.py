"""Reading and writing the YAML that people give: YAML 1.2, so that `2:4` and `on` are text and `1e-4` is a number."""

import io
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent

from core.errors import ExperimentError

MAX_BYTES = 64 * 1024


def load_mapping(text: str) -> dict[str, Any]:
    """The mapping that `text` holds. ExperimentError for broken YAML, no mapping, aliases, or more than 64 KiB."""
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        raise ExperimentError(f"The YAML has {size:,} bytes.", f"At most {MAX_BYTES:,} are read.")
    try:
        for event in YAML(typ="safe", pure=True).parse(text) if "*" in text else ():  # every alias begins with one
            if isinstance(event, AliasEvent):
                raise ExperimentError(f"The YAML uses the alias *{event.anchor}.", "Write the value out.")
        data = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, ExperimentError):
            raise
        raise ExperimentError(f"This is not YAML: {_short(error)}", "Check indentation and quotes.") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ExperimentError(f"The YAML holds a {type(data).__name__}.", "Write settings as `name: value` lines.")
    return data


def load_value(text: str) -> Any:
    """One YAML value, as typed on a command line after `=`."""
    return load_mapping(f"value: {text}")["value"]


def dump(data: Mapping[str, Any]) -> str:
    """Block-style YAML; short lists of plain values stay on one line."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 110
    yaml.allow_unicode = True
    stream = io.StringIO()
    yaml.dump(dict(data), stream)
    return stream.getvalue()


def _short(error: Exception) -> str:
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
    return f"{problem or str(error).splitlines()[0]}{where}."
