"""The built book in a real browser, from file://, as a reader without a network opens it.

Needs Debian's chromium and a built book:  FOCAL_TUTORIAL_HTML=_build/html pytest tests/test_book_browser.py
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import pytest
import yaml

from conftest import needs_browser

ROOT = Path(__file__).resolve().parents[1]
HTML = Path(os.environ["FOCAL_TUTORIAL_HTML"]).resolve() if os.environ.get("FOCAL_TUTORIAL_HTML") else None

pytestmark = [
    pytest.mark.skipif(HTML is None, reason="no built book: set FOCAL_TUTORIAL_HTML to its folder"),
    needs_browser,
]


@cache
def source(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def pages() -> list[str]:
    """Every page of the book, and the search and index pages."""
    if HTML is None:
        return ["book/intro.html"]
    return sorted(
        str(path.relative_to(HTML))
        for path in HTML.rglob("*.html")
        if not path.relative_to(HTML).parts[0].startswith("_") and 'http-equiv="Refresh"' not in source(path)
    )


each_page = pytest.mark.parametrize("page", pages())


@dataclass
class Loaded:
    """One open page, what it asked of the network, and what it complained about."""

    name: str
    tab: Any
    asked: list[str]
    complaints: list[str]


@pytest.fixture(scope="module", params=pages())
def loaded(browser: Any, request: pytest.FixtureRequest) -> Iterator[Loaded]:
    assert HTML is not None
    tab = browser.new_context(viewport={"width": 1400, "height": 900}, color_scheme="light").new_page()
    tab.set_default_timeout(120_000)  # a busy machine is slow, not wrong
    page = Loaded(request.param, tab, [], [])
    tab.on("request", lambda request: page.asked.append(request.url))
    tab.on("requestfailed", lambda request: page.complaints.append(f"failed: {request.url}"))
    tab.on("console", lambda line: page.complaints.append(line.text) if line.type == "error" else None)
    tab.on("pageerror", lambda error: page.complaints.append(str(error)))
    tab.goto((HTML / page.name).as_uri(), wait_until="load")
    tab.evaluate("async () => { if (window.MathJax && MathJax.startup) await MathJax.startup.promise }")
    yield page
    tab.context.close()


# Text and background of each visible text element; the background is the nearest ancestor's that has one.
COLOURS = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const background = (node) => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length < 4 || colour[3] > 0.99) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const selector = "p, li, td, th, h1, h2, h3, figcaption, dt, dd, pre, .admonition-title, a, code, summary";
  return [...document.querySelectorAll(".bd-article-container, .bd-sidebar-primary, .bd-sidebar-secondary")]
    .flatMap((part) => [...part.querySelectorAll(selector)])
    .filter((node) => node.checkVisibility() && node.innerText.trim())
    .map((node) => ({
      text: node.innerText.trim().slice(0, 40),
      ink: parse(getComputedStyle(node).color).slice(0, 3),
      paper: background(node),
    }));
}"""


def contrast(ink: list[float], paper: list[float]) -> float:
    """WCAG's contrast ratio of two sRGB colours, 1 to 21."""

    def luminance(colour: list[float]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(ink), luminance(paper)))
    return (light + 0.05) / (dark + 0.05)


def test_page_is_whole_without_a_network(loaded: Loaded) -> None:
    assert [url for url in loaded.asked if not url.startswith(("file://", "data:", "blob:"))] == []
    assert loaded.complaints == []


def unrendered(tab: Any) -> list[str]:
    """Mathematics that MathJax left alone, could not read, or drew with no width."""
    return tab.evaluate("""() => [
      ...[...document.querySelectorAll(".math")]
        .filter((n) => !n.querySelector("mjx-container")).map((n) => n.textContent),
      ...[...document.querySelectorAll("mjx-merror, [data-mml-node='merror'], mjx-mtext[style*='red']")]
        .map((n) => "error: " + n.textContent),
      ...[...document.querySelectorAll("mjx-container")]
        .filter((n) => n.checkVisibility() && !(n.getBoundingClientRect().width > 1))
        .map((n) => "empty: " + n.outerHTML),
    ]""")


def test_mathematics_is_rendered(loaded: Loaded) -> None:
    assert unrendered(loaded.tab) == []


ROLES = "glue|result|doc|ref|cite|eq|numref|term|math|sub|sup|prf|py|exercise|solution|admonition|figure|explorer"
LEFT_OVER = re.compile(
    rf"""\{{(?:{ROLES})[\w:-]*\}}      # a role or directive that was not one
    | :::|```                            # its fence
    | \$\$ | \\[()\[\]] | \\[a-zA-Z]+\{{   # mathematics
    | \]\([./#h]                        # a link
    | <!--|-->""",
    re.VERBOSE,
)


