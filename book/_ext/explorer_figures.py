"""The static figures of the explorers, drawn from the package's own functions.

Colours are CSS classes, so that the figures follow the page's mode; book/_static/explorer.js moves the same paths, bars
and boxes once a reader moves a slider.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from focal_tutorial.focal_term import focal_term, focal_term_derivative
from focal_tutorial.plotting import judge_detections

DATA = Path(__file__).resolve().parents[1] / "_static" / "explorer_detections.json"
LEFT, TOP, WIDTH, HEIGHT = 34, 30, 316, 190  # the plot inside a panel of 360 × 262
LOSS_TOP, SLOPE_TOP = 5.0, 1.4  # upper ends of the vertical axes
POINTS = 161  # of a curve
P_T = '<tspan class="i">p</tspan><tspan dy="3" font-size="9">t</tspan>'
X_T = '<tspan class="i">x</tspan><tspan dy="3" font-size="9">t</tspan>'
BACK = '<tspan dy="-3">\u200b</tspan>'  # up to the line again after a subscript


def loss_of(x: float | Tensor, gamma: float) -> Tensor:
    """FL of signed logits x_t, in double precision."""
    return focal_term(torch.as_tensor(x, dtype=torch.float64), gamma)


def slope_of(x: float | Tensor, gamma: float) -> Tensor:
    """|dFL/dx_t|, in double precision."""
    return focal_term_derivative(torch.as_tensor(x, dtype=torch.float64), gamma).abs()


# ---- numbers as text, written the same way in explorer.js ---------------------------------------------------------


def short(value: float) -> str:
    """Three significant digits."""
    if value == 0:
        return "0"
    digits, exponent = f"{value:.2e}".split("e")
    if 1e-5 <= abs(float(f"{value:.2e}")) < 1e6:
        text = f"{float(f'{value:.2e}'):,.10f}"
        return text.rstrip("0").rstrip(".")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{float(digits):g} × 10{raised}"


def percent(share: float) -> str:
    """A share in percent; not "100 %" for what is less."""
    return "> 99.9\u00a0%" if 0.9995 <= share < 1 else f"{short(100 * share)}\u00a0%"


# ---- curves of loss and gradient -------------------------------------------------------------------------------------


def curve(f: Callable[[Tensor], Tensor], top: float) -> str:
    """The path of f(x_t) over p_t from where cross entropy is `LOSS_TOP` to nearly 1."""
    low, high = math.exp(-LOSS_TOP), 0.9995
    p = low + (high - low) * torch.arange(POINTS, dtype=torch.float64) / (POINTS - 1)
    y = f(p.log() - torch.log1p(-p)).tolist()
    places = [f"{LEFT + WIDTH * a:.2f} {TOP + HEIGHT * (1 - b / top):.2f}" for a, b in zip(p.tolist(), y, strict=True)]
    return "M" + "L".join(places)


def axes(title: str, top: float, y_ticks: Sequence[float]) -> str:
    """Grid, tick labels and names of the axes; both kinds of horizontal axis, of which one shows."""
    parts = [f'<text class="head" x="0" y="14">{title}</text>']
    for value in y_ticks:
        y = TOP + HEIGHT * (1 - value / top)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}h{WIDTH}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    ticks = {"p": [(v / 5, f"{v / 5:g}") for v in range(6)], "x": [((v + 5) / 10, f"{v:g}") for v in range(-4, 5, 2)]}
    names = {"p": f"probability of the truth, {P_T}", "x": f"logit of the truth, {X_T}"}
    for axis, marks in ticks.items():
        words = [
            f'<text class="tick" x="{LEFT + WIDTH * place:.1f}" y="{TOP + HEIGHT + 16}" text-anchor="middle">'
            f"{label.replace('-', '−')}</text>"
            for place, label in marks
        ]
        name = f'<text class="tick" x="{LEFT + WIDTH}" y="{TOP + HEIGHT + 35}" text-anchor="end">{names[axis]}</text>'
        hidden = ' class="off"' if axis == "x" else ""
        parts.append(f'<g data-axis="{axis}"{hidden}>{"".join(words)}{name}</g>')
    return "".join(parts)


def curve_panel(key: str, title: str, alt: str, state: dict[str, float]) -> str:
    """One of the two panels: "loss" or "slope" of cross entropy and of the focal loss."""
    f, top, ticks = (loss_of, LOSS_TOP, range(6)) if key == "loss" else (slope_of, SLOPE_TOP, (0, 0.5, 1))
    p, gamma = state["p"], state["gamma"]
    x = math.log(p / (1 - p))
    here, y = LEFT + WIDTH * p, {g: TOP + HEIGHT * (1 - float(f(x, g)) / top) for g in (0.0, gamma)}
    body = (
        axes(title, top, ticks)
        + f'<path class="cursor" data-mark="cursor" d="M{here:.2f} {TOP}v{HEIGHT}"/>'
        + f'<path class="curve ce" data-mark="ce" d="{curve(lambda x: f(x, 0.0), top)}"/>'
        + f'<path class="curve background off" data-mark="background" d="{curve(lambda x: f(x, gamma), top)}"/>'
        + f'<path class="curve object" data-mark="object" d="{curve(lambda x: f(x, gamma), top)}"/>'
        + f'<circle class="dot ce" data-mark="dot-ce" cx="{here:.2f}" cy="{y[0.0]:.2f}" r="4"/>'
        + f'<circle class="dot background off" data-mark="dot-background" cx="{here:.2f}" cy="{y[gamma]:.2f}" r="4"/>'
        + f'<circle class="dot object" data-mark="dot-object" cx="{here:.2f}" cy="{y[gamma]:.2f}" r="4"/>'
    )
    name = "Loss by probability" if key == "loss" else "Size of the gradient by probability"
    return svg(f"curve-{key}", (360, 262), name, alt, body, f'data-panel="{key}" data-top="{top}"')


def loss_figure(state: dict[str, float]) -> str:
    alts = {
        "loss": "Two falling curves over the probability of the truth. Cross entropy falls slowly to 0 at 1; the focal "
        "loss lies below it everywhere, and from about 0.6 on it is nearly 0.",
        "slope": "Size of the gradient by the logit. For cross entropy a straight line from 1 down to 0; for the focal "
        "loss higher than that below about 0.3, then falling fast and nearly 0 from about 0.8 on.",
    }
    panels = [
        curve_panel("loss", "Loss", alts["loss"], state),
        curve_panel("slope", f"Size of the gradient, |dL/d{X_T}{BACK}|", alts["slope"], state),
    ]
    return "".join(panels)


# ---- whose loss is it? -----------------------------------------------------------------------------------------------


def shares(state: dict[str, float]) -> dict[str, dict[str, tuple[float, float]]]:
    """For loss and gradient, and for each of four losses: what comes from the objects, and what from the background."""
    gamma, alpha = state["gamma"], state["alpha"]
    losses = {"ce": (0.0, 1.0, 1.0), "balanced": (0.0, alpha, 1 - alpha)}
    losses |= {"focal": (gamma, 1.0, 1.0), "both": (gamma, alpha, 1 - alpha)}
    return {
        kind: {
            name: (
                a * state["positives"] * float(f(state["x_positive"], g)),
                b * state["negatives"] * float(f(-state["x_negative"], g)),
            )
            for name, (g, a, b) in losses.items()
        }
        for kind, f in (("loss", loss_of), ("slope", slope_of))
    }


def bar(y: float, kind: str, name: str, title: str, parts: tuple[float, float]) -> str:
    """One bar of 360 units: the objects' part on the left, the background's on the right."""
    total = sum(parts)
    share = parts[0] / total
    edge, high = 360 * share, 'height="20"'
    return (
        f'<g data-bar="{kind}-{name}"><text x="0" y="{y}" data-mark="name">{title}</text>'
        f'<text class="tick" x="360" y="{y}" text-anchor="end" data-mark="total">total {short(total)}</text>'
        f'<rect class="background" data-mark="background" x="{edge:.2f}" y="{y + 7}" width="{360 - edge:.2f}" {high}/>'
        f'<rect class="object" data-mark="object" x="0" y="{y + 7}" width="{edge:.2f}" {high}/>'
        f'<text class="object" x="0" y="{y + 43}" data-mark="object-text">objects {percent(share)}</text>'
        f'<text class="background" x="360" y="{y + 43}" text-anchor="end" data-mark="background-text">'
        f"background {percent(1 - share)}</text></g>"
    )


def share_figure(state: dict[str, float]) -> str:
    parts = shares(state)
    titles = {
        "ce": "cross entropy",
        "balanced": f"balanced, α = {state['alpha']:g}",
        "focal": f"focal loss, γ = {state['gamma']:g}",
        "both": f"focal loss, γ = {state['gamma']:g}, α = {state['alpha']:g}",
    }
    panels = []
    for kind, head in (("loss", "Who makes the loss?"), ("slope", f"Who makes the gradient, Σ|dL/d{X_T}{BACK}|?")):
        rows = [bar(44 + 72 * i, kind, name, titles[name], parts[kind][name]) for i, name in enumerate(titles)]
        said = [f"{titles[n]}: objects {percent(a / (a + b))}" for n, (a, b) in parts[kind].items()]
        what = "total loss" if kind == "loss" else "sum of all gradients"
        alt = f"Four bars, each the {what} split into objects and background. {'; '.join(said)}."
        body = f'<text class="head" x="0" y="14">{head}</text>' + "".join(rows)
        panels.append(svg(f"share-{kind}", (360, 310), f"The objects' share of the {what}", alt, body, ""))
    return "".join(panels)


# ---- thresholds ------------------------------------------------------------------------------------------------------


def load_data() -> dict[str, Any]:
    return dict(json.loads(DATA.read_text(encoding="utf-8")))


def detect(data: dict[str, Any], score: float, iou: float) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of `data["detections"]` that stay, which of them are right, and which objects were found."""
    table, truth = (torch.tensor(data[key], dtype=torch.float64) for key in ("detections", "truth"))
    table = table[table[:, 5] >= score]
    stay = batched_nms(table[:, :4], table[:, 5], table[:, 4].long(), iou)
    kept = table[stay.sort().values]  # the file's order, best first, among equal scores too
    found = {"boxes": kept[:, :4], "labels": kept[:, 4].long(), "scores": kept[:, 5]}
    right, seen = judge_detections({"boxes": truth[:, :4], "labels": truth[:, 4].long()}, found)
    return kept, torch.from_numpy(right), torch.from_numpy(seen)


