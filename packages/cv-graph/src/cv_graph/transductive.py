"""Classification of samples some of which are labelled, over the hypergraph of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from cv_core.checks import check_integer, check_range
from cv_core.random import seeded
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor
from torch.nn import functional

from cv_graph.construction import NeighborWeight, knn_hypergraph
from cv_graph.methods.hybrid_hgcn import HybridHGCN, Mix, order_propagations


class HybridHGCNClassifier(ClassifierMixin, BaseEstimator):
    """HybridHGCN on the nearest neighbours of the samples, some of them labelled.

    Like scikit-learn's ``LabelSpreading`` it is transductive: ``fit`` sees all samples, those
    without a class as -1, and its answers for them are in ``transduction_``. A new sample gets the
    mean answer of its nearest training samples.

    Args:
        n_neighbors: Members of the hyperedge of every sample, itself included; at most all.
        orders: Orders of the branches, each from 1.
        mix: ``"max"``, ``"mean"`` or ``"attention"``.
        weight: Entries of the incidence matrix: ``"binary"``, ``"paper"`` or ``"hgnn"``, as in
            ``knn_hypergraph``.
        hidden_channels: Width of the hidden layer.
        share_weights: Whether all branches have the same weights.
        dropout: Share of the hidden features left out in training, in [0, 1).
        lr: Step size of Adam.
        weight_decay: Its penalty on all weights.
        epochs: Steps, each on all labelled samples.
        random_state: Seed or ``numpy.random.Generator`` of initial weights and dropout; ``None``
            draws from the system.

    Attributes:
        classes_: The classes, without -1.
        label_distributions_: (n, classes) probabilities of the training samples.
        transduction_: (n,) their most probable classes, of the labelled ones too.
        objective_: (epochs,) cross entropy of the labelled samples, with dropout.
        network_: The trained ``HybridHGCN``.
        X_: (n, d) the training samples, float32.
        n_features_in_: d.
        feature_names_in_: Names of the columns of X, if they all had names.

    Deviations from the paper: it has no answer for new samples. Adam, 0.01, 5e-4, 0.5 and 200
    epochs are what HGNN's authors recommend; the paper says nothing. Features are taken as they
    are: scale them to lengths of about 1.

    Example:
        >>> from sklearn.datasets import load_digits
        >>> X, y = load_digits(return_X_y=True)
        >>> X, known = X[:300] / 16, y[:300].copy()
        >>> known[50:] = -1
        >>> model = HybridHGCNClassifier(epochs=60, random_state=0).fit(X, known)
        >>> bool((model.transduction_ == y[:300])[50:].mean() > 0.85)
        True
    """

    def __init__(
        self,
        n_neighbors: int = 10,
        *,
        orders: Sequence[int] = (1, 2, 3),
        mix: Mix = "max",
        weight: NeighborWeight = "binary",
        hidden_channels: int = 32,
        share_weights: bool = True,
        dropout: float = 0.5,
        lr: float = 0.01,
        weight_decay: float = 5e-4,
        epochs: int = 200,
        random_state: int | np.random.Generator | None = None,
    ) -> None:
        self.n_neighbors = n_neighbors
        self.orders = orders
        self.mix = mix
        self.weight = weight
        self.hidden_channels = hidden_channels
        self.share_weights = share_weights
        self.dropout = dropout
        self.lr = lr
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.random_state = random_state

    def fit(self, X: Float[np.ndarray, "n d"], y: Any) -> HybridHGCNClassifier:
        """Train on the labelled samples, over the hypergraph of all.

        Args:
            X: (n, d) samples as rows; computed in float32.
            y: (n,) classes, -1 where unknown; names of classes are all taken as known.

        Raises:
            ValueError: If X is not finite or has fewer than two rows, no sample has a class, or an
                option is out of range.
        """
        owner = "HybridHGCNClassifier"
        check_integer(owner, "n_neighbors", self.n_neighbors, low=1)
        check_integer(owner, "epochs", self.epochs, low=1)
        check_range(owner, "lr", self.lr, low=0, low_open=True)
        check_range(owner, "weight_decay", self.weight_decay, low=0)
        X, y = validate_data(self, X, y, dtype=np.float32, ensure_min_samples=2)
        check_classification_targets(y)
        known = y != -1 if y.dtype.kind in "iufO" else np.ones(len(y), dtype=bool)
        if not known.any():
            raise ValueError(
                f"{owner}: y must hold a class; all {len(y)} samples are unknown (-1)."
            )
        self.classes_, target = np.unique(y[known], return_inverse=True)
        self.X_ = X
        seed = int(np.random.default_rng(self.random_state).integers(2**31))
        self._train(torch.tensor(X), torch.from_numpy(known), torch.from_numpy(target), seed)
        self.transduction_ = self.classes_[self.label_distributions_.argmax(axis=1)]
        return self

    def _train(self, x: Tensor, known: Tensor, target: Tensor, seed: int) -> None:
        hypergraph = knn_hypergraph(x, min(self.n_neighbors, len(x)), weight=self.weight)
        operators = order_propagations(hypergraph, self.orders)
        course = []
        with seeded(seed, "HybridHGCNClassifier"), torch.enable_grad():
            network = HybridHGCN(
                x.shape[1],
                self.hidden_channels,
                len(self.classes_),
                orders=self.orders,
                mix=self.mix,
                share_weights=self.share_weights,
                dropout=self.dropout,
            )
            optimizer = torch.optim.Adam(
                network.parameters(), lr=self.lr, weight_decay=self.weight_decay
            )
            for _ in range(self.epochs):
                loss = functional.cross_entropy(network(x, operators)[known], target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                course.append(loss.item())
        self.objective_ = np.array(course)
        self.network_ = network.eval()
        with torch.no_grad():
            self.label_distributions_ = torch.softmax(network(x, operators), dim=1).numpy()

    def predict_proba(self, X: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m q"]:
        """Return the mean ``label_distributions_`` of the nearest training samples.

        A training sample is among its own nearest; its answer of ``fit`` is in ``transduction_``.

        Args:
            X: (m, d) samples as rows.

        Returns:
            (m, classes) probabilities.

        Raises:
            ValueError: If X is not finite or has not the columns of ``fit``.
            sklearn.exceptions.NotFittedError: Before ``fit``.
        """
        from sklearn.neighbors import NearestNeighbors

        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float32)
        count = min(self.n_neighbors, len(self.X_))
        search = NearestNeighbors(n_neighbors=count).fit(self.X_)
        nearest = search.kneighbors(X, return_distance=False)
        return self.label_distributions_[nearest].mean(axis=1)

    def predict(self, X: Float[np.ndarray, "m d"]) -> Any:
        """Return the most probable class of every row of X; see ``predict_proba``."""
        place = self.predict_proba(X).argmax(axis=1)
        return self.classes_[place]