def left_over(tab: Any) -> list[str]:
    """Markup that reached the reader: in the text without code and mathematics, and Sphinx's own marks of trouble."""
    text = tab.evaluate("""() => [...document.querySelectorAll("article")].map((article) => {
      const copy = article.cloneNode(true);
      copy.querySelectorAll("pre, code, script, style, svg, .math, mjx-container, .sig").forEach((n) => n.remove());
      return copy.textContent;
    }).join("\\n")""")
    found = [text[max(0, m.start() - 30) : m.end() + 30] for m in LEFT_OVER.finditer(text)]
    marks = tab.locator(".problematic, .system-message, span.xref:not(a span)").all_inner_texts()
    return found + [f"problem: {mark}" for mark in marks]


def test_no_markup_is_left_in_the_text(loaded: Loaded) -> None:
    assert left_over(loaded.tab) == []


def bad_pictures(tab: Any) -> list[str]:
    """Pictures that do not load, or do not say what they show. A picture that loads late is loaded now."""
    images = tab.locator("img").evaluate_all("""nodes => Promise.all(nodes.map(async (n) => {
      n.loading = "eager";
      await n.decode().catch(() => {});
      const inText = n.closest("article") !== null && !n.classList.contains("no-card");
      return {src: n.getAttribute("src").slice(0, 60), alt: n.alt.trim(), wide: n.naturalWidth, inText};
    }))""")
    found = [f"does not load: {i['src']}" for i in images if not i["wide"] > 0]
    for image in images:
        few = len(image["alt"]) <= 20 or image["alt"].endswith((".png", ".svg"))
        if not image["alt"] or (image["inText"] and few):
            found.append(f"no alt text: {image['src']} {image['alt']!r}")
    drawn = tab.locator("article svg[role=img], article object[type='image/svg+xml']").evaluate_all("""nodes =>
      nodes.map((n) => (n.getAttribute("aria-labelledby") || "").split(" ").filter(Boolean)
        .map((id) => document.getElementById(id)?.textContent ?? "").join(" ")
        || n.getAttribute("aria-label") || n.textContent.trim())""")
    return found + [f"no description: {text!r}" for text in drawn if len(text) <= 20]


def test_images_load_and_have_alt_text(loaded: Loaded) -> None:
    assert bad_pictures(loaded.tab) == []


BAD = """<!doctype html><meta charset="utf-8"><article>
<p>Glued {glue:text}`share` and \\(p_t\\), $$x$$ and \\frac{1}{2}, [a link](./page.md)</p>
<p><span class="problematic">{result}</span></p><p><code>{glue:text}`fine in code`</code></p>
<span class="math">\\(x\\)</span><span class="math"><mjx-container>?<mjx-merror>no</mjx-merror></mjx-container></span>
<img src="missing.png" alt="A picture that is described, yet missing"><img src="data:image/gif;base64,
R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7" alt="plot.png" loading="lazy">
<svg role="img" aria-labelledby="t"><title id="t">Short</title></svg></article>"""


def test_the_page_checks_see_what_is_wrong(browser: Any) -> None:
    tab = browser.new_page()
    tab.set_content(BAD)
    left = " ".join(left_over(tab))
    for piece in ("{glue:text}", "\\(p_t", "$$x", "\\frac{", "](./", "problem: {result}"):
        assert piece in left, piece
    assert "fine in code" not in left
    assert unrendered(tab) == ["\\(x\\)", "error: no"]
    kinds = [text.split(":")[0] for text in bad_pictures(tab)]
    assert kinds == ["does not load", "no alt text", "no description"]
    tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(loaded: Loaded, scheme: str) -> None:
    loaded.tab.emulate_media(color_scheme=scheme)
    loaded.tab.wait_for_function("scheme => document.documentElement.dataset.theme == scheme", arg=scheme)
    loaded.tab.wait_for_timeout(500)  # colours fade in
    low = [node for node in loaded.tab.evaluate(COLOURS) if contrast(node["ink"], node["paper"]) < 4.5]
    assert low == []


def test_page_fits_a_narrow_screen(loaded: Loaded) -> None:
    loaded.tab.set_viewport_size({"width": 390, "height": 844})
    assert loaded.tab.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 1