def box(row: Sequence[float], kind: str, words: str = "") -> str:
    x1, y1, x2, y2 = row[:4]
    frame = f'x="{x1:g}" y="{y1:g}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}"'
    text = f'<text x="{x1 + 3:g}" y="{max(y1, 2) + 14:g}">{words}</text>' if words else ""
    return f'<g class="box {kind}"><rect class="halo" {frame}/><rect {frame}/>{text}</g>'


def threshold_figure(state: dict[str, float], static: str) -> str:
    """The photograph with its detections; `static` is the path from the page to the static files."""
    data = load_data()
    kept, right, seen = detect(data, state["score"], state["iou"])
    boxes = [box(row, "missed") for row, found in zip(data["truth"], seen.tolist(), strict=True) if not found]
    for row, hit in list(zip(kept.tolist(), right.tolist(), strict=True))[::-1]:  # the surest on top
        name = data["classes"][int(row[4])]
        boxes.append(box(row, "hit" if hit else "wrong", f"{name} {row[5]:.2f}"))
    image = data["image"]
    alt = (
        f"A photograph of a blood smear with {len(data['truth'])} annotated cells. At score {state['score']:g} and NMS "
        f"at IoU {state['iou']:g} the detector marks {len(kept)} boxes: {int(right.sum())} right, "
        f"{int((~right).sum())} wrong; {int((~seen).sum())} cells are missed."
    )
    body = (
        f'<image href="{static}{image["file"]}" width="{image["width"]}" height="{image["height"]}"/>'
        f'<path class="removed off" data-mark="removed"/><g class="off" data-mark="truth">'
        f'{"".join(box(row, "truth") for row in data["truth"])}</g><g data-mark="boxes">{"".join(boxes)}</g>'
    )
    size = (image["width"], image["height"])
    return svg("thresholds", size, "Detections in a photograph of blood cells", alt, body, "")


def svg(key: str, size: tuple[int, int], title: str, alt: str, body: str, extra: str) -> str:
    name = f"explorer-{key}"
    return (
        f'<svg viewBox="0 0 {size[0]} {size[1]}" role="img" aria-labelledby="{name}-t {name}-d" {extra}>'
        f'<title id="{name}-t">{title}</title><desc id="{name}-d">{alt}</desc>{body}</svg>'
    )
