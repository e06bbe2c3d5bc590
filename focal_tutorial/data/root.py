"""Where datasets are kept."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def data_root(root: str | Path | None = None) -> Path:
    """The folder for datasets: `root`, else `$FOCAL_TUTORIAL_DATA`, else the user's cache directory."""
    if root is not None:
        return Path(root).expanduser()
    if os.environ.get("FOCAL_TUTORIAL_DATA"):
        return Path(os.environ["FOCAL_TUTORIAL_DATA"]).expanduser()
    return cache_root()


def cache_root() -> Path:
    """The folder for datasets in the user's cache directory."""
    return platformdirs.user_cache_path("focal-tutorial", appauthor=False)
