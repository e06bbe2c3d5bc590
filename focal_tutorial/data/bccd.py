"""The BCCD blood-cell images (MIT licence, https://github.com/Shenggan/BCCD_Dataset), at one fixed commit.

364 photographs of 640x480 pixels with 4,888 boxes: 4,155 red cells, 372 white cells, 361 platelets. Two boxes
have no extent (`BloodImage_00338`, `BloodImage_00343`); they are dropped and reported.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path

from focal_tutorial.data.download import download, read_zip, write_files
from focal_tutorial.data.root import cache_root, data_root, new_folder
from focal_tutorial.data.voc import convert_voc, read_split
from focal_tutorial.errors import InputError

COMMIT = "d272fb14cdff6e473fafeeeba32aba5f560e9e43"
URL = f"https://github.com/Shenggan/BCCD_Dataset/archive/{COMMIT}.zip"
ARCHIVE = f"BCCD_Dataset-{COMMIT}.zip"
# Over the files inside, since a hosting service may pack the same commit into other bytes another day.
DIGEST = "9358971741c3024a99b84f230651fabb7f0d28dad10b752e0732c9798b99391a"
SPLITS = ("train", "val", "test")
PARTS = {"Annotations": ".xml", "ImageSets/Main": ".txt", "JPEGImages": ".jpg"}


def prepare_bccd(root: str | Path | None = None, *, source: str | Path | None = None) -> dict[str, Path]:
    """Find, unpack or download BCCD, check it by digest, and convert it to COCO files.

    Looked for in this order: `bccd` in the data root, complete; `source`; the archive in the data root, under
    the name `ARCHIVE`; the network. The result is put into the data root, or, where that cannot be written
    to, into the user's cache directory. It appears whole or not at all.

    Args:
        root: data root; see `data_root`.
        source: the commit's zip file, or a folder with its files, to use in place of the network.

    Returns:
        Paths: `images` (folder) and `train`, `val`, `test` (COCO JSON of 205, 87 and 72 images).

    Raises:
        InputError: no network, a damaged or different archive, or no place to write to.
    """
    base = data_root(root)
    homes = list(dict.fromkeys([base, cache_root()])) if not _writable(base) else [base]
    if source is None:
        for folder in (place / "bccd" for place in homes):
            if _is_complete(folder):
                return _paths(folder)
    home = next(filter(_writable, homes), None)
    if home is None:
        raise InputError(f"cannot write to {' or '.join(map(str, homes))}: give another folder with --root")
    _install(_obtain(base, home, source), home / "bccd")
    return _paths(home / "bccd")


def _paths(folder: Path) -> dict[str, Path]:
    return {"images": folder / "JPEGImages"} | {split: folder / f"{split}.json" for split in SPLITS}


def _obtain(base: Path, home: Path, source: str | Path | None) -> dict[str, bytes]:
    """The dataset's files, checked, from a file or folder at hand or else from the network."""
    at_hand = [folder / ARCHIVE for folder in (base, home) if (folder / ARCHIVE).is_file()]
    if source is not None or at_hand:
        path = Path(source).expanduser() if source is not None else at_hand[0]
        files = _select(_read_folder(path) if path.is_dir() else read_zip(path))
        return _checked(files, str(path))
    archive = home / ARCHIVE
    part = archive.with_name(archive.name + ".part")
    resumed = part.exists()
    while True:
        download(URL, archive)
        try:
            return _checked(_select(read_zip(archive)), URL)
        except InputError:
            archive.unlink(missing_ok=True)
            if not resumed:
                raise
            resumed = False  # the earlier part may have been of another file: once more, from the start


def _read_folder(folder: Path) -> dict[str, bytes]:
    """The files of an unpacked archive or a clone: `folder` is, or has, the folder `BCCD`, at most one level
    down."""
    candidates = [
        folder.parent if folder.name == "BCCD" else folder,
        *sorted(p for p in folder.iterdir() if p.is_dir()),
    ]
    top = next((path for path in candidates if (path / "BCCD").is_dir()), None)
    if top is None:
        raise InputError(f"{folder} has no folder BCCD: give the zip of the repository, or its unpacked folder")
    names = [name for part in PARTS for name in sorted((top / "BCCD" / part).glob("*"))]
    files = [path for path in [*names, top / "LICENSE"] if path.is_file()]
    return {path.relative_to(top).as_posix(): path.read_bytes() for path in files}


def _select(files: dict[str, bytes]) -> dict[str, bytes]:
    """Annotations, split lists, images and licence, by their names below `BCCD`; nothing else is wanted."""
    chosen = {}
    for name, content in files.items():
        folder, _, file = name.removeprefix("BCCD/").rpartition("/")
        if name.startswith("BCCD/") and PARTS.get(folder) == Path(file).suffix:
            chosen[f"{folder}/{file}"] = content
    if "LICENSE" in files:
        chosen["LICENSE"] = files["LICENSE"]
    return chosen


def digest_files(files: dict[str, bytes]) -> str:
    """SHA-256 over names and contents in the order of the names; the licence, which is no data, is left
    out."""
    whole = hashlib.sha256()
    for name in sorted(files):
        if name != "LICENSE":
            whole.update(name.encode() + b"\0" + hashlib.sha256(files[name]).digest())
    return whole.hexdigest()


def _checked(files: dict[str, bytes], where: str) -> dict[str, bytes]:
    found = digest_files(files)
    if found != DIGEST:
        raise InputError(
            f"{where} is not BCCD at commit {COMMIT[:12]}: the digest of its {len(files)} data files is "
            f"{found[:16]}…, not {DIGEST[:16]}…; fetch {URL}"
        )
    return files


def _is_complete(folder: Path) -> bool:
    """Whether `folder` holds the dataset as `_install` leaves it, every byte of it."""
    if not all(path.exists() for path in _paths(folder).values()):
        return False
    if not all(_is_converted(folder, split) for split in SPLITS):
        return False
    paths = [path for part in PARTS for path in (folder / part).glob("*")]
    return digest_files({path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}) == DIGEST


def _is_converted(folder: Path, split: str) -> bool:
    """Whether a split's JSON is whole and has as many images as its list of names."""
    try:
        content = json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))
        return len(content["images"]) == len(read_split(folder / "ImageSets" / "Main" / f"{split}.txt"))
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _install(files: dict[str, bytes], folder: Path) -> None:
    with new_folder(folder) as temporary:
        write_files(files, temporary)
        for split in SPLITS:
            convert_voc(
                temporary / "Annotations",
                temporary / f"{split}.json",
                split_file=temporary / "ImageSets" / "Main" / f"{split}.txt",
                image_dir=temporary / "JPEGImages",
            )


def _writable(folder: Path) -> bool:
    """Whether files can be made in `folder`, which is created if it can be.

    A folder without any write permission counts as read-only for root, too, whom the system would let write.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.access(folder, os.W_OK) and bool(folder.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    except OSError:
        return False
