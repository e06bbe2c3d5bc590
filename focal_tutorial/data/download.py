"""Fetching and unpacking an archive: resumed where broken off, never outside its folder, never half there."""

from __future__ import annotations

import contextlib
import http.client
import os
import stat
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from focal_tutorial.errors import InputError

TIMEOUT = 30.0  # seconds without a byte
TRIES = 5
PAUSE = 1.0  # seconds before the second try; doubled for each further one
CHUNK = 1 << 16
MAX_BYTES = 1 << 28  # no archive here is near 256 MiB, packed or unpacked; more is a mistake or an attack


def download(url: str, path: Path) -> None:
    """Fetch `url` to `path`, with a progress bar.

    Bytes gather in `path` + ".part", which a later call continues by an HTTP range request (or starts again,
    where the server knows no ranges), and which is renamed when it is whole.

    Raises:
        InputError: the server refuses, the connection failed `TRIES` times, or the disk is full or read-only.
    """
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    reason = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            _fetch(url, part)
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code} {error.reason}"
            if error.code == 416:  # the part is longer than the file: not a part of it
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code not in (408, 429):
                break
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        else:
            with _writing(path):
                os.replace(part, path)
            return
    raise InputError(
        f"cannot download {url}: {reason}. Try again later (it continues where it stopped), or fetch the file in "
        f"another way and save it as {path}"
    )


def _fetch(url: str, part: Path) -> None:
    """One try: append to `part` what it lacks. Raises OSError when the connection ends early."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "focal-tutorial", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
        if response.status != 206:
            have = 0  # no ranges here: from the start
        length = response.headers.get("Content-Length")
        total = have + int(length) if length and length.isdigit() else None
        with _writing(part):
            stream = open(part, "ab" if have else "wb", buffering=0)  # noqa: SIM115
        with (
            stream,
            tqdm(total=total, initial=have, unit="B", unit_scale=True, desc="download", leave=False) as bar,
        ):
            while chunk := response.read(CHUNK):
                with _writing(part):
                    left = memoryview(chunk)
                    while left:  # a disk that is nearly full takes a piece only
                        left = left[stream.write(left) :]
                have += len(chunk)
                bar.update(len(chunk))
                if have > MAX_BYTES:
                    part.unlink()
                    raise InputError(f"{url} sends more than {MAX_BYTES} bytes: not the file that was expected")
    if total is not None and have < total:
        raise ConnectionError(f"the connection ended after {have} of {total} bytes")


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Within it, a fault of this machine's disk is an InputError: to fetch the file again would not help."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; check the free space and permissions, or give another "
            "place with --root. What has come is kept, and the next try continues it"
        ) from error


def read_zip(path: Path) -> dict[str, bytes]:
    """The files of a zip archive by name, without the top folder that they share.

    Raises:
        InputError: not a zip file, damaged, too large, or with a member that points outside: an absolute
            name, a `..`, a link.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if sum(member.file_size for member in members) > MAX_BYTES:
                raise InputError(f"archive {path} unpacks to more than {MAX_BYTES} bytes: not what was expected")
            names = [_safe_name(member, path) for member in members]
            files = {name: archive.read(member) for name, member in zip(names, members, strict=True)}
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"archive {path} does not exist") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError, LookupError) as error:
        raise InputError(f"archive {path} is damaged or no zip file: {error}. Delete it and try again") from error
    tops = {name.split("/")[0] for name in files}
    if len(tops) == 1 and all("/" in name for name in files):
        return {name.split("/", 1)[1]: content for name, content in files.items()}
    return files


def _safe_name(member: zipfile.ZipInfo, path: Path) -> str:
    """The member's name if it stays inside the folder it is unpacked to."""
    name = member.filename
    parts = PurePosixPath(name).parts
    linked = stat.S_ISLNK(member.external_attr >> 16)
    if not parts or name.startswith("/") or "\\" in name or ":" in name or ".." in parts or "\0" in name or linked:
        what = "is a link" if linked else "points outside of its folder"
        raise InputError(f"archive {path} is refused: its member {name!r} {what}")
    return "/".join(parts)


def write_files(files: dict[str, bytes], folder: Path) -> None:
    """Write files by relative name below `folder`."""
    for name, content in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
