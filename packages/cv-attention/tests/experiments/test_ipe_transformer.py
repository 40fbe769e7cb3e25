from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from cv_attention.experiments._depth_views import (
    View,
    grid_of_crops,
    left_and_right,
    planted_planes,
    random_crops,
    views_of,
    with_sparse_depth,
)
from cv_attention.experiments.ipe_transformer import (
    EXPERIMENT,
    in_pieces,
    ipe,
    learned_table,
    network,
    no_position,
    sinusoidal,
)
from cv_core.data.sources import load
from cv_core.experiment.trial import Trial, merge_settings
from cv_core.metrics.cost import count_parameters
from torch import nn

BLOCKS = {
    "IPE": ipe, "no position": no_position, "learned table": learned_table,
    "sinusoidal": sinusoidal,
}  # fmt: skip


def smoke_trial(arm: str = "IPE", budget: str = "smoke") -> Trial:
    settings = merge_settings(EXPERIMENT.settings[budget], {})
    return Trial(
        arm=arm, case="", seed=0, budget=budget, source="sample-photographs", settings=settings
    )


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("budget", ["default", "full"])
def test_arms_differ_in_the_maps_alone(budget: str) -> None:
    trial = smoke_trial(budget=budget)
    plain = network(trial, None, start=1.5)
    models = {name: network(trial, block, start=1.5) for name, block in BLOCKS.items()}
    for model in models.values():
        state = model.state_dict()
        assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())
    counts = {name: count_parameters(model) for name, model in models.items()}
    assert counts["IPE"] == counts["no position"] == counts["sinusoidal"]
    side = trial.settings.side // 2 ** (len(trial.settings.widths) - 1)
    table = models["learned table"].encoder.stages[-1].follower.attention.position.table
    assert table.shape[2:] == (side, side)
    wide = plain.encoder(torch.zeros(1, 4, trial.settings.side, trial.settings.side))[-1]
    assert wide.shape[2:] == (side, side)


def test_planted_depth_is_that_of_planes_and_repeatable() -> None:
    photographs = list(load("sample-photographs").images)
    view = planted_planes(photographs, (60, 90), draws())
    again = planted_planes(photographs, (60, 90), draws())
    assert torch.equal(view.image, again.image)
    assert not torch.equal(view.depth, planted_planes(photographs, (60, 90), draws(1)).depth)
    inverse = 1 / view.depth.double()
    bend = (inverse[:, 2:] - 2 * inverse[:, 1:-1] + inverse[:, :-2]).abs() < 1e-5
    assert bend.float().mean() > 0.8  # within a plane the inverse depth is linear
    assert not bend.all()  # and there are edges
    assert 0 <= view.image.min() < view.image.max() <= 1
    assert view.depth.isfinite().all()


def test_split_and_crops_share_no_column() -> None:
    columns = torch.arange(50.0).expand(20, 50) + 1
    left, right = left_and_right(View(columns.expand(3, 20, 50) / 50, columns))
    assert left.depth.max() < right.depth.min()
    assert torch.equal(torch.cat([left.depth, right.depth], dim=1), columns)
    images, depth = random_crops([left, right], 40, 8, draws())
    torch.testing.assert_close(images[:, 0] * 50, depth[:, 0])
    assert (depth[::2] <= 30).all()  # views take turns
    assert (depth[1::2] > 30).all()
    _, depth = grid_of_crops([right], (2, 3), 10)
    assert depth[:, 0, 0, 0].tolist() == [31, 36, 41] * 2


def test_sparse_points_are_true_and_as_many_as_asked_for() -> None:
    depth = 1 + torch.rand(4, 1, 64, 64, generator=draws())
    depth[:, :, :32] = 0.0  # not known
    x = with_sparse_depth(torch.zeros(4, 3, 64, 64), depth, 0.05, draws())
    points = x[:, 3:] > 0
    assert torch.equal(x[:, 3:][points], depth[points])
    share = float(points[:, :, 32:].float().mean())
    assert abs(share - 0.05) < 5 * (0.05 * 0.95 / 8192) ** 0.5
    assert not points[:, :, :32].any()


def test_pieces_are_put_back_where_they_were() -> None:
    x = torch.rand(2, 4, 8, 12, generator=draws())

    class Centred(nn.Module):
        def forward(self, piece: torch.Tensor) -> torch.Tensor:
            return piece - piece.mean((2, 3), keepdim=True)

    assert torch.equal(in_pieces(nn.Identity(), x, 4, 6), x)
    got = in_pieces(Centred(), x, 4, 6)
    piece = x[:, :, 4:, 6:]
    torch.testing.assert_close(got[:, :, 4:, 6:], piece - piece.mean((2, 3), keepdim=True))


@pytest.mark.skipif("CV_DATA" not in os.environ, reason="needs Middlebury's pairs in CV_DATA")
def test_middlebury_views_have_depth_where_there_is_a_disparity() -> None:
    data = load("teddy-cones")
    views = views_of(data, (1, 1), draws())
    assert len(views) == 2
    for view, pair in zip(views, data.pairs.values(), strict=True):
        known = pair.left_disparity > 0
        assert torch.equal(view.depth > 0, known)
        torch.testing.assert_close(
            view.depth[known] * pair.left_disparity[known] / 20, known[known].float()
        )


def test_a_trial_is_repeatable_and_leaves_what_the_report_shows() -> None:
    trial = smoke_trial()
    found = EXPERIMENT.arm("IPE").run(trial)
    assert EXPERIMENT.arm("IPE").run(replace(trial)) == found
    assert set(found) == {metric.name for metric in EXPERIMENT.metrics}
    assert trial.record.costs["steps"] == trial.settings.steps
    assert "train loss" in trial.record.curves
    (picture,) = trial.record.pictures.values()
    side = 2 * trial.settings.side
    assert picture.shape == (2 * side, 2 * side)
