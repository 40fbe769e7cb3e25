"""Solves that say when they fail, and measurements of operators that are given as functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cv_core.checks import check_finite, check_floating, check_integer, check_range, check_shape
from cv_core.random import torch_generator

Operator = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Solve:
    """What ``conjugate_gradient`` returns.

    Args:
        solution: The last iterate, in the shape of the right-hand side.
        residuals: The largest relative residual of the batch, at the start and per iteration.
        iterations: How many iterations were done.
        converged: Whether every system of the batch reached the tolerance.
    """

    solution: Tensor
    residuals: list[float]
    iterations: int
    converged: bool


def conjugate_gradient(
    operator: Operator,
    b: Float[Tensor, "..."],
    *,
    start: Float[Tensor, "..."] | None = None,
    preconditioner: Operator | None = None,
    batch_dims: int = 0,
    max_iter: int = 100,
    tol: float = 1e-6,
) -> Solve:
    """Solve ``operator(x) = b`` for a symmetric positive definite operator.

    Args:
        operator: Linear, symmetric and positive definite; keeps the shape.
        b: Right-hand side of any shape, such as an image.
        start: First iterate; 0 by default.
        preconditioner: Approximate inverse of the operator, symmetric and positive definite.
        batch_dims: How many leading axes of ``b`` count independent systems.
        max_iter: Most iterations, at least 1.
        tol: Stop when each residual's length is at most ``tol`` times the right-hand side's.

    Returns:
        Solution and residuals.

    Raises:
        ValueError: For bad options or a right-hand side that is not finite.
        ArithmeticError: If a direction of negative curvature is met: the operator is not positive.
    """
    owner = "conjugate_gradient"
    check_floating(owner, "b", b)
    check_finite(owner, "b", b)
    check_integer(owner, "batch_dims", batch_dims, low=0, high=b.ndim)
    check_integer(owner, "max_iter", max_iter, low=1)
    check_range(owner, "tol", tol, low=0.0)
    axes = tuple(range(batch_dims, b.ndim))

    def inner(left: Tensor, right: Tensor) -> Tensor:
        product = left * right
        return product.sum(dim=axes, keepdim=True) if axes else product

    precondition = preconditioner if preconditioner is not None else (lambda vector: vector)
    x = torch.zeros_like(b) if start is None else start
    residual = b.clone() if start is None else b - operator(x)
    scale = inner(b, b).sqrt()
    # a system whose right-hand side is 0 has the solution 0: compare with 1 instead
    scale = torch.where(scale > 0.0, scale, 1.0)
    residuals = [float((inner(residual, residual).sqrt() / scale).max())]
    direction = z = precondition(residual)
    rho = inner(residual, z)
    iterations = 0
    while residuals[-1] > tol and iterations < max_iter:
        image = operator(direction)
        curvature = inner(direction, image)
        if bool((curvature < 0.0).any()) or not bool(torch.isfinite(curvature).all()):
            raise ArithmeticError(
                f"{owner}: operator must be symmetric positive definite; the curvature along a "
                f"direction is {float(curvature.min())} in iteration {iterations + 1}."
            )
        length = _safe_ratio(rho, curvature)  # 0 for systems that are done
        x = x + length * direction
        residual = residual - length * image
        z = precondition(residual)
        previous, rho = rho, inner(residual, z)
        direction = z + _safe_ratio(rho, previous) * direction
        residuals.append(float((inner(residual, residual).sqrt() / scale).max()))
        iterations += 1
    return Solve(x, residuals, iterations, residuals[-1] <= tol)


def _safe_ratio(top: Tensor, bottom: Tensor) -> Tensor:
    return torch.where(bottom > 0.0, top / torch.where(bottom > 0.0, bottom, 1.0), 0.0)


def solve_psd(A: Float[Tensor, "n n"], B: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Solve ``A X = B`` for a symmetric positive semi-definite matrix, least squares if singular.

    A Cholesky factor is tried first; if there is none, or it is close to singular, the solution of
    least norm is computed from the eigenvectors.

    Args:
        A: Symmetric, positive semi-definite.
        B: Right-hand sides as columns.

    Returns:
        The solutions as columns.
    """
    size = check_shape("solve_psd", "A", A, "n n")["n"]
    check_shape("solve_psd", "B", B, "n k", n=size)
    check_finite("solve_psd", "A", A)
    noise = 16.0 * size * torch.finfo(A.dtype).eps  # what rounding leaves of an eigenvalue 0
    factor, info = torch.linalg.cholesky_ex(A)
    if int(info) == 0 and _least_eigenvalue(factor) > noise * float(torch.linalg.matrix_norm(A)):
        return torch.cholesky_solve(B, factor)
    values, vectors = torch.linalg.eigh(A)
    cut = noise * values[-1].clamp(min=0.0)
    inverse = torch.where(values > cut, 1.0 / torch.where(values > cut, values, 1.0), 0.0)
    return vectors @ (inverse[:, None] * (vectors.mT @ B))


