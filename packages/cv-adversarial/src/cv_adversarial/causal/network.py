"""A network with one embedding and an outcome head for each group, and how it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from cv_core.checks import check_floating, check_same_shape, check_shape
from cv_core.engine.task import Outputs, Task
from cv_core.models.small import MLP
from jaxtyping import Float, Int64
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor, Tensor]
"""Covariates (b, d), treatments (b,) int64, factual outcomes (b,)."""


def factual_loss(
    y0: Float[Tensor, " b"],
    y1: Float[Tensor, " b"],
    t: Int64[Tensor, " b"],
    y: Float[Tensor, " b"],
) -> Float[Tensor, ""]:
    r"""Return the mean square error of the outcome that was observed.

    .. math:: L_p = \tfrac1n \sum_i (h(x_i, t_i) - y_i)^2

    Args:
        y0: Outcomes predicted without treatment.
        y1: Outcomes predicted with treatment.
        t: Treatments, 0 or 1.
        y: Observed outcomes.

    Returns:
        A scalar. No gradient reaches the prediction for the treatment that a unit did not get.

    Raises:
        ValueError: If the shapes differ or nothing came.
    """
    check_shape("factual_loss", "y", y, "b")
    check_same_shape("factual_loss", y0=y0, y1=y1, t=t, y=y)
    return (torch.where(t == 1, y1, y0) - y).square().mean()


def embedding_size(encoder: nn.Module, n_features: int) -> int:
    """Return how many entries an encoder's embedding has, by encoding zeros.

    Raises:
        ValueError: If the encoder does not map (b, d) to (b, e).
    """
    training = encoder.training
    try:
        with torch.no_grad():
            embedding = encoder.eval()(torch.zeros(2, n_features))
    finally:
        encoder.train(training)
    return check_shape(type(encoder).__name__, "the embedding", embedding, "b e", b=2)["e"]


class EffectNetwork(nn.Module):
    """An embedding of the covariates, and from it the outcomes without and with treatment.

    Args:
        n_features: Covariates.
        encoder: Maps covariates (B, n_features) to embeddings (B, e).
        head_width: Hidden width of each outcome head.
    """

    def __init__(self, n_features: int, encoder: nn.Module, *, head_width: int = 64) -> None:
        super().__init__()
        self.n_features = n_features
        self.encoder = encoder
        self.embedding_size = embedding_size(encoder, n_features)
        self.head0 = MLP(self.embedding_size, head_width, 1)
        self.head1 = MLP(self.embedding_size, head_width, 1)

    def forward(self, x: Float[Tensor, "b d"]) -> dict[str, Tensor]:
        """Return ``embedding`` (B, e), ``y0`` and ``y1`` (B,) of covariates (B, d)."""
        owner = type(self).__name__
        check_floating(owner, "x", x)
        check_shape(owner, "x", x, "b d", d=self.n_features)
        embedding = self.encoder(x)
        return {
            "embedding": embedding,
            "y0": self.head0(embedding).squeeze(1),
            "y1": self.head1(embedding).squeeze(1),
        }


class FactualTask(Task):
    """Training on the observed outcomes, and on whatever ``penalty`` adds.

    Args:
        model: The network.
        weight: Of the factual loss.
    """

    def __init__(self, model: EffectNetwork, *, weight: float = 1.0) -> None:
        super().__init__()
        self.model = model
        self.weight = weight

    def penalty(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the weighted terms that are added to the factual loss, by name."""
        del outputs, batch
        return {}

    def step(self, batch: Any) -> Outputs:
        """Return the loss and its terms."""
        x, t, y = batch
        outputs = self.model(x)
        factual = factual_loss(outputs["y0"], outputs["y1"], t, y)
        terms = self.penalty(outputs, (x, t, y))
        loss = self.weight * factual + sum(terms.values())
        logged = {name: term.detach() for name, term in terms.items()}
        return {"loss": loss, "factual loss": factual.detach(), **logged}

    def evaluate_step(self, batch: Any) -> Outputs:
        """Return the summed factual loss: all that can be seen without counterfactuals."""
        x, t, y = batch
        outputs = self.model(x)
        factual = factual_loss(outputs["y0"], outputs["y1"], t, y)
        return {"factual loss": factual * len(y), "count": len(y)}