def test_contrast_of_known_pairs() -> None:
    assert contrast([0, 0, 0], [255, 255, 255]) == pytest.approx(21)
    assert contrast([119, 119, 119], [255, 255, 255]) == pytest.approx(4.48, abs=0.01)


# ---- the explorers --------------------------------------------------------------------------------------------------

EXPLORERS = HTML / "book" / "explorers.html" if HTML else Path("explorers.html")
with_explorers = pytest.mark.skipif(not EXPLORERS.is_file(), reason="no page book/explorers in this book")


def explorers(browser: Any, **options: Any) -> Any:
    """The page of the explorers in a browser of its own."""
    tab = browser.new_context(
        **{"viewport": {"width": 1400, "height": 900}, "color_scheme": "light", **options}
    ).new_page()
    tab.set_default_timeout(120_000)
    tab.goto(EXPLORERS.as_uri())
    return tab


@with_explorers
def test_explorers_move_by_keyboard(browser: Any) -> None:
    tab = explorers(browser)
    for root in tab.locator("[data-explorer]").all():
        caption = root.locator(".live")
        begun, drawn = caption.inner_html(), root.locator(".panels").inner_html()
        for slider in root.locator("input[type=range]:enabled").all():
            before, said = root.locator(".panels").inner_html(), slider.get_attribute("aria-valuetext")
            slider.focus()
            slider.press("ArrowRight")
            slider.press("ArrowRight")
            assert root.locator(".panels").inner_html() != before, said
            assert slider.get_attribute("aria-valuetext") != said
            outline = slider.evaluate(
                "node => [getComputedStyle(node).outlineStyle, getComputedStyle(node).outlineWidth]"
            )
            assert outline == ["solid", "3px"], "the focus can be seen"
        assert caption.inner_html() != begun
        for choice in root.locator("input[type=checkbox], input[type=radio]:not(:checked)").all():
            before = root.locator(".panels").inner_html()
            choice.focus()
            choice.press(" ")
            assert root.locator(".panels").inner_html() != before, choice.get_attribute("id")
        root.locator("button").focus()
        root.locator("button").press("Enter")
        tab.wait_for_function("([node, text]) => node.innerHTML === text", arg=[caption.element_handle(), begun])
        shown = root.locator(".panels").inner_html()
        assert HIDDEN.sub("", shown) == HIDDEN.sub("", drawn), "reset brings the first figure back"
    tab.context.close()


HIDDEN = re.compile(r'<path class="(?:removed|curve background) off"[^>]*>| class=""')  # drawn, but not shown


@with_explorers
def test_tab_reaches_every_control_of_the_explorers(browser: Any) -> None:
    tab = explorers(browser)
    first = tab.locator("[data-explorer] input").first
    first.focus()
    reached = {first.get_attribute("id")}
    for _ in range(40):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("document.activeElement.id"))
    group = "node => node.name === 'axis' && !node.checked"  # one Tab for a group of radio buttons, then arrows
    wanted = {
        n.get_attribute("id") for n in tab.locator("[data-explorer] input:enabled").all() if not n.evaluate(group)
    }
    assert wanted <= reached
    tab.context.close()


# Of every visible text, line and area of the explorers: what it is, its colour and that of the box around it.
INKS = """() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number).slice(0, 3);
  return [...document.querySelectorAll(".explorer")].flatMap((root) => {
    const paper = parse(getComputedStyle(root).backgroundColor);
    const found = [];
    const words = "svg text, label, legend, output, button, .live, .legend li", shapes = "path, circle, .panels rect";
    for (const node of root.querySelectorAll(`${words}, ${shapes}`)) {
      const style = getComputedStyle(node), name = node.tagName + "." + node.getAttribute("class");
      if (!node.checkVisibility() || node.closest(".box") || node.matches(".grid, .cursor, .removed")) continue;
      if (node.matches("path, circle, rect")) {
        found.push({name, least: 3, ink: parse(node.matches("path") ? style.stroke : style.fill), paper});
      } else found.push({name, least: 4.5, ink: parse(node.matches("text") ? style.fill : style.color), paper});
    }
    for (const node of root.querySelectorAll(".box text")) {
      const style = getComputedStyle(node);
      found.push({name: "box text", least: 4.5, ink: parse(style.fill), paper: parse(style.stroke)});
    }
    return found;
  });
}"""


