"""Kill a training and a download at random moments, twenty times each, and look at what is left.

    python benchmarks/faults.py                       # about 8 minutes: book/results/faults_cpu.json
    python benchmarks/faults.py --kills 3 --no-write  # a short look; tests/test_faults.py does as much

A training saves after every step and is killed at a moment drawn from a seed, by SIGKILL, which no program can catch.
What is left must load; the same command goes on; at the end weights, log and metrics are compared with those of a run
that nobody disturbed. A data set is fetched from a slow server on this machine and killed in the same way while it
downloads, checks the digest, unpacks or converts. What a process is at stands in a file that it shares with this one.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from fault_tools import PHASES, WRITING, SlowServer, contents, made_up_archive, must, run

from focal_tutorial.results import load_result, save_result

TRAINING = """train --seed 0 --steps {steps} --batch-size 1 --warmup-steps 2 --log-every 2 --save-every 1 --eval-every 1
 --deterministic --resume-or-start --out {out} --shapes num_train=12 --shapes num_val=2 --shapes size=64
 --shapes radius=[6,12] --shapes distractors=[0,2] --option levels=[3,4] --option widths=[16,32,256]
 --option channels=16 --option head_depth=1"""


FETCHING = ("download", "read archive", "digest", "unpack", "convert")


# ---------------------------------------------------------------- a training
def drill_training(folder: Path, kills: int, draw: random.Random, steps: int, window: float) -> dict[str, Any]:
    """Kill a training `kills` times, while it is set up or up to `window` seconds later; let it end, and compare."""
    words = [TRAINING.format(steps=steps, out=folder / name).split() for name in ("whole", "killed")]
    whole = run(folder, words[0], None)
    set_up = whole["durations"].get("set-up", 0.0)
    records: list[dict[str, Any]] = []
    saved = 0
    while len(records) < kills:
        longest = set_up + (window if records else 0)  # the first before there is a checkpoint
        record = run(folder, words[1], draw.uniform(0, longest))
        must(record["killed"], f"the training ended before kill {len(records) + 1}: more steps are needed")
        left = look_at_run(folder / "killed")
        must(left["saved"] >= saved, f"the checkpoint went back from step {saved} to {left['saved']}")
        saved = left["saved"]
        record.pop("durations")
        records.append({**record, **left, "lost": max(record["steps"] - saved, 0)})
    run(folder, words[1], None)
    differences = compare_runs(folder / "whole", folder / "killed")
    phases = Counter(record["phase"] for record in records)
    return {
        "kills": len(records),
        "within_a_write": sum(phases[phase] for phase in WRITING),
        "half_files_left": sum(record["half_files"] > 0 for record in records),
        "checkpoints_read": sum(record["read"] for record in records),
        "checkpoints_broken": 0,  # or `look_at_run` would have raised
        "restarts_without_checkpoint": sum(record["saved"] == 0 for record in records),
        "steps": steps,
        "steps_killed": saved,
        "most_steps_lost": max(record["lost"] for record in records),
        "differences": len(differences),
        "seconds_undisturbed": round(sum(whole["durations"].values()), 1),
        "phases": {phase: phases[phase] for phase in PHASES if phases[phase]},
        "records": records,
        "different": differences,
        "half_files_at_the_end": len(list((folder / "killed").glob(".*"))),
    }


def look_at_run(folder: Path) -> dict[str, int]:
    """What a killed run has left: each checkpoint must load, and last.pt must be one to go on from."""
    from focal_tutorial.train import TrainConfig, load_checkpoint
    from focal_tutorial.train_setup import read_last

    found = [path for path in (folder / "best.pt", folder / "last.pt") if path.exists()]
    for path in found:
        load_checkpoint(path)
    saved = read_last(TrainConfig(out=str(folder)))["step"] if (folder / "last.pt").exists() else 0
    return {"read": len(found), "saved": saved, "half_files": len(list(folder.glob(".*.tmp")))}


def compare_runs(one: Path, other: Path) -> list[str]:
    """The parts of two run folders that differ: every tensor of both checkpoints by its bytes, log and metrics."""
    different = []
    for name in ("last.pt", "best.pt"):
        a, b = (torch.load(folder / name, weights_only=True) for folder in (one, other))
        for state in (a, b):
            state.pop("seconds", None)
            state["config"] = {k: v for k, v in state["config"].items() if k not in ("out", "resume")}
        x, y = (dict(leaves(state, name)) for state in (a, b))
        different += sorted(place for place in x.keys() | y.keys() if x.get(place) != y.get(place))
    logs = [list(csv.DictReader((folder / "log.csv").open(newline=""))) for folder in (one, other)]
    rows = [[{k: v for k, v in row.items() if k != "images_per_second"} for row in log] for log in logs]
    different += ["log.csv"] * (rows[0] != rows[1])
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (one, other)]
    return different + ["metrics.json"] * ({**metrics[0], "seconds": 0} != {**metrics[1], "seconds": 0})


def leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """(place, value) of all that is no container; of a tensor its dtype, shape and bytes."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{place}.{key}")
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from leaves(item, f"{place}.{number}")
    elif isinstance(value, torch.Tensor):
        flat = value.contiguous().reshape(-1).view(torch.uint8)
        yield place, (str(value.dtype), tuple(value.shape), hashlib.sha256(bytes(flat.tolist())).hexdigest())
    else:
        yield place, value


