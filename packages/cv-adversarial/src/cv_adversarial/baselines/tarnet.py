"""TARNet: one embedding for all units, one outcome head for each group."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from cv_core.checks import check_integer, check_range
from cv_core.data.splits import stratified_split
from cv_core.engine.early_stopping import EarlyStopping
from cv_core.engine.loader import TensorLoader
from cv_core.engine.loop import fit
from cv_core.models.small import MLP
from cv_core.random import seeded
from jaxtyping import Float
from torch import Tensor, nn

from cv_adversarial.causal.checks import check_both_groups
from cv_adversarial.causal.estimator import EffectEstimator
from cv_adversarial.causal.network import EffectNetwork, FactualTask

Encoder = Callable[[int], nn.Module]
"""Makes the module that maps covariates (B, d) to embeddings (B, e), for a given d."""


class TARNet(EffectEstimator):
    r"""Treatment-agnostic representation network of Shalit, Johansson and Sontag, ICML 2017.

    .. math:: \min \tfrac1n \sum_i \big(h_{t_i}(\Phi(x_i)) - y_i\big)^2

    :math:`\Phi` embeds the covariates, :math:`h_0` and :math:`h_1` predict the outcomes without
    and with treatment; the effect is their difference. Covariates and outcomes are standardised by
    the training part; the weights are those of the epoch with the least factual error on a part
    held out from ``fit``'s data, in which the groups have their shares.

    Args:
        encoder: Makes :math:`\Phi` for a number of covariates; two layers of 64 units by default.
        head_width: Hidden width of each :math:`h`.
        lr: Learning rate of Adam.
        weight_decay: Decoupled from the gradient, on all weights.
        batch_size: Units per step.
        max_epochs: Most epochs.
        patience: Epochs without improvement that end the training; None takes all epochs.
        validation_fraction: Share of the data held out, in (0, 1).
        device: Where to compute.
        random_state: Seed or ``numpy.random.Generator``; ``None`` draws from the system.

    Attributes:
        network_: The trained network, on standardised covariates and outcomes.
        history_: A row per epoch: the terms of the loss, and the factual error held out.
        validation_loss_: Least factual error held out, of standardised outcomes.
        n_features_in_: d.

    Deviations from the publication: the factual error is a plain mean, where it weighs the groups
    by their shares; ReLU instead of ELU. So it differs from its rivals here in nothing else.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> X, t = rng.normal(size=(200, 3)), rng.integers(2, size=200)
        >>> model = TARNet(max_epochs=60, random_state=0).fit(X, t, X[:, 0] + 2.0 * t)
        >>> bool(abs(model.predict_effect(X).mean() - 2.0) < 0.3)
        True
    """

    _least_per_group = 2  # one to train on, one to be held out

    def __init__(
        self,
        encoder: Encoder | None = None,
        *,
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
        self.encoder = encoder
        self.head_width = head_width
        self.lr = lr
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.device = device
        self.random_state = random_state

    def embed(self, X: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n e"]:
        """Return the embeddings of units, in which the groups are compared.

        Args:
            X: Covariates, with the columns of ``fit``.

        Returns:
            (n, e).

        Raises:
            ValueError: If X is not finite or has other columns.
            sklearn.exceptions.NotFittedError: Before ``fit``.
        """
        return self._forward(self._checked(X))["embedding"].double().cpu().numpy()

    def covariates(self, X: Float[np.ndarray, "n d"]) -> Float[Tensor, "n d"]:
        """Return covariates as ``network_`` takes them: standardised, in float32.

        Args:
            X: Covariates, with the columns of ``fit``.
        """
        mean, spread = self._x_scale
        return torch.from_numpy((np.asarray(X) - mean) / spread).float()

    def _check_options(self) -> None:
        owner = type(self).__name__
        check_integer(owner, "head_width", self.head_width, low=1)
        check_range(owner, "lr", self.lr, low=0, low_open=True)
        check_range(owner, "weight_decay", self.weight_decay, low=0)
        check_integer(owner, "batch_size", self.batch_size, low=1)
        check_integer(owner, "max_epochs", self.max_epochs, low=1)
        if self.patience is not None:
            check_integer(owner, "patience", self.patience, low=1)
        check_range(
            owner, "validation_fraction", self.validation_fraction,
            low=0, high=1, low_open=True, high_open=True,
        )  # fmt: skip

    def _make_encoder(self, n_features: int) -> nn.Module:
        return MLP(n_features, 64, 64) if self.encoder is None else self.encoder(n_features)

    def _task(self, n_features: int, seed: int) -> FactualTask:
        """Build what is trained; torch's global generator is a stream of the seed meanwhile."""
        del seed
        encoder = self._make_encoder(n_features)
        return FactualTask(EffectNetwork(n_features, encoder, head_width=self.head_width))

    def _fit(self, X: np.ndarray, t: np.ndarray, y: np.ndarray) -> None:
        seed = int(np.random.default_rng(self.random_state).integers(2**62))
        fraction = self.validation_fraction
        train, held_out = stratified_split(t, (1 - fraction, fraction), seed)
        check_both_groups(f"{type(self).__name__}, part to train on", t[train], 1)
        self._x_scale = _scale(X[train])
        self._y_scale = _scale(y[train])
        with seeded(seed, "init"):
            task = self._task(X.shape[1], seed).to(self.device)
        parts = [
            TensorLoader(
                self.covariates(X[rows]), torch.from_numpy(t[rows]), self._outcomes(y[rows]),
                batch_size=self.batch_size, shuffle=rows is train, seed=seed, device=self.device,
            )
            for rows in (train, held_out)
        ]  # fmt: skip
        parameters = task.model.parameters()
        result = fit(
            task,
            parts[0],
            torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay, fused=True),
            epochs=self.max_epochs,
            validate=parts[1],
            early_stopping=(best := EarlyStopping(_JUDGED, patience=self.patience)),
            seed=seed,
        )
        self.network_ = task.model.eval()
        self.history_ = result.history.epochs
        self.validation_loss_ = float("inf") if best.best is None else best.best

    def _predict(self, X: np.ndarray) -> np.ndarray:
        outputs = self._forward(X)
        scaled = torch.stack([outputs["y0"], outputs["y1"]], dim=1).double().cpu().numpy()
        mean, spread = self._y_scale
        return scaled * spread + mean

    def _forward(self, X: np.ndarray) -> dict[str, Tensor]:
        with torch.no_grad():
            outputs: dict[str, Tensor] = self.network_(self.covariates(X).to(self.device))
        return outputs

    def _outcomes(self, y: np.ndarray) -> Tensor:
        mean, spread = self._y_scale
        return torch.from_numpy((y - mean) / spread).float()


_JUDGED = "validation factual loss"


def _scale(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each column; 1 for a constant one."""
    spread = values.std(axis=0)
    return np.asarray(values.mean(axis=0)), np.where(spread > 0, spread, 1.0)
