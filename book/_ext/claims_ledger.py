"""The claims ledger, book/claims.md: each claim with its source, the measured figure, the verdict and the evidence.

    ```{claims-summary}     how many claims come out how, what the verdicts mean, and which claims do not hold
    ```
    ```{claims} imbalance   the claims of a theme, see THEMES
    ```

Figures and verdicts are computed from book/results and the stored notebooks while the book is built
(claims_evidence.py). A result, chapter, section or test that a claim names and that does not exist is a warning, and so
a failed build. A claim can be linked to from any page: {ref}`γ = 2 is best <claim-gamma-2-best>`.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from docutils import nodes
from docutils.parsers.rst import directives
from mdit_py_plugins.anchors.index import slugify
from sphinx.application import Sphinx
from sphinx.domains.std import StandardDomain
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from claims_evidence import Claim, Evidence, Finding

logger = logging.getLogger(__name__)
THEMES = (
    "imbalance", "remedies", "balanced", "focal", "implementation", "retinanet", "experiments", "detector",
)  # fmt: skip
SYMBOL = re.compile(r"\$[^$]+\$|`[^`]+`|(?<!\w)([pα]_t)(?!\w)")  # p_t is written plainly, and set as mathematics
GLUE = re.compile(r"(?<=\S) (?=[=≥≤≈±:%](?: |\b|[,;.)]|$))|(?<=[=≥≤≈±:]) (?=[\d−])")  # no line ends there
MEANINGS = {
    "HOLDS": "The rule, as the entry states it, is met.",
    "PART": "It is met for some of the cases that the claim speaks of.",
    "UNDECIDED": "The difference is smaller than its uncertainty. More seeds would decide; it may well hold.",
    "FAILS": "Measured, and clearly otherwise, on small models and small images. At the paper's scale it may hold.",
    "WRONG": "Arithmetic or code says otherwise. No scale changes that.",
    "UNTESTED": "The entry says why.",
    "MISSING": "The experiment has not been run to its end, so there is nothing to say yet.",
}  # name of a Verdict → what it means


def themes() -> dict[str, list[Claim]]:
    """Theme → its claims. Imported late: the claims need the package, and other pages do not need the claims."""
    folder = str(Path(__file__).parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return {theme: importlib.import_module(f"claims_{theme}").CLAIMS for theme in THEMES}


# ---- evidence: what is there, and how it is linked -------------------------------------------------------------------


@cache
def sections(notebook: Path) -> dict[str, str]:
    """Anchor → title of every heading of a notebook."""
    found = {}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "markdown":
            for line in "".join(cell["source"]).splitlines():
                if line.startswith("#"):
                    title = line.lstrip("#").strip()
                    found[slugify(title)] = title
    return found


@cache
def tests_in(path: Path) -> frozenset[str]:
    """Names of the test functions of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def problem(entry: str, root: Path) -> str | None:
    """What is wrong with a piece of evidence, else `None`."""
    kind, _, rest = entry.partition(":")
    if kind == "chapter":
        number, _, slug = rest.partition("#")
        found = sorted((root / "notebooks").glob(f"{int(number):02}_*.ipynb"))
        if not found:
            return f"chapter {number} does not exist"
        return None if not slug or slug in sections(found[0]) else f"{found[0].name} has no section #{slug}"
    if kind == "test":
        name, _, function = rest.partition("::")
        path = root / "tests" / name
        if not path.exists() or function not in tests_in(path):
            return f"there is no test {rest}"
        return None
    if kind == "result":
        path = root / "book" / "results" / f"{rest}.json"
        return None if path.exists() else f"{path.relative_to(root)} is missing"
    if kind == "explorer":
        page = (root / "book" / "explorers.md").read_text(encoding="utf-8")
        return None if f"({rest})=" in page or f":name: {rest}" in page else f"there is no figure {rest}"
    return f"{entry}: evidence of no known kind"


def link(entry: str, root: Path, repository: str = "") -> str:
    """A piece of evidence as Markdown, for a page in book/; without a link if there is nothing to link to."""
    kind, _, rest = entry.partition(":")
    broken = problem(entry, root) is not None
    if kind == "chapter":
        number, _, slug = rest.partition("#")
        if broken:
            return f"chapter {number}"
        stem = sorted((root / "notebooks").glob(f"{int(number):02}_*.ipynb"))[0].stem
        if not slug:
            return f"{{doc}}`chapter {number} </notebooks/{stem}>`"
        title = sections(root / "notebooks" / f"{stem}.ipynb")[slug]
        return f"[chapter {number}, “{title}”](../notebooks/{stem}.ipynb#{slug})"
    if kind == "test":
        return f"[`{rest}`]({repository}/tests/{rest.split('::')[0]})" if repository else f"test `{rest}`"
    if kind == "result":
        return f"`{rest}`" if broken else f"{{download}}`{rest}.json <results/{rest}.json>`"
    return f"{{ref}}`{rest}`"


# ---- the page --------------------------------------------------------------------------------------------------------


class Ledger(SphinxDirective):
    """What both directives share: the claims with their findings, and Markdown to nodes."""

    has_content = False

    @property
    def root(self) -> Path:
        return Path(self.env.app.srcdir)

    def evidence(self) -> Evidence:
        from claims_evidence import Evidence

        return Evidence(self.root)

    def warn(self, message: str) -> None:
        logger.warning("claims ledger: %s", message, location=(self.env.docname, self.lineno))

    def inline(self, text: str, node: nodes.TextElement) -> nodes.TextElement:
        text = SYMBOL.sub(lambda match: f"${match[1]}$" if match[1] else match[0], text)
        text = GLUE.sub("\N{NO-BREAK SPACE}", text)
        children, _ = self.state.inline_text(text, self.lineno)
        node.extend(children)
        return node


