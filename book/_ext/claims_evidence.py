"""What the rows of the claims ledger are computed from, and the rules that turn measurements into verdicts.

A row's figure and verdict come from one function of an `Evidence`: the stored results (book/results), the recorded
values and the printed outputs of the notebooks (which nbval re-runs and compares), or plain arithmetic. Nobody writes
a verdict down, so none can be out of date. The rows of each theme are in claims_THEME.py, the page is book/claims.md.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from focal_tutorial.table_view import Difference, Row, paired, row

RECORD = "application/papermill.record/"


class Verdict(Enum):
    """The value is what the page says."""

    HOLDS = "holds"
    PART = "holds in part"
    UNDECIDED = "undecided here"
    FAILS = "does not hold at this scale"
    WRONG = "does not hold"
    UNTESTED = "not tested here"
    MISSING = "result missing"


class Finding(NamedTuple):
    """What was measured, as the page prints it, and what the claim's rule makes of it."""

    figure: str
    verdict: Verdict


class Missing(LookupError):
    """A result, a notebook or a value in them that a claim needs is not there."""


class Evidence:
    """The results, notebooks and sources below the repository's root, read when they are asked for.

    Attributes:
        root: of the repository.
        given: results that stand in for files, name → result; for tests.
        used: "results/NAME" and "notebooks/STEM" of everything that was read since the last `clear`.
    """

    def __init__(self, root: Path, given: dict[str, dict[str, Any]] | None = None) -> None:
        self.root, self.given, self.used = root, dict(given or {}), dict[str, None]()
        self._files: dict[Path, Any] = {}

    def result(self, name: str) -> dict[str, Any]:
        """book/results/NAME.json."""
        self.used[f"results/{name}"] = None
        if name in self.given:
            return self.given[name]
        stored: dict[str, Any] = self._json(self.root / "book" / "results" / f"{name}.json")
        return stored

    def row(self, name: str, setting: str, metric: str = "AP") -> Row:
        """One setting of a result; AP in points."""
        try:
            return row(self.result(name), setting, metric)
        except KeyError as error:
            raise Missing(f"{name}: {error.args[0]}") from error

    def settings(self, name: str, prefix: str = "") -> list[str]:
        """The settings of a result whose names begin like this."""
        found = [s for s in self.result(name)["config"]["settings"] if s.startswith(prefix)]
        if not found:
            raise Missing(f"{name}: no setting {prefix}…")
        return found

    def per_seed(self, name: str, part: str, setting: str, *path: str | int) -> list[float]:
        """A number of every run below `part` ("trace", "measured", "metrics") of a setting; a step picks its probe."""
        values = []
        for run in self.result(name)["runs"]:
            value = run.get(part, {}).get(setting)
            for key in path:
                if isinstance(value, list):
                    value = next((probe for probe in value if probe["step"] == key), None)
                else:
                    value = (value or {}).get(key)
            if value is not None:
                values.append(float(value))
        if not values:
            raise Missing(f"{name}: no run has {part} of {setting}, {'.'.join(map(str, path))}")
        return values

    def stem(self, chapter: int) -> str:
        """The notebook of a chapter."""
        found = sorted((self.root / "notebooks").glob(f"{chapter:02}_*.ipynb"))
        if not found:
            raise Missing(f"chapter {chapter}: no such notebook")
        return found[0].stem

    def glue(self, chapter: int, name: str) -> float:
        """A value that a chapter recorded for its text."""
        for output in self._outputs(chapter):
            if output.get("metadata", {}).get("scrapbook", {}).get("name") == name:
                (text,) = (v for kind, v in output["data"].items() if kind == RECORD + "text/plain")
                return number("".join(text))
        raise Missing(f"chapter {chapter}: nothing glued as {name}")

    def printed(self, chapter: int, pattern: str) -> tuple[float, ...]:
        """The numbers that the groups of a pattern find in what a chapter's cells printed."""
        for output in self._outputs(chapter):
            found = re.search(pattern, "".join(output.get("text", "")))
            if found:
                return tuple(number(group) for group in found.groups())
        raise Missing(f"chapter {chapter}: no output like {pattern}")

    def text(self, chapter: int) -> str:
        """The Markdown of a chapter."""
        cells = self._json(self._notebook(chapter))["cells"]
        return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")

    def knobs(self, module: str, function: str) -> list[str]:
        """The numbers that a function or class of the package leaves to its caller's choice."""
        tree = ast.parse((self.root / "focal_tutorial" / f"{module}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name == function:
                node = next(n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__")
            elif not (isinstance(node, ast.FunctionDef) and node.name == function):
                continue
            arguments = [*node.args.args, *node.args.kwonlyargs]
            return [a.arg for a in arguments if re.match(r"(int|float)\b", ast.unparse(a.annotation or ast.Name("")))]
        raise Missing(f"focal_tutorial/{module}.py has no {function}")

    def _outputs(self, chapter: int) -> Iterable[dict[str, Any]]:
        for cell in self._json(self._notebook(chapter))["cells"]:
            yield from cell.get("outputs", [])

    def _notebook(self, chapter: int) -> Path:
        stem = self.stem(chapter)
        self.used[f"notebooks/{stem}"] = None
        return self.root / "notebooks" / f"{stem}.ipynb"

    def _json(self, path: Path) -> Any:
        if path not in self._files:
            if not path.exists():
                raise Missing(f"{path.relative_to(self.root)} is missing")
            self._files[path] = json.loads(path.read_text(encoding="utf-8"))
        return self._files[path]


Measure = Callable[[Evidence], Finding]


@dataclass(frozen=True)
class Claim:
    """A row of the ledger.

    Attributes:
        name: of the row, for links.
        says: the claim in our words, Markdown.
        source: who says it and where.
        rule: what the verdict depends on, in words.
        evidence: where it is tested: "chapter:7", "chapter:7#the-comparison", "test:test_losses.py::test_name"; the
            results and notebooks that `measure` reads are added by themselves.
        measure: figure and verdict. `None` for a claim that nothing here tests; `rule` then says why.
        note: what a reader should know of the test, whatever it comes out as.
    """

    name: str
    says: str
    source: str
    rule: str
    evidence: tuple[str, ...] = ()
    measure: Measure | None = field(default=None, compare=False)
    note: str = ""

    def find(self, evidence: Evidence) -> tuple[Finding, list[str]]:
        """Figure and verdict, and all the evidence: what is named, and what was read."""
        if self.measure is None:
            return Finding("", Verdict.UNTESTED), list(self.evidence)
        evidence.used.clear()
        try:
            finding = self.measure(evidence)
        except Missing as error:
            finding = Finding(str(error.args[0]), Verdict.MISSING)
        named = {entry.split("#")[0] for entry in self.evidence}
        read = []
        for source in evidence.used:
            kind, name = source.split("/")
            entry = f"result:{name}" if kind == "results" else f"chapter:{int(name[:2])}"
            if entry not in named:
                read.append(entry)
        return finding, [*self.evidence, *read]


# ---- rules -------------------------------------------------------------------------------------------------------


def number(text: str) -> float:
    """A printed or recorded number: commas, quotes and what follows ± or a space are left out."""
    found = re.match(r"['\"]?\s*(-?[\d,]*\.?\d+(?:e[+-]?\d+)?|nan)", text.strip())
    if not found:
        raise Missing(f"not a number: {text!r}")
    return float(found[1].replace(",", ""))


def check(figure: str, *conditions: bool, no: Verdict = Verdict.FAILS) -> Finding:
    """Holds if all conditions are true, in part if some are."""
    if all(conditions):
        return Finding(figure, Verdict.HOLDS)
    return Finding(figure, Verdict.PART if any(conditions) else no)


def combine(*findings: Finding) -> Finding:
    """Of several comparisons: holds if all hold, in part if some do; if none does, it fails where one fails clearly."""
    verdicts = [finding.verdict for finding in findings]
    figure = "; ".join(finding.figure for finding in findings)
    good = [verdict in (Verdict.HOLDS, Verdict.PART) for verdict in verdicts]
    if all(verdict is Verdict.HOLDS for verdict in verdicts):
        return Finding(figure, Verdict.HOLDS)
    if any(good):
        return Finding(figure, Verdict.PART)
    return Finding(figure, Verdict.FAILS if Verdict.FAILS in verdicts else Verdict.UNDECIDED)


def sign(value: float, margin: float) -> Verdict:
    """Whether a mean with its 95 % interval is above 0: yes, no, or not to be told."""
    if abs(value) <= margin:
        return Verdict.UNDECIDED
    return Verdict.HOLDS if value > 0 else Verdict.FAILS


def seeds(n: int) -> str:
    return f"{n} seed{'' if n == 1 else 's'}"


def points(value: Difference) -> str:
    """A difference with half its 95 % interval, which one seed does not have."""
    text = f"{value.mean:+.1f}" + (f" ± {value.margin:.1f}" if value.n > 1 else "")
    return text.replace("-", "−")


Setting = tuple[str, str]  # (result, setting)


def versus(e: Evidence, first: Setting, second: Setting, metric: str = "AP") -> tuple[Difference, str]:
    """Paired difference of two settings, of one result or of two, and its text: both over the seeds they share."""
    one, other = e.row(*first, metric), e.row(*second, metric)
    try:
        gap = paired(one, other)
    except ValueError as error:
        raise Missing(f"{first[0]}, {second[0]}: {error.args[0]}") from error
    shared = (replace(r, values={seed: r.values[seed] for seed in gap.values}) for r in (one, other))
    return gap, f"AP {' against '.join(str(r) for r in shared)}, {points(gap)} ({seeds(gap.n)})"


def better(e: Evidence, name: str, first: str, second: str, metric: str = "AP", label: str = "") -> Finding:
    """Whether `first` is above `second`: holds or fails if the 95 % interval of the paired difference leaves out 0."""
    return better_of(e, (name, first), (name, second), metric, label)


def better_of(e: Evidence, first: Setting, second: Setting, metric: str = "AP", label: str = "") -> Finding:
    """`better`, across results whose seeds mean the same first weights and the same order of the same images."""
    gap, text = versus(e, first, second, metric)
    return Finding(f"{label}: {text}" if label else text, sign(gap.mean, gap.margin))


def equal(e: Evidence, name: str, first: str, second: str, within: float, label: str = "") -> Finding:
    """Whether two settings do as well: the 95 % interval lies within `within` points of 0, or wholly outside."""
    gap, text = versus(e, (name, first), (name, second))
    figure = f"{label}: {text}" if label else text
    if abs(gap.mean) + gap.margin <= within:
        return Finding(figure, Verdict.HOLDS)
    return Finding(figure, Verdict.FAILS if abs(gap.mean) - gap.margin > within else Verdict.UNDECIDED)


def mean_margin(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half its 95 % interval (Student's t); infinite for one value."""
    spread = Difference(dict(enumerate(values)))
    return spread.mean, spread.margin
