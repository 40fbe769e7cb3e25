"""How far estimated treatment effects are from the true ones, and what acting on them is worth."""

from __future__ import annotations

from typing import Any

import numpy as np
from cv_core.checks import check_finite, check_shape
from jaxtyping import Bool, Float, Int

from cv_adversarial.causal.checks import check_treatment


def sqrt_pehe(true: Float[np.ndarray, " n"], estimated: Float[np.ndarray, " n"]) -> float:
    r"""Return the root of the precision in estimating heterogeneous effects (Hill, JCGS 2011).

    .. math:: \sqrt{\tfrac1n \sum_i (\hat\tau_i - \tau_i)^2}, \qquad \tau_i = Y_i(1) - Y_i(0)

    Args:
        true: Effects :math:`\tau`, ``(n,)``.
        estimated: Their estimates :math:`\hat\tau`, ``(n,)``.

    Returns:
        The root mean square error, in the unit of the outcome; never below ``ate_error``.

    Raises:
        ValueError: If the shapes differ, nothing came, or an entry is not finite.

    Example:
        >>> sqrt_pehe(np.array([1.0, 3.0]), np.array([2.0, 2.0]))
        1.0
    """
    return float(np.sqrt(np.square(_errors("sqrt_pehe", true, estimated)).mean()))


def ate_error(true: Float[np.ndarray, " n"], estimated: Float[np.ndarray, " n"]) -> float:
    r"""Return the error of the average effect, :math:`|\mathrm{mean}(\hat\tau - \tau)|`.

    Args:
        true: Effects, ``(n,)``.
        estimated: Their estimates, ``(n,)``.

    Returns:
        A number >= 0, in the unit of the outcome.

    Raises:
        ValueError: If the shapes differ, nothing came, or an entry is not finite.

    Example:
        >>> ate_error(np.array([1.0, 3.0]), np.array([2.0, 2.0]))
        0.0
    """
    return float(abs(_errors("ate_error", true, estimated).mean()))


def policy_risk(
    ite: Float[np.ndarray, " n"],
    t: Int[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    *,
    randomized: Bool[np.ndarray, " n"] | None = None,
) -> float:
    r"""Return the loss of treating whom the estimate says to treat (Shalit et al., ICML 2017).

    .. math:: R = 1 - E[Y(1) \mid \pi = 1] P(\pi = 1) - E[Y(0) \mid \pi = 0] P(\pi = 0),
              \qquad \pi = 1[\hat\tau > 0]

    The expectations are means over the randomised units that happened to get what the policy
    says. In a finite sample a chance policy can therefore beat the best one.

    Args:
        ite: Estimated effects; their signs are the policy, and 0 counts as no treatment.
        t: Treatments, 0 or 1.
        y: Factual outcomes, best in [0, 1].
        randomized: Units whose treatment was assigned at random; all by default.

    Returns:
        The risk. A mean over no unit counts as 0, the custom of the evaluation cited.

    Raises:
        ValueError: If shapes differ, a treatment is neither 0 nor 1, an entry is not finite or no
            unit is randomised.

    Example:
        >>> t, y = np.array([0, 1, 0, 1]), np.array([0.0, 1.0, 1.0, 1.0])
        >>> policy_risk(np.ones(4), t, y), policy_risk(-np.ones(4), t, y)
        (0.0, 0.5)
    """
    owner = "policy_risk"
    effects, outcomes = _vector(owner, "ite", ite), _vector(owner, "y", y)
    check_shape(owner, "y", outcomes, "n", n=len(effects))
    treatments = check_treatment(owner, t, len(effects))
    if randomized is not None:
        chosen = np.asarray(randomized)
        check_shape(owner, "randomized", chosen, "n", n=len(effects))
        if chosen.dtype != bool or not chosen.any():
            raise ValueError(f"{owner}: randomized must be a mask that holds at least one unit.")
        effects, treatments, outcomes = effects[chosen], treatments[chosen], outcomes[chosen]
    policy = effects > 0
    value = 0.0
    for group in (0, 1):
        wanted = policy == group
        seen = wanted & (treatments == group)
        if seen.any():
            value += float(outcomes[seen].mean() * wanted.mean())
    return 1.0 - value


def _errors(owner: str, true: Any, estimated: Any) -> np.ndarray:
    left, right = _vector(owner, "true", true), _vector(owner, "estimated", estimated)
    check_shape(owner, "estimated", right, "n", n=len(left))
    return right - left


def _vector(owner: str, name: str, values: Any) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    check_shape(owner, name, array, "n")
    check_finite(owner, name, array)
    return array
