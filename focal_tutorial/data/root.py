"""Where datasets are kept, and how a folder of them is put there in one step."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from focal_tutorial.errors import InputError

MARK = ".made-by-focal-tutorial"  # a file in every folder made here; no other folder is ever replaced


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


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill, which takes the place of `folder` at the end of the block if nothing is raised.

    Where another process made `folder` in the meantime, that one stays.

    Raises:
        InputError: `folder` exists and was not made in this way, or cannot be written.
    """
    replaces = folder.exists()
    if replaces and not (folder / MARK).is_file():
        raise InputError(f"{folder} exists and was not made by this program: move it away, or give another --root")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        old = temporary.with_suffix(".old")
        try:
            temporary.chmod(0o755)
            yield temporary
            (temporary / MARK).touch()
            if replaces:
                os.replace(folder, old)
            if not (folder / MARK).is_file():
                os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}; give another place with --root") from error
