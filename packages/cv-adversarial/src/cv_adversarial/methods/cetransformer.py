r"""CETransformer: treatment effects from attention over covariates and two aligned groups.

*CETransformer: Casual Effect Estimation via Transformer Based Representation Learning*, Z. Guo,
S. Zheng, Z. Liu, K. Yan and Z. Zhu, PRCV 2021, LNCS 13022, pp. 524-535.

Of every unit one outcome is seen, with or without treatment, and who is treated was not left to
chance. An encoder with self-attention (Eq. 3) turns covariates :math:`X` into an embedding
:math:`X_E`; a decoder gives them back; two heads predict the outcomes; a critic :math:`D` tells
treated from control units, and the encoder deceives it. With weights of its terms, the encoder,
the decoder and the heads minimise

.. math:: L = \alpha L_{reco} + \beta L_{adv} + \gamma L_p \quad (7), \qquad
          L_{reco} = \mathrm{mean} (X - f_{rec}(X_E))^2 \quad (4)

.. math:: L_{adv} = \max_D\, E_{t=1}[D(X_E)] - E_{t=0}[D(X_E)] \quad (5), \qquad
          L_p = \tfrac1n \sum_i (h(X_{E,i}, t_i) - y_i)^2 \quad (6)

With :math:`\alpha = \beta = 0` it is ``TARNet`` with another encoder.

Deviations from the paper, and why:

- Depth, widths, rates and weights are not printed; the defaults are ours. Those of the critic (five
  steps per batch, weights clipped to 0.01) are the cited Wasserstein GAN's.
- The text speaks of attention between covariates and between individuals. Here the tokens of a unit
  are its covariates, which is what the motivation and the ablation argue for.
- Eq. 4 prints a sum over units and covariates, the text speaks of a mean square error: the mean, so
  that :math:`\alpha` does not depend on the size of a batch.
- "Self-supervision" is plain reconstruction in the equations, and so it is here: no masking.
- ``clip=None`` bounds the critic's slope by the gradient penalty of Gulrajani et al. instead of the
  clipping, which is the default as printed.

Example:
    >>> import numpy as np
    >>> from cv_adversarial.methods.cetransformer import TreatmentEffectRegressor
    >>> rng = np.random.default_rng(0)
    >>> X, t = rng.normal(size=(200, 3)), rng.integers(2, size=200)
    >>> model = TreatmentEffectRegressor(max_epochs=40, random_state=0)
    >>> effect = model.fit(X, t, X[:, 0] + 2.0 * t).predict_effect(X)
    >>> bool(abs(effect.mean() - 2.0) < 0.3)
    True
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import numpy as np
import torch
from cv_core.checks import (
    check_choice,
    check_floating,
    check_integer,
    check_range,
    check_shape,
)
from cv_core.losses.adversarial import clip_weights_, gradient_penalty
from cv_core.models.small import MLP
from cv_core.nn.transformer import TransformerEncoder
from cv_core.random import torch_generator
from cv_core.registry import Card, Example, Reference
from jaxtyping import Float
from torch import Tensor, nn

from cv_adversarial.baselines.tarnet import Encoder, TARNet
from cv_adversarial.causal.network import Batch, EffectNetwork, FactualTask

Pool = Literal["flatten", "mean"]


class FeatureTokenizer(nn.Module):
    r"""A token for every covariate: :math:`x_j w_j + b_j`.

    Args:
        n_features: Covariates.
        d_model: Channels of a token.
    """

    def __init__(self, n_features: int, d_model: int) -> None:
        super().__init__()
        check_integer("FeatureTokenizer", "n_features", n_features, low=1)
        check_integer("FeatureTokenizer", "d_model", d_model, low=1)
        self.n_features = n_features
        bound = d_model**-0.5
        self.weight = nn.Parameter(torch.empty(n_features, d_model).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n_features, d_model).uniform_(-bound, bound))

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b d c"]:
        """Return the tokens (B, d, d_model) of covariates (B, d)."""
        check_floating("FeatureTokenizer", "x", x)
        check_shape("FeatureTokenizer", "x", x, "b d", d=self.n_features)
        return x.unsqueeze(2) * self.weight + self.bias


class CovariateTransformer(nn.Module):
    """Self-attention between the covariates of a unit; an encoder for any network on tables.

    Args:
        n_features: Covariates.
        d_model: Channels of a token.
        depth: Transformer blocks.
        heads: Heads of their attention; they divide ``d_model``.
        pool: ``"flatten"`` joins the tokens, ``"mean"`` averages them.

    Attributes:
        tokens: The tokeniser.
        blocks: The transformer; its ``maps`` shows which covariates look at which.
    """

    def __init__(
        self,
        n_features: int,
        d_model: int = 32,
        *,
        depth: int = 2,
        heads: int = 4,
        pool: Pool = "flatten",
    ) -> None:
        super().__init__()
        check_choice("CovariateTransformer", "pool", pool, get_args(Pool))
        self.pool = pool
        self.tokens = FeatureTokenizer(n_features, d_model)
        self.blocks = TransformerEncoder(d_model, depth, heads, mlp_ratio=2.0)

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b e"]:
        """Embed covariates (B, d) as (B, d * d_model), or (B, d_model) for ``pool="mean"``."""
        check_shape("CovariateTransformer", "x", x, "b d", d=self.tokens.n_features)
        tokens = self.blocks(self.tokens(x))
        return tokens.flatten(1) if self.pool == "flatten" else tokens.mean(1)


class CETransformer(EffectNetwork):
    """The paper's network without its critic: encoder, decoder and two outcome heads.

    Args:
        n_features: Covariates.
        encoder: Maps covariates (B, n_features) to embeddings (B, e); a ``CovariateTransformer``
            with its defaults if None.
        head_width: Hidden width of the outcome heads and of the decoder.
    """

    def __init__(
        self, n_features: int, encoder: nn.Module | None = None, *, head_width: int = 64
    ) -> None:
        check_integer("CETransformer", "n_features", n_features, low=1)
        check_integer("CETransformer", "head_width", head_width, low=1)
        made = CovariateTransformer(n_features) if encoder is None else encoder
        super().__init__(n_features, made, head_width=head_width)
        self.decoder = MLP(self.embedding_size, head_width, n_features)

    def forward(self, x: Float[Tensor, "b d"]) -> dict[str, Tensor]:
        """Return ``embedding`` (B, e), ``y0``, ``y1`` (B,) and ``reconstruction`` (B, d)."""
        outputs = super().forward(x)
        return {**outputs, "reconstruction": self.decoder(outputs["embedding"])}


def wasserstein_critic_loss(
    critic: Callable[[Tensor], Tensor],
    treated: Float[Tensor, "n e"],
    control: Float[Tensor, "m e"],
) -> Float[Tensor, ""]:
    """Return the critic's mean on treated less that on control units (Eq. 5).

    The critic ascends it, the encoder descends it.

    Args:
        critic: Maps embeddings to numbers.
        treated: Embeddings of treated units.
        control: Embeddings of control units.

    Returns:
        A scalar; 0 for every critic where both groups are the same.

    Raises:
        ValueError: If a group is empty or the embeddings differ in size.
    """
    e = check_shape("wasserstein_critic_loss", "treated", treated, "n e")["e"]
    check_shape("wasserstein_critic_loss", "control", control, "m e", e=e)
    return critic(treated).mean() - critic(control).mean()


class _Critic(nn.Module):
    """The critic with its own optimiser: it learns on embeddings that it does not change."""

    def __init__(
        self, network: nn.Module, *, steps: int, clip: float | None, lr: float, seed: int
    ) -> None:
        super().__init__()
        self.network = network
        self.steps = steps
        self.clip = clip
        self.optimizer = torch.optim.Adam(network.parameters(), lr=lr, fused=True)
        self.generator = torch_generator(seed, "gradient penalty")

    def learn(self, treated: Tensor, control: Tensor) -> None:
        """Take the critic's steps on one batch, so that its slope stays bounded."""
        treated, control = treated.detach(), control.detach()
        for _ in range(self.steps):
            self.optimizer.zero_grad()
            loss = -wasserstein_critic_loss(self.network, treated, control)
            if self.clip is None:
                loss = loss + _PENALTY * self._slope(treated, control)
            loss.backward()
            self.optimizer.step()
            if self.clip is not None:
                clip_weights_(self.network, self.clip)

    def _slope(self, treated: Tensor, control: Tensor) -> Tensor:
        n = max(len(treated), len(control))  # the smaller group again and again
        pairs = [group[torch.arange(n, device=group.device) % len(group)]
                 for group in (treated, control)]  # fmt: skip
        return gradient_penalty(self.network, *pairs, generator=self.generator)

    def gap(self, treated: Tensor, control: Tensor) -> Tensor:
        """Return what the encoder descends."""
        return wasserstein_critic_loss(self.network, treated, control)


