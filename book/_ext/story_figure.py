"""Draw book/_static/story.svg, the introduction's figure: the article's example, before and after focal loss.

    python book/_ext/story_figure.py

One object with a cross entropy of 10 against 1000 background boxes with 0.1 each. tests/test_book.py checks
that the committed file is what this script draws and that its shares are those of the package's focal loss.
"""

from __future__ import annotations

import math
from pathlib import Path

TARGET = Path(__file__).resolve().parents[1] / "_static" / "story.svg"
BACKGROUNDS, EASY_LOSS, HARD_LOSS = 1000, 0.1, 10.0
INK, MUTED, BLUE, ORANGE, SKY = "#22303a", "#5b6a74", "#0b5f8a", "#d55e00", "#c3d5e0"
GAMMAS = {0: INK, 0.5: "#7fa8bf", 1: "#3f86ab", 2: ORANGE, 5: "#009e73"}


def focal(cross_entropy: float, gamma: float) -> float:
    """(1 − p_t)^γ CE, where p_t = exp(−CE)."""
    return (-math.expm1(-cross_entropy)) ** gamma * cross_entropy


def object_share(gamma: float) -> float:
    """The object's part of the total loss."""
    hard, easy = focal(HARD_LOSS, gamma), BACKGROUNDS * focal(EASY_LOSS, gamma)
    return hard / (hard + easy)


def text(x: float, y: float, words: str, *, size: float = 13, fill: str = INK, style: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{fill}" {style}>{words}</text>'


def dots(x: float, y: float) -> str:
    """A thousand background boxes, 40 a row, and one object over one of them."""
    cell, row, column = 5.6, 13, 10
    height = BACKGROUNDS / 40 * cell
    return (
        f'<pattern id="d" x="{x:g}" y="{y:g}" width="{cell}" height="{cell}" patternUnits="userSpaceOnUse">'
        f'<circle cx="{cell / 2:g}" cy="{cell / 2:g}" r="1.8" fill="{SKY}"/></pattern>'
        f'<rect x="{x:g}" y="{y:g}" width="{40 * cell:g}" height="{height:g}" fill="url(#d)"/>'
        f'<circle cx="{x + (column + 0.5) * cell:g}" cy="{y + (row + 0.5) * cell:g}" r="5" fill="{ORANGE}"/>'
    )


def bar(x: float, y: float, width: float, gamma: float, label: str) -> str:
    """Who makes the loss: the object's share of one bar."""
    share = object_share(gamma)
    inside = f"object {share:.0%}"
    return (
        text(x, y - 9, label, fill=MUTED)
        + f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="30" rx="5" fill="{SKY}"/>'
        + f'<rect x="{x:g}" y="{y:g}" width="{width * share:.1f}" height="30" rx="5" fill="{ORANGE}"/>'
        + text(x, y + 47, inside, fill=ORANGE, style='font-weight="600"')
        + text(x + width, y + 47, f"background {1 - share:.0%}", fill=MUTED, style='text-anchor="end"')
    )


def curves(x: float, y: float, width: float, height: float) -> str:
    """FL(p_t) for five γ, loss up to 4."""
    parts = [f'<path d="M{x:g} {y:g}v{height:g}h{width:g}" fill="none" stroke="{MUTED}" stroke-width="1.2"/>']
    for gamma, colour in GAMMAS.items():
        points = []
        for step in range(81):
            p = 0.0183 + (0.9995 - 0.0183) * step / 80
            loss = min(focal(-math.log(p), gamma), 4.0)
            points.append(f"{x + width * p:.1f} {y + height * (1 - loss / 4):.1f}")
        weight = 3.2 if gamma == 2 else 1.8
        parts.append(
            f'<path d="M{" L".join(points)}" fill="none" stroke="{colour}" stroke-width="{weight}"/>'
        )
    for row, (gamma, colour) in enumerate(GAMMAS.items()):
        top = y + 12 + 19 * row
        parts.append(f'<path d="M{x + width - 74:g} {top - 4:g}h20" stroke="{colour}" stroke-width="3"/>')
        parts.append(text(x + width - 48, top, f"γ = {gamma:g}" + (" (CE)" if gamma == 0 else "")))
    parts.append(
        text(x + width, y + height + 18, "probability of the truth", fill=MUTED, style='text-anchor="end"')
    )
    return "".join(parts)


def draw() -> str:
    """The whole figure as SVG text."""
    font = "font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', Arial, sans-serif\""
    bold = 'font-weight="600"'
    body = [
        text(20, 30, "1 object, 1000 backgrounds", size=15, style=bold),
        dots(22, 52),
        text(20, 212, "the object: loss 10", fill=ORANGE, style=bold),
        text(20, 231, "each background: loss 0.1", fill=MUTED),
        text(286, 30, "Who makes the loss?", size=15, style=bold),
        bar(286, 72, 210, 0, "cross entropy"),
        bar(286, 166, 210, 2, "focal loss, γ = 2"),
        text(540, 30, "The curve that does it", size=15, style=bold),
        curves(540, 52, 240, 166),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 250" {font}>'
        '<rect width="800" height="250" fill="#fff"/>' + "".join(body) + "</svg>\n"
    )


if __name__ == "__main__":
    TARGET.write_text(draw(), encoding="utf-8")
