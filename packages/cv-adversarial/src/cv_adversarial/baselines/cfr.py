"""Counterfactual regression: TARNet whose groups are drawn together by optimal transport."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from cv_core.checks import check_integer, check_range, check_shape
from jaxtyping import Float
from torch import Tensor

from cv_adversarial.baselines.tarnet import Encoder, TARNet
from cv_adversarial.causal.network import Batch, EffectNetwork, FactualTask


def sinkhorn_distance(
    a: Float[Tensor, "n e"],
    b: Float[Tensor, "m e"],
    *,
    smoothing: float = 0.1,
    iterations: int = 10,
) -> Float[Tensor, ""]:
    r"""Return the cost of moving one sample onto another by a smoothed transport plan.

    .. math:: \sum_{ij} P_{ij} \|a_i - b_j\|_2, \qquad
              P = \arg\min_{P 1 = 1/n,\; P^\top 1 = 1/m} \langle P, C \rangle - \epsilon H(P)

    with :math:`\epsilon` in shares of the mean distance (Cuturi, NeurIPS 2013). The plan is found
    by Sinkhorn's iterations in the logarithm, and taken as a constant by the gradient.

    Args:
        a: A sample.
        b: Another sample.
        smoothing: The :math:`\epsilon` above 0; the smaller, the closer to the Wasserstein
            distance, and the more iterations it takes.
        iterations: Of Sinkhorn.

    Returns:
        A scalar >= 0.

    Raises:
        ValueError: If a shape or an option is out of range.
    """
    owner = "sinkhorn_distance"
    e = check_shape(owner, "a", a, "n e")["e"]
    check_shape(owner, "b", b, "m e", e=e)
    check_range(owner, "smoothing", smoothing, low=0, low_open=True)
    check_integer(owner, "iterations", iterations, low=1)
    cost = torch.cdist(a, b)
    with torch.no_grad():
        kernel = -cost / (smoothing * cost.mean()).clamp_min(torch.finfo(cost.dtype).tiny)
        columns = kernel.new_zeros(len(b))
        for _ in range(iterations):
            rows = -math.log(len(a)) - torch.logsumexp(kernel + columns, dim=1)
            columns = -math.log(len(b)) - torch.logsumexp(kernel + rows[:, None], dim=0)
        plan = (kernel + rows[:, None] + columns).exp()
    return (plan * cost).sum()


class _BalancedTask(FactualTask):
    def __init__(self, model: EffectNetwork, *, balance: float) -> None:
        super().__init__(model)
        self.balance = balance

    def penalty(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        embedding, treated = outputs["embedding"], batch[1] == 1
        if self.balance == 0 or bool(treated.all()) or not bool(treated.any()):
            return {}
        distance = sinkhorn_distance(embedding[treated], embedding[~treated])
        return {"distance of groups": self.balance * distance}


class CFR(TARNet):
    r"""Counterfactual regression of Shalit, Johansson and Sontag, ICML 2017, with Wasserstein.

    .. math:: \min \tfrac1n \sum_i \big(h_{t_i}(\Phi(x_i)) - y_i\big)^2
              + \alpha\, W\big(\Phi(X_{t=1}), \Phi(X_{t=0})\big)

    With :math:`\alpha = 0` it is TARNet.

    Args:
        encoder: As in ``TARNet``, and so all options not named here.
        balance: The :math:`\alpha`, at least 0.
        head_width: As in ``TARNet``.
        lr: As in ``TARNet``.
        weight_decay: As in ``TARNet``.
        batch_size: As in ``TARNet``; the distance is that of the groups within a batch, and batches
            without both groups have none.
        max_epochs: As in ``TARNet``.
        patience: As in ``TARNet``.
        validation_fraction: As in ``TARNet``.
        device: As in ``TARNet``.
        random_state: As in ``TARNet``.

    Attributes and deviations are those of ``TARNet``.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> X, t = rng.normal(size=(200, 3)), rng.integers(2, size=200)
        >>> model = CFR(balance=0.1, max_epochs=60, random_state=0).fit(X, t, X[:, 0] + 2.0 * t)
        >>> bool(abs(model.predict_effect(X).mean() - 2.0) < 0.3)
        True
    """

    def __init__(
        self,
        encoder: Encoder | None = None,
        *,
        balance: float = 1.0,
        head_width: int = 64,
        lr: float = 1e-3,
        weight_decay: float = 1e-4,
        batch_size: int = 100,
        max_epochs: int = 300,
        patience: int | None = 30,
        validation_fraction: float = 0.3,
        device: str = "cpu",
        random_state: int | np.random.Generator | None = None,
    ) -> None:
        super().__init__(
            encoder,
            head_width=head_width,
            lr=lr,
            weight_decay=weight_decay,
            batch_size=batch_size,
            max_epochs=max_epochs,
            patience=patience,
            validation_fraction=validation_fraction,
            device=device,
            random_state=random_state,
        )
        self.balance = balance

    def _check_options(self) -> None:
        super()._check_options()
        check_range("CFR", "balance", self.balance, low=0)

    def _task(self, n_features: int, seed: int) -> FactualTask:
        return _BalancedTask(super()._task(n_features, seed).model, balance=self.balance)
