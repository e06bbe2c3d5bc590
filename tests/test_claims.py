"""The claims ledger: every claim has evidence that exists, and verdicts follow the results.

The rules are tested on made-up results, built for the settings of `focal_tutorial.paper`, so that a wrong rule shows
whatever the experiments say. The rows themselves are tested on the results of the book.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import sys
from collections import Counter
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from sphinx.application import Sphinx
from test_book import ROOT, load_extension

from focal_tutorial.loss_distribution import HARDEST
from focal_tutorial.paper import MAP_DENSITIES, MAP_LOSSES, TABLES

sys.path.insert(0, str(ROOT / "book" / "_ext"))
import claims_evidence as ce
from claims_balanced import best
from claims_evidence import Claim, Evidence, Finding, Missing, Verdict

ledger = load_extension("claims_ledger")
CLAIMS: list[Claim] = [claim for claims in ledger.themes().values() for claim in claims]
NAMED = {claim.name: claim for claim in CLAIMS}
EVIDENCE = Evidence(ROOT)
each_claim = pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)


# ---- the rows, on the book's results -------------------------------------------------------------------------------


def test_there_are_many_and_their_names_are_unique() -> None:
    assert len(CLAIMS) >= 30
    assert not [name for name, count in Counter(claim.name for claim in CLAIMS).items() if count > 1]
    assert not [says for says, count in Counter(claim.says for claim in CLAIMS).items() if count > 1]


@each_claim
def test_a_claim_says_who_what_and_by_which_rule(claim: Claim) -> None:
    assert claim.says.endswith(".") and claim.rule.endswith(".") and claim.source
    assert not claim.note or claim.note.endswith(".")
    assert claim.name == claim.name.lower() and " " not in claim.name


@each_claim
def test_the_evidence_exists(claim: Claim) -> None:
    finding, entries = claim.find(EVIDENCE)
    assert [wrong for entry in entries if (wrong := ledger.problem(entry, ROOT))] == []
    assert finding.verdict is not Verdict.MISSING, finding.figure
    if claim.measure is None:
        assert finding.verdict is Verdict.UNTESTED
    else:
        assert entries, "a claim that was tested has evidence"
        assert any(character.isdigit() for character in finding.figure), "and a figure"


def test_every_table_has_a_claim() -> None:
    read = {entry for claim in CLAIMS for entry in claim.find(EVIDENCE)[1] if entry.startswith("result:")}
    tables = [f"table_{name}" for name in ("1a", "1b", "1c", "1c_long", "1d", "1e", "3", "long", "bccd")]
    wanted = [*tables, "figure_4", "figure_7", "ce_prior", "hinge", "imbalance_map"]
    assert {f"result:{name}_cpu" for name in wanted} <= read


def test_the_page_shows_every_theme_once() -> None:
    page = (ROOT / "book" / "claims.md").read_text(encoding="utf-8")
    assert [page.count(f"```{{claims}} {theme}\n") for theme in ledger.THEMES] == [1] * len(ledger.THEMES)
    assert set(ledger.MEANINGS) == {verdict.name for verdict in Verdict}


# ---- the rules, on made-up results -----------------------------------------------------------------------------------


def made_up(name: str) -> dict[str, Any]:
    """A result of a table in which all settings reach about the same AP."""
    table = TABLES[name]
    runs = []
    for seed in range(table.first_seed, table.first_seed + 5):
        metrics, measured = {}, {}
        for i, (setting, options) in enumerate(table.settings.items()):
            if seed in table.seeds_of(setting):
                ap = 0.4 + 0.004 * ((seed + i) % 2)
                metrics[setting] = {"AP": ap, "AP_any": ap, "validation_AP": ap}
                if options.get("measure") == "time":
                    measured[setting] = {"milliseconds": 20.0 + i}
                elif options.get("measure"):
                    measured[setting] = {"positives": distribution(0.5), "negatives": distribution(0.95)}
        runs.append({"seed": seed, "metrics": metrics, "measured": measured, "diverged": {}})
    return {"name": f"{name}_cpu", "config": table.recipes["cpu"], "runs": runs}


def distribution(share: float) -> dict[str, Any]:
    """Of a loss of which the hardest terms carry this share, whatever γ."""
    part = {"hardest": dict.fromkeys(HARDEST, share), "curve": [1.0, share, 0.0]}
    return {"gammas": {gamma: copy.deepcopy(part) for gamma in ("0", "2")}}


def levelled(name: str) -> dict[str, Any]:
    """A stored result with about the same AP everywhere; its traces as they are."""
    result: dict[str, Any] = json.loads((ROOT / "book" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    for run in result["runs"]:
        for i, metrics in enumerate(run["metrics"].values()):
            metrics.update(dict.fromkeys(("AP", "validation_AP"), 0.4 + 0.004 * ((run["seed"] + i) % 2)))
    return result


MADE_UP = {f"{name}_cpu": made_up(name) for name, table in TABLES.items() if "cpu" in table.tasks}
MADE_UP["losses_cpu"] = levelled("losses_cpu")


def doctored(changes: dict[str, float]) -> Evidence:
    """The made-up results with an amount added to all APs of the settings whose names begin with a key."""

    def edited(setting: str, metrics: dict[str, float]) -> dict[str, float]:
        amount = sum(amount for start, amount in changes.items() if setting.startswith(start))
        return {metric: max(0.0, value + amount) for metric, value in metrics.items()}

    given = {}
    for name, result in MADE_UP.items():
        runs = [{**run, "metrics": {s: edited(s, m) for s, m in run["metrics"].items()}} for run in result["runs"]]
        given[name] = {**result, "runs": runs}
    return Evidence(ROOT, given)


def verdict_of(name: str, evidence: Evidence) -> Verdict:
    return NAMED[name].find(evidence)[0].verdict


PLAIN = doctored({})


@each_claim
def test_a_rule_reads_settings_that_the_tables_have(claim: Claim) -> None:
    """So that a row written before its result arrives fits it."""
    finding, _ = claim.find(PLAIN)
    assert finding.verdict is not Verdict.MISSING, finding.figure


RISING_ALPHA, FALLING_ALPHA = (
    dict.fromkeys((f"bce_0_{first}", "fl_0_2_0_5", "fl_0_5_0_5", *(f"fl_{g}_0_{last}" for g in (1, 2, 5))), 0.1)
    for first, last in ((25, 75), (75, 25))
)


@pytest.mark.parametrize(
    ("name", "changes", "verdict"),
    [
        ("focal-over-ce", {"fl_2_0_25": 0.2}, Verdict.HOLDS),
        ("focal-over-ce", {"fl_2_0_25": -0.2}, Verdict.FAILS),
        ("focal-over-balanced", {"fl_1_0_5": 0.2}, Verdict.PART),
        ("inefficient", {"fl": 0.2, "hard_negatives": 0.2}, Verdict.HOLDS),
        ("inefficient", {"hard_negatives": 0.2}, Verdict.PART),
        ("inefficient", {"ce": 0.2}, Verdict.FAILS),
        ("focal-over-balanced", {"fl_": 0.2}, Verdict.HOLDS),
        ("focal-over-balanced", {"fl_": 0.2, "bce_0_99": 0.4}, Verdict.PART),
        ("focal-over-balanced", {"fl_": -0.2}, Verdict.FAILS),
        ("focal-over-ce", {}, Verdict.UNDECIDED),
        ("balanced-helps", {"bce_0_75": 0.2}, Verdict.HOLDS),
        ("balanced-helps", {"bce_0_75": -0.2}, Verdict.FAILS),
        ("inverse-frequency-best", {"bce_0_9": 0.1, "bce_0_999": 0.1}, Verdict.PART),
        ("inverse-frequency-best", {"bce_0_9": 0.1, "bce_0_999": -0.2}, Verdict.FAILS),
        ("small-alpha", {"bce_0_1": -0.5, "bce_0_25": -0.2}, Verdict.HOLDS),
        ("small-alpha", {}, Verdict.FAILS),
        ("large-alpha", {"bce_0_99": -0.1}, Verdict.HOLDS),
        ("large-alpha", {"bce_0_99": 0.1}, Verdict.FAILS),
        ("gamma-robust", {"fl_": 0.2}, Verdict.HOLDS),
        ("gamma-robust", {"fl_": -0.2}, Verdict.FAILS),
        ("gamma-robust", {"fl_2": 0.2}, Verdict.PART),
        ("gamma-2-best", {"fl_2": 0.2, "fl2": 0.2}, Verdict.HOLDS),
        ("gamma-2-best", {"fl_2": 0.2}, Verdict.PART),
        ("gamma-2-best", {"fl_2": 0.2, "fl1": 0.2}, Verdict.FAILS),
        ("gamma-2-best", {"fl_0_5": 0.2}, Verdict.FAILS),
        ("gamma-2-best", {}, Verdict.UNDECIDED),
        ("alpha-half", {}, Verdict.HOLDS),
        ("alpha-half", {"fl_2_0_5": -0.2}, Verdict.FAILS),
        ("alpha-half", {"fl_2_0_5": -0.03}, Verdict.UNDECIDED),
        ("alpha-with-gamma", FALLING_ALPHA, Verdict.HOLDS),
        ("alpha-with-gamma", RISING_ALPHA, Verdict.FAILS),
        ("long-training", {"fl_2_0_25": 0.2}, Verdict.HOLDS),
        ("long-training", {"fl_2_0_25": -0.2}, Verdict.PART),
        ("real-images", {"fl_2_0_25": 0.2}, Verdict.HOLDS),
        ("real-images", {"fl_2_0_25": -0.2}, Verdict.FAILS),
        ("focal-over-ohem", {"ohem": 0.2}, Verdict.FAILS),
        ("focal-over-ohem", {"ohem": -0.2}, Verdict.PART),
        ("ohem-1-3", {"enforced13": -0.2}, Verdict.HOLDS),
        ("ohem-1-3", {"enforced13": 0.2}, Verdict.FAILS),
        ("ohem-1-3", {"enforced13_32": -0.2}, Verdict.PART),
        ("ohem-batch", {"ohem_32_0_5": 0.4, "ohem_128_0_5": 0.2}, Verdict.HOLDS),
        ("ohem-batch", {"ohem_512_0_5": -0.2}, Verdict.PART),
        ("ohem-batch", {"ohem_32_0_5": -0.2}, Verdict.FAILS),
        ("prior-trains", {}, Verdict.HOLDS),
        ("prior-trains", {"ce_prior_0_01": -0.39}, Verdict.FAILS),
        ("prior-trains", {"ce_prior_0_01_lr_0_01": -0.39}, Verdict.PART),
        ("prior-for-focal", {"fl2_prior_0_5": -0.3}, Verdict.PART),
        ("prior-for-focal", {"fl2_prior_0_5": 0.3}, Verdict.FAILS),
        ("hinge", {"hinge": -0.5}, Verdict.PART),  # nothing learned, and nothing unstable
        ("hinge", {"hinge_1": -0.5}, Verdict.PART),
        ("hinge", {"hinge": -0.2}, Verdict.FAILS),
        ("exact-form", {}, Verdict.HOLDS),
        ("exact-form", {"star": -0.2}, Verdict.FAILS),
        ("exact-form", {"star_4_0": -0.2}, Verdict.PART),
        ("star-over-ce", {"star": 0.2}, Verdict.HOLDS),
        ("star-over-ce", {"star": 0.2, "bce_0_9": 0.4}, Verdict.PART),
        ("many-stars", {"star": 0.2, "bce_0_9": 0.4}, Verdict.PART),
        ("star-over-ce", {"star": -0.2}, Verdict.FAILS),
        ("many-stars", {"star": 0.2}, Verdict.HOLDS),
        ("many-stars", {"star_2": 0.2}, Verdict.PART),
        ("many-stars", {"star_2": 0.2, "star_4": 0.2}, Verdict.HOLDS),
        ("many-stars", {"star": -0.2}, Verdict.FAILS),
        ("many-stars", {}, Verdict.UNDECIDED),
        ("one-anchor", {}, Verdict.HOLDS),
        ("one-anchor", {"anchors_1_1": -0.2}, Verdict.FAILS),
        ("one-anchor", {"anchors_1_1": -0.08}, Verdict.UNDECIDED),
        ("more-anchors", {"anchors_1_1": -0.2}, Verdict.HOLDS),
        ("more-anchors", {"anchors_1_1": 0.2}, Verdict.FAILS),
        ("anchors-saturate", {}, Verdict.HOLDS),
        ("anchors-saturate", {"anchors_4_3": 0.2}, Verdict.FAILS),
        ("larger-images", {"canvas_192": 0.2}, Verdict.HOLDS),
        ("larger-images", {"canvas_192_blocks_1": 0.2}, Verdict.PART),
        ("larger-images", {"canvas_192": -0.2}, Verdict.FAILS),
    ],
)
def test_a_doctored_result_changes_the_verdict(name: str, changes: dict[str, float], verdict: Verdict) -> None:
    finding, _ = NAMED[name].find(doctored(changes))
    assert finding.verdict is verdict, finding.figure


def test_the_depth_of_the_network() -> None:
    deep = [setting for setting in TABLES["table_1e"].settings if setting.endswith("blocks_4")]
    assert verdict_of("deeper", doctored(dict.fromkeys(deep, 0.2))) is Verdict.HOLDS
    assert verdict_of("deeper", doctored(dict.fromkeys(deep[:1], 0.2))) is Verdict.PART
    assert verdict_of("deeper", doctored(dict.fromkeys(deep, -0.2))) is Verdict.FAILS


@pytest.mark.parametrize(
    ("slope", "verdict"), [(0.05, Verdict.HOLDS), (-0.05, Verdict.FAILS), (0.0, Verdict.UNDECIDED)]
)
def test_the_map_is_read_by_its_slope(slope: float, verdict: Verdict) -> None:
    more = {f"fl_2_0_25_to_{density}_": slope * i for i, density in enumerate(MAP_DENSITIES)}
    assert verdict_of("imbalance-is-the-cause", doctored(more)) is verdict


def test_fields_in_which_nothing_was_learned_bend_no_slope() -> None:
    rarest = list(MAP_DENSITIES)[-1]
    changes = {"fl_2_0_25_to_93_": 0.05, "fl_2_0_25_to_930_": 0.03}
    assert verdict_of("imbalance-is-the-cause", doctored(changes)) is not Verdict.HOLDS  # level again at the rarest
    changes |= {f"{loss}_to_{rarest}_": -1.0 for loss in MAP_LOSSES}
    assert verdict_of("imbalance-is-the-cause", doctored(changes)) is Verdict.HOLDS


def test_divergence_is_counted_by_run() -> None:
    assert verdict_of("ce-diverges", PLAIN) is Verdict.FAILS
    for share, verdict in ((1.0, Verdict.HOLDS), (0.5, Verdict.PART)):
        given = copy.deepcopy(MADE_UP)
        runs = [run for run in given["ce_prior_cpu"]["runs"] if run["metrics"]]
        for run in runs[: math.ceil(share * len(runs))]:
            run["diverged"] = {s: "step 3: not finite" for s in run["metrics"] if s.startswith("ce_prior_0_5")}
        assert verdict_of("ce-diverges", Evidence(ROOT, given)) is verdict
    given = copy.deepcopy(doctored({"hinge": -0.5}).given)
    given["hinge_cpu"]["runs"][0]["diverged"] = {"hinge_1_lr_0_004": "step 3: not finite"}
    assert verdict_of("hinge", Evidence(ROOT, given)) is Verdict.HOLDS


def test_figure_4_is_read_in_every_run() -> None:
    def edited(sign: str, gamma: str, hardest: str, share: float) -> Evidence:
        given = copy.deepcopy(MADE_UP)
        measured = given["figure_4_cpu"]["runs"][0]["measured"]["fl_2_0_25"]
        measured[sign]["gammas"][gamma]["hardest"][hardest] = share
        return Evidence(ROOT, given)

    assert verdict_of("figure-4-positives", PLAIN) is Verdict.HOLDS
    assert verdict_of("figure-4-positives", edited("positives", "2", "20", 0.9)) is Verdict.PART
    assert verdict_of("figure-4-negatives", PLAIN) is Verdict.HOLDS
    assert verdict_of("figure-4-negatives", edited("negatives", "2", "1", 0.6)) is Verdict.FAILS
    assert verdict_of("figure-4-both", PLAIN) is Verdict.FAILS
    for positives, verdict in ((0.5, Verdict.HOLDS), (0.05, Verdict.FAILS)):  # they move by 0 and 0.45
        given = copy.deepcopy(MADE_UP)
        for run in given["figure_4_cpu"]["runs"]:
            if run["measured"]:
                measured = run["measured"]["fl_2_0_25"]
                measured["negatives"]["gammas"]["0"]["curve"][1] = 0.2
                measured["positives"]["gammas"]["0"]["curve"][1] = positives
        assert verdict_of("figure-4-both", Evidence(ROOT, given)) is verdict


def test_the_size_of_the_image_costs_time() -> None:
    assert verdict_of("larger-slower", PLAIN) is Verdict.HOLDS
    given = copy.deepcopy(MADE_UP)
    for run in given["table_1e_cpu"]["runs"]:
        if run["measured"]:
            run["measured"]["canvas_192_blocks_1"]["milliseconds"] = 1.0
    assert verdict_of("larger-slower", Evidence(ROOT, given)) is Verdict.PART


def test_the_older_results_are_read_by_the_same_rules() -> None:
    given = json.loads((ROOT / "book" / "results" / "losses_cpu.json").read_text(encoding="utf-8"))
    for amount, verdict in ((0.1, Verdict.HOLDS), (-0.1, Verdict.FAILS)):
        for run in given["runs"]:
            for setting in ("random", "hard_negatives", "proposals"):
                run["metrics"][setting]["AP"] = run["metrics"]["ce"]["AP"] + amount + 0.001 * run["seed"]
        for name in ("random-sampling", "hard-negatives", "two-stages-lead"):
            assert verdict_of(name, Evidence(ROOT, {"losses_cpu": given})) is verdict
    for probe in (probe for run in given["runs"] for probe in run["trace"]["ce"]):
        probe["loss"]["ce"] = 0.1
    assert verdict_of("ten-against-hundred", Evidence(ROOT, {"losses_cpu": given})) is Verdict.HOLDS
    for background, verdict in ((0.1, Verdict.HOLDS), (0.9, Verdict.FAILS)):
        for probe in (probe for run in given["runs"] for name in ("bce_75", "bce_998") for probe in run["trace"][name]):
            probe.update(p_foreground=0.9, p_background=background)
        assert verdict_of("balanced-early", Evidence(ROOT, {"losses_cpu": given})) is verdict


def test_the_best_setting_is_chosen_over_common_seeds() -> None:
    values = {"steady": {0: 0.4, 1: 0.4}, "lucky": {0: 0.3, 1: 0.3, 2: 0.9}}
    runs = [
        {"seed": seed, "metrics": {s: {"validation_AP": v[seed]} for s, v in values.items() if seed in v}}
        for seed in range(3)
    ]
    evidence = Evidence(ROOT, {"made_up": {"config": {"settings": {s: {} for s in values}}, "runs": runs}})
    assert best(evidence, "made_up", list(values)) == "steady"


# ---- rules, evidence, page -------------------------------------------------------------------------------------------


def test_rules() -> None:
    assert ce.check("", True, True).verdict is Verdict.HOLDS
    assert ce.check("", True, False).verdict is Verdict.PART
    assert ce.check("", False, no=Verdict.WRONG).verdict is Verdict.WRONG
    assert [ce.sign(v, 1.0) for v in (2, -2, 0.5)] == [Verdict.HOLDS, Verdict.FAILS, Verdict.UNDECIDED]
    good, bad, unclear = (Finding("", verdict) for verdict in (Verdict.HOLDS, Verdict.FAILS, Verdict.UNDECIDED))
    for parts, verdict in (
        ([good, good], Verdict.HOLDS),
        ([good, bad], Verdict.PART),
        ([good, unclear], Verdict.PART),
        ([unclear, bad], Verdict.FAILS),
        ([unclear, unclear], Verdict.UNDECIDED),
    ):
        assert ce.combine(*parts).verdict is verdict
    assert ce.mean_margin([1.0, 2.0, 3.0]) == (2.0, pytest.approx(4.303 / math.sqrt(3)))
    assert [ce.number(text) for text in ("'5,408'", "1.2", "-0.8 ± 0.1", "2.651e-06")] == [5408, 1.2, -0.8, 2.651e-06]


def test_what_is_missing_is_said() -> None:
    claim = Claim("a", "A claim.", "paper", "A rule.", (), lambda e: ce.better(e, "no_such_cpu", "a", "b"))
    finding, entries = claim.find(Evidence(ROOT))
    assert finding == Finding("book/results/no_such_cpu.json is missing", Verdict.MISSING)
    assert entries == ["result:no_such_cpu"] and ledger.problem(entries[0], ROOT) is not None
    for reader in (
        lambda e: e.row("losses_cpu", "no_such_setting"),
        lambda e: e.glue(1, "no_such_value"),
        lambda e: e.printed(1, "no such output (1)"),
        lambda e: e.stem(99),
        lambda e: e.per_seed("losses_cpu", "trace", "ce", 7, "p_foreground"),
        lambda e: e.settings("losses_cpu", "no_such"),
        lambda e: e.knobs("losses", "no_such_function"),
    ):
        with pytest.raises(Missing):
            reader(Evidence(ROOT))


def test_evidence_that_does_not_exist_is_found() -> None:
    for good in ("chapter:7", "chapter:7#summary", "test:test_claims.py::test_rules", "result:losses_cpu"):
        assert ledger.problem(good, ROOT) is None
    assert ledger.problem("explorer:explorer-loss", ROOT) is None
    for bad in ("chapter:99", "chapter:7#no-such-section", "result:no_such", "explorer:no-such", "rumour:somewhere"):
        assert ledger.problem(bad, ROOT), bad
    for bad in ("test_claims.py::test_no_such", "no_such.py::test_rules"):
        assert ledger.problem(f"test:{bad}", ROOT), bad


def test_the_page_is_built_and_warns_of_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "book" / "results").mkdir(parents=True)
    for part in ("notebooks", "tests", "focal_tutorial"):
        (tmp_path / part).symlink_to(ROOT / part)
    shutil.copy(ROOT / "book" / "explorers.md", tmp_path / "book")
    for path in (ROOT / "book" / "results").glob("*.json"):
        if path.stem != "losses_cpu":
            shutil.copy(path, tmp_path / "book" / "results")
    blocks = ("{claims-summary}", "{claims} remedies", "{claims} focal")
    page = "# Ledger\n\n" + "".join(f"```{block}\n```\n\n" for block in blocks) + "See {ref}`this <claim-gamma-0>`.\n"
    (tmp_path / "book" / "claims.md").write_text(page, encoding="utf-8")
    (tmp_path / "index.md").write_text("# Index\n\n```{toctree}\nbook/claims\n```\n", encoding="utf-8")
    (tmp_path / "conf.py").write_text("", encoding="utf-8")
    warnings = StringIO()
    options = {
        "extensions": ["myst_parser", "claims_ledger"],
        "myst_enable_extensions": ["dollarmath"],
        "include_patterns": ["index.md", "book/claims.md"],
        "html_theme": "basic",
    }
    app = Sphinx(tmp_path, tmp_path, tmp_path / "out", tmp_path / "tree", "html", options, StringIO(), warnings)
    app.build()
    assert "random-sampling: book/results/losses_cpu.json is missing" in warnings.getvalue()
    assert "claim-gamma-0" not in warnings.getvalue()
    html = (tmp_path / "out" / "book" / "claims.html").read_text(encoding="utf-8")
    shown = [*ledger.themes()["remedies"], *ledger.themes()["focal"]]
    for claim in shown:
        finding, _ = claim.find(Evidence(tmp_path))
        card = html.split(f'id="claim-{claim.name}"')[1].split("</dl>")[0]
        assert finding.verdict.value in card and ("Measured" in card) == (claim.measure is not None)
    assert 'href="#claim-always-4"' in html and html.count('class="claim claim-') == len(shown)
