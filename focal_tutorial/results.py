"""Measured results as files: `book/results/NAME.json`, with what is needed to judge and repeat them.

A result holds the full configuration, every run's seed and metrics, their mean and sample standard deviation,
and where the figures come from: device, library versions, commit, wall time, peak memory, date. The book's
numbers are read from here.
"""

from __future__ import annotations

import datetime
import json
import math
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from os import PathLike
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
import torchvision

from focal_tutorial import __version__
from focal_tutorial.checkpoint import write_json
from focal_tutorial.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "book" / "results"
SCHEMA = 1

_KEYS = {"schema": int, "name": str, "config": dict, "runs": list, "summary": dict, "provenance": dict}
_PROVENANCE = {
    "device": str,
    "versions": dict,
    "commit": (str, type(None)),
    "date": str,
    "wall_seconds": (int, float),
    "peak_memory_mib": (int, float, type(None)),
}


def save_result(
    name: str,
    payload: dict[str, Any],
    *,
    wall_seconds: float,
    peak_memory_mib: float | None = None,
    device: str | torch.device = "cpu",
    device_name: str | None = None,
    commit: str | None = None,
    folder: str | PathLike[str] | None = None,
) -> Path:
    """Write `book/results/NAME.json` (or `folder/NAME.json`) whole or not at all, and return its path.

    Absolute paths in the payload are cut down to their last part.

    Args:
        payload: "config" (JSON-able), "runs" (a list of `{"seed": int, "metrics": {…}, …}`), and whatever
            else the experiment wants kept.
        wall_seconds: of all runs together.
        peak_memory_mib: by default `peak_memory(device)` now.
        device: that ran it.
        device_name: as `describe_device` gave it then, where the runs are older than this process.
        commit: for a machine without the repository; by default git is asked.

    Raises:
        ValueError: if the result would not pass `check_result`.
        InputError: if the folder does not exist or cannot be written.
    """
    result = {
        "schema": SCHEMA,
        "name": name,
        **_without_paths(payload),
        "summary": summarise([run["metrics"] for run in payload.get("runs", [])]),
        "provenance": {
            **_provenance(device, commit, wall_seconds, peak_memory_mib),
            **({"device": device_name} if device_name else {}),
        },
    }
    problems = check_result(result)
    if problems:
        raise ValueError(f"result {name!r}: {'; '.join(problems)}")
    path = _folder(folder) / f"{name}.json"
    write_json(path, result)
    return path


def load_result(name: str, folder: str | PathLike[str] | None = None) -> dict[str, Any]:
    """The result NAME as `save_result` wrote it; raises `InputError` if missing, broken or of another schema."""
    path = _folder(folder) / f"{name}.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: no such result; run the experiment that writes it") from error
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); run the experiment again") from error
    problems = check_result(result)
    if problems:
        raise InputError(f"{path}: {'; '.join(problems)}; run the experiment again")
    return result


def check_result(result: Any) -> list[str]:
    """What is wrong with a result, as sentences; an empty list if nothing is.

    Looks at the keys and their types, that every run has a seed and metrics, that the summary is that of the
    runs, that all numbers are finite, and that no string gives away a path of the machine.
    """
    if not isinstance(result, dict):
        return ["is not a JSON object"]
    problems = _missing(result, _KEYS, "")
    if problems:
        return problems
    if result["schema"] != SCHEMA:
        problems.append(f"schema is {result['schema']}, this version reads {SCHEMA}")
    problems += _missing(result["provenance"], _PROVENANCE, "provenance.")
    for i, run in enumerate(result["runs"]):
        problems += _missing(run, {"seed": int, "metrics": dict}, f"runs[{i}].")
    if not result["runs"]:
        problems.append("runs is empty")
    if not problems and not _close(result["summary"], summarise([run["metrics"] for run in result["runs"]])):
        problems.append("summary is not the mean and standard deviation of the runs")
    for place, value in _leaves(result):
        if isinstance(value, float) and not math.isfinite(value):
            problems.append(f"{place} is {value}; write null for an undefined figure")
        if isinstance(value, str) and _last_part(value) != value:
            problems.append(f"{place} holds an absolute path")
    return problems


