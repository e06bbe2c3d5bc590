"""How the command line's words become values: sizes, numbers, `name=value` options. Imports nothing heavy."""

from __future__ import annotations

import json
from typing import Any

from focal_tutorial.errors import InputError


def parse_size(text: str | None) -> tuple[int, int] | None:
    """(height, width) from "512" (a square) or "384x512" (height x width)."""
    if text is None:
        return None
    parts = text.lower().replace("×", "x").split("x")
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or min(numbers) < 32:
        raise InputError(f"--size: pixels as 512 or 384x512 (height x width), 32 or more, wanted; got {text!r}")
    return numbers[0], numbers[-1]


def parse_numbers(text: str | None, option: str, count: int | None = None) -> tuple[float, ...] | None:
    """Numbers from "0.8,1.25"; exactly `count` of them where that is given."""
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or (count is not None and len(numbers) != count):
        raise InputError(f"{option}: {count or 'some'} numbers with commas between wanted, as 0.8,1.25; got {text!r}")
    return numbers


def parse_options(texts: list[str] | None, option: str = "--option") -> dict[str, Any]:
    """A dictionary from `["levels=[2,3,4]", "prior=0.02", "norm=group"]`: values are JSON, or else words."""
    options: dict[str, Any] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise InputError(f"{option}: NAME=VALUE wanted, as levels=[2,3,4]; got {text!r}")
        try:
            parsed = json.loads(value)
        except json.JSONDecodeError:
            parsed = value.strip()
        options[name.strip()] = tuple(parsed) if isinstance(parsed, list) else parsed
    return options
