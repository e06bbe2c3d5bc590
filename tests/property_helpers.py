"""Property-based tests in two modes: a few cases that are always the same, or as many as asked for, at random.

Without FOCAL_TUTORIAL_FUZZ every target of `CASES` runs that many cases, the same ones each time. With
`FOCAL_TUTORIAL_FUZZ=100000` the targets share at least so many, drawn from FOCAL_TUTORIAL_FUZZ_SEED or from a seed
that the head of pytest's output prints. FOCAL_TUTORIAL_FUZZ_RESULT=FOLDER writes the figures there.
"""

from __future__ import annotations

import functools
import math
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

# Target → cases in CI. The long mode shares its cases out in the same proportion.
CASES = {
    "boxes: encode and decode": 110,
    "boxes: decode any deltas": 90,
    "boxes: clip": 90,
    "boxes: malformed": 90,
    "anchors: grid": 70,
    "anchors: as torchvision": 40,
    "anchors: malformed": 80,
    "matching: brute force": 120,
    "matching: IoU matrix": 60,
    "matching: wild boxes": 80,
    "matching: malformed": 80,
    "sampling: which anchors stay": 90,
    "sampling: malformed": 60,
    "losses: sigmoid focal": 200,
    "losses: wide sigmoid focal": 70,
    "losses: softmax focal": 110,
    "losses: FL*, hinge, varifocal, quality": 110,
    "losses: the scalar term": 60,
    "losses: smooth L1": 70,
    "losses: malformed": 150,
    "model: preprocess": 70,
    "model: malformed images": 60,
    "model: malformed settings": 50,
    "model: targets": 60,
    "model: detections": 90,
    "COCO: any value anywhere": 110,
    "COCO: records against an oracle": 110,
    "COCO: broken bytes": 70,
    "COCO: file names": 60,
    "COCO: evaluation": 60,
    "COCO: inspect": 24,
    "images: broken bytes": 100,
    "VOC: any XML": 90,
}
LONG = int(os.environ.get("FOCAL_TUTORIAL_FUZZ", "0"))
SEED = int(os.environ.setdefault("FOCAL_TUTORIAL_FUZZ_SEED", str(random.SystemRandom().randrange(2**32))))
HANG = 60  # seconds for one case, most of which take some milliseconds
REFUSED = object()
RECORDS: dict[str, dict[str, float]] = {}


def cases_of(target: str) -> int:
    """How many cases a target runs in this mode."""
    return CASES[target] if not LONG else math.ceil(LONG * CASES[target] / sum(CASES.values()))


def fuzz(target: str, **strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[[], None]]:
    """Run the test on the target's number of cases, and fail if it was run on fewer, or if a case takes a minute."""

    def decorate(test: Callable[..., None]) -> Callable[[], None]:
        record = {"cases": 0, "accepted": 0, "refused": 0, "failures": 0, "seconds": 0.0}

        def case(**values: Any) -> None:
            with _limit(), _verdict() as refused:
                test(**values)
            record["refused" if refused else "accepted"] += 1
            record["cases"] += 1  # Hypothesis gives some up in the middle, which are none

        case.__name__ = test.__name__
        case.__doc__ = test.__doc__
        if hasattr(test, "hypothesis_explicit_examples"):
            case.hypothesis_explicit_examples = test.hypothesis_explicit_examples  # type: ignore[attr-defined]
        configured = settings(
            max_examples=cases_of(target),
            derandomize=not LONG,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate, Phase.shrink],
            print_blob=False,
        )(given(**strategies)(case))
        if LONG:
            configured = seed(SEED)(configured)

        def run() -> None:
            record.update(dict.fromkeys(record, 0))
            start = time.perf_counter()
            try:
                configured()
            except BaseException:
                record["failures"] = 1
                raise
            finally:
                RECORDS[target] = {**record, "seconds": round(time.perf_counter() - start, 1)}
                _write()
            assert record["cases"] >= cases_of(target), f"{target}: {record['cases']} cases only"

        functools.update_wrapper(run, test, updated=())
        del run.__wrapped__  # or pytest would ask for fixtures of the names of its arguments
        run.target = target  # type: ignore[attr-defined]
        return run

    return decorate


def attempt(call: Callable[[], Any], *names: str, valid: bool | None = None) -> Any:
    """The answer of `call`, or REFUSED where it refuses its arguments as it should, naming one of `names`.

    Args:
        valid: True, it must answer; False, it must refuse; None, it may do either.
    """
    try:
        answer = call()
    except (ValueError, TypeError) as error:
        text = str(error)
        assert valid is not True, f"good input refused: {text}"
        assert any(name in text for name in names), f"names none of {names}: {type(error).__name__}: {text}"
        assert "\n" not in text and len(text) < 1000, f"not one line: {text[:2000]!r}"
        _VERDICTS[-1].append(True)
        return REFUSED
    assert valid is not False, f"bad input accepted: {answer!r}"[:1000]
    return answer


_VERDICTS: list[list[bool]] = []


@contextmanager
def _verdict() -> Iterator[list[bool]]:
    """Where `attempt` notes refusals of the case."""
    _VERDICTS.append([])
    try:
        yield _VERDICTS[-1]
    finally:
        _VERDICTS.pop()


@contextmanager
def _limit() -> Iterator[None]:
    """An error after HANG seconds, where the system has alarms."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    strikes = []

    def stop(*_: Any) -> None:  # a process that was stopped and goes on gets one strike for all that time
        strikes.append(1)
        if len(strikes) >= 4:
            raise AssertionError(f"no answer after {HANG} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, HANG / 4, HANG / 4)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _write() -> None:
    """The figures so far, to the folder asked for; those of other targets in the file stay."""
    folder = os.environ.get("FOCAL_TUTORIAL_FUZZ_RESULT")
    if not folder or not LONG:
        return
    from focal_tutorial.results import load_result, save_result

    config = {"cases": LONG, "hang_seconds": HANG, "ci_cases": sum(CASES.values())}
    targets: dict[str, Any] = {}
    if Path(folder, "fuzzing_cpu.json").exists():
        before = load_result("fuzzing_cpu", folder)
        targets = before["runs"][0]["metrics"]["targets"] if before["config"] == config else {}
    targets = {name: {**targets, **RECORDS}[name] for name in CASES if name in targets or name in RECORDS}
    subjects = {name.split(":")[0]: _sum(targets, name.split(":")[0]) for name in targets}
    total = _sum(targets, "")
    run = {"seed": SEED, "metrics": {**total, "subjects": subjects, "targets": targets}}
    save_result("fuzzing_cpu", {"config": config, "runs": [run]}, wall_seconds=total["seconds"], folder=folder)


def _sum(targets: dict[str, Any], subject: str) -> dict[str, float]:
    parts = [target for name, target in targets.items() if name.startswith(subject)]
    return {key: round(sum(part[key] for part in parts), 1) for key in parts[0]}


# ---------------------------------------------------------------- strategies for many targets
WILD_FLOATS = st.one_of(
    st.floats(),
    st.floats(-200, 200),
    st.sampled_from([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, 1e-30, 3.4e38, -3.4e38, 1e300, -1e300, 1e30]),
)
JUNK = st.one_of(  # what no argument should be
    st.none(), st.booleans(), st.text(max_size=3), st.lists(st.integers(-2, 2), max_size=3), st.just({}),
    st.integers(-3, 3), st.sampled_from([10**400, -(10**400), math.nan, math.inf, -math.inf, -1.0, 1j, object()]),
)  # fmt: skip
