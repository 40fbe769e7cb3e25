"""One shared representation of several views by deep factors and discriminators (SharedDeepMF)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from cv_core.checks import check_choice, check_integer, check_range, check_shape
from cv_core.losses.adversarial import Objective, discriminator_loss, generator_loss
from cv_core.random import seeded
from cv_core.registry import Card, Example, Reference
from jaxtyping import Float
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.nn import functional

from cv_factorization._shared.arrays import as_floating, like_given
from cv_factorization._shared.views import as_views, like_views
from cv_factorization.deep import ALL, SharedFactors, mlp

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from cv_factorization.deep import Rows

_DISTANCES: dict[str, Callable[..., Tensor]] = {
    "mse": functional.mse_loss,
    "bce": functional.binary_cross_entropy_with_logits,
}


def _tell(real: Tensor, fake: Tensor) -> Tensor:
    return functional.softplus(-real).mean() + functional.softplus(fake).mean()


def _fool(_real: Tensor, fake: Tensor) -> Tensor:
    return functional.softplus(-fake).mean()


LOGISTIC = Objective(_tell, _fool, relativistic=False)
"""-ln D(x) - ln(1 - D(G)); -ln D(G). Goodfellow et al., NIPS 2014, not saturating."""


class SharedDeepMF(TransformerMixin, BaseEstimator):
    r"""Deep factorisation of several views with one shared representation and discriminators.

    Huang, Zhang, Fu, Wang: Enhanced Multi-view Matrix Factorization with Shared Representation.
    PRCV 2021, LNCS 13022, pp. 276-287.

    .. math::
        \min_{H, g}\; \sum_v \mathrm{dist}(X_v, g_v(H))
        - \lambda_d \sum_v \frac1n \sum_j \ln D_v(g_v(h_j)), \qquad
        \max_D\; \sum_v \frac1n \sum_j \ln D_v(x_j^v) + \ln\big(1 - D_v(g_v(h_j))\big)

    :math:`X_v` (n, d_v) are the views of the same n samples, H (n, k) their representation, the
    output of a network on the rows of the identity matrix (Eq. 4: every sample is a free row),
    :math:`g_v` the decoder and :math:`D_v` the discriminator of a view, all of them linear layers
    with ReLUs between. The first objective is Eq. 9 (:math:`L_R + \lambda_d L_{RD}`), the second
    Eq. 7 (:math:`L_D`); each iteration takes a step of Adam on either. Without hidden layers and
    discriminators, and with views divided by :math:`\sqrt{d_v}`, this is principal component
    analysis of the views side by side (``cv_factorization.baselines.views.SharedSVD``).

    Views should come at about the same scale, entries of the order of 1: the terms of
    :math:`L_R` are means over entries, and :math:`\lambda_d` weighs them against a term of
    :math:`\ln 2` per view. Arrays and tensors are computed in their own type and on their own
    device: float32 halves the time.

    Args:
        n_components: Columns k of H; as many as clusters are sought is a good start.
        hidden: Widths of the encoder's hidden layers; the decoders have them in opposite order.
        disc_hidden: Widths of the discriminators' hidden layers.
        lambda_d: :math:`\lambda_d \ge 0`; 0 builds no discriminators.
        dist: ``"mse"``, or ``"bce"`` for entries in [0, 1], which are then fitted by sigmoids.
        nonnegative: Whether H passes a ReLU as the hidden layers do.
        max_iter: Iterations; with ``batch_size`` passes over the samples. All are taken.
        batch_size: Samples of one step; ``None`` takes all at once, as the paper does.
        lr: Learning rate of encoder and decoders.
        disc_lr: Learning rate of the discriminators; 0 leaves them as they start.
        weight_decay: Decoupled decay of encoder and decoders (Loshchilov, Hutter, ICLR 2019).
        random_state: Seed or ``numpy.random.Generator``; ``None`` draws from the system.

    Attributes:
        embedding_: (n, k) the H of the training samples.
        factors_: Encoder and decoders, a ``torch.nn.Module``.
        discriminators_: A ``torch.nn.ModuleList`` of networks that return logits.
        objective_: (n_iter_,) the first objective in every iteration, before its step.
        history_: The three parts by name, ``"L_R"``, ``"L_RD"`` and ``"L_D"``, (n_iter_,) each.
        n_iter_: Iterations taken.
        n_features_in_: Columns of X, or the list of those of its views.

    Deviations from the paper: H is not rectified unless asked for (dead units would give samples
    the same code; the text allows either); Adam, its rates and the layers' start are not stated;
    weight decay and batches are additions. So is ``encode``; the method itself knows its training
    samples only, hence no ``transform``.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> H = rng.standard_normal((40, 2))
        >>> views = [H @ rng.standard_normal((2, d)) for d in (5, 8)]
        >>> model = SharedDeepMF(2, hidden=(16,), disc_hidden=(8,), max_iter=50, random_state=0)
        >>> model.fit_transform(views).shape
        (40, 2)
        >>> [part.shape for part in model.inverse_transform(model.embedding_)]
        [(40, 5), (40, 8)]
    """

    def __init__(
        self,
        n_components: int = 10,
        *,
        hidden: Sequence[int] = (1000, 500, 200),
        disc_hidden: Sequence[int] = (200, 100, 50),
        lambda_d: float = 0.1,
        dist: Literal["mse", "bce"] = "mse",
        nonnegative: bool = False,
        max_iter: int = 800,
        batch_size: int | None = None,
        lr: float = 1e-3,
        disc_lr: float = 1e-4,
        weight_decay: float = 0.0,
        random_state: int | np.random.Generator | None = None,
    ) -> None:
        self.n_components = n_components
        self.hidden = hidden
        self.disc_hidden = disc_hidden
        self.lambda_d = lambda_d
        self.dist = dist
        self.nonnegative = nonnegative
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.lr = lr
        self.disc_lr = disc_lr
        self.weight_decay = weight_decay
        self.random_state = random_state

    @torch.enable_grad()
    def fit(self, X: Any, y: object = None) -> SharedDeepMF:  # noqa: ARG002 - scikit-learn's
        """Learn the representation.

        Args:
            X: The views: a list of (n, d_v) arrays or tensors, or one (views, n, d) array; a single
                (n, d) matrix is one view.
            y: Not used; for scikit-learn's conventions.

        Raises:
            TypeError: If a tensor is neither float32 nor float64, or a view is sparse.
            ValueError: If the views differ in rows, an entry is not finite or, for ``dist="bce"``,
                outside [0, 1], or an option is out of range.
        """
        self._check_options()
        views = self._checked(X, reset=True)
        rng = np.random.default_rng(self.random_state)
        self._build(views, int(rng.integers(2**63)))
        course = self._train(views, rng)
        self.history_ = dict(zip(("L_R", "L_RD", "L_D"), course, strict=True))
        self.objective_ = self.history_["L_R"] + self.lambda_d * self.history_["L_RD"]
        self.n_iter_ = len(self.objective_)
        self.embedding_ = like_views(self.factors_.codes().detach(), X)
        return self

    def fit_transform(self, X: Any, y: object = None) -> Any:
        """Learn and return the representation H, ``embedding_``.

        Args:
            X: The views, as for ``fit``.
            y: Not used; for scikit-learn's conventions.
        """
        return self.fit(X, y).embedding_

    def _check_options(self) -> None:
        owner = type(self).__name__
        check_integer(owner, "n_components", self.n_components, low=1)
        for name in ("hidden", "disc_hidden"):
            for width in getattr(self, name):
                check_integer(owner, f"widths in {name}", width, low=1)
        check_choice(owner, "dist", self.dist, _DISTANCES)
        check_integer(owner, "max_iter", self.max_iter, low=1)
        if self.batch_size is not None:
            check_integer(owner, "batch_size", self.batch_size, low=1)
        check_range(owner, "lr", self.lr, low=0, low_open=True)
        for name in ("lambda_d", "disc_lr", "weight_decay"):
            check_range(owner, name, getattr(self, name), low=0)

    def _checked(self, X: Any, *, reset: bool) -> list[Tensor]:
        views = as_views(self, X, reset=reset)
        if self.dist == "bce" and any(bool(((view < 0) | (view > 1)).any()) for view in views):
            raise ValueError(
                f"{type(self).__name__}: entries must lie in [0, 1] with dist='bce'; scale the "
                "views or use dist='mse'."
            )
        return views

    def _build(self, views: Sequence[Tensor], seed: int) -> None:
        """Start the networks, each kind from draws of its own."""
        sizes = [view.shape[1] for view in views]
        with seeded(seed, "factors"):
            factors = SharedFactors(
                len(views[0]),
                sizes,
                self.n_components,
                hidden=self.hidden,
                nonnegative=self.nonnegative,
            )
        judged = sizes if self.lambda_d > 0 else []
        with seeded(seed, "discriminators"):
            critics = nn.ModuleList(mlp([size, *self.disc_hidden, 1]) for size in judged)
        self.factors_ = factors.to(views[0].device, views[0].dtype)
        self.discriminators_ = critics.to(views[0].device, views[0].dtype)

    def _train(self, views: Sequence[Tensor], rng: np.random.Generator) -> np.ndarray:
        """Take all steps; return the (3, max_iter) course of L_R, L_RD and L_D."""
        adam = partial(torch.optim.AdamW, fused=views[0].device.type in ("cpu", "cuda"))
        optimizer = adam(self.factors_.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        critics = list(self.discriminators_.parameters())
        critic_optimizer = (
            adam(critics, lr=self.disc_lr, weight_decay=0.0) if critics and self.disc_lr else None
        )
        n, course = len(views[0]), []
        for _ in range(self.max_iter):
            parts = [
                len(views[0][rows]) / n * self._step(views, rows, optimizer, critic_optimizer)
                for rows in self._batches(n, rng, views[0].device)
            ]
            course.append(torch.stack(parts).sum(dim=0))
        return torch.stack(course, dim=1).cpu().numpy().astype(np.float64)

    def _batches(self, n: int, rng: np.random.Generator, device: torch.device) -> Iterator[Rows]:
        if self.batch_size is None or self.batch_size >= n:
            yield ALL
        else:
            yield from torch.from_numpy(rng.permutation(n)).to(device).split(self.batch_size)

    def _step(
        self,
        views: Sequence[Tensor],
        rows: Rows,
        optimizer: Optimizer,
        critic_optimizer: Optimizer | None,
    ) -> Float[Tensor, "3"]:
        """One step of either side, on the same reconstructions; return L_R, L_RD and L_D."""
        real = [view[rows] for view in views]
        outputs = self.factors_.decode(self.factors_.codes(rows))
        fake = [self._entries(output) for output in outputs]
        pairs = list(zip(self.discriminators_, real, fake, strict=False))
        none = real[0].new_zeros(())
        fit = sum(map(_DISTANCES[self.dist], outputs, real), none)
        fool = sum((generator_loss(D, x, made, LOGISTIC) for D, x, made in pairs), none)
        _descend(optimizer, fit + self.lambda_d * fool)
        tell = sum((discriminator_loss(D, x, made, LOGISTIC) for D, x, made in pairs), none)
        if critic_optimizer is not None:
            _descend(critic_optimizer, tell)
        return torch.stack([fit, fool, -tell]).detach()

    def _entries(self, output: Tensor) -> Tensor:
        return output.sigmoid() if self.dist == "bce" else output

    def encode(self, X: Any) -> Any:
        r"""Search codes of new samples: :math:`\min_h \sum_v \mathrm{dist}(x_v, g_v(h))`, each.

        The decoders stay. A search starts at the training code whose reconstruction is nearest,
        takes ``max_iter`` steps of Adam, and returns the best code that it met: a local minimum.
        A training sample comes back near its row of ``embedding_`` as far as training had come to
        rest, and its discriminators had no say: this is no ``transform``.

        Args:
            X: The views of the new samples, as for ``fit``.

        Returns:
            (n, k), of the kind of X.

        Raises:
            TypeError: As ``fit``.
            ValueError: As ``fit``, and for other columns than those of ``fit``.
            sklearn.exceptions.NotFittedError: Before ``fit``.
        """
        check_is_fitted(self)
        views = self._checked(X, reset=False)
        parameter = next(self.factors_.parameters())
        views = [view.to(parameter) for view in views]
        with torch.no_grad():
            H = self._nearest_codes(views)
        return like_views(self._search(views, H), X)

    def _nearest_codes(self, views: Sequence[Tensor]) -> Float[Tensor, "b k"]:
        known = self.factors_.codes()
        gaps = [
            torch.cdist(view, self._entries(output)).square() / view.shape[1]
            for view, output in zip(views, self.factors_.decode(known), strict=True)
        ]
        return known[torch.stack(gaps).sum(dim=0).argmin(dim=1)]

    @torch.enable_grad()
    def _search(self, views: Sequence[Tensor], H: Tensor) -> Float[Tensor, "b k"]:
        best, least = H, H.new_full((len(H),), torch.inf)
        H = H.clone().requires_grad_()
        optimizer = torch.optim.Adam([H], lr=self.lr)
        for _ in range(self.max_iter + 1):
            outputs = self.factors_.decode(H.relu() if self.nonnegative else H)
            parts = [
                _DISTANCES[self.dist](output, view, reduction="none").mean(dim=1)
                for output, view in zip(outputs, views, strict=True)
            ]
            losses = torch.stack(parts).sum(dim=0)
            better = losses.detach() < least
            best = torch.where(better[:, None], H.detach(), best)
            least = torch.where(better, losses.detach(), least)
            (H.grad,) = torch.autograd.grad(losses.sum(), H)
            optimizer.step()
        return best.relu() if self.nonnegative else best

    @torch.no_grad()
    def inverse_transform(self, H: Any) -> Any:
        """Return what codes stand for: of ``embedding_``, the reconstruction of the training data.

        Args:
            H: Codes (n, k), an array or a tensor.

        Returns:
            The views as a list of (n, d_v), or one (n, d) if ``fit`` was given a single matrix; of
            the kind of H.

        Raises:
            ValueError: If H is not (n, k).
            sklearn.exceptions.NotFittedError: Before ``fit``.
        """
        check_is_fitted(self)
        check_shape(type(self).__name__, "H", H, "n k", k=self.n_components)
        codes = as_floating(H).to(next(self.factors_.parameters()))
        outputs = [like_given(self._entries(view), H) for view in self.factors_.decode(codes)]
        return outputs if isinstance(self.n_features_in_, list) else outputs[0]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _descend(optimizer: Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _examples() -> list[Example]:
    def inputs(generator: torch.Generator) -> tuple[np.ndarray]:
        return (torch.rand(30, 8, generator=generator, dtype=torch.float64).numpy(),)

    deep: dict[str, Any] = {"hidden": (16,), "max_iter": 12, "random_state": 0}
    return [
        Example(build=partial(SharedDeepMF, 2, disc_hidden=(8,), **deep), inputs=inputs),
        Example(
            build=partial(SharedDeepMF, 2, lambda_d=0.0, nonnegative=True, **deep), inputs=inputs
        ),
    ]


CARD = Card(
    slug="enhanced-mvmf",
    title="One shared representation of several views by deep factors and discriminators",
    reference=Reference(
        title="Enhanced Multi-view Matrix Factorization with Shared Representation",
        authors="Huang, Zhang, Fu, Wang",
        venue="PRCV, LNCS 13022",
        year=2021,
        pages="276-287",
    ),
    kind="estimator",
    objects=(
        "cv_factorization.methods.enhanced_mvmf.SharedDeepMF",
        "cv_factorization.deep.IdentityEncoder",
    ),
    examples=_examples,
)
