"""The BCCD downloader against a server on this machine, its archive checks, and the real archive where it is."""

from __future__ import annotations

import http.server
import io
import os
import socket
import threading
import zipfile
from pathlib import Path

import pytest
from data_helpers import BCCD_ARCHIVE, bccd_archive, picture

from focal_tutorial.data import CocoDataset, bccd, data_root, download, prepare_bccd
from focal_tutorial.errors import InputError

TOP = "BCCD_Dataset-x"
XML = (
    "<annotation><filename>{0}.jpg</filename><size><width>40</width><height>30</height></size><object><name>RBC</name>"
    "<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>20</xmax><ymax>25</ymax></bndbox></object></annotation>"
)


@pytest.fixture
def files(tmp_path):
    """A tiny BCCD: one image for each split, with what else the repository holds."""
    result = {"LICENSE": b"MIT", "README.md": b"words", "BCCD/JPEGImages/.DS_Store": b"litter", "scripts/run.py": b"1"}
    for split in bccd.SPLITS:
        image = picture(tmp_path / "made" / f"{split}.jpg", quality=95)
        result[f"BCCD/JPEGImages/{split}.jpg"] = image.read_bytes()
        result[f"BCCD/Annotations/{split}.xml"] = XML.format(split).encode()
        result[f"BCCD/ImageSets/Main/{split}.txt"] = f"{split}\n".encode()
    return result


@pytest.fixture(autouse=True)
def setting(tmp_path, files, monkeypatch):
    """The tiny archive is the expected one; cache and data root are in the test's folder; no waiting."""
    monkeypatch.setattr(bccd, "DIGEST", bccd.digest_files(bccd._select(files)))
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setattr(download, "TIMEOUT", 5.0)
    monkeypatch.setattr(bccd, "cache_root", lambda: tmp_path / "cache")
    monkeypatch.setattr(bccd, "URL", "http://127.0.0.1:9/nothing-listens-here")
    monkeypatch.delenv("FOCAL_TUTORIAL_DATA", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def pack(files, top=TOP) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"{top}/{name}" if top else name, content)
    return buffer.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """Serves `body`. `faults` are used up one a request: a status to answer, or a number of bytes to stop after."""

    def __init__(self, body: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.faults, self.ranges, self.requests = body, [], True, []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/archive.zip"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append(wanted)
        kind, value = self.server.faults.pop(0) if self.server.faults else ("whole", 0)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.server.ranges else 0
        if kind == "status" or start >= len(self.server.body):
            self.send_error(value if kind == "status" else 416)
            return
        body = self.server.body[start:]
        self.send_response(206 if start else 200)
        if kind != "unmeasured":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:value] if kind == "cut" else body)
        self.close_connection = True

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server(files, monkeypatch):
    server = Server(pack(files))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    monkeypatch.setattr(bccd, "URL", server.url)
    yield server
    server.shutdown()
    server.server_close()


def check(paths, home):
    """The tiny dataset stands complete in `home`/bccd, and nothing half-made beside it."""
    assert paths["images"] == home / "bccd" / "JPEGImages"
    for split in bccd.SPLITS:
        dataset = CocoDataset(paths["images"], paths[split])
        assert dataset.problems == [] and dataset.class_names == ["RBC"] and len(dataset) == 1
        assert dataset.target(0)["boxes"].tolist() == [[2, 3, 20, 25]]
    assert (home / "bccd" / "LICENSE").read_bytes() == b"MIT"
    assert {p.name for p in home.iterdir()} <= {"bccd", BCCD_ARCHIVE}


def test_download(tmp_path, server):
    check(prepare_bccd(tmp_path / "root"), tmp_path / "root")
    assert server.requests == [None]


def test_second_call_needs_neither_network_nor_work(tmp_path, server):
    first = prepare_bccd(tmp_path / "root")
    stamp = first["train"].stat().st_mtime_ns
    assert prepare_bccd(tmp_path / "root") == first and first["train"].stat().st_mtime_ns == stamp
    assert server.requests == [None]


