"""A number of a long run, in the text: {result}`NAME::path.to.value:.1f` reads book/results/NAME.json.

The path walks through the JSON with dots (list positions are numbers); a `*100` before the colon scales, as
AP is printed in points; the format is Python's. A missing file or key is a warning, and so a failed build.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxRole

SYNTAX = re.compile(r"(?P<name>[\w-]+)::(?P<path>[^:*]+)(?P<scale>\*100)?(?::(?P<spec>[^:]+))?")


def look_up(text: str, results: Path) -> str:
    """The formatted value; ValueError, OSError or LookupError says what is wrong."""
    match = SYNTAX.fullmatch(text.strip())
    if match is None:
        raise ValueError("expected NAME::path.to.value, NAME::path:.1f or NAME::path*100:.1f")
    value: Any = json.loads((results / f"{match['name']}.json").read_text(encoding="utf-8"))
    for key in match["path"].strip().split("."):
        value = value[int(key)] if isinstance(value, list) else value[key]
    if match["scale"]:
        value = value * 100
    return format(value, match["spec"] or "")


class ResultRole(SphinxRole):
    """Replaces {result}`...` by the value it names."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        results = Path(self.env.app.srcdir) / "book" / "results"
        self.env.note_dependency(str(results / f"{self.text.split('::')[0].strip()}.json"))
        try:
            text = look_up(self.text, results)
        except (ValueError, OSError, LookupError, TypeError) as problem:
            text = f"result role {self.text!r}: {problem!r}"
            message = self.inliner.reporter.warning(text, line=self.lineno)
            return [self.inliner.problematic(self.rawtext, self.rawtext, message)], [message]
        return [nodes.inline(text, text, classes=["result"])], []


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_role("result", ResultRole())
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
