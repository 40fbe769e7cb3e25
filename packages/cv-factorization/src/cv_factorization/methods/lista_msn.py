r"""A distribution over sparse codes instead of one: a mixture network behind an unfolded solver.

Li, Long, Zhuang, Wang: *Learn the Approximation Distribution of Sparse Coding with Mixture Sparsity
Network*, PRCV 2021, LNCS 13022, pp. 387-398.

An encoder such as LISTA codes a sample :math:`x` coarsely as :math:`\hat z`. One linear layer turns
that code into the parameters :math:`o^\alpha, o^\mu, o^\sigma` of a mixture of M Gaussians over the
optimal code :math:`z`,

.. math::
    P(z|\hat z) = \sum_i \alpha_i \prod_j \mathcal N(z_j; \mu_{ij}, \sigma_{ij}^2), \quad
    \alpha = \mathrm{softmax}(o^\alpha), \quad \mu = h_\epsilon(o^\mu), \quad \sigma = f(o^\sigma),

where :math:`h_\epsilon` is the soft threshold, which makes the centres exactly sparse, and
:math:`f(t) = t + 1` for :math:`t \ge 0`, else :math:`\gamma (e^t - 1) + 1`. Encoder and layer are
trained together on :math:`-\ln P(z^*|\hat z)` with :math:`z^*` from a converged solver. The answer
is the centre of the most probable component.

Deviations from the paper:
    - Its loss has a minus sign too many; the negative log-likelihood is minimised.
    - With :math:`\gamma = 1` the loss has no lower bound: where :math:`z_j = \mu_{ij} = 0` the
      deviation may shrink to 0. Hence no deviation is below ``sigma_min``. A smaller :math:`\gamma`
      bounds it too, by :math:`1 - \gamma`, but 0.1 is coarse beside codes that are scaled as in
      ``LISTAMSNCoder``: the likelihood then tolerates centres full of small entries.
    - The indicator in its gradient of :math:`o^\mu` compares with :math:`\lambda`; it is
      :math:`\epsilon`. Autograd computes the gradients, and the tests know the closed form.
    - It does not say how the layer starts. Here each component's centres start as the encoder's
      code plus the layer's usual random weights, so that training improves on the code.
    - M and :math:`\gamma` are not given; 5 and 1 are ours.

Example:
    >>> dictionary = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    >>> model = LISTAMSN(LISTA(dictionary, lam=0.5), MixtureSparsityHead(12, n_components=3))
    >>> x = torch.ones(2, 8)
    >>> loss = -model(x).log_prob(torch.zeros(2, 12)).mean()
    >>> model(x).mode().shape
    torch.Size([2, 12])
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from cv_core.checks import check_choice, check_floating, check_integer, check_range, check_shape
from cv_core.numerics.proximal import prox_l1
from cv_core.random import seeded
from cv_core.registry import Card, Example, Reference
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.nn import functional

from cv_factorization._shared.arrays import as_samples, like_given
from cv_factorization.sparse.atoms import Array, as_atoms, decode, unit_rows
from cv_factorization.sparse.coding import lasso_fista
from cv_factorization.sparse.unfolded import ALISTA, LISTA, CoupledLISTA

Encoder = Literal["lista", "coupled", "alista"]
ENCODERS: dict[str, Callable[[Tensor, float, int], nn.Module]] = {
    "lista": LISTA,
    "coupled": CoupledLISTA,
    "alista": ALISTA,
}


class SparseMixture(NamedTuple):
    """Mixtures of Gaussians over codes, one for each sample.

    Args:
        log_alpha: Logarithms of the weights (b, k).
        mu: Centres (b, k, m), with exact zeros.
        sigma: Standard deviations (b, k, m), above 0.
    """

    log_alpha: Float[Tensor, "b k"]
    mu: Float[Tensor, "b k m"]
    sigma: Float[Tensor, "b k m"]

    def log_prob(self, codes: Float[Tensor, "b m"]) -> Float[Tensor, " b"]:
        """Return the logarithm of the density at codes (b, m), one for each sample."""
        return torch.logsumexp(self.log_alpha + self._log_components(codes), dim=1)

    def mode(self, by: Literal["weight", "density"] = "weight") -> Float[Tensor, "b m"]:
        r"""Return the centre of one component of each mixture, exactly sparse.

        Args:
            by: ``"weight"``, as in the paper, takes the largest :math:`\alpha_i`; ``"density"``
                takes the component that is highest at its centre, the largest
                :math:`\alpha_i / \prod_j \sigma_{ij}`. Both ignore how components overlap.
        """
        check_choice("SparseMixture.mode", "by", by, ("weight", "density"))
        height = self.log_alpha
        if by == "density":
            height = height - self.sigma.log().sum(dim=2)
        return self._centres(height.argmax(dim=1))

    def sample(
        self, generator: torch.Generator | None = None, *, what: Literal["mean", "full"] = "mean"
    ) -> Float[Tensor, "b m"]:
        """Draw a code for each sample.

        Args:
            generator: Of the mixture's device; torch's global one by default.
            what: ``"mean"`` draws a component and returns its centre, which is sparse; ``"full"``
                draws from the density, where no entry is zero.
        """
        check_choice("SparseMixture.sample", "what", what, ("mean", "full"))
        weights = self.log_alpha.exp()
        drawn = torch.multinomial(weights, 1, generator=generator)[:, 0]
        centres = self._centres(drawn)
        if what == "mean":
            return centres
        noise = torch.randn(
            centres.shape, generator=generator, dtype=centres.dtype, device=centres.device
        )
        return centres + self.sigma[torch.arange(len(drawn)), drawn] * noise

    def distribution(self) -> torch.distributions.MixtureSameFamily:
        """Return the same mixtures as a distribution of torch."""
        from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

        components = Independent(Normal(self.mu, self.sigma), 1)
        return MixtureSameFamily(Categorical(logits=self.log_alpha), components)

    def _centres(self, which: Tensor) -> Tensor:
        return self.mu[torch.arange(len(which), device=which.device), which]

    def _log_components(self, codes: Tensor) -> Tensor:
        batch, _, atoms = self.mu.shape
        check_shape("SparseMixture", "codes", codes, "b m", b=batch, m=atoms)
        away = (codes[:, None] - self.mu) / self.sigma
        spread = self.sigma.log().sum(dim=2) + 0.5 * atoms * math.log(2.0 * math.pi)
        return -0.5 * away.square().sum(dim=2) - spread


class MixtureSparsityHead(nn.Module):
    r"""Maps a coarse code to a mixture of Gaussians with sparse centres.

    Args:
        n_atoms: Entries m of a code.
        n_components: Components M of the mixture.
        eps: Threshold :math:`\epsilon \ge 0` of the centres.
        gamma: :math:`\gamma` in (0, 1]; deviations are at least :math:`1 - \gamma`.
        sigma_min: Least deviation, above 0.

    Raises:
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        n_atoms: int,
        n_components: int = 5,
        *,
        eps: float = 0.01,
        gamma: float = 1.0,
        sigma_min: float = 1e-2,
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        check_integer(owner, "n_atoms", n_atoms, low=1)
        check_integer(owner, "n_components", n_components, low=1)
        check_range(owner, "eps", eps, low=0.0)
        check_range(owner, "gamma", gamma, low=0.0, high=1.0, low_open=True)
        check_range(owner, "sigma_min", sigma_min, low=0.0, low_open=True)
        self.n_atoms, self.n_components = int(n_atoms), int(n_components)
        self.eps, self.gamma, self.sigma_min = float(eps), float(gamma), float(sigma_min)
        self.linear = nn.Linear(n_atoms, (2 * n_atoms + 1) * n_components)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new weights from torch's global generator; centres start near the coarse code."""
        self.linear.reset_parameters()
        with torch.no_grad():
            self.linear.bias.zero_()
            _, centres, _ = self._split(self.linear.weight, dim=0)
            # Views of the weights. The random part is small, or it would fill the code's zeros.
            centres.mul_(0.1).add_(torch.eye(self.n_atoms).to(centres))

    def raw(
        self, codes: Float[Tensor, "b m"]
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k m"], Float[Tensor, "b k m"]]:
        r"""Return :math:`o^\alpha, o^\mu, o^\sigma`, as the linear layer gives them."""
        check_floating(type(self).__name__, "codes", codes)
        check_shape(type(self).__name__, "codes", codes, "b m", m=self.n_atoms)
        return self._split(self.linear(codes), dim=1)

    def _split(self, rows: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        k, m = self.n_components, self.n_atoms
        logits, centres, spreads = rows.split([k, k * m, k * m], dim=dim)
        return logits, centres.unflatten(dim, (k, m)), spreads.unflatten(dim, (k, m))

    def forward(self, codes: Float[Tensor, "b m"]) -> SparseMixture:
        """Return the mixtures that belong to coarse codes, the rows of ``codes``."""
        logits, centres, spreads = self.raw(codes)
        sigma = 1.0 + functional.elu(spreads, alpha=self.gamma)
        return SparseMixture(
            torch.log_softmax(logits, dim=1),
            prox_l1(centres, self.eps),
            sigma.clamp(min=self.sigma_min),
        )


class LISTAMSN(nn.Module):
    """An encoder and the mixture network behind it; train with ``-model(x).log_prob(z).mean()``.

    Args:
        encoder: Any module that maps samples (b, d) to codes (b, m), such as ``LISTA``.
        head: Made for m atoms.
    """

    def __init__(self, encoder: nn.Module, head: MixtureSparsityHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, x: Float[Tensor, "b d"]) -> SparseMixture:
        """Return the mixtures over the codes of samples, the rows of ``x``."""
        check_floating(type(self).__name__, "x", x)
        check_shape(type(self).__name__, "x", x, "b d")
        return self.head(self.encoder(x))


class LISTAMSNCoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""LISTA-MSN as an estimator: ``fit`` trains it on the samples' own optimal codes.

    Takes NumPy arrays and tensors; computes and answers in the samples' type and on their device.
    float32 is twice as fast as float64.

    Args:
        dictionary: Atoms as rows (m, d), array or tensor. ``None`` takes the samples given to
            ``fit`` at unit length.
        lam: Weight of the L1 norm beside :math:`\tfrac12 \|x - zD\|^2`, above 0.
        relative: Whether ``lam`` counts in units of :math:`\max_j |d_j^\top x|`, the least weight
            at which the code of :math:`x` is 0. The sparsity that the paper reports wants this; it
            also brings all samples to one scale.
        encoder: ``"lista"``, ``"coupled"`` or ``"alista"``.
        n_layers: Layers of the encoder.
        n_mixtures: Components of the mixture.
        eps: Threshold of the centres.
        sigma_min: Least standard deviation of the mixture.
        epochs: Passes over the samples.
        batch_size: Samples per step.
        learning_rate: Of Adam.
        random_state: Seed or ``numpy.random.Generator``; ``None`` draws from the system.

    Attributes:
        components_: (m, d) the atoms.
        model_: The trained ``LISTAMSN``.
        objective_: (epochs,) the mean negative log-likelihood of each epoch.
        n_iter_: Epochs.
        n_features_in_: d.
        feature_names_in_: Names of the columns of X, if they all had names.

    Example:
        >>> X = np.random.default_rng(0).standard_normal((40, 6))
        >>> coder = LISTAMSNCoder(np.eye(6), n_layers=2, epochs=2, random_state=0).fit(X)
        >>> coder.transform(X).shape
        (40, 6)
    """

    def __init__(
        self,
        dictionary: Array | None = None,
        *,
        lam: float = 0.5,
        relative: bool = True,
        encoder: Encoder = "lista",
        n_layers: int = 10,
        n_mixtures: int = 5,
        eps: float = 0.01,
        sigma_min: float = 0.01,
        epochs: int = 30,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        random_state: int | np.random.Generator | None = None,
    ) -> None:
        self.dictionary = dictionary
        self.lam = lam
        self.relative = relative
        self.encoder = encoder
        self.n_layers = n_layers
        self.n_mixtures = n_mixtures
        self.eps = eps
        self.sigma_min = sigma_min
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.random_state = random_state

    def fit(self, X: Array, y: object = None) -> LISTAMSNCoder:  # noqa: ARG002 - scikit-learn's
        """Solve the lasso for every sample and train the network on the solutions.

        Args:
            X: Samples as rows (n, d).
            y: Not used; for scikit-learn's conventions.

        Raises:
            ValueError: If X or the dictionary is not finite, they do not fit each other, or an
                option is out of range.

        Warns:
            sklearn.exceptions.ConvergenceWarning: If the lasso was not solved in 2000 iterations.
        """
        owner = type(self).__name__
        check_choice(owner, "encoder", self.encoder, get_args(Encoder))
        check_integer(owner, "epochs", self.epochs, low=1)
        check_integer(owner, "batch_size", self.batch_size, low=1)
        check_range(owner, "learning_rate", self.learning_rate, low=0.0, low_open=True)
        rows = as_samples(self, X, reset=True)
        atoms = (
            unit_rows(rows)[0]
            if self.dictionary is None
            else as_atoms(owner, "dictionary", self.dictionary, rows)
        )
        seed = int(np.random.default_rng(self.random_state).integers(2**31))
        with seeded(seed, "weights"):
            encoder = ENCODERS[self.encoder](atoms.cpu(), self.lam, self.n_layers)
            head = MixtureSparsityHead(
                len(atoms), self.n_mixtures, eps=self.eps, sigma_min=self.sigma_min
            )
        self.model_ = LISTAMSN(encoder, head).to(rows)
        self.components_ = like_given(atoms, X)
        scaled = rows / self._scale(rows, atoms)
        targets = lasso_fista(scaled, atoms, self.lam, max_iter=2000, tol=1e-5)
        self.objective_ = self._train(scaled, targets, seed)
        self.n_iter_ = self.epochs
        return self

    def _train(self, x: Tensor, targets: Tensor, seed: int) -> np.ndarray:
        """Train the network; return each epoch's mean loss."""
        from cv_core.engine.loader import TensorLoader
        from cv_core.engine.loop import fit
        from cv_core.engine.task import FunctionTask

        def step(model: nn.Module, batch: list[Tensor]) -> dict[str, Tensor]:
            samples, codes = batch
            return {"loss": -model(samples).log_prob(codes).mean()}

        loader = TensorLoader(x, targets, batch_size=self.batch_size, shuffle=True, seed=seed)
        optimizer = torch.optim.Adam(self.model_.parameters(), lr=self.learning_rate)
        task = FunctionTask(self.model_, step)
        result = fit(task, loader, optimizer, epochs=self.epochs)
        return np.array(result.history.column("loss"))

    def _scale(self, rows: Tensor, atoms: Tensor) -> Tensor:
        """Return what each sample is divided by, (n, 1)."""
        if not self.relative:
            return torch.ones_like(rows[:, :1])
        peak = (rows @ atoms.mT).abs().amax(dim=1, keepdim=True)
        return torch.where(peak > 0.0, peak, 1.0)

    @torch.no_grad()
    def mixture(self, X: Array) -> SparseMixture:
        """Return the mixtures over the codes of samples (n, d), as tensors.

        Raises:
            ValueError: If X is not finite or has not the columns of ``fit``.
            sklearn.exceptions.NotFittedError: Before ``fit``.
        """
        check_is_fitted(self, "model_")
        rows = as_samples(self, X, reset=False)
        atoms = as_atoms(type(self).__name__, "components_", self.components_, rows)
        scale = self._scale(rows, atoms)
        log_alpha, mu, sigma = self.model_.to(rows)(rows / scale)
        return SparseMixture(log_alpha, mu * scale[..., None], sigma * scale[..., None])

    def transform(self, X: Array) -> Any:
        """Return the most probable centres of samples (n, d), sparse codes (n, m).

        Raises:
            ValueError: If X is not finite or has not the columns of ``fit``.
            sklearn.exceptions.NotFittedError: Before ``fit``.
        """
        return like_given(self.mixture(X).mode(), X)

    def inverse_transform(self, codes: Array) -> Any:
        """Return what codes (n, m) stand for: ``codes @ components_``, of the codes' kind."""
        check_is_fitted(self, "model_")
        return decode(type(self).__name__, codes, self.components_)

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)


def _examples() -> list[Example]:
    def build(encoder: Callable[[Tensor, float, int], nn.Module]) -> nn.Module:
        return encoder(torch.randn(7, 5), 0.3, 2)

    def mixture() -> nn.Module:
        return LISTAMSN(build(LISTA), MixtureSparsityHead(7, 3))

    def inputs(generator: torch.Generator) -> tuple[Tensor]:
        return (torch.randn(4, 5, generator=generator),)

    shapes = ((4, 3), (4, 3, 7), (4, 3, 7))
    return [
        Example(build=mixture, inputs=inputs, output_shapes=shapes),
        *(
            Example(build=partial(build, encoder), inputs=inputs, output_shapes=((4, 7),))
            for encoder in ENCODERS.values()
        ),
    ]


CARD = Card(
    slug="lista-msn",
    title="A mixture of sparse codes behind an unfolded encoder",
    reference=Reference(
        title=(
            "Learn the Approximation Distribution of Sparse Coding with Mixture Sparsity Network"
        ),
        authors="Li, Long, Zhuang, Wang",
        venue="PRCV, LNCS 13022",
        year=2021,
        pages="387-398",
    ),
    kind="module",
    objects=(
        "cv_factorization.methods.lista_msn.LISTAMSN",
        "cv_factorization.methods.lista_msn.LISTAMSNCoder",
        "cv_factorization.methods.lista_msn.MixtureSparsityHead",
        "cv_factorization.methods.lista_msn.SparseMixture",
        "cv_factorization.sparse.unfolded.ALISTA",
        "cv_factorization.sparse.unfolded.CoupledLISTA",
        "cv_factorization.sparse.unfolded.LISTA",
    ),
    examples=_examples,
    properties=("batch-independent", "deterministic"),
)