def test_damaged_copy_is_made_again_from_the_archive_at_hand(tmp_path, server):
    paths = prepare_bccd(tmp_path / "root")
    (paths["images"] / "val.jpg").write_bytes(b"damaged")
    check(prepare_bccd(tmp_path / "root"), tmp_path / "root")
    paths["test"].unlink()
    check(prepare_bccd(tmp_path / "root"), tmp_path / "root")
    assert server.requests == [None]


def test_broken_connection_is_resumed(tmp_path, server):
    server.faults = [("cut", 300), ("cut", 200)]
    check(prepare_bccd(tmp_path / "root"), tmp_path / "root")
    assert server.requests == [None, "bytes=300-", "bytes=500-"]


def test_next_run_resumes_the_last_one(tmp_path, server, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 1)
    server.faults = [("cut", 400)]
    with pytest.raises(InputError, match=r"cannot download .*the connection ended after 400 of \d+ bytes.*continues"):
        prepare_bccd(tmp_path / "root")
    assert [p.name for p in (tmp_path / "root").iterdir()] == [BCCD_ARCHIVE + ".part"]
    check(prepare_bccd(tmp_path / "root"), tmp_path / "root")
    assert server.requests == [None, "bytes=400-"]


def test_server_without_ranges_sends_all_again(tmp_path, server):
    server.ranges = False
    server.faults = [("cut", 300)]
    check(prepare_bccd(tmp_path / "root"), tmp_path / "root")
    assert server.requests == [None, "bytes=300-"]


def test_server_that_does_not_say_how_much(tmp_path, server):
    server.faults = [("unmeasured", 0)]
    check(prepare_bccd(tmp_path / "root"), tmp_path / "root")


