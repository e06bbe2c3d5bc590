"""Everything that points at the repository hangs on one setting: `repository: url` of _config.yml.

Empty: no launch button, no edit link, no issue link, so none can be dead. Given: all of them, made from that
address, and the pages' passages under `{only} repository` (how to run on Colab) appear.
"""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.errors import ExtensionError

COLAB = "https://colab.research.google.com"


def switch_on(app: Sphinx, config: Config) -> None:
    options = config.html_theme_options
    url = (options.get("repository_url") or "").rstrip("/").removesuffix(".git")
    options["repository_url"] = url
    given = bool(url)
    if given and not (url.startswith("https://github.com/") and url.count("/") == 4):
        raise ExtensionError(
            f"_config.yml, repository url: expected https://github.com/OWNER/NAME, got {url!r}"
        )
    for button in ("use_repository_button", "use_edit_page_button", "use_issues_button"):
        options[button] = given
    options["launch_buttons"] = {"colab_url": COLAB} if given else {}
    config.myst_substitutions = {**(config.myst_substitutions or {}), "repository": url}
    if given:
        app.tags.add("repository")


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("config-inited", switch_on, priority=100)  # before the theme reads its options
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
