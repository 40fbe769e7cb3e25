r"""Adversarial training with several gradients per example: PGD-AT, TRADES and MART.

With :math:`p(x) = \mathrm{softmax}(f(x))`, cross entropy :math:`\ell`, the Kullback-Leibler
divergence :math:`D` and the ball :math:`B(x)`, the losses of one image are

.. math::

    \text{PGD-AT:} \quad & \ell(f(x'), y), \\
    \text{TRADES:} \quad & \ell(f(x), y) + \beta\, D(p(x) \,\|\, p(x'')), \\
    \text{MART:} \quad & -\ln p_y(x') - \ln\big(1 - \max_{k \ne y} p_k(x')\big)
        + \lambda\, D(p(x) \,\|\, p(x'))\, (1 - p_y(x)),

where PGD maximises :math:`\ell(f(x'), y)` and :math:`D(p(x) \,\|\, p(x''))` over :math:`B(x)`.

Example:
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3, bias=False))
    >>> x, y = torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 2])
    >>> loss, parts = TRADESLoss(eps=8 / 255, beta=6.0)(model, x, y)
    >>> bool(torch.isclose(loss, parts["clean"] + 6.0 * parts["divergence"]))
    True
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from cv_core.checks import check_range
from jaxtyping import Float, Int
from torch import Tensor

from cv_adversarial.attacks.balls import Norm, ball
from cv_adversarial.attacks.base import Attack, Goal, Model, Oracle
from cv_adversarial.training.base import Parts, TrainingLoss, detached, evaluating
from cv_adversarial.training.single_step import ExamplesLoss

_SPREAD = 1e-3  # standard deviation of TRADES's first step: at the image itself D has no gradient


class PGDATLoss(ExamplesLoss):
    """PGD-AT: training on PGD examples, from a random point of the ball.

    *Towards Deep Learning Models Resistant to Adversarial Attacks*, A. Madry, A. Makelov,
    L. Schmidt, D. Tsipras and A. Vladu, ICLR 2018.

    Deviations from the paper: the length of a step depends on their number by default.

    Args:
        eps: Radius of the ball in its norm, in pixel units.
        alpha: Length of a step in that norm; ``2.5 * eps / steps`` by default, which is the
            paper's 2/255 for its 8/255 and 10 steps.
        steps: Number of steps; 10 by default.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        seed: Of the random points; one stream runs through all calls.

    Raises:
        TypeError: If a number is expected and something else came.
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        eps: float,
        *,
        alpha: float | None = None,
        steps: int = 10,
        norm: Norm = "linf",
        seed: int = 0,
    ) -> None:
        super().__init__(eps, alpha=alpha, steps=steps, norm=norm, seed=seed)


class TRADESLoss(TrainingLoss):
    """TRADES: cross entropy of the clean images, and how far adversarial outputs are from theirs.

    *Theoretically Principled Trade-off between Robustness and Accuracy*, H. Zhang, Y. Yu, J. Jiao,
    E. P. Xing, L. El Ghaoui and M. I. Jordan, ICML 2019; the loss is in this module's docstring.
    The examples raise the divergence from the image on, after a normal step of deviation 0.001.

    Deviations from the paper: it writes the weight as 1 / lambda; here it is its code's beta. With
    ``beta = 0`` no example is searched for.

    Args:
        eps: Radius of the ball in its norm, in pixel units.
        beta: Weight of the divergence, at least 0; 6 by default, the paper's for CIFAR-10.
        alpha: Length of a step in that norm; ``2.5 * eps / steps`` by default.
        steps: Number of steps; 10 by default.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        seed: Of the first steps; one stream runs through all calls.

    Raises:
        TypeError: If a number is expected and something else came.
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        eps: float,
        beta: float = 6.0,
        *,
        alpha: float | None = None,
        steps: int = 10,
        norm: Norm = "linf",
        seed: int = 0,
    ) -> None:
        super().__init__(eps, alpha=alpha, steps=steps, norm=norm, seed=seed)
        check_range(self._owner, "beta", beta, low=0.0)
        self.beta = beta

    def examples(
        self, model: Model, x: Float[Tensor, "b *image"], y: Int[Tensor, " b"]
    ) -> Float[Tensor, "b *image"]:
        """Return images of the ball whose outputs are far from the clean images'."""
        attack = _DivergenceAscent(
            model, self.eps, alpha=self.alpha, steps=self.steps, norm=self.norm
        )
        with evaluating(model):
            return attack(x, y, generator=self.generator)

    def forward(
        self, model: Model, x: Float[Tensor, "b *image"], y: Int[Tensor, " b"]
    ) -> tuple[Float[Tensor, ""], Parts]:
        """Return the loss and its parts ``"clean"`` and ``"divergence"``, the latter unweighted."""
        adv = self.examples(model, x, y) if self.beta > 0 else None
        logits = model(x)
        clean = F.cross_entropy(logits, y)
        if adv is None:
            return clean, detached(clean=clean, divergence=torch.zeros_like(clean))
        gap = divergence(logits, model(adv)).mean()
        return clean + self.beta * gap, detached(clean=clean, divergence=gap)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"{super().extra_repr()}, beta={self.beta!r}"


