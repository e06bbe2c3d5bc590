"""Where datasets are kept, and how a folder of them is put there in one step."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

import platformdirs

from focal_tutorial.errors import InputError

MARK = ".made-by-focal-tutorial"  # a file in every folder made here; no other folder is ever replaced
HALF_MADE = ".{}-half-made-"  # how the name of a folder begins while it is filled


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
        with _alone_in(folder.parent):  # or another would remove what is made here and not yet claimed
            _remove_abandoned(folder)
            temporary = Path(tempfile.mkdtemp(prefix=HALF_MADE.format(folder.name), dir=folder.parent))
            old, claim = temporary.with_suffix(".old"), _claim(temporary)
        try:
            temporary.chmod(0o755)
            yield temporary
            (temporary / MARK).touch()
            with _alone_in(folder.parent):
                if replaces:
                    os.replace(folder, old)
                if not (folder / MARK).is_file():
                    os.replace(temporary, folder)
        finally:
            if claim is not None:
                os.close(claim)
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}; give another place with --root") from error


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Others wait here for the end of the block, where the file system has locks."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _claim(folder: Path) -> int | None:
    """Hold `folder` until the returned descriptor is closed or the process ends, however it ends.

    None where somebody else holds it, it is gone, or the file system has no locks.
    """
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _remove_abandoned(folder: Path) -> None:
    """Delete what processes that were killed while they filled a folder for `folder` have left; others hold theirs."""
    for left in folder.parent.glob(HALF_MADE.format(folder.name) + "*"):
        claim = _claim(left)
        if claim is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(claim)