@with_explorers
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_explorers_can_be_read(browser: Any, scheme: str) -> None:
    tab = explorers(browser, color_scheme=scheme)
    tab.wait_for_function("scheme => document.documentElement.dataset.theme == scheme", arg=scheme)
    tab.locator("#explorer-loss-weigh").press(" ")  # the third curve
    tab.wait_for_timeout(500)
    inks = tab.evaluate(INKS)
    assert len(inks) > 100
    assert {ink["name"] for ink in inks} >= {
        "path.curve ce",
        "path.curve background",
        "rect.object",
        "text.tick",
        "LABEL.null",
    }
    assert [ink for ink in inks if contrast(ink["ink"], ink["paper"]) < ink["least"]] == []
    tab.context.close()


@with_explorers
def test_explorers_without_javascript(browser: Any) -> None:
    tab = explorers(browser, java_script_enabled=False)
    for root in tab.locator("[data-explorer]").all():
        assert not root.locator("form").is_visible()
        assert len(root.locator(".live").inner_text()) > 80
        for svg in root.locator(".panels > svg").all():
            assert svg.is_visible()
            area = svg.bounding_box()
            assert area["width"] > 250 and area["height"] > 150
    assert "\\(" not in tab.locator("article").inner_text(), "this page has no mathematics that needs the script"
    tab.context.close()


@with_explorers
def test_explorers_fit_a_narrow_screen(browser: Any) -> None:
    tab = explorers(browser, viewport={"width": 400, "height": 844})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400
    for svg in tab.locator(".explorer svg").all():
        area = svg.bounding_box()
        assert area["x"] >= 0 and area["x"] + area["width"] <= 400
    small = tab.locator(".explorer svg text").evaluate_all(
        "ns => ns.map(n => n.getBoundingClientRect().height).filter(h => h > 0 && h < 10)"
    )
    assert small == []
    tab.context.close()


@cache
def anchors(path: Path) -> frozenset[str]:
    return frozenset(re.findall(r'\s(?:id|name)="([^"]+)"', source(path)))


LINK = re.compile(r'<(?:a|link|img|script|source|object|image|iframe|use)\b[^>]*?\s(?:href|src|data)="([^"]+)"')
LOADED = re.compile(  # what a browser fetches by itself from another place
    r'<(?:script|img|source|iframe|object|image)\b[^>]*?\s(?:src|href|data)="((?:https?:)?//[^"]+)"'
    r'|<link\b(?=[^>]*\brel="(?:stylesheet|preload|preconnect|icon|modulepreload)[^>]*)[^>]*\shref="((?:https?:)?//[^"]+)"'
)


def dead_links(path: Path) -> list[str]:
    """Links of a page to files or places in files that are not there."""
    dead = []
    for link in LINK.findall(source(path)):
        target, fragment = urldefrag(urljoin(path.as_uri(), link.replace("&amp;", "&")))
        if urlsplit(target).scheme != "file":
            continue
        file = Path(unquote(urlsplit(target).path))
        if not file.exists() or (fragment and file.suffix == ".html" and unquote(fragment) not in anchors(file)):
            dead.append(link)
    return dead


@each_page
def test_internal_links_lead_somewhere(page: str) -> None:
    assert HTML is not None
    assert dead_links(HTML / page) == []


@each_page
def test_nothing_is_fetched_from_elsewhere(page: str) -> None:
    assert HTML is not None
    assert [a or b for a, b in LOADED.findall(source(HTML / page))] == []


def test_the_link_checks_see_what_is_wrong(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        '<h2 id="here">H</h2><a href="#here">1</a><a href="page.html#here">2</a><a href="#gone">3</a>'
        '<a href="other.html">4</a><img alt="" src="none.png"><svg><image href="none.jpg"/></svg><a href="https://x.org/">5</a>'
    )
    assert dead_links(page) == ["#gone", "other.html", "none.png", "none.jpg"]
    fetched = '<script async src="https://a.org/x.js"></script><link rel="stylesheet" href="//b.org/x.css">'
    named = '<a href="https://c.org/">c</a><link rel="canonical" href="https://d.org/">'
    assert [a or b for a, b in LOADED.findall(fetched + named)] == ["https://a.org/x.js", "//b.org/x.css"]


@each_page
def test_no_dead_buttons(page: str) -> None:
    """Without a repository address there is nothing to launch, edit or report to; with one, only there."""
    assert HTML is not None
    text = source(HTML / page)
    assert "unpkg.com" not in text and "//cdn." not in text
    address = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["repository"]["url"]
    for link in re.findall(r'href="(https://[^"]*(?:/edit/|/issues/new|colab\.research)[^"]*)"', text):
        assert address and address.removeprefix("https://github.com/") in link, link
    assert address or "launch-buttons" not in text
