import math

import pytest
from cv_core.experiment.compare import Verdict
from cv_core.experiment.declaration import Claim, Metric
from cv_core.experiment.statistics import Interval
from cv_core.report import text


@pytest.mark.parametrize(
    ("interval", "written"),
    [
        (Interval(0.899, 0.925, 0.912), "0.912 ± 0.013"),
        (Interval(0.9119, 0.9121, 0.912), "0.91200 ± 0.00010"),
        (Interval(880.0, 1120.0, 1000.0), "1000 ± 120"),
        (Interval(-3.5, -1.5, -2.5), "−2.5 ± 1.0"),
        (Interval(0.1, 0.1, 0.1), "0.1 ± 0"),
        (Interval(-math.inf, math.inf, 0.25), "0.25"),  # one seed
        (None, "–"),
    ],
)
def test_estimates_show_two_digits_of_their_half_width(interval, written):
    assert text.estimate(interval) == written


def test_differences_carry_their_sign_and_interval():
    assert text.difference(Interval(-0.0041, 0.0497, 0.0228)) == "+0.023 [−0.004, +0.050]"
    assert text.difference(Interval(-math.inf, math.inf, -0.5)) == "−0.5"
    assert text.difference(None) == "–"
    assert text.bounds(Interval(-math.inf, math.inf, 0.5)) == "[−∞, +∞]"


@pytest.mark.parametrize(
    ("name", "value", "written"),
    [
        ("parameters", 1_669_770, "1.67 M"),
        ("macs", 665e6, "665 M"),
        ("steps", 950, "950"),
        ("steps", 9380, "9.38 k"),
        ("seconds", 0.3084, "0.308 s"),
        ("seconds", 125.2, "2 min 05 s"),
        ("seconds", 3 * 3600 + 7 * 60, "3 h 07 min"),
        ("peak_memory_mib", 811.6, "812 MiB"),
        ("peak_memory_mib", 20480, "20.0 GiB"),
        ("queries", 12345.6, "1.235e+04"),
        ("seconds", None, "–"),
    ],
)
def test_costs_have_units(name, value, written):
    assert text.cost(name, value) == written


def test_cost_headings_come_in_a_fixed_order(make_results):
    from cv_core.experiment.compare import summary

    rows = summary(make_results())
    assert text.costs_of(rows) == ["parameters", "macs", "steps", "seconds", "peak_memory_mib"]
    assert text.cost_name("peak_memory_mib") == "peak memory"
    assert text.cost_name("model_queries") == "model queries"


def test_pvalues_and_metrics():
    assert [text.pvalue(p) for p in (None, 0.5, 0.03125, 1e-7)] == ["–", "0.5", "0.031", "< 0.0001"]
    assert text.metric_name(Metric("time", unit="s")) == "time [s]"
    assert text.direction(Metric("time", better="lower")) == "lower is better"
    assert text.direction(Metric("time", better="neither")) == ""


def verdict(**fields):
    claim = Claim(arm="a", above="b", metric="m", paper=fields.pop("paper", None))
    return Verdict(**{"claim": claim, "case": "", "outcome": "inconclusive", **fields})


def test_outlook_and_paper():
    assert text.outlook(verdict(seeds_needed=17)).startswith("about 17 paired seeds")
    assert text.outlook(verdict()).startswith("no number of seeds")
    assert text.outlook(verdict(outcome="supported", seeds_needed=2)) == ""
    assert text.paper(verdict()) == text.paper_gap(verdict()) == "–"
    # 0.9 - 0.6 is 0.30000000000000004 in binary
    assert text.paper(verdict(paper=(0.9, 0.6))) == "0.9 against 0.6 (+0.3)"
    assert text.paper_gap(verdict(paper=(1.03, 1.56))) == "−0.53"


def test_every_outcome_has_a_sign_of_its_own():
    assert len(set(text.BADGES.values())) == 4