@pytest.mark.parametrize("length", [50, 5000])
def test_part_of_something_else_is_thrown_away(tmp_path, server, length):
    """A left-over part that does not belong to the archive costs a second download, not the dataset."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / (BCCD_ARCHIVE + ".part")).write_bytes(b"x" * length)
    check(prepare_bccd(tmp_path / "root"), tmp_path / "root")
    assert server.requests == [f"bytes={length}-", None]


def test_passing_faults_are_tried_again(tmp_path, server):
    server.faults = [("status", 503), ("status", 429), ("cut", 0)]
    check(prepare_bccd(tmp_path / "root"), tmp_path / "root")
    assert len(server.requests) == 4


def test_not_found_is_final(tmp_path, server):
    server.faults = [("status", 404)] * 9
    with pytest.raises(InputError, match=r"cannot download http://127\.0\.0\.1:\d+/archive\.zip: HTTP 404 Not Found"):
        prepare_bccd(tmp_path / "root")
    assert server.requests == [None] and list((tmp_path / "root").iterdir()) == []


def test_server_that_stays_ill(tmp_path, server):
    server.faults = [("status", 500)] * 9
    with pytest.raises(InputError, match="HTTP 500"):
        prepare_bccd(tmp_path / "root")
    assert len(server.requests) == download.TRIES


def test_no_network(tmp_path):
    with pytest.raises(InputError, match=rf"Connection refused.*save it as .*{BCCD_ARCHIVE}") as error:
        prepare_bccd(tmp_path / "root")
    assert "\n" not in str(error.value)


def test_server_that_falls_silent(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    monkeypatch.setattr(download, "TRIES", 2)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        monkeypatch.setattr(bccd, "URL", f"http://127.0.0.1:{mute.getsockname()[1]}/x")
        with pytest.raises(InputError, match="timed out"):
            prepare_bccd(tmp_path / "root")


def test_other_content_is_refused_by_digest(tmp_path, server, files):
    server.body = pack(files | {"BCCD/Annotations/train.xml": files["BCCD/Annotations/val.xml"]})
    with pytest.raises(InputError, match=r"is not BCCD at commit d272fb14cdff: the digest of its 10 data files"):
        prepare_bccd(tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []


def test_answer_that_is_no_archive(tmp_path, server):
    server.body = b"<html>log in to this network</html>"
    with pytest.raises(InputError, match="is damaged or no zip file"):
        prepare_bccd(tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []


def test_endless_answer_is_cut_off(tmp_path, server, monkeypatch):
    monkeypatch.setattr(download, "MAX_BYTES", 1000)
    with pytest.raises(InputError, match="sends more than 1000 bytes"):
        prepare_bccd(tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []


def test_other_packing_of_the_same_files_is_accepted(tmp_path, files):
    for number, body in enumerate((pack(files, "Other-Top"), pack(files, ""), pack(dict(reversed(files.items()))))):
        path = tmp_path / f"{number}.zip"
        path.write_bytes(body)
        check(prepare_bccd(tmp_path / str(number), source=path), tmp_path / str(number))


@pytest.mark.parametrize("inside", [".", TOP, f"{TOP}/BCCD"])
def test_unpacked_folder_instead_of_the_network(tmp_path, files, inside):
    with zipfile.ZipFile(io.BytesIO(pack(files))) as archive:
        archive.extractall(tmp_path / "unpacked")
    check(prepare_bccd(tmp_path / "root", source=tmp_path / "unpacked" / inside), tmp_path / "root")


def test_source_that_is_missing_empty_or_broken(tmp_path, files):
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.zip").write_bytes(pack(files)[:-40])
    flipped = bytearray(pack(files))
    flipped[2000] ^= 255
    (tmp_path / "flipped.zip").write_bytes(flipped)
    (tmp_path / "void.zip").write_bytes(b"")
    cases = [
        ("gone.zip", "does not exist"),
        ("empty", "has no folder BCCD"),
        ("cut.zip", "is damaged or no zip file"),
        ("flipped.zip", "is damaged or no zip file: Bad CRC-32"),
        ("void.zip", "is damaged or no zip file"),
    ]
    for name, words in cases:
        with pytest.raises(InputError, match=words):
            prepare_bccd(tmp_path / "root", source=tmp_path / name)
        assert (tmp_path / name).exists() == (name != "gone.zip")  # what the user gave stays
        assert not (tmp_path / "root" / "bccd").exists()


@pytest.mark.parametrize(
    "name", ["../evil.txt", f"{TOP}/../../evil.txt", "/tmp/evil.txt", "C:/evil.txt", f"{TOP}\\..\\..\\evil.txt"]
)
def test_archive_never_reaches_outside(tmp_path, files, name):
    buffer = io.BytesIO(pack(files))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(name, b"evil")
    (tmp_path / "evil.zip").write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match=r"is refused: its member .* points outside of its folder"):
        prepare_bccd(tmp_path / "root", source=tmp_path / "evil.zip")
    assert not any("evil.txt" in names for _, _, names in os.walk(tmp_path))


def test_archive_with_a_link_is_refused(tmp_path, files):
    buffer = io.BytesIO(pack(files))
    with zipfile.ZipFile(buffer, "a") as archive:
        link = zipfile.ZipInfo(f"{TOP}/BCCD/JPEGImages/link.jpg")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    (tmp_path / "evil.zip").write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match="is a link"):
        prepare_bccd(tmp_path / "root", source=tmp_path / "evil.zip")


def test_archive_that_swells_is_refused(tmp_path, monkeypatch):
    (tmp_path / "bomb.zip").write_bytes(pack({"BCCD/Annotations/a.xml": b"0" * 100_000}))
    monkeypatch.setattr(download, "MAX_BYTES", 50_000)
    with pytest.raises(InputError, match="unpacks to more than 50000 bytes"):
        prepare_bccd(tmp_path / "root", source=tmp_path / "bomb.zip")


def test_archive_in_a_read_only_data_root_is_unpacked_to_the_cache(tmp_path, files, monkeypatch):
    root = tmp_path / "shared"
    root.mkdir()
    (root / BCCD_ARCHIVE).write_bytes(pack(files))
    root.chmod(0o555)
    monkeypatch.setenv("FOCAL_TUTORIAL_DATA", str(root))
    try:
        for _ in range(2):
            check(prepare_bccd(), tmp_path / "cache")
        assert [p.name for p in root.iterdir()] == [BCCD_ARCHIVE]
    finally:
        root.chmod(0o755)


def test_archive_in_a_writable_data_root_is_used_there(tmp_path, files, monkeypatch):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / BCCD_ARCHIVE).write_bytes(pack(files))
    monkeypatch.setenv("FOCAL_TUTORIAL_DATA", str(tmp_path / "root"))
    check(prepare_bccd(), tmp_path / "root")
    assert not (tmp_path / "cache").exists()


def test_archive_in_the_cache_is_used_again(tmp_path, files):
    """As after a run that was killed between download and conversion, with a data root that is read-only."""
    root, cache = tmp_path / "shared", tmp_path / "cache"
    root.mkdir()
    cache.mkdir()
    (cache / BCCD_ARCHIVE).write_bytes(pack(files))
    root.chmod(0o555)
    try:
        check(prepare_bccd(root), cache)
    finally:
        root.chmod(0o755)


def test_no_place_to_write_to(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(bccd, "cache_root", lambda: tmp_path / "file" / "cache")
    with pytest.raises(InputError, match=r"cannot write to .*: give another folder with --root"):
        prepare_bccd(tmp_path / "file" / "root")


def test_folder_of_someone_else_is_never_replaced(tmp_path, server):
    picture(tmp_path / "root" / "bccd" / "mine.png")
    with pytest.raises(InputError, match="was not made by this program"):
        prepare_bccd(tmp_path / "root")
    assert (tmp_path / "root" / "bccd" / "mine.png").exists()


def test_killed_while_converting_leaves_no_dataset(tmp_path, server, monkeypatch):
    def fail(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bccd, "convert_voc", fail)
        with pytest.raises(KeyboardInterrupt):
            prepare_bccd(tmp_path / "root")
    assert [p.name for p in (tmp_path / "root").iterdir()] == [BCCD_ARCHIVE]
    check(prepare_bccd(tmp_path / "root"), tmp_path / "root")
    assert server.requests == [None]  # the archive had come


def test_two_at_once(tmp_path, files):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / BCCD_ARCHIVE).write_bytes(pack(files))
    results, errors = [], []

    def run():
        try:
            results.append(prepare_bccd(tmp_path / "root"))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and len(results) == 4
    check(results[0], tmp_path / "root")


def test_data_root_order(tmp_path, monkeypatch):
    assert data_root(tmp_path) == tmp_path
    monkeypatch.setenv("FOCAL_TUTORIAL_DATA", "~/somewhere")
    assert data_root() == Path.home() / "somewhere" and data_root("~/else") == Path.home() / "else"
    monkeypatch.setenv("FOCAL_TUTORIAL_DATA", "")
    assert data_root().name == "focal-tutorial"


def test_real_archive(tmp_path, monkeypatch):
    archive = bccd_archive()
    monkeypatch.undo()
    paths = prepare_bccd(tmp_path, source=archive)
    datasets = {split: CocoDataset(paths["images"], paths[split]) for split in bccd.SPLITS}
    assert {split: len(d) for split, d in datasets.items()} == {"train": 205, "val": 87, "test": 72}
    labels = [d.target(i)["labels"].tolist() for d in datasets.values() for i in range(len(d))]
    counts = [sum(row.count(k) for row in labels) for k in range(3)]
    assert counts == [361, 4155 - 2, 372] and datasets["train"].class_names == ["Platelets", "RBC", "WBC"]
    problems = [(split, p.kind, p.file) for split, d in datasets.items() for p in d.problems]
    assert problems == [
        ("train", "zero-size box", "BloodImage_00343.xml"),
        ("val", "zero-size box", "BloodImage_00338.xml"),
    ]
    assert len({i for d in datasets.values() for i in d.image_ids}) == 364
    image, target = datasets["test"][0]
    assert image.shape == (3, 480, 640) and (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()
