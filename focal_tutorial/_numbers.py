"""What an argument can be asked: is it a whole number, a finite one, a positive one; a bool is none of these."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from torch import Tensor


def is_count(value: Any, low: int = 1) -> bool:
    """Whether `value` is a whole number of at least `low` that 64 bits hold."""
    return isinstance(value, Integral) and not isinstance(value, bool) and low <= int(value) < 2**63


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether `value` is a number in [`low`, `high`] that a float holds."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value) and low <= float(value) <= high
    except OverflowError:  # a Python integer may have any number of digits
        return False


def is_positive(value: Any) -> bool:
    """Whether `value` is a number above 0 that a float holds."""
    return is_number(value) and value > 0


def describe(value: Any) -> str:
    """What a message says it got, on one short line: dtype and shape of a tensor, anything else as it is written."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    try:
        text = " ".join(repr(value).split())
    except (RecursionError, ValueError):  # nested too deeply, or an integer of more digits than Python writes
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."
