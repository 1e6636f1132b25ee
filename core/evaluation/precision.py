"""What happens when numbers overflow: a float16 evaluation that fails is made again in float32, and it is said."""

from collections.abc import Callable
from typing import Any, TypeVar

from core.errors import NumericalError

T = TypeVar("T")


def dtype_name(model: Any) -> str:
    """`float32`, `bfloat16` or `float16`: what the model's weights are in."""
    return str(model.dtype).removeprefix("torch.")


def in_float32_if_it_fails(model: Any, measure: Callable[[], T]) -> tuple[T, str]:
    """Measure, and if a float16 model gives nan or inf, measure with the same weights in float32.

    Returns (result, dtype it was measured in). The model is float16 again afterwards: each float16 number is a float32
    number, so its weights are the same, bit for bit. NumericalError passes through for other dtypes.
    """
    dtype = dtype_name(model)
    try:
        return measure(), dtype
    except NumericalError:
        if dtype != "float16":
            raise
    try:
        model.float()
        return measure(), "float32"
    finally:
        model.half()