class MARTLoss(TrainingLoss):
    """MART: adversarial training that cares most for images which are misclassified as they are.

    *Improving Adversarial Robustness Requires Revisiting Misclassified Examples*, Y. Wang, D. Zou,
    J. Yi, J. Bailey, X. Ma and Q. Gu, ICLR 2020; the loss is in this module's docstring.

    Deviations from the paper: the logarithm of ``1 - max p`` is computed from the logits without
    cancellation, so it needs no constant that keeps it finite.

    Args:
        eps: Radius of the ball in its norm, in pixel units.
        lam: Weight of the divergence, at least 0; the paper's 5 by default.
        alpha: Length of a step in that norm; ``2.5 * eps / steps`` by default.
        steps: Number of steps; 10 by default.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        seed: Of the random points; one stream runs through all calls.

    Raises:
        TypeError: If a number is expected and something else came.
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        eps: float,
        lam: float = 5.0,
        *,
        alpha: float | None = None,
        steps: int = 10,
        norm: Norm = "linf",
        seed: int = 0,
    ) -> None:
        super().__init__(eps, alpha=alpha, steps=steps, norm=norm, seed=seed)
        check_range(self._owner, "lam", lam, low=0.0)
        self.lam = lam

    def forward(
        self, model: Model, x: Float[Tensor, "b *image"], y: Int[Tensor, " b"]
    ) -> tuple[Float[Tensor, ""], Parts]:
        """Return the loss and its parts ``"boosted"`` and ``"divergence"``, the latter weighted.

        The first is the boosted cross entropy, the first two terms of the loss; the second is the
        divergence with its weight of each image but without ``lam``.
        """
        adv = self.examples(model, x, y)
        logits, adv_logits = model(x), model(adv)
        boosted = boosted_cross_entropy(adv_logits, y).mean()
        label = logits.softmax(1).gather(1, y.long()[:, None]).squeeze(1)
        gap = (divergence(logits, adv_logits) * (1.0 - label)).mean()
        return boosted + self.lam * gap, detached(boosted=boosted, divergence=gap)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"{super().extra_repr()}, lam={self.lam!r}"


def boosted_cross_entropy(
    logits: Float[Tensor, "b k"], y: Int[Tensor, " b"]
) -> Float[Tensor, " b"]:
    r"""Return :math:`-\ln p_y - \ln(1 - \max_{k \ne y} p_k)` of each row, MART's first term."""
    log_p = logits.log_softmax(1)
    label = y.long()[:, None]
    rival = log_p.scatter(1, label, -torch.inf).argmax(1, keepdim=True)
    # 1 - p of one class is the sum of the others', also where p is 1 to the last digit
    rest = log_p.scatter(1, rival, -torch.inf).logsumexp(1)
    return -log_p.gather(1, label).squeeze(1) - rest


def divergence(first: Float[Tensor, "b k"], second: Float[Tensor, "b k"]) -> Float[Tensor, " b"]:
    """Return the Kullback-Leibler divergence of each row's distributions, both as logits."""
    log_p, log_q = first.log_softmax(1), second.log_softmax(1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


class _DivergenceAscent(Attack):
    """TRADES's inner maximisation; of the goal it needs nothing."""

    def __init__(self, model: Model, eps: float, *, alpha: float, steps: int, norm: Norm) -> None:
        super().__init__(model)
        self.eps = eps
        self.alpha = alpha
        self.steps = steps
        self.norm = norm

    def _perturb(self, x: Tensor, goal: Goal, oracle: Oracle, generator: torch.Generator) -> Tensor:
        reference = oracle.query(x)

        def objective(logits: Tensor, _: Goal) -> Tensor:
            return divergence(reference, logits)

        region = ball(self.norm, x, self.eps)
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=generator.device)
        z = region.project(x + _SPREAD * noise.to(x.device))
        for _ in range(self.steps):
            gradient, _, _ = oracle.ascend(z, goal, objective)
            z = region.move(z, gradient, self.alpha)
        return z
