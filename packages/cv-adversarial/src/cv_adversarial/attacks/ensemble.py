"""Several networks attacked as one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cv_core.checks import check_range
from jaxtyping import Float
from torch import Tensor, nn


class LogitEnsemble(nn.Module):
    r"""Networks whose logits are averaged, :math:`l(x) = \sum_i w_i\, l_i(x)`.

    *Boosting Adversarial Attacks with Momentum*, Y. Dong, F. Liao, T. Pang, H. Su, J. Zhu, X. Hu
    and J. Li, CVPR 2018, section 3.4: of the ways to fuse networks, the one that transfers best.
    Every attack takes it as its model.

    Args:
        models: Networks of the same classes.
        weights: One non-negative weight per network, summing to 1; equal ones by default.

    Raises:
        ValueError: If there is no network, or the weights do not fit.

    Example:
        >>> import torch
        >>> twice = LogitEnsemble([nn.Identity(), nn.Identity()], weights=[0.25, 0.75])
        >>> twice(torch.tensor([[1.0, 3.0]]))
        tensor([[1., 3.]])
    """

    def __init__(self, models: Sequence[nn.Module], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        count = len(models)
        if count == 0:
            raise ValueError("LogitEnsemble: models must hold at least one network; got none.")
        given = [1.0 / count] * count if weights is None else [*weights]
        if len(given) != count:
            raise ValueError(
                f"LogitEnsemble: weights must be one per network; got {len(given)} for {count}."
            )
        for weight in given:
            check_range("LogitEnsemble", "weights", weight, low=0.0)
        if not math.isclose(sum(given), 1.0, abs_tol=1e-6):
            raise ValueError(f"LogitEnsemble: weights must sum to 1; got {sum(given):g}.")
        self.models = nn.ModuleList(models)
        self.weights = tuple(float(weight) for weight in given)

    def forward(self, x: Float[Tensor, "b *image"]) -> Float[Tensor, "b k"]:
        """Return the weighted mean of the networks' logits for images ``(B, ...)``."""
        total = self.weights[0] * self.models[0](x)
        for weight, model in zip(self.weights[1:], self.models[1:], strict=True):
            total = total + weight * model(x)
        return total
