import html
import re
from html.parser import HTMLParser

import pytest
from cv_core.report.html import render_html, strips

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """The page's elements with their attributes; refuses tags that do not close in order."""

    def __init__(self, page):
        super().__init__()
        self.open, self.elements, self.words = [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag, **wanted):
        return [
            attrs
            for name, attrs in self.elements
            if name == tag and all(attrs.get(key) == value for key, value in wanted.items())
        ]

    @property
    def text(self):
        return " ".join("".join(self.words).split())


@pytest.fixture(scope="module")
def shared():
    return {}


@pytest.fixture
def source(make_results, shared):
    if not shared:  # rendered once for the module
        shared["source"] = render_html(make_results())
    return shared["source"]


@pytest.fixture
def page(source):
    return Page(source)


def test_page_says_what_the_run_says(page):
    words = page.text
    assert "Verdict: supported 2 of 6, contradicted 1, inconclusive 2, untested 1" in words
    assert "Does ICCE resist label noise better than cross entropy, and than GCE?" in words
    assert "+0.1530 [+0.1458, +0.1602]" in words
    assert "0.8550 ± 0.0080" in words
    assert "about 17 paired seeds would settle a difference of this size" in words
    assert "GCE failed 1 of 5, skipped 4 of 5 (GCE has no pair form)" in words
    assert "0.871, 0.62 difference +0.251" in words
    assert "GCE, 40 % pair, seed 0: failed: ValueError: no Traceback (most recent call" in words
    assert "GCE, 40 % pair, seed 1, 2, 3, 4: skipped: GCE has no pair form" in words
    assert "cvlab run icce --budget default --seeds 5 --data mnist" in words
    assert "ab12" * 16 in words
    assert "CC BY-SA 3.0" in words
    assert "The paper's network is larger" in words
    assert "1.67 M" in words
    assert "812 MiB" in words


def test_each_verdict_has_a_badge_with_sign_and_word(page, source):
    badges = [attrs["class"] for attrs in page.all("span") if "badge" in attrs.get("class", "")]
    assert badges == [
        "badge contradicted",
        "badge supported",
        "badge inconclusive",
        "badge untested",
        "badge inconclusive",
        "badge supported",
    ]
    assert source.count("✔") == 2
    assert source.count("✘") == 1


def test_page_is_self_contained(page, source):
    assert "http" not in source
    assert page.all("script") == []
    assert [attrs["href"] for attrs in page.all("link")] == ["data:,"]  # no favicon is asked for
    assert all(attrs["src"].startswith("data:image/png;base64,") for attrs in page.all("img"))
    assert "@import" not in source
    assert set(re.findall(r"url\((.)", source)) == {"#"}
    assert len(source.encode()) < 1_500_000


def test_page_is_accessible(page):
    assert page.all("html", lang="en")
    assert all(attrs.get("alt") for attrs in page.all("img"))
    figures = page.all("svg")
    assert len(figures) == 5  # forest, two metrics, two curves
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in figures)
    assert all(attrs.get("scope") in {"col", "row", "rowgroup"} for attrs in page.all("th"))
    assert len(page.all("h1")) == 1
    assert "prefers-color-scheme: dark" in page.text


def test_ids_are_unique(page):
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    labels = [attrs["aria-labelledby"] for attrs in page.all("section")]
    assert set(labels) <= set(ids)


def test_every_colour_has_a_value_in_both_schemes(source):
    light, dark = source.split("prefers-color-scheme: dark", 1)
    used = set(re.findall(r"var\(--([a-z0-9-]+)\)", source)) - {"font", "mono"}
    assert used <= set(re.findall(r"--([a-z0-9-]+): #", light))
    block = dark[: dark.index("}\n}")]
    assert used <= set(re.findall(r"--([a-z0-9-]+): #", block))


def luminance(code):
    parts = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_and_marks_stand_out_in_both_schemes(source):
    light, dark = source.split("prefers-color-scheme: dark", 1)
    for part in (light, dark[: dark.index("}\n}")]):
        values = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", part))
        for ground in ("page", "card"):
            back = luminance(values[ground])
            for name, code in values.items():
                front = luminance(code)
                contrast = (max(front, back) + 0.05) / (min(front, back) + 0.05)
                if name not in {"page", "card", "line", "grid", "band"}:
                    assert contrast >= 4.5, (name, ground, contrast)  # WCAG AA for text


