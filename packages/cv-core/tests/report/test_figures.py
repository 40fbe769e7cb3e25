import re
from xml.etree import ElementTree as ET

import matplotlib as mpl
import pytest
from cv_core.experiment.compare import verdicts
from cv_core.report import figures
from cv_core.report.style import arm_styles

SEEDS = 5


def drawn(results):
    judged = verdicts(results)
    return [
        figures.forest(results, judged),
        figures.arms(results, "test accuracy"),
        figures.curves(results, "train loss"),
    ]


@pytest.fixture(scope="module")
def shared():
    return {}


@pytest.fixture
def svgs(make_results, shared):
    if not shared:  # drawn once for the module: a figure takes a tenth of a second
        before = dict(mpl.rcParams)
        shared["svgs"] = drawn(make_results())
        assert dict(mpl.rcParams) == before
    return shared["svgs"]


def uses(svg, name):
    """Count the marks drawn in a colour of their own or of their group's."""
    root = ET.fromstring(svg)  # noqa: S314 - written by us
    return sum(
        f"fill: var(--{name})" in mark.get("style", group.get("style", ""))
        for group in root.iter()
        for mark in group.findall("use")
    )


def test_same_results_same_bytes(make_results, svgs):
    assert drawn(make_results()) == svgs


def test_ids_are_unique_across_figures_and_references_point_inside(svgs):
    ids = [re.findall(r'\bid="([^"]+)"', svg) for svg in svgs]
    flat = [name for names in ids for name in names]
    assert len(flat) == len(set(flat)) > len(svgs)
    for svg, names in zip(svgs, ids, strict=True):
        targets = re.findall(r'href="#([^"]+)"', svg) + re.findall(r"url\(#([^)]+)\)", svg)
        assert targets
        assert set(targets) <= set(names)


def test_figures_are_inline_parts_without_addresses(svgs):
    for svg in svgs:
        root = ET.fromstring(svg)  # noqa: S314 - drawn above
        assert root.tag == "svg"
        assert root.attrib["role"] == "img"
        assert root.attrib["aria-label"]
        assert "http" not in svg
        assert "<style" not in svg


def test_every_colour_is_one_of_the_style_sheet(svgs):
    for svg in svgs:
        assert not re.findall(r"#[0-9a-f]{6}\b", svg.replace("#ffffff", ""))
        assert "var(--ink)" in svg


def test_text_stays_text(svgs):
    words = ["".join(ET.fromstring(svg).itertext()) for svg in svgs]  # noqa: S314 - drawn above
    assert "ICCE − cross entropy" in words[0]
    assert "+0.1530 [+0.1458, +0.1602], n = 5" in words[0]
    assert "40 % symmetric" in words[1]
    assert "test accuracy (higher is better)" in words[1]
    assert "train loss" in words[2]


def test_forest_shows_every_seed_of_every_claim(svgs):
    # a dot per seed (scatter), and for each row the two ends and the mean
    forest = svgs[0]
    assert uses(forest, "contradicted") >= SEEDS
    assert uses(forest, "supported") >= 2 * SEEDS
    assert uses(forest, "inconclusive") >= 2 * SEEDS
    assert uses(forest, "untested") == 0


def test_arms_show_every_seed(svgs, make_results):
    styles = arm_styles(make_results())
    assert styles["ICCE"].colour_name == "arm-paper"
    assert styles["cross entropy"].colour_name == "arm-base"
    assert uses(svgs[1], "arm-paper") == 3 * SEEDS
    assert uses(svgs[1], "arm-base") == 3 * SEEDS
    assert uses(svgs[1], styles["GCE"].colour_name) == 2 * SEEDS  # none of its pair trials finished


def test_arms_can_be_told_without_colour(make_results):
    styles = arm_styles(make_results()).values()
    assert len({style.marker for style in styles}) == 3
    assert len({style.colour_name for style in styles}) == 3


def test_names_that_look_like_markup_or_mathematics(make_results):
    results = make_results()
    arms = [
        arm.model_copy(update={"name": f"{arm.name} $x_ <b>\x07"}) for arm in results.declared.arms
    ]
    trials = [
        trial.model_copy(update={"arm": f"{trial.arm} $x_ <b>\x07"}) for trial in results.trials
    ]
    declared = results.declared.model_copy(update={"arms": arms, "claims": []})
    odd = results.model_copy(update={"declared": declared, "trials": trials})
    words = "".join(ET.fromstring(figures.arms(odd, "test accuracy")).itertext())  # noqa: S314
    assert "ICCE $x_ <b>" in words


def test_curves_of_different_length_and_with_gaps(make_results):
    results = make_results()
    changed = []
    for trial in results.trials:
        curves = {name: list(points) for name, points in trial.curves.items()}
        if trial.seed == 1 and curves:
            curves["train loss"] = curves["train loss"][:12]
        if trial.seed == 2 and curves:
            curves["train loss"][5] = (curves["train loss"][5][0], None)
        changed.append(trial.model_copy(update={"curves": curves}))
    svg = figures.curves(results.model_copy(update={"trials": changed}), "train loss")
    assert "nan" not in svg.lower()
    assert "var(--arm-paper)" in svg


def test_a_long_curve_name_is_broken_beside_its_figure(make_results):
    results = make_results()
    name = "agreement of the marked maps with those of the first frame"
    renamed = [
        trial.model_copy(update={"curves": {name: trial.curves.get("train loss", [])}})
        for trial in results.trials
    ]
    svg = figures.curves(results.model_copy(update={"trials": renamed}), name)
    lines = [line for line in re.findall(r">([^<>]+)</t(?:ext|span)>", svg) if line in name]
    assert " ".join(lines) == name
    assert len(lines) > 1


def test_long_names_get_fewer_legend_columns():
    assert figures._legend_columns(["CE", "ICCE"], 11.2) == 6
    assert figures._legend_columns(["CE", "a name of forty letters, more or less, in"], 11.2) == 2
    assert figures._legend_columns(["x" * 300], 11.2) == 1


def test_common_steps_end_where_the_shortest_curve_ends():
    found = [[(0.0, 0.0), (1.0, 1.0), (2.0, 2.0)], [(0.0, 1.0), (1.5, 4.0)]]
    steps, values = figures._on_common_steps(found)
    assert steps.tolist() == [0.0, 1.0]
    assert values.tolist() == [[0.0, 1.0], [1.0, 3.0]]  # 1 + 2 * 1 on the line between


def test_nothing_to_draw_is_an_empty_string(make_results):
    results = make_results()
    empty = results.model_copy(update={"trials": []})
    assert figures.forest(empty, verdicts(empty)) == ""
    assert figures.arms(empty, "test accuracy") == ""
    assert figures.curves(results, "no such curve") == ""


def test_one_seed_is_drawn_without_an_interval(make_results):
    results = make_results()
    first = [trial for trial in results.trials if trial.seed == 0]
    one = results.model_copy(update={"trials": first, "seeds": [0]})
    forest = figures.forest(one, verdicts(one))
    assert uses(forest, "untested") == 5  # a dot for each pair, and nothing else
    assert uses(figures.arms(one, "test accuracy"), "arm-paper") == 3
