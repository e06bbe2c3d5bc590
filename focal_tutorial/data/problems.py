"""What can be wrong with a dataset, as records that a report can list and count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a dataset.

    Attributes:
        file: the image or annotation file it was found in.
        id: the annotation's or image's id there, or None.
        kind: a short fixed name, such as "zero-size box", to count by.
        detail: what was found, and what was done about it.
    """

    file: str
    id: int | str | None
    kind: str
    detail: str

    def __str__(self) -> str:
        where = self.file if self.id is None else f"{self.file}, id {self.id}"
        return printable(f"{where}: {self.kind}: {self.detail}")


def printable(text: str) -> str:
    """`text` on one line that any terminal takes: line ends, control characters and lone surrogates as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def count_problems(problems: Iterable[Problem]) -> dict[str, int]:
    """Problems by kind, the most frequent first."""
    return dict(Counter(problem.kind for problem in problems).most_common())
