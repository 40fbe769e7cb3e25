r"""Training a ReLU classifier without back-propagation: blocks in turn, activations log-penalised.

Xie, Li, Zhao: *Gradient-Free Neural Network Training Based on Deep Dictionary Learning with the Log
Regularizer*, PRCV 2021, LNCS 13022, pp. 561-574.

A network of L layers is relaxed: pre-activations :math:`Z_l` and activations :math:`A_l` of all
samples (rows, :math:`A_0 = X`) become variables, tied to each other by quadratic penalties,

.. math::
    \sum_{l<L} \Big[ \tfrac{\gamma}{2} \|A_l - \phi(Z_l)\|^2
    + \tfrac{\rho}{2} \|Z_l - A_{l-1} W_l^\top - b_l\|^2 \Big]
    + \lambda \sum_{l \le L-2} \sum \log(1 + |A_l|/\epsilon)
    + \tfrac{\beta}{2} \|Z_L - A_{L-1} W_L^\top - b_L\|^2 + \tfrac{\alpha}{2} \|Z_L - Y\|^2,

with :math:`\phi` the ReLU and Y the classes, one-hot. A sweep goes through the layers, in each
through W, b, Z and A, and takes for each block the minimiser of this plus
:math:`\tfrac{\delta}{2} \|\cdot - \text{previous}\|^2`; a penalised A takes one proximal step.

Deviations from the paper, whose printed equations cannot all be meant:
    - (7) lacks a transpose; (8) would give each sample a bias of its own, here the mean over
      samples is taken, which is the block's minimiser.
    - (14) couples A with its own layer, in which it does not occur; (15), with the next one, is
      used, and with that layer's present values, which a forward sweep has not updated yet.
    - (17) as printed is odd only once :math:`\mathrm{sign}(x)` stands in front, and its threshold
      :math:`2\sqrt{\lambda/\delta} - \epsilon` is where a stationary point appears, not where it
      beats 0: ``cv_core.numerics.proximal.prox_log`` compares the two.
    - (18) and (19) write :math:`\rho` where (4) has :math:`\beta` and :math:`\gamma`; (21) lacks a
      bracket. The derivations from (4) are used.
    - The proximal step of length :math:`1/\delta` descends only if
      :math:`\delta \ge \rho \|W_{l+1}\|_2^2 + \gamma`. With ``safeguard`` the larger of both sides
      is taken, and no step raises the objective; without it the step is as printed, threshold
      included, and the objective may rise.
    - :math:`\alpha, \beta, \gamma` and the start are not given: 1, :math:`\rho`, :math:`\rho`, and
      weights of deviation 0.01 with one forward pass.

Only :math:`A_1` to :math:`A_{L-2}` are penalised: with one hidden layer nothing is.

Example:
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> model = LogPBCDClassifier((32, 32), max_iter=60, random_state=0).fit(X[:500] / 16, y[:500])
    >>> bool((np.diff(model.objective_) <= 0).all())
    True
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from cv_core.checks import check_integer, check_range
from cv_core.numerics.blocks import block_coordinate_descent
from cv_core.registry import Card, Example, Reference
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    check_array,
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
)
from torch import Tensor

from cv_factorization._shared.arrays import as_samples, like_given
from cv_factorization.sparse.atoms import Array
from cv_factorization.split_network import Blocks, SplitNetwork, starting_weights


class LogPBCDClassifier(ClassifierMixin, BaseEstimator):
    r"""A ReLU network trained by proximal block coordinate descent with log-penalised activations.

    The module's text has the equations. Takes NumPy arrays and tensors, computes in their type and
    on their device; all samples are used at once. ``lam=0`` is plain proximal block coordinate
    descent with one linearised step for the first activations; a large ``eps`` with
    ``lam = c * eps`` is the L1 penalty with weight c.

    Args:
        hidden: Widths of the hidden layers, at least one; the paper has (500, 500).
        rho: :math:`\rho > 0`.
        gamma: :math:`\gamma > 0`; ``None`` for ``rho``.
        beta: :math:`\beta > 0`; ``None`` for ``rho``.
        alpha: :math:`\alpha > 0`.
        delta: :math:`\delta > 0`.
        lam: :math:`\lambda \ge 0`; 3e-6 is the paper's for MNIST, 1e-7 for Fashion-MNIST.
        eps: :math:`\epsilon > 0`; 1e-3 is the paper's for MNIST, 1e-4 for Fashion-MNIST.
        max_iter: Sweeps; all of them are taken.
        safeguard: Whether no step may raise the objective; ``False`` takes the steps as printed.
        init_std: Standard deviation of the first weights; ``"he"`` for
            :math:`\sqrt{2 / \text{inputs}}` (He et al., ICCV 2015).
        warm_start: Whether ``fit`` goes on from where the last one ended, with the same samples.
        random_state: Seed or ``numpy.random.Generator``; ``None`` draws from the system.

    Attributes:
        weights_: The :math:`W_l`, each (outputs, inputs).
        biases_: The :math:`b_l`.
        objective_: (max_iter + 1,) the objective at the start and after each sweep.
        sparsity_: Share of exact zeros in :math:`A_1`.
        classes_: The labels.
        n_iter_: Sweeps taken.
        n_features_in_: d0.
        feature_names_in_: Names of the columns of X, if they all had names.
    """

    def __init__(
        self,
        hidden: Sequence[int] = (500, 500),
        *,
        rho: float = 1.7,
        gamma: float | None = None,
        beta: float | None = None,
        alpha: float = 1.0,
        delta: float = 1.0,
        lam: float = 3e-6,
        eps: float = 1e-3,
        max_iter: int = 300,
        safeguard: bool = True,
        init_std: float | Literal["he"] = 0.01,
        warm_start: bool = False,
        random_state: int | np.random.Generator | None = None,
    ) -> None:
        self.hidden = hidden
        self.rho = rho
        self.gamma = gamma
        self.beta = beta
        self.alpha = alpha
        self.delta = delta
        self.lam = lam
        self.eps = eps
        self.max_iter = max_iter
        self.safeguard = safeguard
        self.init_std = init_std
        self.warm_start = warm_start
        self.random_state = random_state

    @torch.no_grad()
    def fit(self, X: Array, y: Any) -> LogPBCDClassifier:
        """Train the network.

        Args:
            X: Samples as rows (n, d0).
            y: Their labels (n,), of any kind.

        Raises:
            ValueError: If X is not finite, y does not fit, or an option is out of range.
            FloatingPointError: If the objective becomes infinite, which only ``safeguard=False``
                allows.
        """
        self._check_options()
        rows = as_samples(self, X, reset=True)
        labels = self._encode(rows, y)
        network = self._network(rows, labels)
        kept: Blocks | None = getattr(self, "_blocks", None) if self.warm_start else None
        if kept is None:
            rng = np.random.default_rng(self.random_state)
            widths = [rows.shape[1], *self.hidden, len(self.classes_)]
            kept = network.start(starting_weights(widths, self.init_std, rng, rows))
        found = block_coordinate_descent(
            kept, network.updates(), network.objective, max_sweeps=self.max_iter, tol=0.0
        )
        if self.warm_start:
            self._blocks = found.blocks
        layers = range(1, network.depth + 1)
        self.weights_ = [like_given(found.blocks[f"W{layer}"], X) for layer in layers]
        self.biases_ = [like_given(found.blocks[f"b{layer}"], X) for layer in layers]
        self.objective_ = np.array(found.objective)
        self.sparsity_ = float((found.blocks["A1"] == 0).double().mean())
        self.n_iter_ = found.sweeps
        return self

    def _check_options(self) -> None:
        owner = type(self).__name__
        if not self.hidden:
            raise ValueError(f"{owner}: hidden must name at least one layer; got {self.hidden!r}.")
        for width in self.hidden:
            check_integer(owner, "hidden", width, low=1)
        for name in ("rho", "gamma", "beta", "alpha", "delta", "eps"):
            value = getattr(self, name)
            if value is not None or name not in ("gamma", "beta"):
                check_range(owner, name, value, low=0.0, low_open=True)
        check_range(owner, "lam", self.lam, low=0.0)
        check_integer(owner, "max_iter", self.max_iter, low=1)
        if self.init_std != "he":
            check_range(owner, "init_std", self.init_std, low=0.0, low_open=True)

    def _encode(self, rows: Tensor, y: Any) -> Tensor:
        """Learn the classes; return each sample's number."""
        if y is None:
            owner = type(self).__name__
            raise ValueError(f"{owner} requires y to be passed, but the target y is None.")
        y = y.cpu().numpy() if isinstance(y, Tensor) else y
        y = column_or_1d(check_array(y, ensure_2d=False, dtype=None, input_name="y"), warn=True)
        check_classification_targets(y)
        check_consistent_length(rows, y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        return torch.from_numpy(numbers).to(rows.device)

    def _network(self, rows: Tensor, labels: Tensor) -> SplitNetwork:
        return SplitNetwork(
            X=rows,
            Y=torch.nn.functional.one_hot(labels, len(self.classes_)).to(rows),
            depth=len(self.hidden) + 1,
            alpha=self.alpha,
            beta=self.rho if self.beta is None else self.beta,
            gamma=self.rho if self.gamma is None else self.gamma,
            rho=self.rho,
            delta=self.delta,
            lam=self.lam,
            eps=self.eps,
            safeguard=self.safeguard,
        )

    def activations(self, X: Array) -> list[Tensor]:
        """Return every layer's output for samples (n, d0): the ReLUs', then the scores.

        Raises:
            ValueError: If X is not finite or has not the columns of ``fit``.
            sklearn.exceptions.NotFittedError: Before ``fit``.
        """
        check_is_fitted(self, "weights_")
        outputs = [as_samples(self, X, reset=False)]
        for layer, parts in enumerate(zip(self.weights_, self.biases_, strict=True), 1):
            W, b = (torch.as_tensor(part).to(outputs[0]) for part in parts)
            Z = torch.addmm(b, outputs[-1], W.mT)
            outputs.append(Z if layer == len(self.weights_) else Z.clamp(min=0.0))
        return outputs[1:]

    def decision_function(self, X: Array) -> Any:
        """Return the scores of samples, (n, classes), or (n,) for two classes."""
        scores = self.activations(X)[-1]
        return like_given(scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores, X)

    def predict(self, X: Array) -> np.ndarray:
        """Return the labels with the highest scores, (n,)."""
        scores = self.activations(X)[-1]
        return self.classes_[scores.argmax(dim=1).cpu().numpy()]


def _examples() -> list[Example]:
    def inputs(generator: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
        X = torch.randn(40, 6, generator=generator, dtype=torch.float64)
        return X.numpy(), (X[:, :3].argmax(dim=1)).numpy()

    build = partial(LogPBCDClassifier, (16, 16), max_iter=60, init_std="he", random_state=0)
    return [Example(build=build, inputs=inputs)]


CARD = Card(
    slug="log-pbcd",
    title="A classifier trained block by block, with log-penalised activations",
    reference=Reference(
        title=(
            "Gradient-Free Neural Network Training Based on Deep Dictionary Learning with the Log "
            "Regularizer"
        ),
        authors="Xie, Li, Zhao",
        venue="PRCV, LNCS 13022",
        year=2021,
        pages="561-574",
    ),
    kind="estimator",
    objects=(
        "cv_factorization.methods.log_pbcd.LogPBCDClassifier",
        "cv_factorization.split_network.printed_log_threshold",
        "cv_factorization.split_network.prox_relu_split",
    ),
    examples=_examples,
)