def _least_eigenvalue(factor: Tensor) -> float:
    """Estimate, from above, the least eigenvalue of a Cholesky-factored matrix.

    Inverse iteration, which a tiny one dominates at once; the pivots may all be far larger.
    """
    x = torch.arange(1, len(factor) + 1, dtype=factor.dtype, device=factor.device).cos()[:, None]
    for _ in range(3):
        x = torch.cholesky_solve(x / torch.linalg.vector_norm(x), factor)
    return float(torch.linalg.vector_norm(x).reciprocal())


def ridge_solve(
    X: Float[Tensor, "n d"], Y: Float[Tensor, "n k"], weight: float
) -> Float[Tensor, "d k"]:
    r"""Ridge regression without intercept, by whichever normal equations are smaller.

    .. math::
        W = \arg\min_W \|XW - Y\|_F^2 + \lambda \|W\|_F^2
          = (X^\top X + \lambda I)^{-1} X^\top Y = X^\top (X X^\top + \lambda I)^{-1} Y

    Args:
        X: Samples as rows.
        Y: Targets as rows.
        weight: :math:`\lambda`, at least 0; 0 gives the least-squares solution of least norm.

    Returns:
        The coefficients.
    """
    samples, features = check_shape("ridge_solve", "X", X, "n d").values()
    check_shape("ridge_solve", "Y", Y, "n k", n=samples)
    check_range("ridge_solve", "weight", weight, low=0.0)
    if samples < features:
        gram = X @ X.mT
        gram.diagonal().add_(weight)
        return X.mT @ solve_psd(gram, Y)
    gram = X.mT @ X
    gram.diagonal().add_(weight)
    return solve_psd(gram, X.mT @ Y)


def power_iteration(
    operator: Operator,
    like: Float[Tensor, "..."],
    *,
    seed: int = 0,
    max_iter: int = 200,
    tol: float = 1e-6,
) -> float:
    r"""Return the largest eigenvalue of a symmetric positive semi-definite operator.

    For the Lipschitz constant of the gradient of :math:`\tfrac12\|Ax - y\|^2` hand in
    ``lambda x: adjoint(forward(x))``. The value is approached from below: a step size of 1/L wants
    a margin or backtracking.

    Args:
        operator: Linear, symmetric, positive semi-definite; keeps the shape.
        like: A tensor that gives shape, type and device; its values do not matter.
        seed: Of the random first vector.
        max_iter: Most iterations, at least 1.
        tol: Stop when the estimate changes by at most this share.

    Returns:
        The Rayleigh quotient at the end; 0 for the zero operator.
    """
    check_floating("power_iteration", "like", like)
    check_integer("power_iteration", "max_iter", max_iter, low=1)
    check_range("power_iteration", "tol", tol, low=0.0)
    generator = torch_generator(seed, "power iteration")
    vector = torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)
    value = 0.0
    for _ in range(max_iter):
        vector = vector / torch.linalg.vector_norm(vector)
        image = operator(vector)
        previous, value = value, float(torch.sum(vector * image))
        if not bool(torch.any(image)) or abs(value - previous) <= tol * abs(value):
            break
        vector = image
    return value


def adjoint_error(
    forward: Operator,
    adjoint: Operator,
    x_like: Float[Tensor, "..."],
    y_like: Float[Tensor, "..."],
    *,
    seed: int = 0,
) -> float:
    r"""Return how far two operators are from being adjoint, on random vectors.

    .. math:: |\langle Ax, y\rangle - \langle x, A^*y\rangle| / (\|Ax\| \|y\| + \|x\| \|A^*y\|)

    Args:
        forward: The operator :math:`A`.
        adjoint: The operator that should be :math:`A^*`.
        x_like: A tensor that gives the shape and type of the domain.
        y_like: A tensor that gives the shape and type of the range.
        seed: Of the random vectors.

    Returns:
        About the rounding error of the type for an adjoint pair, else about 0.01 to 1.
    """
    generator = torch_generator(seed, "adjoint error")
    x = torch.randn(x_like.shape, generator=generator, dtype=x_like.dtype).to(x_like.device)
    y = torch.randn(y_like.shape, generator=generator, dtype=y_like.dtype).to(y_like.device)
    image, back = forward(x), adjoint(y)
    gap = abs(float(torch.sum(image * y) - torch.sum(x * back)))
    norm = torch.linalg.vector_norm
    scale = float(norm(image) * norm(y) + norm(x) * norm(back))
    return gap / scale if scale > 0.0 else gap
