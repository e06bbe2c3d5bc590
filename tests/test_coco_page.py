"""book/coco_on_gpus.md: its commands are read by the programs' own parsers, its tables are the package's arithmetic."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch.distributed.run import get_args_parser

from focal_tutorial import cli
from focal_tutorial.scaling import scaled_recipe
from focal_tutorial.throughput import coco_cost
from focal_tutorial.train_config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "book" / "coco_on_gpus.md").read_text(encoding="utf-8")
OTHERS = ("mkdir", "cd", "wget", "unzip", "ls", "python")


def commands(page: str = PAGE) -> list[list[str]]:
    """The words of every command in a ```bash block."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    lines = re.split(r"\n(?=[\w./-]+[ =\n])", "\n".join(blocks).replace("\\\n", " "))  # quoted text may have lines too
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def split_torchrun(words: list[str]) -> tuple[Any, list[str]]:
    """torchrun's own options, as its parser reads them, and the words of the program behind them."""
    words = [word for word in words if not re.match(r"[A-Z_]+=", word)]
    if words[0] != "torchrun":
        return None, words
    known = get_args_parser().parse_args(words[1:])
    assert known.module and known.training_script == "focal_tutorial", words
    return known, ["focal-tutorial", *known.training_script_args]


def processes(launch: Any) -> int:
    machines = 1 if launch is None or launch.standalone else int(launch.nnodes)
    return machines * (1 if launch is None else int(launch.nproc_per_node))


OURS = [words for words in commands() if words[0] not in OTHERS]


def test_the_page_has_the_commands() -> None:
    verbs = [(processes(launch), words[1]) for launch, words in map(split_torchrun, OURS)]
    assert {(1, "inspect"), (1, "train"), (8, "train"), (64, "train"), (8, "evaluate"), (1, "experiment")} == set(verbs)
    assert all(words[0] in (*OTHERS, "focal-tutorial", "torchrun") or "=" in words[0] for words in commands())


@pytest.mark.parametrize("words", OURS, ids=lambda words: " ".join(words[:4]))
def test_every_command_is_understood(words: list[str]) -> None:
    """By typer's parser, to the end: an option that is misspelt or gone, or a value of the wrong kind, is an error."""
    import typer

    _, rest = split_torchrun(words)
    command: Any = typer.main.get_command(cli.app)
    arguments = rest[1:]
    while hasattr(command, "commands"):
        command = command.commands[arguments[0]]
        arguments = arguments[1:]
    assert command.make_context("focal-tutorial", list(arguments)).params


@pytest.mark.parametrize("words", [w for w in OURS if "train" in w], ids=lambda words: " ".join(words[:4]))
def test_the_training_is_the_papers(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As long in images as the paper's, with the rate and the drops of `scaled_recipe`, and to be started again."""
    import focal_tutorial.train

    seen: list[TrainConfig] = []

    def keep(config: TrainConfig) -> dict[str, Any]:
        seen.append(config)
        return {"out": config.out}

    launch, rest = split_torchrun(words)
    monkeypatch.setattr(focal_tutorial.train, "train", keep)
    assert cli.run(rest[1:]) == 0
    (config,) = seen
    recipe = scaled_recipe(config.batch_size * config.accumulate * processes(launch))
    assert (config.lr, config.steps, config.warmup_steps) == (recipe.lr, recipe.steps, recipe.warmup_steps)
    assert (config.schedule, config.optimizer, config.momentum, config.flip) == ("step", "sgd", 0.9, 0.5)
    drops = tuple(-(-round(1e6 * share * config.steps) // 1_000_000) for share in config.milestones)
    assert drops == recipe.drops
    assert config.resume_or_start and config.canvas == (800, 1344) and config.ema == 0
    assert (config.resolved(16, [(480, 640)]).weight_decay, recipe.images_per_step) in ((1e-4, 16), (1e-4, 128))


def test_downloads_are_those_of_coco() -> None:
    addresses = [words[-1] for words in commands() if words[0] == "wget"]
    assert addresses == [
        "http://images.cocodataset.org/zips/train2017.zip",
        "http://images.cocodataset.org/zips/val2017.zip",
        "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
    ]


def test_the_python_line_runs() -> None:
    (words,) = (words for words in commands() if words[0] == "python")
    done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "'gpu_hours': 4.4" in done.stdout, done.stdout + done.stderr


# ---- the tables ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    from test_book import load_extension

    return load_extension("coco_cost")


def cells(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if line.startswith("|")
    ]


def test_table_of_recipes(tables: ModuleType) -> None:
    rows = cells(tables.recipes())[2:]
    assert rows[0] == ["1", "2 × 8", "16", "0.01", "90,000", "60k, 80k"]
    assert rows[-1] == ["64", "2", "128", "0.08", "11,250", "7.5k, 10k"]


def test_table_of_hours_without_and_with_a_gpu(tables: ModuleType, tmp_path: Path) -> None:
    """Without a measured GPU the table says so; with one its row is computed from the file, at full size."""
    results = tmp_path / "book" / "results"
    results.mkdir(parents=True)
    shutil.copy(ROOT / "book" / "results" / "throughput_cpu.json", results)
    without = tables.hours(tmp_path)
    assert "No GPU has been measured" in without
    assert cells(without)[-1][1:] == [tables.hours_text(coco_cost(300, gpus=n, efficiency=e)["hours"]) for n, e in
                                      ((1, 1.0), (8, 0.9), (64, 0.9))]  # fmt: skip
    speeds = {"full_a": 20.0, "full_b": 50.0, "r50": 200.0}
    summary = {name: {"images_per_second": {"mean": speed}} for name, speed in speeds.items()}
    gpu = {"summary": summary, "provenance": {"device": "A GPU"}}
    (results / "throughput_gpu.json").write_text(json.dumps(gpu))
    found = tables.hours(tmp_path)
    assert "No GPU has been measured" not in found
    assert cells(found)[3] == ["50 (A GPU, measured: `full_b`)", "8.0", "1.1", "0.14"]


def test_the_example_is_the_arithmetic_of_the_measured_file(tables: ModuleType) -> None:
    _, setting, speed, full = tables.measured_cpu(ROOT)
    height, width = setting["size"]
    assert full == pytest.approx(speed * height * width / (800 * 1344))
    days = coco_cost(full)["hours"] / 24
    assert f"{days:.0f} days" in tables.example(ROOT) and f"{speed:.1f} images" in tables.example(ROOT)


def test_table_of_scaling(tables: ModuleType, tmp_path: Path) -> None:
    """Nothing where nothing was measured; else a row for each model and number of processes."""
    results = tmp_path / "book" / "results"
    results.mkdir(parents=True)
    assert tables.scaling(tmp_path) == "No machine has been measured yet."
    way = {"efficiency": {"mean": 0.912, "sd": 0.011}}
    ways = {"gradient_mib": {"mean": 135.6}, **{f"{name}_{n}": way for name in ("beside", "together") for n in (2, 4)}}
    result = {
        "summary": {"resnet50_b8": ways}, "config": {"processes": [1, 2, 4], "backend": "nccl"},
        "runs": [{}] * 3, "provenance": {"device": "A GPU"},
    }  # fmt: skip
    (results / "scaling_cuda.json").write_text(json.dumps(result))
    assert cells(tables.scaling(tmp_path))[2:] == [
        [f"{n} × resnet50 b8", "136", "0.91 ± 0.01", "0.91 ± 0.01"] for n in (2, 4)
    ]
