"""A result of one of the paper's tables as rows: mean, spread, best α, differences seed by seed.

AP is in points, 0 to 100, as in the paper; what a cell measured beside it keeps its unit. A result is what
`focal_tutorial.results.load_result` returns for a table of `focal_tutorial.paper`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Half the width of a 95 % interval in standard errors: Student's t for 1, 2, … degrees of freedom.
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


class OverSeeds:
    """What has a value for each seed: `values`, seed → number."""

    values: dict[int, float]

    @property
    def n(self) -> int:
        """How many seeds."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.values.values())

    @property
    def sd(self) -> float | None:
        """Sample standard deviation, `None` for one seed."""
        return statistics.stdev(self.values.values()) if self.n > 1 else None


@dataclass(frozen=True)
class Row(OverSeeds):
    """One setting of a table.

    Attributes:
        setting: its name in the table, such as "fl_2_0_25".
        title: its name for people.
        values: seed → what that run reached; 0 for an AP of a run whose loss was not finite.
        diverged: the seeds of those runs.
    """

    setting: str
    title: str
    values: dict[int, float]
    diverged: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if self.sd is None else f"{self.mean:.1f} ± {self.sd:.1f}"


@dataclass(frozen=True)
class Difference(OverSeeds):
    """One setting minus another, over the seeds that both have: same first weights, same order of the images.

    Attributes:
        values: seed → difference.
    """

    values: dict[int, float]

    @property
    def standard_error(self) -> float | None:
        """The standard deviation of the mean, sd / √n; `None` for one seed."""
        return None if self.sd is None else self.sd / math.sqrt(self.n)

    @property
    def margin(self) -> float:
        """Half the width of the 95 % interval of the mean (Student's t); infinite for one seed."""
        return math.inf if self.standard_error is None else T_95[min(self.n - 2, 8)] * self.standard_error

    @property
    def clear(self) -> bool:
        """Whether the 95 % interval leaves out 0."""
        return abs(self.mean) > self.margin

    def __str__(self) -> str:
        return f"{self.mean:+.1f} ± {self.margin:.1f}{'' if self.clear else ' ?'}"


def row(result: Mapping[str, Any], setting: str, metric: str = "AP") -> Row:
    """One setting of a result.

    Args:
        result: as loaded.
        setting: a name of `result["config"]["settings"]`.
        metric: one of the runs' metrics ("AP", "AP50", "AP_any", "validation_AP", …), which come in points; or a number
            that the cells measured, such as "milliseconds". Runs without it (`None`) are left out.

    Raises:
        KeyError: no run has that setting and metric.
    """
    values, diverged = {}, []
    for run in result["runs"]:
        metrics = run["metrics"].get(setting, {})
        measured = (run.get("measured", {}).get(setting) or {}).get(metric)
        value = measured if metrics.get(metric) is None else 100 * metrics[metric]
        if value is not None:
            values[run["seed"]] = float(value)
            if run.get("diverged", {}).get(setting):
                diverged.append(run["seed"])
    if not values:
        raise KeyError(f"{metric} of {setting}: no run of {result.get('name', 'the result')} has it")
    return Row(setting, result["config"]["settings"][setting].get("title", setting), values, tuple(diverged))


def rows(result: Mapping[str, Any], metric: str = "AP") -> list[Row]:
    """All settings of a result, in its order; see `row`."""
    return [row(result, setting, metric) for setting in result["config"]["settings"]]


def common_seeds(*rows: OverSeeds) -> list[int]:
    """The seeds that all of `rows` have, in the order of the first."""
    first, *others = rows
    return [seed for seed in first.values if all(seed in other.values for other in others)]


def best_row(candidates: Sequence[Row]) -> Row:
    """The highest mean over the seeds that all have, else a lucky further seed would choose; of equals the first.

    Raises:
        ValueError: no seed in common.
    """
    common = common_seeds(*candidates)
    if not common:
        raise ValueError(f"{', '.join(one.setting for one in candidates)} have no seed in common")
    return max(candidates, key=lambda one: statistics.fmean(one.values[seed] for seed in common))


def paired(first: Row, second: Row) -> Difference:
    """`first` - `second`, seed by seed; also for rows of two results whose seeds mean the same.

    Raises:
        ValueError: no seed in common.
    """
    common = common_seeds(first, second)
    if not common:
        raise ValueError(f"{first.setting} and {second.setting} have no seed in common")
    return Difference({seed: first.values[seed] - second.values[seed] for seed in common})


def difference(result: Mapping[str, Any], first: str, second: str, metric: str = "AP") -> Difference:
    """Setting `first` minus setting `second` of a result, in points, over their common seeds."""
    return paired(row(result, first, metric), row(result, second, metric))


def by_gamma(result: Mapping[str, Any]) -> dict[float, list[str]]:
    """γ → the settings of focal loss with that γ and an α, in the order of α; γ = 0 is balanced cross entropy."""
    found: dict[float, list[str]] = {}
    settings = result["config"]["settings"]
    for name, setting in settings.items():
        if setting.get("alpha") is not None and not setting.get("sampler"):
            found.setdefault(setting["gamma"], []).append(name)
    return {g: sorted(names, key=lambda name: float(settings[name]["alpha"])) for g, names in sorted(found.items())}


def best_alpha(result: Mapping[str, Any], metric: str = "validation_AP") -> dict[float, str]:
    """γ → the setting whose α is best by the mean of `metric`, over the seeds that all α of this γ have."""
    return {
        gamma: best_row([row(result, name, metric) for name in names]).setting
        for gamma, names in by_gamma(result).items()
    }


def text_table(header: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """Aligned columns for a notebook's cell, the first to the left, the others to the right."""
    cells = [[str(cell) for cell in line] for line in (header, *lines)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    aligned = (
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in cells
    )
    return "\n".join("  ".join(line).rstrip() for line in aligned)


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """The same as a Markdown table, for a page that is generated."""
    marks = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in (header, marks, *lines))


def comparison_table(
    paper: Mapping[str, Mapping[str, float]],
    result: Mapping[str, Any],
    settings: Mapping[str, str] | None = None,
    *,
    metrics: Sequence[str] = ("AP", "AP50"),
    reference: str | None = None,
) -> str:
    """The paper's figures and ours side by side, as `text_table`.

    Args:
        paper: `rows` of a table of `focal_tutorial.paper_reference`: name → metric → points.
        result: ours.
        settings: our setting → the paper's row; by default every setting, with the row of its name. A setting without a
            row there gets a dash.
        metrics: columns, of the paper and of ours.
        reference: our setting to take from each other one; adds the column of `Difference` with its 95 % margin, and a
            question mark behind a difference that is not clear.
    """
    names = settings or {name: name for name in result["config"]["settings"]}
    header = ["", *(f"paper {m}" for m in metrics), *(f"our {m}" for m in metrics), "n"]
    lines = []
    for name, theirs in names.items():
        known = paper.get(theirs, {})
        ours = [row(result, name, metric) for metric in metrics]
        line = [ours[0].title, *(f"{known[m]:.1f}" if m in known else "–" for m in metrics), *ours, ours[0].n]
        if reference:
            line.append("" if name == reference else difference(result, name, reference, metrics[0]))
        lines.append(line)
    if reference:
        header.append(f"{metrics[0]} against {row(result, reference).title}")
    return text_table(header, lines)
