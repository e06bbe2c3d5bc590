"""Draw book/_static/retinanet.svg: RetinaNet from the image to losses and detections.

    python book/_ext/retinanet_figure.py

Every number in it is read from the package: grid sizes and anchors from `AnchorGenerator`, the rest from `Options`.
tests/test_architecture.py checks that the committed file is what this script draws. One cell of a feature map is one
unit of the drawing, so that the squares C3 … C5 and P3 … P7 stand to scale.
"""

from __future__ import annotations

from pathlib import Path

from focal_tutorial.anchors import AnchorGenerator
from focal_tutorial.options import Options

TARGET = Path(__file__).resolve().parents[1] / "_static" / "retinanet.svg"
IMAGE_SIZE, CLASSES = (640, 640), 80
STAGE_CHANNELS = {3: 512, 4: 1024, 5: 2048}  # of a ResNet-50 or 101
INK, MUTED, BLUE, ORANGE, GREEN, CARD = "#22303a", "#52616c", "#0b5f8a", "#c24f00", "#007a5a", "#f2f6f8"
TINTS = {BLUE: "#d3e4ee", ORANGE: "#fbe3d3", GREEN: "#d3ede4", MUTED: "#dfe5e9"}
ROWS = {7: 56, 6: 106, 5: 162, 4: 232, 3: 334}  # the height at which each level stands
BODY_X, SUM_X, PYRAMID_X, TABLE_X, BUS_X, TRAINING_X = 112, 208, 302, 358, 484, 392

OPTIONS, ANCHORS = Options(), AnchorGenerator()
GRIDS = dict(zip(ANCHORS.levels, ANCHORS.grid_sizes(IMAGE_SIZE), strict=True))
A = ANCHORS.num_anchors
R = sum(A * rows * columns for rows, columns in GRIDS.values())


def text(x: float, y: float, words: str, *, size: float = 12, fill: str = INK, bold: bool = False, at: str = "") -> str:
    """Words at a baseline; `at` is "middle" or "end" where x is not the start."""
    weight, anchor = ' font-weight="600"' if bold else "", f' text-anchor="{at}"' if at else ""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{fill}"{weight}{anchor}>{words}</text>'


def block(x: float, y: float, side: float, depth: float, colour: str) -> str:
    """A feature map as a box: a square of `side` cells centred on (x, y), its channels behind it."""
    left, top, right, bottom = x - side / 2, y - side / 2, x + side / 2, y + side / 2
    d = depth
    return (
        f'<path d="M{left:g} {top:g}l{d:g} {-d:g}h{side:g}l{-d:g} {d:g}z" fill="{colour}" fill-opacity="0.45"/>'
        f'<path d="M{right:g} {top:g}l{d:g} {-d:g}v{side:g}l{-d:g} {d:g}z" fill="{colour}" fill-opacity="0.7"/>'
        f'<path d="M{left:g} {top:g}H{right:g}V{bottom:g}H{left:g}z" fill="{TINTS[colour]}" stroke="{colour}"/>'
    )


def arrow(path: str, colour: str = INK) -> str:
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.4" marker-end="url(#head)"/>'


def photograph(x: float, y: float, side: float) -> str:
    """A blood smear in a few strokes: red cells, one white cell, two platelets."""
    red = ((18, 20, 13), (52, 14, 12), (86, 24, 13), (16, 58, 13), (24, 88, 12), (60, 91, 12), (88, 84, 12))
    cells = "".join(
        f'<circle cx="{x + a:g}" cy="{y + b:g}" r="{r}" fill="#e9a79c" stroke="#cf8378"/>'
        f'<circle cx="{x + a:g}" cy="{y + b:g}" r="{r * 0.4:g}" fill="#f3c9bf"/>'
        for a, b, r in red
    )
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{side:g}" height="{side:g}" rx="5" fill="#f8e8df" stroke="{MUTED}"/>{cells}'
        f'<circle cx="{x + 59:g}" cy="{y + 52:g}" r="18" fill="#cdbbe4" stroke="#8d74b8"/>'
        f'<path d="M{x + 50:g} {y + 48:g}q8 -10 17 -2q6 9 -4 14q-15 3 -13 -12z" fill="#6d4fa3"/>'
        f'<circle cx="{x + 36:g}" cy="{y + 36:g}" r="2.6" fill="#8d74b8"/>'
        f'<circle cx="{x + 88:g}" cy="{y + 55:g}" r="2.6" fill="#8d74b8"/>'
    )