_PENALTY = 10.0  # of the slope, as Gulrajani et al., NeurIPS 2017


class _AlignedTask(FactualTask):
    def __init__(
        self, model: CETransformer, critic: _Critic, *, alpha: float, beta: float, gamma: float
    ) -> None:
        super().__init__(model, weight=gamma)
        self.critic = critic
        self.alpha = alpha
        self.beta = beta

    def penalty(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        x, t, _ = batch
        terms: dict[str, Tensor] = {}
        if self.alpha > 0:
            terms["reconstruction"] = self.alpha * (outputs["reconstruction"] - x).square().mean()
        treated, control = (outputs["embedding"][t == group] for group in (1, 0))
        if self.beta > 0 and len(treated) and len(control):
            self.critic.learn(treated, control)
            terms["critic gap"] = self.beta * self.critic.gap(treated, control)
        return terms


class TreatmentEffectRegressor(TARNet):
    r"""CETransformer as an estimator of what a treatment does to each unit.

    Each batch gives the critic ``n_critic`` ascents of Eq. 5 with the encoder fixed, then the
    encoder, decoder and heads one descent of Eq. 7. The weights kept are those of the epoch with
    the least factual error on a part held out; see ``TARNet``, of which this is a special case.

    Args:
        encoder: Makes the encoder for a number of covariates; a ``CovariateTransformer`` if None.
        alpha: Weight of the reconstruction, at least 0.
        beta: Weight of the critic's gap between the groups, at least 0. Batches in which a group
            is missing have no gap.
        gamma: Weight of the factual error, above 0.
        n_critic: Steps of the critic per batch.
        clip: Largest absolute weight of the critic; None for a gradient penalty of weight 10.
        critic_width: Hidden width of the critic.
        head_width: Hidden width of the outcome heads and of the decoder.
        lr: Learning rate of Adam, for the critic too.
        weight_decay: Decoupled from the gradient, on all weights but the critic's.
        batch_size: Units per step.
        max_epochs: Most epochs.
        patience: Epochs without improvement that end the training; None takes all epochs.
        validation_fraction: Share of the data held out, in (0, 1).
        device: Where to compute.
        random_state: Seed or ``numpy.random.Generator``; ``None`` draws from the system.

    Attributes:
        network_: The trained ``CETransformer``, on standardised covariates and outcomes.
        critic_: The critic of the same epoch.
        history_: A row per epoch: the terms of Eq. 7 with their weights.
        validation_loss_: Least factual error held out, of standardised outcomes.
        n_features_in_: d.
    """

    def __init__(
        self,
        encoder: Encoder | None = None,
        *,
        alpha: float = 1.0,
        beta: float = 1.0,
        gamma: float = 1.0,
        n_critic: int = 5,
        clip: float | None = 0.01,
        critic_width: int = 64,
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
        self.alpha = alpha
        self.beta = beta
        self.gamma = gamma
        self.n_critic = n_critic
        self.clip = clip
        self.critic_width = critic_width

    def _check_options(self) -> None:
        super()._check_options()
        owner = type(self).__name__
        check_range(owner, "alpha", self.alpha, low=0)
        check_range(owner, "beta", self.beta, low=0)
        check_range(owner, "gamma", self.gamma, low=0, low_open=True)
        check_integer(owner, "n_critic", self.n_critic, low=1)
        check_integer(owner, "critic_width", self.critic_width, low=1)
        if self.clip is not None:
            check_range(owner, "clip", self.clip, low=0, low_open=True)

    def _make_encoder(self, n_features: int) -> nn.Module:
        if self.encoder is None:
            return CovariateTransformer(n_features)
        return self.encoder(n_features)

    def _task(self, n_features: int, seed: int) -> FactualTask:
        encoder = self._make_encoder(n_features)
        model = CETransformer(n_features, encoder, head_width=self.head_width)
        self.critic_ = MLP(model.embedding_size, self.critic_width, 1).to(self.device)
        critic = _Critic(self.critic_, steps=self.n_critic, clip=self.clip, lr=self.lr, seed=seed)
        return _AlignedTask(model, critic, alpha=self.alpha, beta=self.beta, gamma=self.gamma)


def _examples() -> list[Example]:
    def covariates(generator: torch.Generator) -> tuple[Tensor]:
        return (torch.randn(5, 6, generator=generator),)

    def small(pool: Pool) -> CETransformer:
        encoder = CovariateTransformer(6, 8, depth=1, heads=2, pool=pool)
        return CETransformer(6, encoder, head_width=7)

    return [
        Example(
            build=lambda: small("flatten"),
            inputs=covariates,
            output_shapes=((5, 48), (5,), (5,), (5, 6)),
        ),
        Example(
            build=lambda: small("mean"),
            inputs=covariates,
            output_shapes=((5, 8), (5,), (5,), (5, 6)),
        ),
    ]


CARD = Card(
    slug="cetransformer",
    title="Treatment effects from attention over covariates and two aligned groups",
    reference=Reference(
        title=(
            "CETransformer: Casual Effect Estimation via Transformer Based Representation Learning"
        ),
        authors="Z. Guo, S. Zheng, Z. Liu, K. Yan, Z. Zhu",
        venue="PRCV, LNCS 13022",
        year=2021,
        pages="524-535",
    ),
    kind="module",
    objects=(
        "cv_adversarial.methods.cetransformer.CETransformer",
        "cv_adversarial.methods.cetransformer.CovariateTransformer",
        "cv_adversarial.methods.cetransformer.FeatureTokenizer",
        "cv_adversarial.methods.cetransformer.TreatmentEffectRegressor",
        "cv_adversarial.methods.cetransformer.wasserstein_critic_loss",
        "cv_adversarial.causal.network.factual_loss",
        "cv_adversarial.causal.metrics.sqrt_pehe",
        "cv_adversarial.causal.metrics.ate_error",
        "cv_adversarial.causal.metrics.policy_risk",
        "cv_adversarial.baselines.tarnet.TARNet",
        "cv_adversarial.baselines.cfr.CFR",
        "cv_adversarial.baselines.meta_learners.SLearner",
        "cv_adversarial.baselines.meta_learners.TLearner",
    ),
    examples=_examples,
    properties=("batch-independent", "deterministic"),
)
