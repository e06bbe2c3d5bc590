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
    """What a message says it got: dtype and shape of a tensor, the type of anything else."""
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
