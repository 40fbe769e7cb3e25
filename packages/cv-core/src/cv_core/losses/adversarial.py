"""The two sides of adversarial training: objectives of logits, and losses that keep them apart.

An objective is a pair of functions of the discriminator's logits for real and for generated
samples. ``discriminator_loss`` and ``generator_loss`` evaluate one so that no gradient reaches the
side that is not being trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cv_core.checks import check_range, check_same_shape, check_shape

Critic = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Objective:
    """What each side minimises, as functions of the logits ``(real, fake)``.

    Args:
        discriminator: What the discriminator minimises.
        generator: What the generator minimises.
        relativistic: Whether the generator's function looks at the logits of real samples. If not,
            it is handed an empty tensor in their place, which spares a pass.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor], Tensor]
    relativistic: bool = True


def _hinge(real: Tensor, fake: Tensor) -> Tensor:
    return (1.0 - real).relu().mean() + (1.0 + fake).relu().mean()


def _minus_fake(_real: Tensor, fake: Tensor) -> Tensor:
    return -fake.mean()


def _wasserstein(real: Tensor, fake: Tensor) -> Tensor:
    return fake.mean() - real.mean()


def _relativistic(above: Tensor, below: Tensor) -> Tensor:
    """Ask the logits of one side to exceed the other side's mean by 1, and the converse."""
    over = above - below.mean() - 1.0
    under = below - above.mean() + 1.0
    return (over.square().mean() + under.square().mean()) / 2.0


def _relativistic_of_generator(real: Tensor, fake: Tensor) -> Tensor:
    return _relativistic(fake, real)


HINGE = Objective(_hinge, _minus_fake, relativistic=False)
"""max(0, 1 - D(x)) + max(0, 1 + D(G)); -D(G). Lim and Ye, 2017; Miyato et al., ICLR 2018."""

WASSERSTEIN = Objective(_wasserstein, _minus_fake, relativistic=False)
"""D(G) - D(x); -D(G). Arjovsky et al., ICML 2017: bound the critic's slope by ``gradient_penalty``
or ``clip_weights_``."""

RELATIVISTIC_LEAST_SQUARES = Objective(_relativistic, _relativistic_of_generator)
"""((D(x) - mean D(G) - 1)^2 + (D(G) - mean D(x) + 1)^2) / 2, and the sides exchanged.
Jolicoeur-Martineau, ICLR 2019."""


def discriminator_loss(
    discriminator: Critic,
    real: Float[Tensor, "b *sample"],
    fake: Float[Tensor, "b2 *sample"],
    objective: Objective = HINGE,
) -> Float[Tensor, ""]:
    """What the discriminator minimises; no gradient reaches the generator.

    Args:
        discriminator: Maps samples to logits of any shape.
        real: Real samples ``(B, ...)``.
        fake: Generated samples ``(B', ...)``, as they come; they are detached here.
        objective: ``HINGE``, ``WASSERSTEIN``, ``RELATIVISTIC_LEAST_SQUARES`` or another pair.
    """
    return objective.discriminator(discriminator(real), discriminator(fake.detach()))


def generator_loss(
    discriminator: nn.Module,
    real: Float[Tensor, "b *sample"],
    fake: Float[Tensor, "b2 *sample"],
    objective: Objective = HINGE,
) -> Float[Tensor, ""]:
    """What the generator minimises; no gradient reaches the discriminator's parameters.

    Args:
        discriminator: Maps samples to logits of any shape. Its parameters ask for no gradients
            during this call, and do again after it.
        real: Real samples ``(B, ...)``, which only relativistic objectives compare with.
        fake: Generated samples ``(B', ...)`` with the generator's graph.
        objective: ``HINGE``, ``WASSERSTEIN``, ``RELATIVISTIC_LEAST_SQUARES`` or another pair.
    """
    learning = [item for item in discriminator.parameters() if item.requires_grad]
    try:
        for item in learning:
            item.requires_grad = False
        with torch.no_grad():
            anchors = discriminator(real) if objective.relativistic else real.new_empty(0)
        return objective.generator(anchors, discriminator(fake))
    finally:
        for item in learning:
            item.requires_grad = True


def gradient_penalty(
    critic: Critic,
    real: Float[Tensor, "b *sample"],
    fake: Float[Tensor, "b *sample"],
    *,
    generator: torch.Generator,
    slope: float = 1.0,
) -> Float[Tensor, ""]:
    r"""Penalty on the critic's slope between real and generated samples.

    .. math:: \mathrm{mean} \, (\|\nabla_u D(u)\|_2 - s)^2, \qquad u = t x + (1 - t) G

    with one t per sample, uniform in [0, 1] (Gulrajani et al., NeurIPS 2017).

    Args:
        critic: Maps samples to logits; logits of one sample are added up.
        real: Real samples ``(B, ...)``.
        fake: As many generated samples; they are detached here.
        generator: Draws t, on its own device.
        slope: The s above; 0 penalises every slope.

    Returns:
        The mean over the batch, with a graph to the critic's parameters.

    Raises:
        ValueError: If the shapes differ or there are no samples.
    """
    check_shape("gradient_penalty", "real", real, "b ...")
    check_same_shape("gradient_penalty", real=real, fake=fake)
    t = torch.rand(len(real), generator=generator, device=generator.device)
    t = t.to(real).view(-1, *(1,) * (real.ndim - 1))
    between = (t * real.detach() + (1.0 - t) * fake.detach()).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    norms = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    return (norms - slope).square().mean()


def clip_weights_(critic: nn.Module, limit: float) -> None:
    """Clip every parameter to ``[-limit, limit]`` in place, as Arjovsky et al., ICML 2017.

    Args:
        critic: The network.
        limit: The largest absolute value; 0.01 in the paper.
    """
    check_range("clip_weights_", "limit", limit, low=0.0, low_open=True)
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.clamp_(-limit, limit)