def backbone() -> list[str]:
    """The image at the bottom, and the stages above it."""
    top = 432
    parts = [text(BODY_X, 28, "backbone", size=14, bold=True, at="middle"), photograph(BODY_X - 52, top, 104)]
    parts.append(text(BODY_X, top + 121, f"{IMAGE_SIZE[0]} × {IMAGE_SIZE[1]} image", fill=MUTED, at="middle"))
    parts.append(arrow(f"M{BODY_X} {top - 3}V{ROWS[3] + 44}"))
    parts.append(text(BODY_X + 9, ROWS[3] + 66, "stem, C2", fill=MUTED))
    for level, channels in STAGE_CHANNELS.items():
        side, y = GRIDS[level][0], ROWS[level]
        parts.append(block(BODY_X, y, side, 3 + 2 * (level - 2), MUTED))
        left = BODY_X - side / 2 - 8
        parts.append(text(left, y - 1, f"C{level}", size=13, bold=True, at="end"))
        parts.append(text(left, y + 14, f"{channels:,} ch", fill=MUTED, at="end"))
        if level < 5:
            above = ROWS[level + 1] + GRIDS[level + 1][0] / 2
            parts.append(arrow(f"M{BODY_X} {y - side / 2 - 2 * level - 2:g}V{above + 4:g}"))
    return parts


def pyramid() -> list[str]:
    """Lateral and top-down paths, the levels, and what each of them counts."""
    parts = [text(PYRAMID_X, 28, "pyramid", size=14, bold=True, at="middle")]
    for level, y in ROWS.items():
        rows, columns = GRIDS[level]
        parts.append(block(PYRAMID_X, y, rows, 5, BLUE))
        parts.append(text(TABLE_X, y - 3, f"P{level}", size=13, bold=True, fill=BLUE))
        parts.append(text(TABLE_X + 24, y - 3, f"stride {ANCHORS.strides[level - 3]}", fill=MUTED))
        parts.append(text(TABLE_X + 24, y + 12, f"{rows} × {columns}"))
        edge = PYRAMID_X + rows / 2 + 9
        if edge < TABLE_X - 15:  # from the box to its label, where they stand apart
            dots = f'stroke="{MUTED}" stroke-dasharray="2 3"'
            parts.append(f'<path d="M{edge:g} {y}H{TABLE_X - 5}" fill="none" {dots}/>')
        if level <= 5:
            out = BODY_X + rows / 2 + 2 * level
            parts.append(arrow(f"M{out:g} {y}H{SUM_X - 12}"))
            parts.append(text((out + SUM_X - 12) / 2, y - 5, "1×1", fill=MUTED, at="middle"))
            parts.append(arrow(f"M{SUM_X + 10} {y}H{PYRAMID_X - rows / 2 - 5:g}"))
            parts.append(text((SUM_X + 10 + PYRAMID_X - rows / 2 - 5) / 2, y - 5, "3×3", fill=MUTED, at="middle"))
            sign = "M-4 0h8M0 -4v8" if level < 5 else ""
            parts.append(
                f'<g transform="translate({SUM_X} {y})"><circle r="{8 if sign else 4}" fill="#fff" stroke="{INK}" '
                f'stroke-width="1.4"/><path d="{sign}" stroke="{INK}" stroke-width="1.4"/></g>'
            )
            parts.append(text(SUM_X + 11, y + 19, f"M{level}", bold=True))
        if level < 5:
            parts.append(arrow(f"M{SUM_X} {ROWS[level + 1] + (8 if level < 4 else 4)}V{y - 12}"))
            parts.append(text(SUM_X + 8, (ROWS[level + 1] + y) / 2 + 4, "×2", fill=MUTED))
    parts.append(text(PYRAMID_X, ROWS[3] + 57, f"{OPTIONS.channels} channels", fill=MUTED, at="middle"))
    return [*parts, *extra_levels()]


def extra_levels() -> list[str]:
    """P6 from C5, P7 from P6."""
    top_of_c5 = ROWS[5] - GRIDS[5][0] / 2 - 10
    return [
        arrow(f"M{BODY_X + 4} {top_of_c5:g}V{ROWS[6]}H{PYRAMID_X - GRIDS[6][0] / 2 - 5:g}"),
        text(BODY_X + 14, ROWS[6] - 6, "3×3, stride 2", fill=MUTED),
        arrow(f"M{PYRAMID_X} {ROWS[6] - 12}V{ROWS[7] + 8}"),
        text(PYRAMID_X - 8, (ROWS[6] + ROWS[7]) / 2, "ReLU, 3×3, stride 2", fill=MUTED, at="end"),
    ]