def test_best_mean_is_marked_and_ties_are_all_marked(source):
    cells = re.findall(r'<td class="best">([^<]+)', source)
    # accuracy: clean is a tie of two, symmetric, pair; error: ICCE in the three cases
    assert [cell.strip() for cell in cells] == [
        "0.942 ± 0.010",
        "0.9420 ± 0.0082",
        "0.0384 ± 0.0034",
        "0.8550 ± 0.0080",
        "0.0384 ± 0.0034",
        "0.679 ± 0.048",
        "0.0384 ± 0.0034",
    ]


def test_pictures_of_one_name_stand_side_by_side(make_results):
    found = strips(make_results())
    assert [(strip.case, strip.name, [p.arm for p in strip.pictures]) for strip in found] == [
        ("40 % symmetric", "a learnt filter", ["cross entropy", "GCE", "ICCE"]),
        ("40 % symmetric", "where it looks", ["cross entropy", "GCE", "ICCE"]),
        ("40 % pair", "a learnt filter", ["cross entropy", "ICCE"]),
        ("40 % pair", "where it looks", ["cross entropy", "ICCE"]),
    ]
    assert {(p.width, p.height) for p in found[0].pictures} == {(28, 28)}
    assert {(p.width, p.height) for p in found[1].pictures} == {(224, 224)}


def test_same_results_same_page(make_results, source):
    assert render_html(make_results()) == source


EVIL = '<script>document.title = "owned"</script>"><img src=x onerror=alert(1)>{{ 7 * 7 }}'


def poisoned(make_results):
    """The example with a hostile string in every text that a user's files can bring in."""
    results = make_results()
    text = results.model_dump_json()
    for word in ("ICCE", "40 % symmetric", "where it looks", "train loss", "test accuracy"):
        text = text.replace(word, EVIL.replace('"', '\\"') + word)
    results = type(results).model_validate_json(text)
    trials = [
        trial.model_copy(update={"error": EVIL, "reason": EVIL})
        if trial.status != "done"
        else trial
        for trial in results.trials
    ]
    declared = results.declared.model_copy(update={"notes": [EVIL], "selection": EVIL})
    data = results.data.model_copy(update={"title": EVIL, "licence": EVIL})
    changes = {"trials": trials, "declared": declared, "data": data, "command": EVIL}
    return results.model_copy(update=changes)


def test_hostile_texts_stay_text(make_results):
    source = render_html(poisoned(make_results))
    page = Page(source)
    assert page.all("script") == []
    assert all(attrs.get("src", "").startswith("data:") for attrs in page.all("img"))
    assert not [a for _, attrs in page.elements for a in attrs if a.startswith("on")]
    assert source.count(html.escape(EVIL, quote=False).split('"')[0]) > 20
    assert "{{ 7 * 7 }}" in page.text


def test_a_run_of_one_seed_and_one_unnamed_case_without_claims(make_results):
    results = make_results()
    case = results.declared.cases[0].model_copy(update={"name": ""})
    declared = results.declared.model_copy(
        update={"cases": [case], "claims": [], "notes": [], "title": ""}
    )
    trials = [
        trial.model_copy(update={"case": "", "curves": {}, "pictures": {}})
        for trial in results.trials
        if trial.case == "clean" and trial.seed == 0
    ]
    changes = {"declared": declared, "trials": trials, "seeds": [0]}
    page = Page(render_html(results.model_copy(update=changes)))
    assert "This experiment declares no claim." in page.text
    assert "1 paired seed" in page.text
    assert len(page.all("svg")) == 2  # one for each metric
    assert not page.all("section", id="curves")
    assert not page.all("section", id="pictures")
    assert not page.all("section", id="troubles")


def test_a_run_in_which_everything_failed(make_results):
    results = make_results()
    trials = [
        trial.model_copy(
            update={"status": "failed", "error": "boom", "metrics": {}, "curves": {}, "costs": {}}
        )
        for trial in results.trials
    ]
    page = Page(render_html(results.model_copy(update={"trials": trials})))
    assert "Verdict: untested 6 of 6" in page.text
    # one entry for each arm and case, with the last line and the traceback
    assert page.text.count("failed: boom boom") == 9
    assert "ICCE, 40 % pair, seed 0, 1, 2, 3, 4: failed: boom" in page.text
    assert page.all("svg") == []
