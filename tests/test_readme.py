"""The README keeps its promises: its Python runs, its commands exist, its files are there, .ci/run calls its tests."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from focal_tutorial.cli import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
INTRO = (ROOT / "book" / "intro.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_python_block_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("python")
    assert 8 <= sum(bool(line.strip()) for line in code.splitlines()) <= 12
    scope: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert scope["loss"] > 0
    assert "boxes" in capsys.readouterr().out


def test_command_lines_are_accepted_by_the_parser() -> None:
    commands = get_command(app).commands
    lines = [line for text in (README, INTRO) for block in blocks("bash", text) for line in block.splitlines()]
    ours = [shlex.split(line)[1:] for line in lines if line.startswith("focal-tutorial ")]
    assert len(ours) >= 5
    for name, *words in ours:
        command = commands[name]
        if hasattr(command, "commands"):  # a group, such as `experiment run`
            command, name, *words = command.commands[words[0]], f"{name} {words[0]}", *words[1:]
        options = {flag for parameter in command.params for flag in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, (name, words)


def test_the_two_commands_stand_alone_and_ci_runs_the_tests() -> None:
    alone = [block.strip() for block in blocks("bash")]
    for command in ("jupyter-book build .", "pytest"):
        assert f"python -m pip install -r requirements.txt && {command}" in alone
        assert f"python -m pip install -r requirements.txt && {command}" in INTRO
    assert "python -m pip install -r requirements.txt && pytest" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_named_files_exist() -> None:
    for name in re.findall(r"`([\w./-]+(?:\.\w+|/))`", README):
        if name.startswith(
            ("_build", "book/results", "benchmarks", "notebooks/", "runs/")
        ):  # made by a command, or by a later step
            continue
        assert (ROOT / name).exists(), name
    for image in re.findall(r"!\[[^\]]{20,}\]\(([^)]+)\)", README):
        assert (ROOT / image).is_file(), image


def test_no_invented_address() -> None:
    address = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]["url"]
    known = ("https://arxiv.org/", "https://creativecommons.org/", *([address] if address else []))
    for name in ("README.md", "CONTRIBUTING.md", "book/intro.md", "pyproject.toml"):
        text = (ROOT / name).read_text(encoding="utf-8")
        for link in re.findall(r"https?://[^\s)>\"']+", text):
            assert link.startswith(known), link
