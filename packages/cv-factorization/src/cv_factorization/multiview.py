"""Canonical correlation of two views of the same samples.

For clusters of any number of views see ``cv_core.numerics.clustering.RobustMultiViewKMeans``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from cv_core.checks import check_finite, check_integer, check_range, check_shape
from jaxtyping import Float
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from cv_factorization._shared.arrays import as_floating, check_tensor, like_given


class CCA(BaseEstimator):
    r"""Linear canonical correlation analysis, plain or regularised (Hotelling; Vinod).

    .. math::
        \max_{W_1, W_2} \mathrm{tr}(W_1^\top C_{12} W_2) \quad\text{subject to}\quad
        W_v^\top \big((1 - \kappa) C_{vv} + \kappa I\big) W_v = I

    with the covariances C of the centred views. Each view is whitened by its singular vectors,
    which keeps rounding at bay and drops directions without variance; the singular vectors of the
    whitened views' cross-covariance then give all directions at once.

    H. Hotelling: Relations between two sets of variates. Biometrika 28, 1936. H. D. Vinod:
    Canonical ridge and econometrics of joint production. Journal of Econometrics 4(2), 1976.

    Args:
        n_components: Directions k per view, at most the smaller rank of the two.
        regularization: :math:`\kappa` in [0, 1]: 0 is canonical correlation analysis, 1 partial
            least squares (by singular vectors); in between it stands up to more features than
            samples. It is measured against the variances: scale the views.

    Attributes:
        means_: Per view (d_v,) the means.
        weights_: Per view (d_v, k) the W.
        correlations_: (k,) correlations of the projections of the training samples.
        objective_: (k,) covariances that were maximised, falling; without regularisation these are
            the correlations.
        n_features_in_: Per view d_v.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> shared = rng.standard_normal((50, 1))
        >>> views = [shared @ [[1.0, 2.0]], shared @ [[3.0, 0.0, 1.0]]]
        >>> CCA(1).fit(views).correlations_.round(6)
        array([1.])
    """

    def __init__(self, n_components: int = 2, *, regularization: float = 0.0) -> None:
        self.n_components = n_components
        self.regularization = regularization

    @torch.no_grad()
    def fit(self, Xs: Sequence[Any], y: object = None) -> CCA:  # noqa: ARG002 - scikit-learn's
        """Find the directions.

        Args:
            Xs: Two views (n, d_v) of the same samples, both arrays or both tensors.
            y: Not used; for scikit-learn's conventions.

        Raises:
            TypeError: If a tensor is neither float32 nor float64, or sparse.
            ValueError: If there are not two views of the same two or more samples, an entry is not
                finite, the views have too few directions, or an option is out of range.
        """
        owner = type(self).__name__
        check_integer(owner, "n_components", self.n_components, low=1)
        check_range(owner, "regularization", self.regularization, low=0, high=1)
        views = self._checked(Xs)
        if len(views[0]) < 2:
            raise ValueError(f"{owner}: Xs must hold at least 2 samples; got 1.")
        means = [view.mean(dim=0) for view in views]
        centred = [view - mean for view, mean in zip(views, means, strict=True)]
        parts = [self._whiten(view, mean) for view, mean in zip(centred, means, strict=True)]
        rank = min(scores.shape[1] for scores, _ in parts)
        if self.n_components > rank:
            raise ValueError(
                f"{owner}: n_components must be at most the smaller rank of the centred views, "
                f"{rank}; got {self.n_components}."
            )
        left, values, right = torch.linalg.svd(parts[0][0].mT @ parts[1][0], full_matrices=False)
        k = self.n_components
        weights = [parts[0][1] @ left[:, :k], parts[1][1] @ right[:k].mT]
        scores = [view @ weight for view, weight in zip(centred, weights, strict=True)]
        units = [score / torch.linalg.vector_norm(score, dim=0) for score in scores]
        self.means_ = [like_given(mean, given) for mean, given in zip(means, Xs, strict=True)]
        self.weights_ = [like_given(w, given) for w, given in zip(weights, Xs, strict=True)]
        self.correlations_ = like_given((units[0] * units[1]).sum(dim=0), Xs[0])
        self.objective_ = like_given(values[:k], Xs[0])
        self.n_features_in_ = [view.shape[1] for view in views]
        return self

    def _whiten(
        self, view: Float[Tensor, "n d"], mean: Float[Tensor, " d"]
    ) -> tuple[Float[Tensor, "n r"], Float[Tensor, "d r"]]:
        """Return the white scores of a centred view over the root of n - 1, and their weights."""
        n = len(view)
        left, values, right = torch.linalg.svd(view, full_matrices=False)
        # what is left of a constant column after its mean is rounding of its entries
        size = torch.maximum(values[0], torch.linalg.vector_norm(mean) * n**0.5)
        cut = max(view.shape) * torch.finfo(view.dtype).eps * size
        kept = values > cut
        left, values, right = left[:, kept], values[kept] / (n - 1) ** 0.5, right[kept]
        kappa = float(self.regularization)
        scale = ((1 - kappa) * values.square() + kappa).rsqrt()
        return left * (values * scale), right.mT * scale

    @torch.no_grad()
    def transform(self, Xs: Sequence[Any]) -> list[Any]:
        """Project samples.

        Args:
            Xs: Two views (n, d_v).

        Returns:
            Per view (n, k), of its kind.

        Raises:
            ValueError: If the views do not fit each other or those of ``fit``.
            sklearn.exceptions.NotFittedError: Before ``fit``.
        """
        check_is_fitted(self)
        owner = type(self).__name__
        views = self._checked(Xs)
        for index, (view, features) in enumerate(zip(views, self.n_features_in_, strict=True)):
            check_shape(owner, f"Xs[{index}]", view, "n d", d=features)
        result = []
        for view, mean, weight, given in zip(views, self.means_, self.weights_, Xs, strict=True):
            centre, directions = (torch.as_tensor(part).to(view) for part in (mean, weight))
            result.append(like_given((view - centre) @ directions, given))
        return result

    def fit_transform(self, Xs: Sequence[Any], y: object = None) -> list[Any]:
        """Find the directions and project the samples.

        Args:
            Xs: Two views (n, d_v).
            y: Not used; for scikit-learn's conventions.
        """
        return self.fit(Xs, y).transform(Xs)

    def _checked(self, Xs: Sequence[Any]) -> list[Tensor]:
        owner = type(self).__name__
        if len(Xs) != 2:
            raise ValueError(f"{owner}: Xs must hold two views; got {len(Xs)}.")
        views: list[Tensor] = []
        for index, given in enumerate(Xs):
            name = f"Xs[{index}]"
            view = as_floating(given)
            check_tensor(owner, name, view)
            check_shape(owner, name, view, "n d", **({"n": len(views[0])} if views else {}))
            check_finite(owner, name, view)
            views.append(view)
        return views
