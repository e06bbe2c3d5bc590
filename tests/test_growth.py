"""benchmarks/growth.py: its slopes, its memory counter, matching's memory bound, its smoke run, the page's figure."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from matplotlib.figure import Figure

from focal_tutorial.plotting.growth import plot_growth
from focal_tutorial.results import load_result

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "growth.py"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


growth = load(SCRIPT)
linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="counts memory through Linux's /proc")


# ---- slopes -------------------------------------------------------------------------------------------------------


def test_the_slope_of_a_power_is_its_exponent() -> None:
    xs = [1.0, 10.0, 100.0, 1000.0]
    fitted = growth.fit_slope(xs, [3 * x**0.7 for x in xs])
    assert fitted == {"slope": pytest.approx(0.7), "se": pytest.approx(0, abs=1e-7), "points": 4}


def test_the_standard_error_is_that_of_least_squares() -> None:
    """Slope and its error over 2,000 noisy lines: the error must be as large as the slopes scatter."""
    generator = random.Random(0)
    xs = [1, 3, 10, 30, 100, 300]
    fits = [growth.fit_slope(xs, [x * 10 ** generator.gauss(0, 0.1) for x in xs]) for _ in range(2000)]
    slopes = [fit["slope"] for fit in fits]
    mean = sum(slopes) / len(slopes)
    scatter = (sum((slope - mean) ** 2 for slope in slopes) / len(slopes)) ** 0.5
    assert mean == pytest.approx(1, abs=0.01)
    assert (sum(fit["se"] ** 2 for fit in fits) / len(fits)) ** 0.5 == pytest.approx(scatter, rel=0.1)


def test_what_has_no_logarithm_or_no_value_is_left_out() -> None:
    assert growth.fit_slope([0, 1, 2, 4], [9.0, 1.0, 2.0, 4.0])["points"] == 3
    assert growth.fit_slope([1, 2, 4], [1.0, None, 4.0]) == {"slope": pytest.approx(1), "se": None, "points": 2}
    assert growth.fit_slope([0, 1], [1.0, 2.0]) is None
    assert growth.fit_slope([3, 3, 3], [1.0, 2.0, 3.0]) is None


def test_a_curve_has_medians_ends_and_the_slope_of_its_upper_half() -> None:
    """A constant cost and one in proportion: flat at first, slope 1 at the end."""
    points = {str(x): [{"ms": 100.0 + x + d, "mib": None} for d in (0, -1, 5)] for x in (1, 10, 10**4, 10**5, 10**6)}
    curve = growth.as_curve(points)
    assert curve["x"] == [1, 10, 10**4, 10**5, 10**6] and "mib" not in curve
    assert [curve["ms"][key][0] for key in ("median", "low", "high")] == [101, 100, 106]
    assert curve["ms"]["upper"]["slope"] == pytest.approx(1, abs=0.01) and curve["ms"]["upper"]["points"] == 3
    assert curve["ms"]["all"]["slope"] < 0.8


# ---- inputs, memory -----------------------------------------------------------------------------------------------


def test_random_boxes_lie_in_the_image_and_differ_by_seed() -> None:
    boxes = growth.random_boxes(500, (800, 1344), 0)
    sides = boxes[:, 2:] - boxes[:, :2]
    assert boxes.shape == (500, 4) and (sides > 1).all()
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= 1344.01).all() and (boxes[:, 3] <= 800.01).all()
    assert not boxes.equal(growth.random_boxes(500, (800, 1344), 1))


def test_there_are_as_many_candidates_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        growth, "detect_image", lambda logits, *_: seen.append(sum((x > -2.9445).sum() for x in logits))
    )
    growth.detections((64, 64), 1, 0, "cpu", candidates=37)()
    assert seen == [37]


def alone(code: str) -> float:
    """The number that `code` prints, in a process of its own that gives freed memory back at once."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "100000",
        "MALLOC_TRIM_THRESHOLD_": "0",
    }
    environment["PYTHONPATH"] = os.pathsep.join([str(SCRIPT.parent), environment.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@linux
def test_the_counter_sees_what_is_held_at_the_peak() -> None:
    code = "import growth, torch; print(growth.peak(lambda: torch.ones(2**23) + 1, lambda: torch.ones(9) + 1, 'cpu'))"
    assert alone(code) == pytest.approx(64, abs=2)  # two times 32 MiB


@linux
def test_matching_a_thousand_boxes_keeps_no_matrix_of_boxes_and_anchors() -> None:
    few, many = "growth.matching(growth.FULL, 1, 1, 0, 'cpu')", "growth.matching(growth.FULL, 1, 1000, 0, 'cpu')"
    matrix = 1000 * 201_600 * 4 / 2**20  # MiB, of float32
    assert alone(f"import growth; print(growth.peak({many}, {few}, 'cpu'))") < matrix / 8


# ---- the script, its results, the figure --------------------------------------------------------------------------


def test_the_smoke_run_measures_every_part_and_writes_nothing() -> None:
    before = sorted((ROOT / "book" / "results").iterdir())
    done = subprocess.run([sys.executable, str(SCRIPT), "--smoke"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for part, curves in growth.parts(smoke=True).items():
        for curve in curves:
            assert f"{part:10s} {curve:12s} ms" in done.stdout
    assert sorted((ROOT / "book" / "results").iterdir()) == before


def test_a_part_runs_in_a_process_of_its_own() -> None:
    found = growth.call_self(["--times", "matching", "--smoke", "--seeds", "2"])
    assert [*found["ours"]] == ["1", "3", "10"] and all(len(cells) == 2 for cells in found["ours"].values())
    whole = growth.together(found, {"ours": {x: [{"mib": 1.0}, {"mib": 2.0}] for x in found["ours"]}})
    assert [cell["mib"] for cell in whole["ours"]["3"]] == [1, 2] and [*whole["torchvision"]["1"][0]] == ["ms"]


def test_a_part_takes_the_place_of_its_forerunner(tmp_path: Path) -> None:
    def points(ms: float) -> dict[str, dict[str, list[dict[str, float | None]]]]:
        return {"ours": {"1": [{"ms": ms}, {"ms": 3 * ms}], "2": [{"ms": 2 * ms}, {"ms": 6 * ms}]}}

    growth.save("matching", points(1.0), 5.0, "cpu", 2, tmp_path)
    growth.save("loss", points(7.0), 4.0, "cpu", 2, tmp_path)
    path = growth.save("matching", points(2.0), 3.0, "cpu", 2, tmp_path)
    result = json.loads(path.read_text(encoding="utf-8"))
    assert result["curves"]["loss"]["ours"]["ms"]["median"] == [14, 28]
    assert result["curves"]["matching"]["ours"]["ms"]["median"] == [4, 8]
    assert result["provenance"]["wall_seconds"] == 7 and result["runs"][1]["seed"] == 1
    result["provenance"]["versions"]["torch"] = "0"  # other libraries: nothing of theirs stays
    path.write_text(json.dumps(result))
    assert [*json.loads(growth.save("loss", points(1.0), 1.0, "cpu", 2, tmp_path).read_text())["curves"]] == ["loss"]


def test_the_figure_was_drawn_from_the_results() -> None:
    figure = load(ROOT / "book" / "_ext" / "growth_figure.py")
    assert figure.digest(load_result("growth_cpu")["curves"]) in figure.TARGET.read_text(encoding="utf-8")


def test_the_figure_shows_every_point_on_logarithmic_axes() -> None:
    points = {str(x): [{"ms": 2.0 * x}, {"ms": 3.0 * x}, {"ms": 5.0 * x}] for x in (1, 10, 100)}
    ax = Figure().subplots()
    alt = plot_growth(ax, {"matching": growth.as_curve(points)}, xlabel="boxes", title="Boxes")
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert [*ax.lines[0].get_xdata()] == [1, 10, 100] and [*ax.lines[0].get_ydata()] == [3, 30, 300]
    assert "matching from 3 to 300, slope 1.00" in alt
    with pytest.raises(ValueError, match="unit"):
        plot_growth(ax, {}, "hours")
