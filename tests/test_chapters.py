"""What every chapter has: its box, glued numbers that exist, exercises with check, solution and rejected answers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from test_book import NOTEBOOKS, PAGES, ROOT, code_cells, load_extension, prose, read

CHAPTERS = [path for path in NOTEBOOKS if re.match(r"\d\d_", path.stem)]
each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def box_problems(text: str, stem: str) -> list[str]:
    """What is wrong with the chapter's title and the box below it: aims, prerequisites, measured time."""
    number = int(stem[:2])
    problems = [] if re.match(rf"# {number} · \S", text) else [f"the title starts with '# {number} · '"]
    box = re.search(r":::+\{admonition\} In this chapter\n:class: chapter\n(.*?)\n:::", text, re.DOTALL)
    if box is None:
        return [*problems, "no box 'In this chapter'"]
    for item in ("You will", "You need", "It takes"):
        if not re.search(rf"^\*\*{item}\*\* \S.{{20,}}", box[1], re.MULTILINE):
            problems.append(f"the box lacks **{item}**")
    for value in ("seconds", "mib"):
        if f"{{result}}`notebook_times::runs.0.metrics.{stem}.{value}`" not in box[1]:
            problems.append(f"the box does not quote the measured {value}")
    return problems


@each_chapter
def test_chapter_opens_with_its_box(path: Path) -> None:
    assert box_problems(read(path).cells[0].source, path.stem) == []


def test_the_box_check_sees_what_is_missing() -> None:
    seconds, mib = (f"{{result}}`notebook_times::runs.0.metrics.03_why.{value}`" for value in ("seconds", "mib"))
    items = [
        "**You will** do this and that, and more.",
        "**You need** this and that, and no more.",
        f"**It takes** {seconds} seconds and {mib} MiB",
    ]

    def page(items: list[str], title: str = "# 3 · Why") -> str:
        return "\n".join([title, "", ":::{admonition} In this chapter", ":class: chapter", "", *items, ":::", "Text."])

    assert box_problems(page(items), "03_why") == []
    assert box_problems(page(items, "# Why"), "03_why") == ["the title starts with '# 3 · '"]
    assert box_problems("# 3 · Why\n\nText.", "03_why") == ["no box 'In this chapter'"]
    assert box_problems(page(items[1:]), "03_why") == ["the box lacks **You will**"]
    unmeasured = [*items[:2], "**It takes** 12 seconds or so, on one core"]
    assert len(box_problems(page(unmeasured), "03_why")) == 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_glued_names_exist(path: Path) -> None:
    glued = {
        out.metadata["scrapbook"]["name"]
        for cell in code_cells(path)
        for out in cell.outputs
        if "scrapbook" in out.get("metadata", {})
    }
    assert sorted(glue_names(prose(path)) - glued) == [], "no cell of this notebook glues these"


def glue_names(text: str) -> set[str]:
    """The names that the {glue} roles and directives of a text want, without their formats."""
    names = re.findall(r"\{glue(?::\w+)?\}`([^`:]+)", text) + re.findall(r"\{glue(?::\w+)?\} +(\S+)", text)
    return {name.strip() for name in names}


def test_glue_names_are_found() -> None:
    assert glue_names("{glue:text}`a:.1f` and {glue}`b`\n```{glue:figure} c\n```") == {"a", "b", "c"}


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda path: path.stem)
def test_quoted_results_exist(path: Path) -> None:
    role = load_extension("results_role")
    for text in re.findall(r"\{result\}`([^`]+)`", prose(path)):
        assert role.look_up(text, ROOT / "book" / "results"), text