def subnet(y: float, name: str, outputs: str, result: str, shape: str, colour: str) -> list[str]:
    """One of the two subnets, its last convolution, and what comes out for an image."""
    x, width, height = 506, 178, 118
    bars = "".join(
        f'<rect x="{x + 14 + 26 * i}" y="{y + 32}" width="16" height="34" rx="3" fill="{TINTS[colour]}" '
        f'stroke="{colour}"/>'
        for i in range(OPTIONS.head_depth)
    )
    last = x + 14 + 26 * OPTIONS.head_depth
    return [
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="9" fill="{CARD}" stroke="{colour}"/>',
        text(x + 14, y + 21, name, size=13, bold=True, fill=colour),
        bars,
        f'<rect x="{last + 6}" y="{y + 32}" width="20" height="34" rx="3" fill="{colour}"/>',
        text(x + 14, y + 85, f"{OPTIONS.head_depth} × 3×3 conv, {OPTIONS.channels}, ReLU"),
        text(x + 14, y + 103, f"3×3 conv, {outputs}", fill=colour, bold=True),
        arrow(f"M{BUS_X} {y + height / 2:g}H{x - 5}"),
        arrow(f"M{x + width} {y + height / 2:g}H{x + width + 18}"),
        text(x + width + 27, y + height / 2 - 4, result, size=13, bold=True, fill=colour),
        text(x + width + 27, y + height / 2 + 13, shape),
    ]


def subnets() -> list[str]:
    ticks = "".join(f"M{TABLE_X + 98} {y}H{BUS_X}" for y in ROWS.values())
    return [
        text(506, 28, "subnets, the same on all levels", size=14, bold=True),
        f'<path d="M{BUS_X} {ROWS[7]}V{ROWS[3]}{ticks}" fill="none" stroke="{INK}" stroke-width="1.4"/>',
        *subnet(44, "class subnet", f"K·A = {CLASSES * A}", "logits", f"R × {CLASSES}", ORANGE),
        text(520, 186, "no weights in common", fill=MUTED),
        *subnet(200, "box subnet", f"4·A = {4 * A}", "deltas", "R × 4", GREEN),
        text(506, 345, f"A = {A} a cell, R = {R:,} anchors", size=13, bold=True),
    ]


def steps(x: float, name: str, rows: list[tuple[str, str, list[str]]]) -> list[str]:
    """A card of what follows: each step's name, colour, and one to three lines on what it does."""
    y, width = 404, 278
    parts = [
        f'<rect x="{x}" y="{y}" width="{width}" height="170" rx="9" fill="{CARD}" stroke="#b9c5cd"/>',
        text(x + 14, y + 23, name, size=14, bold=True),
    ]
    middle = y + 58.0
    for step, colour, lines in rows:
        pill = f'width="84" height="26" rx="13" fill="{TINTS[colour]}" stroke="{colour}"'
        parts += [
            f'<rect x="{x + 14}" y="{middle - 13:g}" {pill}/>',
            text(x + 56, middle + 4.5, step, fill=colour, bold=True, at="middle"),
        ]
        first = middle + 4.5 - 7.5 * (len(lines) - 1)
        parts += [text(x + 110, first + 15 * i, line) for i, line in enumerate(lines)]
        middle += 45
    return parts


def endings() -> list[str]:
    """What training and inference do with logits, deltas and anchors."""
    o = OPTIONS
    training = [
        (
            "match",
            MUTED,
            [
                "anchors with true boxes:",
                f"IoU ≥ {o.foreground_iou:g} foreground,",
                f"IoU &lt; {o.background_iou:g} background",
            ],
        ),
        ("focal loss", ORANGE, ["logits of foreground", "and background"]),
        ("smooth L1", GREEN, ["deltas of the foreground"]),
    ]
    inference = [
        ("threshold", ORANGE, [f"score above {o.score_threshold:g}"]),
        ("top-k", GREEN, [f"best {o.topk_per_level:,} of each level,", "decoded from anchors"]),
        ("NMS", MUTED, [f"per class, at IoU {o.nms_iou:g};", f"best {o.detections_per_image} an image"]),
    ]
    line = 376  # logits, deltas and anchors together
    return [
        f'<path d="M762 103H779M762 259H779M762 341H779M779 103V{line}H{TRAINING_X}" fill="none" stroke="{INK}" '
        'stroke-width="1.4"/>',
        arrow(f"M{TRAINING_X} {line}V399"),
        arrow(f"M651 {line}V399"),
        *steps(212, "training", training),
        *steps(512, "inference", inference),
    ]


def draw() -> str:
    """The whole figure as SVG text."""
    font = "font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', Arial, sans-serif\""
    head = (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto-start-reverse" markerUnits="userSpaceOnUse">'
        f'<path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>'
    )
    body = [*backbone(), *pyramid(), *subnets(), *endings()]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 582" {font}>{head}'
        '<rect width="800" height="582" fill="#fff"/>' + "".join(body) + "</svg>\n"
    )


if __name__ == "__main__":
    TARGET.write_text(draw(), encoding="utf-8")
