"""Label noise of known kind and rate, drawn from an explicit generator."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from cv_core.checks import (
    check_choice,
    check_finite,
    check_indices,
    check_integer,
    check_range,
    check_shape,
)

Noisy = tuple[Int64[Tensor, " n"], Bool[Tensor, " n"]]

CONFUSIONS: dict[str, tuple[int, dict[int, int]]] = {
    "mnist": (10, {2: 7, 3: 8, 5: 6, 6: 5, 7: 1}),
    # truck -> automobile, bird -> airplane, deer -> horse, cat <-> dog
    "cifar10": (10, {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}),
}
"""Number of classes, and what each confused class is taken for, as usual in the literature."""


def uniform_label_noise(
    y: Int64[Tensor, " n"], eta: float, num_classes: int, generator: torch.Generator
) -> Noisy:
    r"""Replace labels by one of the *other* classes, all alike.

    .. math:: P(\tilde y = j \mid y = i) = 1 - \eta \text{ if } i = j, \text{ else } \eta / (K - 1)

    Args:
        y: (N,) classes in [0, K).
        eta: Probability of a wrong label, in [0, 1].
        num_classes: K, at least 2.
        generator: Source of the draws.

    Returns:
        The noisy labels, and which of them are wrong.

    Raises:
        ValueError: If a class or ``eta`` is out of range.
    """
    owner = "uniform_label_noise"
    _check(owner, y, eta, num_classes)
    flipped = _draw(y, generator) < eta
    shift = torch.randint(1, num_classes, y.shape, generator=generator, device=generator.device).to(
        y.device
    )
    return torch.where(flipped, (y + shift) % num_classes, y), flipped


def circular_label_noise(
    y: Int64[Tensor, " n"], eta: float, num_classes: int, generator: torch.Generator
) -> Noisy:
    r"""Replace labels by the next class.

    .. math:: P(\tilde y = (i + 1) \bmod K \mid y = i) = \eta

    Args:
        y: (N,) classes in [0, K).
        eta: Probability of a wrong label, in [0, 1].
        num_classes: K, at least 2.
        generator: Source of the draws.

    Returns:
        The noisy labels, and which of them are wrong.

    Raises:
        ValueError: If a class or ``eta`` is out of range.
    """
    _check("circular_label_noise", y, eta, num_classes)
    flipped = _draw(y, generator) < eta
    return torch.where(flipped, (y + 1) % num_classes, y), flipped


def transition_label_noise(
    y: Int64[Tensor, " n"], transition: Float[Tensor, "k k"], generator: torch.Generator
) -> Noisy:
    r"""Draw labels from the row of a transition matrix that belongs to the true class.

    .. math:: P(\tilde y = j \mid y = i) = T_{ij}

    Args:
        y: (N,) classes in [0, K).
        transition: (K, K), rows sum to 1.
        generator: Source of the draws.

    Returns:
        The noisy labels, and which of them are wrong.

    Raises:
        ValueError: If a class is out of range or a row is not a distribution.
    """
    owner = "transition_label_noise"
    sizes = check_shape(owner, "transition", transition, "k k")
    _check(owner, y, 0.0, sizes["k"])
    check_finite(owner, "transition", transition)
    rows = transition.to(torch.float64)
    if bool((rows < 0).any()) or bool((rows.sum(1) - 1).abs().max() > 1e-5):
        raise ValueError(f"{owner}: transition must hold non-negative rows with sum 1.")
    # The inverse of the row's distribution function; the last step is 1 whatever the rounding.
    steps = (rows.cumsum(1) / rows.sum(1, keepdim=True))[:, :-1].contiguous().to(y.device)
    draws = _draw(y, generator)
    noisy = torch.searchsorted(steps[y], draws[:, None], right=True).squeeze(1)
    return noisy, noisy != y


def confusion_transition(
    name: str, eta: float, *, dtype: torch.dtype = torch.float64
) -> Float[Tensor, "k k"]:
    """Return the transition matrix of the usual class-dependent noise of a data set.

    With probability ``eta`` a class is taken for the one that looks like it: 2 -> 7, 3 -> 8,
    5 <-> 6, 7 -> 1 for MNIST; truck -> automobile, bird -> airplane, deer -> horse, cat <-> dog for
    CIFAR-10. The other classes keep their labels.

    Args:
        name: ``mnist`` or ``cifar10``.
        eta: Probability of a wrong label in the confused classes, in [0, 1].
        dtype: Type of the matrix.

    Raises:
        ValueError: For an unknown data set or ``eta`` out of range.

    Example:
        >>> confusion_transition("mnist", 0.25)[7, [1, 7]]
        tensor([0.2500, 0.7500], dtype=torch.float64)
    """
    owner = "confusion_transition"
    check_choice(owner, "name", name, CONFUSIONS)
    check_range(owner, "eta", eta, low=0.0, high=1.0)
    num_classes, confusions = CONFUSIONS[name]
    transition = torch.eye(num_classes, dtype=dtype)
    for true, wrong in confusions.items():
        transition[true, true] = 1 - eta
        transition[true, wrong] = eta
    return transition


def _check(owner: str, y: Tensor, eta: float, num_classes: int) -> None:
    check_integer(owner, "num_classes", num_classes, low=2)
    check_range(owner, "eta", eta, low=0.0, high=1.0)
    check_indices(owner, "y", y, high=num_classes, ignore=None)
    check_shape(owner, "y", y, "n")


def _draw(y: Tensor, generator: torch.Generator) -> Tensor:
    """Draw uniform numbers on the generator's device, which need not be the labels'."""
    draws = torch.rand(y.shape, generator=generator, device=generator.device, dtype=torch.float64)
    return draws.to(y.device)
