"""Common checks of graph modules: ``module(x, edge_index, ...)``."""

from __future__ import annotations

import torch

from cv_core.testing.checks import Subject, common_check, flatten
from cv_core.testing.tolerances import assert_close


@common_check("graph-module")
def check_edge_order_free(subject: Subject) -> None:
    """The order in which edges are listed does not matter."""
    built = subject.build().eval()
    x, edges, *rest = subject.inputs()
    expected = flatten(built(x, edges, *rest))
    turned = torch.arange(edges.shape[1] - 1, -1, -1, device=edges.device)
    rest = [
        item[turned] if isinstance(item, torch.Tensor) and item.shape[0] == len(turned) else item
        for item in rest
    ]
    for one, other in zip(flatten(built(x, edges[:, turned], *rest)), expected, strict=True):
        assert_close(one, other, scale=10.0)
