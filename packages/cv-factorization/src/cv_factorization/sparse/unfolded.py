r"""Unfolded sparse coding: a few steps of a solver of the lasso, with weights that are learned.

The code of a sample :math:`x` under the atoms :math:`D` (rows) minimises
:math:`\tfrac12 \|x - zD\|^2 + \lambda \|z\|_1`. ISTA repeats

.. math:: z \leftarrow h_{\lambda/L}\big(z + (x - zD) D^\top / L\big), \qquad L = \|D\|_2^2,

with the soft threshold :math:`h`. Each module here keeps the form of that step and learns what is
in it; a module with K layers takes K + 1 steps from zero, the first of which needs no code.
``LISTA`` and ``CoupledLISTA`` start as exactly those steps of ISTA.
"""

from __future__ import annotations

import torch
from cv_core.checks import check_finite, check_floating, check_integer, check_range, check_shape
from jaxtyping import Float
from torch import Tensor, nn


class _Unfolded(nn.Module):
    """What the encoders share: checked options, sizes, and the step size of ISTA."""

    dictionary: Tensor

    def __init__(self, dictionary: Tensor, lam: float, n_layers: int) -> None:
        super().__init__()
        owner = type(self).__name__
        check_floating(owner, "dictionary", dictionary)
        check_shape(owner, "dictionary", dictionary, "m d")
        check_finite(owner, "dictionary", dictionary)
        check_range(owner, "lam", lam, low=0.0, low_open=True)
        check_integer(owner, "n_layers", n_layers, low=1)
        if not bool(dictionary.any()):
            raise ValueError(f"{owner}: dictionary must hold an atom that is not zero.")
        self.n_atoms, self.n_features = (int(size) for size in dictionary.shape)
        self.lam = float(lam)
        self.n_layers = int(n_layers)

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"{self.n_features}, {self.n_atoms}, lam={self.lam:g}, n_layers={self.n_layers}"

    def _check(self, x: Tensor) -> None:
        check_floating(type(self).__name__, "x", x)
        check_shape(type(self).__name__, "x", x, "b d", d=self.n_features)


class LISTA(_Unfolded):
    r"""Learned ISTA (Gregor, LeCun: Learning Fast Approximations of Sparse Coding, ICML 2010).

    .. math:: z^{(0)} = h_\theta(x W^\top), \qquad z^{(t)} = h_\theta(x W^\top + z^{(t-1)} S^\top)

    Learned: :math:`W` (m, d), :math:`S` (m, m), :math:`\theta` (m), which begin as :math:`D/L`,
    :math:`I - DD^\top/L` and :math:`\lambda/L`. A threshold is the absolute value of its parameter,
    so that it stays non-negative and no gradient dies.

    Args:
        dictionary: Atoms as rows (m, d), of any length; not kept.
        lam: Weight :math:`\lambda > 0` of the L1 norm.
        n_layers: Layers K; K + 1 thresholds are applied.
        shared: Whether all layers have one set of weights, as in the publication, or each its own.

    Raises:
        ValueError: If the dictionary is empty, zero or not finite, or an option is out of range.

    Example:
        >>> LISTA(torch.eye(2), lam=1.0, n_layers=1)(torch.tensor([[3.0, -0.5]])).tolist()
        [[2.0, 0.0]]
    """

    def __init__(
        self,
        dictionary: Float[Tensor, "m d"],
        lam: float,
        n_layers: int = 10,
        *,
        shared: bool = True,
    ) -> None:
        super().__init__(dictionary, lam, n_layers)
        atoms, L = dictionary.detach(), _lipschitz(dictionary)
        lateral = torch.eye(self.n_atoms, dtype=atoms.dtype, device=atoms.device)
        lateral -= atoms @ atoms.mT / L
        sets = 1 if shared else self.n_layers + 1
        self.encoder = nn.Parameter((atoms / L).repeat(sets, 1, 1))
        self.lateral = nn.Parameter(lateral.repeat(max(1, sets - 1), 1, 1))
        self.theta = nn.Parameter(atoms.new_full((sets, self.n_atoms), self.lam / L))

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b m"]:
        """Code samples.

        Args:
            x: Samples as rows.

        Returns:
            The codes.
        """
        self._check(x)
        theta = self.theta.abs()
        drive = x @ self.encoder.mT  # (sets, b, m)
        codes = _shrink(drive[0], theta[0])
        for layer in range(self.n_layers):
            own = (layer + 1) % len(theta)
            lateral = self.lateral[layer % len(self.lateral)]
            codes = _shrink(torch.addmm(drive[own], codes, lateral.mT), theta[own])
        return codes