def exercise_problems(cells: list[Any]) -> list[str]:
    """Every exercise has a check, a folded solution, and a cell where a right answer passes and wrong ones do not."""
    where = {}
    for i, cell in enumerate(cells):
        for kind, body in re.findall(
            r"^`{3,}\{(exercise|solution)\}(.*?)^`{3,}\s*$", cell.source, re.DOTALL | re.MULTILINE
        ):
            name = re.search(r":label: (\S+)", body) if kind == "exercise" else re.match(r" *(\S+)", body)
            where[kind, name[1] if name else f"cell {i}"] = i, body
    problems = []
    exercises = {name for kind, name in where if kind == "exercise"}
    problems += [
        f"{name}: a solution of no exercise" for kind, name in where if kind == "solution" and name not in exercises
    ]
    for name in sorted(exercises):
        if ("solution", name) not in where:
            problems.append(f"{name}: no solution")
            continue
        (asked, _), (solved, body) = where["exercise", name], where["solution", name]
        if ":class: dropdown" not in body:
            problems.append(f"{name}: the solution is not folded")
        given = "\n".join(c.source for c in cells[asked + 1 : solved])
        checks = re.findall(r"^(?:def|from focal_tutorial\.checks import) (check_\w+)", given, re.MULTILINE)
        answer = cells[solved + 1] if solved + 1 < len(cells) else None
        if not checks:
            problems.append(f"{name}: no check_… function between exercise and solution")
        elif answer is None or answer.cell_type != "code" or "hide-cell" not in answer.metadata.get("tags", []):
            problems.append(f"{name}: no hidden cell with the answer after the solution")
        elif not all(f"{check}(" in answer.source for check in checks):
            problems.append(f"{name}: the answer's cell does not run {checks}")
        elif not rejections(answer):
            problems.append(f"{name}: the answer's cell does not show that a wrong answer is rejected")
    return problems


def rejections(cell: Any) -> int:
    """How many wrong answers the stored output shows as rejected; a wrong one that passes prints no such line."""
    text = "".join(out.get("text", "") for out in cell.outputs if out.output_type == "stream")
    return len(re.findall(r"^rejected: \S", text, re.MULTILINE)) if "AssertionError" in cell.source else 0


@each_chapter
def test_exercises_are_checked_and_solved(path: Path) -> None:
    assert exercise_problems(read(path).cells) == []
    count = len(re.findall(r"^`{3,}\{exercise\}", prose(path), re.MULTILINE))
    assert 2 <= count <= 5, f"{count} exercises"


def example_exercise(**changes: Any) -> list[Any]:
    """The cells of one exercise as a chapter has them, with a part left out or changed."""
    text, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell
    parts = {
        "ask": "```{exercise} A sum\n:label: ex-1-sum\n\nWhat is 1 + 1?\n```",
        "check": "def check_sum(n):\n    if n != 2:\n        raise AssertionError(f'{n}')",
        "solve": "````{solution} ex-1-sum\n:class: dropdown\n\nTwo.\n````",
        "answer": "check_sum(2)\ntry:\n    check_sum(3)\nexcept AssertionError as e:\n    print('rejected:', e)",
        "tags": ["hide-cell"],
        "printed": "right\nrejected: 3\n",
        **changes,
    }
    shown = [nbformat.v4.new_output("stream", text=parts["printed"])]
    answer = code(parts["answer"], outputs=shown, metadata={"tags": parts["tags"]})
    return [text(parts["ask"]), code(parts["check"]), text(parts["solve"]), answer]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"check": "from focal_tutorial.checks import check_sum"}, None),
        ({"solve": "Two."}, "no solution"),
        ({"ask": "What is 1 + 1?"}, "a solution of no exercise"),
        ({"solve": "````{solution} ex-1-sum\n\nTwo.\n````"}, "not folded"),
        ({"check": "def test_sum(n): ..."}, "no check_… function"),
        ({"tags": []}, "no hidden cell"),
        ({"answer": "print(2)"}, "does not run"),
        ({"answer": "print(check_sum(2))", "printed": "right\n"}, "a wrong answer is rejected"),
        ({"printed": "right\n"}, "a wrong answer is rejected"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else str(value),
)
def test_the_exercise_check_sees_what_is_missing(changes: dict[str, Any], problem: str | None) -> None:
    problems = exercise_problems(example_exercise(**changes))
    assert len(problems) == (problem is not None) and (problem or "") in "".join(problems)
