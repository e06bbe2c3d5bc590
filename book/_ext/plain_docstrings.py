"""Docstrings are written as plain text with `code` in single backticks, as one reads them in an editor.

Sphinx wants reStructuredText; this turns the one into the other before napoleon sees it: `code` becomes a
literal, and a bar, as in |x|, stays a bar.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

# An existing ``literal`` or :role:`text` stays; the first group is our `code`, the second a bar.
PATTERN = re.compile(r"``.+?``|:\w+:`[^`]+`|(?<!`)`([^`]+)`|(\|)", re.DOTALL)


def translate(text: str) -> str:
    def replace(match: re.Match[str]) -> str:
        if match[1] is not None:
            follows = text[match.end() : match.end() + 1]
            return f"``{match[1]}``" + ("\\ " if follows.isalnum() else "")
        return "\\|" if match[2] else match[0]

    return PATTERN.sub(replace, text)


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = translate("\n".join(lines)).split("\n")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-process-docstring", process, priority=100)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