def summarise(metrics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """{"mean", "sd", "n"} for each number in a list of (nested) metric dictionaries, one per seed.

    sd is the sample standard deviation (n - 1 below the line), None for one run. None values are left out of
    both and of n.
    """
    summary: dict[str, Any] = {}
    for key in dict.fromkeys(key for one in metrics for key in one):
        values = [one[key] for one in metrics if one.get(key) is not None]
        if values and all(isinstance(value, dict) for value in values):
            summary[key] = summarise(values)
        elif all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
            summary[key] = {
                "mean": statistics.fmean(values) if values else None,
                "sd": statistics.stdev(values) if len(values) > 1 else None,
                "n": len(values),
            }
    return summary


def describe_device(device: str | torch.device = "cpu") -> str:
    """The model of the GPU, or of the CPU and its thread count; no host names."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        model = found.group(1).strip() if found else model
    threads = torch.get_num_threads()
    return f"{model}, {threads} thread{'s' if threads > 1 else ''}"


def library_versions() -> dict[str, str]:
    """Versions of Python, torch, torchvision, CUDA where torch was built with it, and this package."""
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "focal_tutorial": __version__,
    }
    return {**versions, "cuda": torch.version.cuda} if torch.version.cuda else versions


def git_commit() -> str | None:
    """The repository's commit, with -dirty if the package differs from it; None outside a repository."""
    if not (REPOSITORY / ".git").exists():  # installed: what git finds around it is another project's repository
        return None
    git = ["git", "-C", str(REPOSITORY)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", "focal_tutorial"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}-dirty" if changed else commit


def peak_memory(device: str | torch.device = "cpu") -> float | None:
    """Most memory held so far in MiB: torch's on a GPU, the process's on the CPU (`None` on Windows)."""
    device = torch.device(device)
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    if sys.platform == "win32":
        return None
    status = Path("/proc/self/status")  # Linux; getrusage counts the parent's memory to a process it started
    if status.exists() and (found := re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)):
        return round(int(found.group(1)) / 2**10, 1)
    import resource  # not there on Windows

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def _provenance(
    device: str | torch.device, commit: str | None, wall_seconds: float, peak_memory_mib: float | None
) -> dict[str, Any]:
    memory = peak_memory(device) if peak_memory_mib is None else round(peak_memory_mib, 1)
    return {
        "device": describe_device(device),
        "versions": library_versions(),
        "commit": commit or git_commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "wall_seconds": round(wall_seconds, 2),
        "peak_memory_mib": memory,
    }


def _folder(folder: str | PathLike[str] | None) -> Path:
    folder = RESULTS if folder is None else Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; results live in the book's repository, elsewhere pass folder=")
    return folder


def _missing(part: Any, wanted: dict[str, Any], prefix: str) -> list[str]:
    if not isinstance(part, dict):
        return [f"{prefix.rstrip('.')} is not an object"]
    lacking = [f"{prefix}{key} is missing" for key in wanted if key not in part]
    return lacking + [
        f"{prefix}{key} is a {type(part[key]).__name__}"
        for key, kind in wanted.items()
        if key in part and not isinstance(part[key], kind)
    ]


def _leaves(value: Any, place: str = "result") -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in _leaves(item, f"{place}.{key}")]
    if isinstance(value, list):
        return [leaf for i, item in enumerate(value) for leaf in _leaves(item, f"{place}[{i}]")]
    return [(place, value)]


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_paths(item) for item in value]
    return _last_part(str(value)) if isinstance(value, (str, PathLike)) else value


def _last_part(text: str) -> str:
    for kind in (PurePosixPath, PureWindowsPath):
        path = kind(text)
        if path.is_absolute():
            return path.name
    return text


def _close(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_close(a[key], b[key]) for key in a)
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
    return bool(a == b)