class ClaimsDirective(Ledger):
    """The claims of one theme."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        claims = themes().get(self.arguments[0])
        if claims is None:
            raise self.error(f"no theme {self.arguments[0]!r}; there are {', '.join(THEMES)}")
        evidence = self.evidence()
        found = [(claim, *claim.find(evidence)) for claim in claims]
        counts = Counter(finding.verdict for _, finding, _ in found)
        how = " · ".join(
            f"{verdict.value}: {counts[verdict]}" for verdict in type(found[0][1].verdict) if counts[verdict]
        )
        count = nodes.paragraph(text=f"{len(claims)} claims. {how}", classes=["claims-count"])
        return [count, *(self.card(claim, finding, entries) for claim, finding, entries in found)]

    def card(self, claim: Claim, finding: Finding, entries: list[str]) -> nodes.Node:
        for entry in entries:
            wrong = problem(entry, self.root)
            if wrong:
                self.warn(f"{claim.name}: {wrong}")
            kind, _, name = entry.partition(":")
            if kind == "result":
                self.env.note_dependency(str(self.root / "book" / "results" / f"{name}.json"))
        for path in (self.root / "notebooks").glob("*.ipynb"):
            if any(entry.split("#")[0] == f"chapter:{int(path.name[:2])}" for entry in entries):
                self.env.note_dependency(str(path))
        node_id = f"claim-{claim.name}"
        card = nodes.container(classes=["claim", f"claim-{finding.verdict.name.lower()}"], ids=[node_id])
        domain = cast(StandardDomain, self.env.get_domain("std"))
        domain.labels[node_id] = (self.env.docname, node_id, claim.says)
        domain.anonlabels[node_id] = (self.env.docname, node_id)
        head = nodes.paragraph(classes=["claim-head"])
        head += nodes.inline(text=finding.verdict.value, classes=["claim-verdict"])
        head += nodes.Text(" ")
        head += self.inline(claim.says, nodes.inline(classes=["claim-says"]))
        card += head
        card += self.details(claim, finding, entries)
        return card

    def details(self, claim: Claim, finding: Finding, entries: list[str]) -> nodes.Node:
        address = (self.config.myst_substitutions or {}).get("repository", "")
        branch = self.config.html_theme_options.get("repository_branch", "main")
        blob = f"{address}/blob/{branch}" if address else ""
        rows = {
            "Said in": claim.source,
            "Measured": finding.figure,
            "Rule" if claim.measure else "Why not": " ".join(filter(None, (claim.rule, claim.note))),
            "Evidence": " · ".join(link(entry, self.root, blob) for entry in entries),
        }
        items = nodes.definition_list(classes=["claim-details"])
        for term, text in rows.items():
            if text:
                body = nodes.definition(
                    "", self.measured(text) if term == "Measured" else self.inline(text, nodes.paragraph())
                )
                items += nodes.definition_list_item("", nodes.term(text=term), body)
        return items

    def measured(self, figure: str) -> nodes.Node:
        """As a sentence, or as a list if it has more than two parts."""
        parts = re.sub(r"(?<![\w.])-(?=\d)", "−", figure).split("; ")
        if len(parts) < 3:
            return self.inline("; ".join(parts), nodes.paragraph())
        items = (nodes.list_item("", self.inline(part, nodes.paragraph())) for part in parts)
        return nodes.bullet_list("", *items)


class SummaryDirective(Ledger):
    """How many claims come out how, and links to those that do not hold."""

    option_spec = {"class": directives.class_option}  # noqa: RUF012, as docutils has it

    def run(self) -> list[nodes.Node]:
        from claims_evidence import Verdict

        evidence = self.evidence()
        found = [(claim, claim.find(evidence)[0]) for claims in themes().values() for claim in claims]
        for path in (*(self.root / "book" / "results").glob("*.json"), *(self.root / "notebooks").glob("*.ipynb")):
            self.env.note_dependency(str(path))
        counts = Counter(finding.verdict for _, finding in found)
        rows = [(verdict.value, str(counts[verdict]), MEANINGS[verdict.name]) for verdict in Verdict if counts[verdict]]
        rows.append(("all", str(len(found)), ""))
        parts: list[nodes.Node] = [self.table(("Verdict", "Claims", "What it means"), rows)]
        for verdict in (Verdict.FAILS, Verdict.WRONG, Verdict.MISSING):
            names = [claim for claim, finding in found if finding.verdict is verdict]
            if names:
                parts.append(
                    nodes.paragraph("", "", nodes.strong(text=f"{verdict.value[:1].upper()}{verdict.value[1:]}"))
                )
                parts.append(self.links(names))
        return parts

    def links(self, claims: list[Claim]) -> nodes.Node:
        items = nodes.bullet_list(classes=["claims-links"])
        for claim in claims:
            text = self.inline(claim.says, nodes.inline())
            target = nodes.reference("", "", text, internal=True, refuri=f"#claim-{claim.name}")
            items += nodes.list_item("", nodes.paragraph("", "", target))
        return items

    def table(self, header: tuple[str, ...], rows: list[tuple[str, ...]]) -> nodes.Node:
        table = nodes.table(classes=["claims-summary"])
        group = nodes.tgroup(cols=len(header))
        table += group
        group += [nodes.colspec(colwidth=1) for _ in header]
        head, body = nodes.thead(), nodes.tbody()
        group += [head, body]
        for part, lines in ((head, [header]), (body, rows)):
            for line in lines:
                part += nodes.row("", *(nodes.entry("", nodes.paragraph(text=cell)) for cell in line))
        return table


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("claims", ClaimsDirective)
    app.add_directive("claims-summary", SummaryDirective)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
