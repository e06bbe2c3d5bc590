"""Figures: one function each, that takes data and an `Axes`, draws, and returns the figure's alt text.

Nothing here touches matplotlib's global state: sizes and colours are given call by call, and `pyplot` is not imported,
so that the functions serve notebooks, the command line and other programs alike.
"""

from focal_tutorial.plotting.curves import plot_ap_bars, plot_precision_recall, plot_series, read_log
from focal_tutorial.plotting.images import (
    as_picture,
    draw_boxes,
    judge_detections,
    save_picture,
    show_detections,
)
from focal_tutorial.plotting.imbalance import (
    plot_anchor_counts,
    plot_best_iou,
    plot_box_sizes,
    plot_class_coverage,
    plot_imbalance_report,
)
from focal_tutorial.plotting.style import BOX_COLOURS, PALETTE, save_figure, tidy

__all__ = [
    "BOX_COLOURS",
    "PALETTE",
    "as_picture",
    "draw_boxes",
    "judge_detections",
    "plot_anchor_counts",
    "plot_ap_bars",
    "plot_best_iou",
    "plot_box_sizes",
    "plot_class_coverage",
    "plot_imbalance_report",
    "plot_precision_recall",
    "plot_series",
    "read_log",
    "save_figure",
    "save_picture",
    "show_detections",
    "tidy",
]