# ---------------------------------------------------------------- a download
def drill_download(folder: Path, kills: int, draw: random.Random, body: bytes, seconds: float) -> dict[str, Any]:
    """Kill the making of a data set `kills` times; whenever it is finished, check it and begin another."""
    from focal_tutorial.data import bccd

    server = SlowServer(body, seconds)
    archive = folder / "archive.zip"
    archive.write_bytes(body)
    digest = bccd.digest_files(bccd._select(bccd.read_zip(archive)))
    records: list[dict[str, Any]] = []
    finished, roots = 0, [folder / "root-0"]
    served = {"url": server.url, "digest": digest}
    whole = run(folder, ["data", "bccd", "--root", str(folder / "whole")], None, **served)
    reference = contents(folder / "whole" / "bccd")
    must(look_at_root(folder / "whole", body, reference), "an undisturbed download is not whole")
    while len(records) < kills or not look_at_root(roots[-1], body, reference):
        here = sum(record["root"] == len(roots) for record in records)
        fetched = (roots[-1] / bccd.ARCHIVE).exists()
        phase = draw_phase(draw, here, fetched) if len(records) < kills else None
        before = set(roots[-1].glob(".bccd*"))
        delay = draw.uniform(0, whole["durations"].get(phase, 0.0)) if phase else None
        record = run(folder, ["data", "bccd", "--root", str(roots[-1])], delay, phase=phase, **served)
        complete = look_at_root(roots[-1], body, reference)
        record.pop("durations")
        if record["killed"]:
            half = set(roots[-1].glob(".bccd*")) - before
            records.append(
                {**record, "root": len(roots), "drawn": phase, "complete": complete, "half_folders": len(half)}
            )
            continue
        must(complete, f"{roots[-1].name}: the command ended well, and the data set is not whole")
        left = {path.name for path in roots[-1].iterdir()}
        must(left == {"bccd", bccd.ARCHIVE}, f"{roots[-1].name}: left behind: {left}")
        finished += 1
        if len(records) < kills:
            roots.append(folder / f"root-{len(roots)}")
    server.shutdown()
    server.server_close()
    seconds_undisturbed = round(sum(whole["durations"].values()), 1)
    return {
        **summary(records),
        "finished": finished,
        "megabytes": round(len(body) / 1e6, 1),
        "seconds_undisturbed": seconds_undisturbed,
        "records": records,
    }


def draw_phase(draw: random.Random, kills: int, fetched: bool) -> str | None:
    """The phase to wait for before the next kill, so that short ones have their turn; None after four: let it end."""
    if kills == 4:
        return None
    return "download" if not fetched and (kills == 0 or draw.random() < 0.5) else draw.choice(FETCHING[1:])


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    phases = Counter(record["phase"] for record in records)
    return {
        "kills": len(records),
        "half_sets_taken_for_good": 0,  # or `look_at_root` would have raised
        "half_folders_left": sum(record["half_folders"] > 0 for record in records),
        "complete_when_killed": sum(record["complete"] for record in records),
        "phases": {phase: phases[phase] for phase in PHASES if phases[phase]},
    }


def look_at_root(root: Path, body: bytes, reference: dict[str, str]) -> bool:
    """Whether the data set is there. If it is there at all, it must be whole; and so must an archive with its name."""
    from focal_tutorial.data.bccd import ARCHIVE

    if (root / ARCHIVE).exists():
        must((root / ARCHIVE).read_bytes() == body, f"{root.name}: the archive is not what the server sent")
    if not (root / "bccd").exists():
        return False
    must(contents(root / "bccd") == reference, f"{root.name}: half a data set stands in its place")
    return True


# ---------------------------------------------------------------- both
def real_archive() -> bytes | None:
    """BCCD's own archive, where it lies in the data root."""
    from focal_tutorial.data import bccd, data_root

    path = data_root() / bccd.ARCHIVE
    return path.read_bytes() if path.is_file() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400, help="of the training")
    parser.add_argument("--window", type=float, default=1.5, help="seconds of training in which it is killed")
    parser.add_argument("--seconds", type=float, default=3.0, help="of the download")
    parser.add_argument("--only", choices=("training", "download"), help="the other part stays in the file")
    parser.add_argument("--no-write", action="store_true", help="print only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start, folder = time.perf_counter(), Path(tempfile.mkdtemp(prefix="faults-"))
    body, a = real_archive(), arguments
    config = {k: v for k, v in vars(a).items() if k not in ("no_write", "only")} | {
        "training": " ".join(TRAINING.format(steps=a.steps, out="RUN").split()),
        "archive": "BCCD" if body else "made up",
    }
    run: dict[str, Any] = {"seed": a.seed, "metrics": {}, "kills": {}}
    if a.only:
        run = load_result("faults_cpu")["runs"][0]
    try:
        if a.only != "download":
            run["metrics"]["training"] = drill_training(folder, a.kills, random.Random(a.seed), a.steps, a.window)
        if a.only != "training":
            made = body or made_up_archive()
            run["metrics"]["download"] = drill_download(folder, a.kills, random.Random(a.seed), made, a.seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    run["kills"] |= {name: part.pop("records") for name, part in run["metrics"].items() if "records" in part}
    print(json.dumps(run["metrics"], indent=1))
    if not a.no_write:
        save_result("faults_cpu", {"config": config, "runs": [run]}, wall_seconds=time.perf_counter() - start)


if __name__ == "__main__":
    main()
