"""FDEA: votes to labels, balancing, group audits. The functions live in ``cv_core.data``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cv_core.data.curation import per_group_report
from cv_core.data.votes import majority_vote
from cv_core.registry import Card, Example, Reference


def _votes(generator: torch.Generator) -> tuple[np.ndarray, int]:
    return torch.randint(0, 3, (40, 3), generator=generator).numpy(), 3


def _predictions(generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
    y_true, y_pred = torch.randint(0, 3, (2, 60), generator=generator).numpy()
    return y_true, y_pred


def _examples() -> Sequence[Example]:
    return [
        Example(build=lambda: majority_vote, inputs=_votes),
        Example(build=lambda: per_group_report, inputs=_predictions),
    ]


CARD = Card(
    slug="fdea",
    title="Votes to labels, class balance and per-group audits",
    reference=Reference(
        title="FDEA: Face Dataset with Ethnicity Attribute",
        authors="Chen, Liu, Ou, Wang",
        venue="PRCV, LNCS 13022",
        year=2021,
        pages="437-446",
    ),
    kind="function",
    objects=(
        "cv_core.data.votes.majority_vote",
        "cv_core.data.votes.expected_vote_quality",
        "cv_core.data.votes.estimate_annotator_accuracy",
        "cv_core.data.votes.fleiss_kappa",
        "cv_core.data.curation.drop_conflicting_groups",
        "cv_core.data.curation.cap_per_group",
        "cv_core.data.curation.balance_report",
        "cv_core.data.curation.balanced_subset",
        "cv_core.data.curation.per_group_report",
        "cv_core.data.indexed.IndexedImageDataset",
    ),
    examples=_examples,
    properties=("deterministic",),
)
