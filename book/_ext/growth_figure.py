"""Draw book/_static/growth.svg, the benchmarks page's figure, from book/results/growth_cpu.json.

    python book/_ext/growth_figure.py

tests/test_growth.py checks that the committed file was drawn from the results as they are.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from focal_tutorial.plotting.growth import plot_growth
from focal_tutorial.results import load_result

TARGET = Path(__file__).resolve().parents[1] / "_static" / "growth.svg"


def digest(curves: dict[str, Any]) -> str:
    """Of all that is drawn; stands in the file."""
    return hashlib.sha256(json.dumps(curves, sort_keys=True).encode()).hexdigest()


def draw(curves: dict[str, Any]) -> tuple[str, str]:
    """The whole figure as SVG text, and its alt text."""
    boxes = {
        "matching": curves["matching"]["ours"],
        "matching, torchvision": curves["matching"]["torchvision"],
        "loss and its gradient": curves["loss"]["step"],
    }
    size = {name: curves["size"][name] for name in ("matching", "loss", "detections")}
    numbers = {
        "detections: candidates": curves["candidates"]["detections"],
        "evaluation: images": curves["evaluation"]["images"],
        "evaluation: detections an image": curves["evaluation"]["detections"],
    }
    figure = Figure(figsize=(8.6, 6.8), layout="constrained")
    axes = figure.subplots(2, 2)
    alts = [
        plot_growth(axes[0, 0], boxes, xlabel="boxes in the image", title="Boxes"),
        plot_growth(axes[0, 1], boxes, "mib", xlabel="boxes in the image", title="Boxes"),
        plot_growth(axes[1, 0], size, xlabel="anchors in the image", title="Image size"),
        plot_growth(axes[1, 1], numbers, xlabel="how many", title="After the network"),
    ]
    text = io.StringIO()
    with rc_context({"svg.hashsalt": "growth", "savefig.bbox": None}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Description": digest(curves)})
    return re.sub(r"[ \t]+$", "", text.getvalue(), flags=re.MULTILINE), " ".join(alts)


if __name__ == "__main__":
    svg, alt = draw(load_result("growth_cpu")["curves"])
    TARGET.write_text(svg, encoding="utf-8")
    print(alt)
