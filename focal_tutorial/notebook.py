"""What the first cell of every chapter calls, and how a number gets from a cell into the text."""

from __future__ import annotations

import random
import warnings
from typing import Any

import numpy as np
import torch
from matplotlib import style
from matplotlib.rcsetup import cycler

from focal_tutorial.plotting.style import PALETTE

STYLE: dict[str, Any] = {
    "figure.figsize": (7.0, 3.6),
    "figure.dpi": 110,
    "figure.facecolor": "white",
    "savefig.bbox": "tight",
    "axes.prop_cycle": cycler(color=PALETTE),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlesize": "medium",
    "grid.alpha": 0.25,
    "image.cmap": "viridis",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.hashsalt": "focal-tutorial",  # else every SVG gets new random ids and nbval sees a change
}

RECORD = "application/papermill.record/"  # marks an output that is kept and not shown


def setup(threads: int = 1, seed: int = 0) -> None:
    """Make a notebook repeat itself: fixed threads and seeds, one figure style, no warnings from libraries.

    Args:
        threads: CPU threads of torch, at least 1. Sums are split by thread, so last digits depend on it.
        seed: start of Python's, NumPy's and torch's random numbers.

    Raises:
        ValueError: `threads` is below 1.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    torch.set_num_threads(threads)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the global generator is what other libraries draw from
    torch.manual_seed(seed)
    torch.set_printoptions(precision=4, sci_mode=False)
    np.set_printoptions(precision=4, suppress=True)
    style.use(STYLE)
    # A library's deprecation note would land in the stored output and break the comparison later.
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)


def glue(name: str, value: Any) -> None:
    """Keep `value` under `name` in the notebook's outputs, for the text to quote.

    The text quotes it with the role glue:text, as in `name:.1f` on the same page; on another page the path of
    the notebook and two colons come first. The record is the one that `myst_nb.glue` writes, without that
    package at run time; nbval compares it like any output.

    Args:
        name: key, unique within the notebook.
        value: a number or a string. Round it first if its last digits may differ between machines.
    """
    from IPython.display import display

    text = repr(value.item() if hasattr(value, "item") else value)
    record = {"name": name, "mime_prefix": RECORD}
    display({RECORD + "text/plain": text}, raw=True, metadata={"scrapbook": record})
