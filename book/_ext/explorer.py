"""Figures that a reader can move, without a kernel and without a network: {explorer} loss, share or thresholds.

What the page holds is a static figure with a caption and a hidden form of native inputs. book/_static/explorer.js,
loaded on these pages only, shows the form and redraws; without JavaScript figure and caption stay as they are.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


@dataclass(frozen=True)
class Slider:
    """A range input. What its position means is the business of explorer.js: some are logits or powers of ten."""

    name: str
    label: str
    low: float
    high: float
    step: float
    value: float


@dataclass(frozen=True)
class Choice:
    """A checkbox, or with `group` a radio button of that name."""

    name: str
    label: str
    checked: bool = False
    group: str = ""


P_T = "<i>p</i><sub>t</sub>"
X_T = "<i>x</i><sub>t</sub>"
GAMMA = Slider("gamma", "focusing parameter γ", 0, 5, 0.1, 2)
CONTROLS: dict[str, list[Slider | Choice]] = {
    "loss": [
        GAMMA,
        Slider("p", f"marked probability {P_T}", 0.002, 0.998, 0.002, 0.9),
        Choice("weigh", "weigh with α"),
        Slider("alpha", "weight α of objects", 0.05, 0.95, 0.05, 0.25),
        Choice("axis-p", f"probability {P_T}", True, "axis"),
        Choice("axis-x", f"logit {X_T}", False, "axis"),
    ],
    # The article's example: one object with a loss of 10 (x_t = -10), 1000 backgrounds with 0.1 (x = -2.2522).
    "share": [
        Slider("positives", "objects", 1, 100, 1, 1),
        Slider("x_positive", "probability <i>p</i> at each object", -10, 4.6, 0.1, -10),
        Slider("negatives", "easy backgrounds", 1, 5.3, 0.05, 3),
        Slider("x_negative", "probability <i>p</i> at each background", -11.2022, -0.0022, 0.05, -2.2522),
        GAMMA,
        Slider("alpha", "weight α of objects", 0.05, 0.999, 0.001, 0.75),
    ],
    "thresholds": [
        Slider("score", "confidence threshold", 0.05, 0.99, 0.01, 0.4),
        Slider("iou", "NMS: largest IoU that two boxes of a class may have", 0.05, 1, 0.05, 0.5),
        Choice("truth", "show the ground truth"),
        Choice("removed", "show what NMS removed"),
    ],
}
LEGENDS = {
    "loss": [("ce", "cross entropy"), ("object", "focal loss, γ = 2"), ("background off", "focal loss of background")],
    "share": [],
    "thresholds": [
        ("hit", "right"),
        ("wrong", "wrong"),
        ("missed", "missed object"),
        ("truth off", "ground truth"),
        ("removed off", "removed by NMS"),
    ],
}


def state_of(kind: str) -> dict[str, float]:
    """What the sliders stand at when the page opens, as the figures need it."""
    state = {control.name: control.value for control in CONTROLS[kind] if isinstance(control, Slider)}
    if "negatives" in state:
        state["negatives"] = round_to_two(10 ** state["negatives"])
    return state


def round_to_two(value: float) -> float:
    """To two significant digits: numbers of boxes that one can say."""
    unit = 10 ** max(math.floor(math.log10(value)) - 1, 0)
    return math.floor(value / unit + 0.5) * unit


def caption(kind: str) -> str:
    """What the figure shows before anybody moves a slider; explorer.js writes the same sentences."""
    import explorer_figures as figures

    state = state_of(kind)
    if kind == "loss":
        return loss_caption(state)
    if kind == "share":
        return share_caption(state, figures.shares(state))
    data = figures.load_data()
    kept, right, _ = figures.detect(data, state["score"], state["iou"])
    above = sum(row[5] >= state["score"] for row in data["detections"])
    return threshold_caption(state, above, len(kept), int(right.sum()), len(data["truth"]))


def times(ratio: float) -> str:
    import explorer_figures as figures

    if abs(ratio - 1) < 0.005:
        return "the same"
    return f"{figures.short(max(ratio, 1 / ratio))} times {'smaller' if ratio > 1 else 'larger'}"


def loss_caption(state: dict[str, float]) -> str:
    import explorer_figures as figures

    p, gamma = state["p"], state["gamma"]
    x = math.log(p / (1 - p))
    ce, fl = float(figures.loss_of(x, 0.0)), float(figures.loss_of(x, gamma))
    ce_slope, fl_slope = float(figures.slope_of(x, 0.0)), float(figures.slope_of(x, gamma))
    return (
        f"At {P_T} = {figures.short(p)} ({X_T} = {figures.short(x).replace('-', '−')}), cross entropy is "
        f"{figures.short(ce)} and the focal loss {figures.short(fl)}: <b>{times(ce / fl)}</b>. The gradient is "
        f"{figures.short(ce_slope)} against {figures.short(fl_slope)}: <b>{times(ce_slope / fl_slope)}</b>."
    )


def share_caption(state: dict[str, float], parts: dict[str, dict[str, tuple[float, float]]]) -> str:
    import explorer_figures as figures

    n, m = int(state["positives"]), int(state["negatives"])
    p = [figures.short(1 / (1 + math.exp(-state[key]))) for key in ("x_positive", "x_negative")]
    each = [figures.short(parts["loss"]["ce"][i] / count) for i, count in enumerate((n, m))]
    share = {k: [figures.percent(a / (a + b)) for a, b in parts[k].values()] for k in ("loss", "slope")}
    who = "The objects make" if n > 1 else "The object makes"
    return (
        f"{n} object{'s' * (n > 1)} with <i>p</i> = {p[0]} (cross entropy {each[0]}{' each' * (n > 1)}) against {m:,} "
        f"backgrounds with <i>p</i> = {p[1]} ({each[1]} each). {who} {share['loss'][0]} of the cross entropy and "
        f"<b>{share['loss'][2]}</b> of the focal loss; of the gradient, {share['slope'][0]} and "
        f"<b>{share['slope'][2]}</b>."
    )


def threshold_caption(state: dict[str, float], above: int, kept: int, right: int, objects: int) -> str:
    import explorer_figures as figures

    precision = figures.percent(right / kept) if kept else "undefined"
    return (
        f"{above:,} candidates have a score of at least {state['score']:g}; NMS leaves {kept}: <b>{right} right, "
        f"{kept - right} wrong</b>, and <b>{objects - right}</b> of {objects} objects missed. Precision {precision}, "
        f"recall {figures.percent(right / objects)}, F1 {figures.percent(2 * right / (kept + objects))}, at IoU 0.5."
    )


def control(kind: str, item: Slider | Choice) -> str:
    """A label and its native input."""
    name = f"explorer-{kind}-{item.name}"
    if isinstance(item, Slider):
        return (
            f'<div class="slider" data-for="{item.name}"><label for="{name}">{item.label}</label>'
            f'<output for="{name}"></output><input type="range" id="{name}" name="{item.name}" '
            f'min="{item.low:g}" max="{item.high:g}" step="{item.step:g}" value="{item.value:g}"></div>'
        )
    sort = f'type="checkbox" name="{item.name}"'
    if item.group:
        sort = f'type="radio" name="{item.group}" value="{item.name}"'
    checked = " checked" if item.checked else ""
    return f'<span class="choice"><input {sort} id="{name}"{checked}><label for="{name}">{item.label}</label></span>'


def form(kind: str) -> str:
    items = CONTROLS[kind]
    parts = [control(kind, item) for item in items if not (isinstance(item, Choice) and item.group)]
    radios = [control(kind, item) for item in items if isinstance(item, Choice) and item.group]
    if radios:
        parts.append(f"<fieldset><legend>horizontal axis:</legend>{''.join(radios)}</fieldset>")
    return (
        f'<form class="controls" autocomplete="off" aria-label="Move the figure" hidden>{"".join(parts)}'
        '<button type="reset">Reset</button></form>'
    )


def html(kind: str, static: str) -> str:
    """The explorer as it stands in the page; `static` is the path from the page to the static files."""
    import explorer_figures as figures

    state = state_of(kind)
    drawn = {
        "loss": lambda: figures.loss_figure(state),
        "share": lambda: figures.share_figure(state),
        "thresholds": lambda: figures.threshold_figure(state, static),
    }[kind]()
    legend = "".join(f'<li class="{sort}">{words}</li>' for sort, words in LEGENDS[kind])
    legend = f'<ul class="legend">{legend}</ul>' if legend else ""
    data = ""
    if kind == "thresholds":
        content = {key: figures.load_data()[key] for key in ("classes", "truth", "detections")}
        data = f'<script type="application/json">{json.dumps(content, separators=(",", ":"))}</script>'
    return (
        f'<div class="explorer" data-explorer="{kind}"><div class="panels">{drawn}</div>{legend}'
        f'<p class="live" aria-live="polite">{caption(kind)}</p>{form(kind)}{data}</div>'
    )


class Explorer(SphinxDirective):
    """```{explorer} KIND``` with KIND one of loss, share, thresholds."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        kind = self.arguments[0]
        if kind not in CONTROLS:
            raise self.error(f"explorer: one of {', '.join(CONTROLS)} wanted, got {kind!r}")
        import explorer_figures as figures

        self.env.note_dependency(str(figures.DATA))
        static = "../" * self.env.docname.count("/") + "_static/"
        return [nodes.raw("", html(kind, static), format="html")]


def add_files(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """The script and the style, on pages with an explorer only."""
    if 'class="explorer"' in context.get("body", ""):
        app.add_js_file("explorer.js", loading_method="defer")
        app.add_css_file("explorer.css")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("explorer", Explorer)
    app.connect("html-page-context", add_files)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
