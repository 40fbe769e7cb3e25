"""The method's own tests are beside its functions; here, that the card leads to them."""

import importlib

import numpy as np
import pytest
from cv_core.methods.fdea import CARD


def test_curation_from_votes_to_an_audit():
    """The procedure in one go, on annotators whose quality is known."""
    names = dict(dotted.rsplit(".", 1)[::-1] for dotted in CARD.objects)
    tool = {name: getattr(importlib.import_module(home), name) for name, home in names.items()}
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], [4000, 1500, 500])
    people = np.arange(len(truth)) // 2  # two pictures of each person, of one class
    wrong = (truth[:, None] + rng.integers(1, 3, size=(len(truth), 3))) % 3
    votes = np.where(rng.random(wrong.shape) < 0.9, truth[:, None], wrong)

    labels, status = tool["majority_vote"](votes, 3)
    settled = np.flatnonzero(status != "tie")
    expected = tool["expected_vote_quality"](0.9)
    accuracy = (labels[settled] == truth[settled]).mean()
    assert accuracy == pytest.approx(expected.right_if_not_tied, abs=0.01)
    assert tool["estimate_annotator_accuracy"]((status == "tie").mean()) == pytest.approx(
        0.9, abs=0.02
    )
    assert tool["fleiss_kappa"](votes) > 0.5

    consistent = settled[tool["drop_conflicting_groups"](labels[settled], people[settled])]
    # a person survives with a wrong label only if both pictures are wrong in the same way
    assert (labels[consistent] == truth[consistent]).mean() > accuracy + 0.005
    single = tool["cap_per_group"](consistent, people, 1)
    assert len(np.unique(people[single])) == len(single)
    even = single[tool["balanced_subset"](labels[single], 150, seed=0)]
    report = tool["balance_report"](labels[even])[-1]
    assert (report.entropy, report.imbalance) == (pytest.approx(1.0), 1.0)
    audit = tool["per_group_report"](truth[even], labels[even])
    assert audit.worst_recall > 0.9