class CoupledLISTA(_Unfolded):
    r"""LISTA with coupled weights (Chen, Liu, Wang, Yin: Theoretical Linear Convergence of Unfolded
    ISTA and Its Practical Weights and Thresholds, NeurIPS 2018).

    .. math:: z \leftarrow h_{\theta_t}\big(z + (x - zD) W_t^\top\big)

    Learned in every step: :math:`W_t` (m, d) and the number :math:`\theta_t`, which begin as
    :math:`D/L` and :math:`\lambda/L`. Arguments and errors are those of ``LISTA``.

    Args:
        dictionary: Atoms as rows (m, d); kept as it is.
        lam: Weight of the L1 norm, above 0.
        n_layers: Layers K; K + 1 steps from zero.
    """  # noqa: D205 - the publication's title is long

    def __init__(self, dictionary: Float[Tensor, "m d"], lam: float, n_layers: int = 10) -> None:
        super().__init__(dictionary, lam, n_layers)
        atoms, L = dictionary.detach().clone(), _lipschitz(dictionary)
        self.register_buffer("dictionary", atoms)
        self.weight = nn.Parameter((atoms / L).repeat(self.n_layers + 1, 1, 1))
        self.theta = nn.Parameter(atoms.new_full((self.n_layers + 1,), self.lam / L))

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b m"]:
        """Code samples, the rows of ``x``."""
        self._check(x)
        theta = self.theta.abs()
        codes = _shrink(x @ self.weight[0].mT, theta[0])
        for layer in range(1, self.n_layers + 1):
            residual = x - codes @ self.dictionary
            codes = _shrink(torch.addmm(codes, residual, self.weight[layer].mT), theta[layer])
        return codes


class ALISTA(_Unfolded):
    r"""LISTA with analytic weights (Liu, Chen, Wang, Yin: ALISTA: Analytic Weights Are As Good As
    Learned Weights in LISTA, ICLR 2019).

    .. math:: z \leftarrow h_{\theta_t}\big(z + \gamma_t (x - zD) W^\top\big)

    :math:`W` is computed from the dictionary by ``analytic_weights``. Learned are two numbers per
    step, which begin as :math:`\gamma = 1/\|WD^\top\|_2` and :math:`\theta = \lambda\gamma`. Unless
    the atoms are orthonormal, where :math:`W = D`, no choice of the two makes these the steps of
    ISTA: :math:`WD^\top` is another matrix than :math:`DD^\top`.

    Args:
        dictionary: Atoms as rows (m, d); kept as it is.
        lam: Weight of the L1 norm, above 0.
        n_layers: Layers K; K + 1 steps from zero.
    """  # noqa: D205 - the publication's title is long

    weight: Tensor

    def __init__(self, dictionary: Float[Tensor, "m d"], lam: float, n_layers: int = 10) -> None:
        super().__init__(dictionary, lam, n_layers)
        atoms = dictionary.detach().clone()
        weight = analytic_weights(atoms)
        step = 1.0 / float(torch.linalg.matrix_norm(weight @ atoms.mT, 2))
        self.register_buffer("dictionary", atoms)
        self.register_buffer("weight", weight)
        self.gamma = nn.Parameter(atoms.new_full((self.n_layers + 1,), step))
        self.theta = nn.Parameter(atoms.new_full((self.n_layers + 1,), self.lam * step))

    def forward(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b m"]:
        """Code samples, the rows of ``x``."""
        self._check(x)
        theta = self.theta.abs()
        codes = _shrink(self.gamma[0] * (x @ self.weight.mT), theta[0])
        for layer in range(1, self.n_layers + 1):
            residual = self.gamma[layer] * (x - codes @ self.dictionary)
            codes = _shrink(torch.addmm(codes, residual, self.weight.mT), theta[layer])
        return codes


def analytic_weights(dictionary: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
    r"""Return the weights of least generalised coherence with a dictionary.

    .. math::
        \min_W \|W D^\top\|_F^2 \;\text{with}\; w_j d_j^\top = 1
        \quad\Rightarrow\quad w_j = \frac{d_j G^{-1}}{d_j G^{-1} d_j^\top}, \qquad G = D^\top D

    Where the atoms do not span the space, G has no inverse and the solution of least norm is taken.

    Args:
        dictionary: Atoms as rows.

    Returns:
        The weights as rows; those of an atom of zeros are zeros.
    """
    solved = torch.linalg.pinv(dictionary).mT  # D G^-1, without squaring the condition
    scale = (solved * dictionary).sum(dim=1, keepdim=True)
    return torch.where(scale > 0.0, solved / torch.where(scale > 0.0, scale, 1.0), 0.0)


def _lipschitz(dictionary: Tensor) -> float:
    return float(torch.linalg.matrix_norm(dictionary.detach(), 2)) ** 2


def _shrink(x: Tensor, theta: Tensor) -> Tensor:
    """Soft thresholding by a threshold that is non-negative by construction.

    ``prox_l1`` would look whether it is, which makes a GPU wait in every layer.
    """
    return x - torch.clamp(x, min=-theta, max=theta)
