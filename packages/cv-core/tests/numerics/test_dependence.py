import numpy as np
import pytest
from cv_core.numerics.dependence import cka, hsic
from scipy.stats import ortho_group


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    A = rng.random((25, 3))
    return A, A[:, :2] ** 2 + 0.3 * rng.random((25, 2))


def slow_kernel(A, kernel, sigma):
    n = len(A)
    K = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            if kernel == "linear":
                K[i, j] = A[i] @ A[j]
            else:
                K[i, j] = np.exp(-((A[i] - A[j]) ** 2).sum() / (2 * sigma**2))
    return K


def slow_hsic(A, B, kernel, sigma=None):
    n = len(A)

    def own_sigma(A):
        gaps = [np.linalg.norm(A[i] - A[j]) for i in range(n) for j in range(i)]
        return np.median(gaps) if sigma is None else sigma

    H = np.eye(n) - 1 / n
    K = slow_kernel(A, kernel, own_sigma(A))
    L = slow_kernel(B, kernel, own_sigma(B))
    return np.trace(K @ H @ L @ H) / (n - 1) ** 2


@pytest.mark.parametrize(("kernel", "sigma"), [("linear", None), ("rbf", None), ("rbf", 0.4)])
def test_values_equal_the_matrix_form(pair, kernel, sigma):
    A, B = pair
    expected = slow_hsic(A, B, kernel, sigma)
    assert hsic(A, B, kernel=kernel, bandwidth=sigma) == pytest.approx(expected, rel=1e-10)
    own = np.sqrt(slow_hsic(A, A, kernel, sigma) * slow_hsic(B, B, kernel, sigma))
    assert cka(A, B, kernel=kernel, bandwidth=sigma) == pytest.approx(expected / own, rel=1e-10)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_shifts_and_rotations_change_nothing(pair, kernel):
    A, B = pair
    rotated = A @ ortho_group.rvs(3, random_state=np.random.RandomState(0)) + [5.0, -3.0, 100.0]
    assert hsic(rotated, B, kernel=kernel) == pytest.approx(hsic(A, B, kernel=kernel), rel=1e-9)
    assert cka(7 * rotated, B, kernel=kernel) == pytest.approx(cka(A, B, kernel=kernel), rel=1e-9)
    assert cka(A, rotated, kernel=kernel) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_a_constant_side_depends_on_nothing(pair, kernel):
    A, _ = pair
    constant = np.full((25, 2), 0.1)  # 0.1 has a mean that differs from 0.1 by rounding
    assert hsic(A, constant, kernel=kernel) == pytest.approx(0.0, abs=1e-30)
    assert cka(A, constant, kernel=kernel) == pytest.approx(0.0, abs=1e-12)


def test_orthogonal_columns_are_uncorrelated_and_rbf_sees_more():
    x = np.linspace(-1, 1, 41)[:, None]
    assert hsic(x, x**2) == pytest.approx(0.0, abs=1e-30)
    assert cka(x, x**2, kernel="rbf") > 0.1


def test_linear_form_survives_a_large_offset():
    # tr(KHLH) on these numbers is a difference of terms of 1e24 and gives anything
    A = np.random.default_rng(0).random((30, 2))
    B = np.random.default_rng(1).random((30, 2))
    assert hsic(A + 1e6, B + 1e6) == pytest.approx(hsic(A, B), rel=1e-6)


A = np.random.default_rng(0).random((5, 2))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((A, A[:4]), {}, r"B must have shape \(n, q\) with n=5"),
        ((A, A[:, 0]), {}, "B must have shape"),
        ((A[:1], A[:1]), {}, "at least 2 rows"),
        ((A, A * np.inf), {}, "B must be finite"),
        ((A, A), {"kernel": "rbff"}, "Did you mean 'rbf'"),
        ((A, A), {"kernel": "rbf", "bandwidth": -1.0}, "bandwidth must lie in"),
    ],
)
@pytest.mark.parametrize("measure", [hsic, cka])
def test_bad_input_is_refused(measure, arguments, options, message):
    with pytest.raises(ValueError, match=f"{measure.__name__}: .*{message}"):
        measure(*arguments, **options)
