"""What `faults.py` kills and what it kills with: a command that says what it is at, a slow server, an archive.

As a program it is the process that is killed: python benchmarks/fault_tools.py BOARD URL DIGEST COMMAND...
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

PHASES = ("import", "set-up", "step", "log", "evaluation", "serialise", "sync", "rename",
          "download", "read archive", "digest", "unpack", "convert", "done")  # fmt: skip
WRITING = ("serialise", "sync", "rename")
RECORD = struct.Struct("<BI")  # phase, steps done


# ---------------------------------------------------------------- the process that is killed
class Board:
    """What a process is doing, in a file that outlives it."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(RECORD.size))
        with path.open("r+b") as file:
            self.memory = mmap.mmap(file.fileno(), RECORD.size)

    def read(self) -> tuple[str, int]:
        phase, steps = RECORD.unpack(self.memory[:])
        return PHASES[phase], steps

    def write(self, phase: str, steps: int | None = None) -> None:
        self.memory[:] = RECORD.pack(PHASES.index(phase), self.read()[1] if steps is None else steps)

    def during(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, which writes its phase before and the former one after it."""

        def noted(*args: Any, **kwargs: Any) -> Any:
            former = self.read()[0]
            self.write(phase)
            try:
                return function(*args, **kwargs)
            finally:
                self.write(former)

        return noted


def child(board: Board, url: str, digest: str, words: Sequence[str]) -> int:
    """Run a command of the package, noting what it is at."""
    from focal_tutorial import checkpoint, cli, train, train_log
    from focal_tutorial.data import bccd

    def patch(place: Any, name: str, phase: str) -> None:
        setattr(place, name, board.during(phase, getattr(place, name)))

    def save(path: Path, state: dict[str, Any]) -> None:
        with patched(os, "fsync", board.during("sync", os.fsync)), patched(os, "replace", renamed):
            board.during("serialise", checkpoint.save_checkpoint)(path, state)

    def after_step(self: Any, *args: Any) -> None:
        board.write("step", self.step)
        followed(self, *args)

    renamed = board.during("rename", os.replace)
    followed = train.Run._after_step
    train.Run._after_step = after_step
    train.save_checkpoint = save
    for place, name, phase in (
        (train, "evaluate", "evaluation"),
        (train.Run, "_train_step", "step"),
        (train_log.RunLog, "_row", "log"),
        (bccd, "download", "download"),
        (bccd, "read_zip", "read archive"),
        (bccd, "digest_files", "digest"),
        (bccd, "write_files", "unpack"),
        (bccd, "convert_voc", "convert"),
    ):
        patch(place, name, phase)
    if url:
        bccd.URL, bccd.DIGEST = url, digest
        board.write("set-up", 0)
    patch(train, "train", "set-up")
    status = cli.run(list(words))
    board.write("done")
    return status


@contextlib.contextmanager
def patched(place: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)


# ---------------------------------------------------------------- the hand that kills
def run(
    folder: Path,
    words: Sequence[str],
    delay: float | None,
    *,
    phase: str | None = None,
    url: str = "",
    digest: str = "",
) -> dict[str, Any]:
    """Start a command and kill it `delay` seconds after it has begun to work, or has come to `phase`.

    Without a delay it is left to finish. "durations" are the seconds of each phase, as seen from here.
    """
    path = folder / "board"
    path.unlink(missing_ok=True)
    board = Board(path)
    command = [sys.executable, __file__, str(path), url, digest, *words]
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")} | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    begun, before, durations = None, time.perf_counter(), Counter()
    while process.poll() is None:
        time.sleep(0.0005)
        now, at = time.perf_counter(), board.read()[0]
        durations[at] += now - before
        before = now
        if begun is None and at != "import" and phase in (None, at):
            begun = now
        if delay is not None and begun is not None and now - begun >= delay:
            os.kill(process.pid, signal.SIGKILL)
            break
    _, errors = process.communicate(timeout=600)
    at, steps = board.read()
    killed = process.returncode == -signal.SIGKILL
    if not killed and process.returncode != 0:
        raise AssertionError(f"the command ended with {process.returncode}: {errors[-2000:]}")
    return {"killed": killed, "phase": at, "steps": steps, "durations": {k: round(v, 3) for k, v in durations.items()}}


def must(condition: object, what: str) -> None:
    if not condition:
        raise AssertionError(what)


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder`, by name."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ---------------------------------------------------------------- a download
class SlowServer(http.server.ThreadingHTTPServer):
    """Sends `body` in `seconds`, from where it is asked to."""

    daemon_threads = True

    def __init__(self, body: bytes, seconds: float) -> None:
        super().__init__(("127.0.0.1", 0), SlowHandler)
        self.body, self.pause = body, seconds / 100
        self.url = f"http://127.0.0.1:{self.server_address[1]}/archive.zip"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()


class SlowHandler(http.server.BaseHTTPRequestHandler):
    server: SlowServer

    def do_GET(self) -> None:
        asked, body = self.headers.get("Range"), self.server.body
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if start >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # of the process that was killed
            for place in range(start, len(body), size := -(-len(body) // 100)):
                self.wfile.write(body[place : place + size])
                time.sleep(self.server.pause)

    def log_message(self, *_: Any) -> None:
        pass


def made_up_archive(images: int = 60) -> bytes:
    """An archive like BCCD's, of noise: for machines without the real one."""
    from PIL import Image

    box = "<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>20</xmax><ymax>25</ymax></bndbox>"
    xml = "<annotation><filename>{0}.jpg</filename><size><width>200</width><height>150</height></size>"
    xml += f"<object><name>RBC</name>{box}</object></annotation>"
    names = [f"{split}{i}" for split in ("train", "val", "test") for i in range(images)]
    files = {"LICENSE": b"MIT"}
    for number, name in enumerate(names):
        picture = io.BytesIO()
        Image.frombytes("RGB", (200, 150), random.Random(number).randbytes(90_000)).save(picture, "JPEG")
        files[f"BCCD/JPEGImages/{name}.jpg"] = picture.getvalue()
        files[f"BCCD/Annotations/{name}.xml"] = xml.format(name).encode()
    for split in ("train", "val", "test"):
        own = [name for name in names if name.startswith(split)]
        files[f"BCCD/ImageSets/Main/{split}.txt"] = "\n".join(own).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"BCCD_Dataset-x/{name}", content)
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(child(Board(Path(sys.argv[1])), *sys.argv[2:4], sys.argv[4:]))
