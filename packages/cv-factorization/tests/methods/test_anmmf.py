import numpy as np
import pytest
from cv_core.numerics.affinity import graph_laplacian, knn_affinity
from cv_core.numerics.dependence import cka, hsic
from cv_factorization._shared.multiplicative import dependence_parts, update_atoms_, update_codes_
from cv_factorization.baselines.nmf import MCNMF
from cv_factorization.methods.anmmf import ANMMF
from scipy.optimize import check_grad
from scipy.stats import ortho_group
from sklearn.exceptions import ConvergenceWarning, NotFittedError


def problem(seed, n=14, d=9, m=3, views=3):
    rng = np.random.default_rng(seed)
    X = rng.random((n, d)) * rng.choice([1.0, 255.0])
    U = rng.random((views, m, d)) * 10 ** rng.uniform(-1, 1)
    V = rng.random((views, n, m)) * 10 ** rng.uniform(-1, 1)
    return X, U, V


def objective(X, U, V, lam_hsic, lam_graph, L):
    """The objective of the docstring, with unordered pairs, term by term."""
    n = len(X)
    total = sum(np.linalg.norm(X - v @ u) ** 2 for u, v in zip(U, V, strict=True))
    total += lam_graph * sum(np.trace(v.T @ (L @ v)) for v in V)
    for j in range(len(V)):
        for i in range(j):
            total += lam_hsic * hsic(V[i], V[j]) * (n - 1) ** 2
    return total


def slow_sweep(X, U, V, lam_hsic, lam_graph, W):
    """One sweep as printed, matrix by matrix and entry by entry."""
    n, m = V[0].shape
    H = np.eye(n) - np.ones((n, n)) / n
    for i in range(len(U)):
        top, bottom = V[i].T @ X, V[i].T @ V[i] @ U[i]
        for r in range(m):
            for c in range(X.shape[1]):
                U[i][r, c] *= top[r, c] / bottom[r, c]
        K = sum((H @ V[j] @ V[j].T @ H for j in range(len(V)) if j != i), np.zeros((n, n)))
        plus, minus = (np.abs(K) + K) / 2, (np.abs(K) - K) / 2
        top = X @ U[i].T + lam_hsic * minus @ V[i] + lam_graph * W @ V[i]
        bottom = V[i] @ U[i] @ U[i].T + lam_hsic * plus @ V[i]
        bottom += lam_graph * np.diag(W.sum(axis=1)) @ V[i]
        V[i] = V[i] * top / bottom


@pytest.mark.parametrize("lam_hsic", [0.0, 3.0, 1e4])
@pytest.mark.parametrize("lam_graph", [0.0, 5.0])
def test_sweeps_equal_the_printed_rule(lam_hsic, lam_graph):
    X, U, V = problem(0)
    W = knn_affinity(X, 4).toarray()
    model = ANMMF(3, lam_hsic=lam_hsic, lam_graph=lam_graph, affinity=W, init=(U, V), tol=0)
    model.set_params(max_iter=3).fit(X)
    slow_U, slow_V = list(U.copy()), list(V.copy())
    L = graph_laplacian(W)
    course = [objective(X, U, V, lam_hsic, lam_graph, L)]
    for _ in range(3):
        slow_sweep(X, slow_U, slow_V, lam_hsic, lam_graph, W)
        course.append(objective(X, slow_U, slow_V, lam_hsic, lam_graph, L))
    np.testing.assert_allclose(model.components_, slow_U, rtol=1e-9)
    np.testing.assert_allclose(model.embeddings_, slow_V, rtol=1e-9)
    np.testing.assert_allclose(model.objective_, course, rtol=1e-9)
    errors = [np.linalg.norm(X - v @ u) for u, v in zip(slow_U, slow_V, strict=True)]
    np.testing.assert_allclose(model.reconstruction_err_, errors, rtol=1e-9)


@pytest.mark.parametrize("damping", [1.0, 0.5])
def test_no_single_update_raises_the_objective(damping):
    for seed in range(60):
        rng = np.random.default_rng(seed)
        X, U, V = problem(seed, n=int(rng.integers(4, 20)), m=int(rng.integers(1, 5)))
        lam_hsic, lam_graph = 10.0 ** rng.uniform(-4, [6, 3])
        W = knn_affinity(X, 3)
        model = ANMMF(lam_hsic=lam_hsic, lam_graph=lam_graph, affinity=W, damping=damping)
        graph = model._graph(X)
        L = graph_laplacian(W)
        last = objective(X, U, V, lam_hsic, lam_graph, L)
        for step in range(12):
            i = step % 3
            for name in ("atoms", "codes"):
                if name == "atoms":
                    update_atoms_(U[i], X, V[i])
                else:
                    update_codes_(V[i], X, U[i], model._pull(list(V), i, graph), damping)
                value = objective(X, U, V, lam_hsic, lam_graph, L)
                assert value <= last * (1 + 1e-9), (seed, step, name)
                last = value
        assert U.min() >= 0
        assert V.min() >= 0


def test_printed_rule_may_cycle_where_the_damped_one_rests():
    # one component, a fixed other view, no data: the objective stays while the codes alternate
    other = np.array([[1.0], [0.0], [3.0], [1.0]])
    V = np.array([[1.0], [2.0], [0.5], [1.5]])
    course = [V]
    for _ in range(4):
        falling, rising = dependence_parts(course[-1], [other])
        course.append(course[-1] * falling / rising)
    assert not np.allclose(course[2], course[1])
    np.testing.assert_allclose(course[3], course[1], rtol=1e-12)
    np.testing.assert_allclose(hsic(course[2], other), hsic(course[1], other), rtol=1e-12)


def test_without_a_link_the_views_are_separate_factorisations():
    X, U, V = problem(3)
    joint = ANMMF(3, lam_hsic=0.0, lam_graph=1.0, init=(U, V), tol=0, max_iter=15).fit(X)
    for i in range(3):
        start = (U[i : i + 1], V[i : i + 1])
        alone = ANMMF(3, n_views=1, lam_hsic=0.0, init=start, tol=0, max_iter=15).fit(X)
        np.testing.assert_array_equal(joint.embeddings_[i], alone.embeddings_[0])


def test_independence_term_is_a_trace_with_the_invariances_of_hsic():
    _, _, V = problem(4, views=2)
    n = len(V[0])
    H = np.eye(n) - 1 / n
    link = ANMMF(n_views=2, lam_hsic=1.0)
    value = link._penalty(list(V), None)
    trace = np.trace(V[0] @ V[0].T @ H @ V[1] @ V[1].T @ H)
    assert value == pytest.approx(trace, rel=1e-10)
    rotated = V[0] @ ortho_group.rvs(3, random_state=np.random.RandomState(0))
    assert link._penalty([rotated + 4.0, V[1]], None) == pytest.approx(value, rel=1e-10)
    assert link._penalty([V[0], np.full((n, 2), 0.1)], None) == pytest.approx(0.0, abs=1e-24)


def test_pull_is_half_the_penaltys_gradient():
    X, _, V = problem(5, n=8)
    model = ANMMF(lam_hsic=0.7, lam_graph=1.3, n_neighbors=3)
    graph = model._graph(X)

    def penalty(flat):
        return model._penalty([V[0], flat.reshape(V[1].shape), V[2]], graph)

    def gradient(flat):
        pull = model._pull([V[0], flat.reshape(V[1].shape), V[2]], 1, graph)
        return 2 * (pull.rising - pull.falling).ravel()

    scale = np.linalg.norm(gradient(V[1].ravel()))
    assert check_grad(penalty, gradient, V[1].ravel()) < 1e-5 * scale


@pytest.mark.parametrize("n", [7, 1200])  # one block, and several
def test_dependence_parts_split_a_positive_semidefinite_kernel(n):
    rng = np.random.default_rng(0)
    V, *others = rng.random((3, n, 4))
    centred = [other - other.mean(axis=0) for other in others]
    K = sum(part @ part.T for part in centred)
    falling, rising = dependence_parts(V, others)
    np.testing.assert_allclose(falling, np.maximum(-K, 0) @ V, rtol=1e-9)
    np.testing.assert_allclose(rising, np.maximum(K, 0) @ V, rtol=1e-9)
    assert min(falling.min(), rising.min()) >= 0
    # K 1 = 0: a constant column falls as much as it rises
    falling, rising = dependence_parts(np.ones((n, 1)), others)
    np.testing.assert_allclose(falling, rising, rtol=1e-9)
    # K is positive semidefinite: the net force never points along V
    falling, rising = dependence_parts(V, others)
    assert (np.einsum("nm,nm->m", V, rising - falling) >= 0).all()


def test_stationary_points_do_not_move():
    rng = np.random.default_rng(6)
    U, V = rng.random((2, 3, 9)), rng.random((2, 14, 3))
    V[1] = 0.25  # constant codes depend on nothing
    X = V[0] @ U[0]
    U[1] = X.mean(axis=0) / 0.75
    # view 0 fits exactly; view 1 is the best constant fit, seen by the update of its atoms
    model = MCNMF(3, n_views=2, lam_hsic=5.0, init=(U, V), tol=0, max_iter=1).fit(X)
    np.testing.assert_allclose(model.components_, U, rtol=1e-12)
    np.testing.assert_allclose(model.embeddings_[0], V[0], rtol=1e-12)


def test_data_that_factorise_are_factorised():
    rng = np.random.default_rng(0)
    X = rng.random((40, 3)) @ rng.random((3, 12))
    model = ANMMF(3, lam_hsic=0.0, lam_graph=0.0, max_iter=4000, tol=0, random_state=0).fit(X)
    assert (model.reconstruction_err_ < 0.01 * np.linalg.norm(X)).all()
    assert (model.reconstruction_err_**2).sum() == pytest.approx(model.objective_[-1], rel=1e-6)


def test_independence_falls_with_its_weight():
    X = np.random.default_rng(0).random((60, 12)) ** 3
    means = []
    for lam in (0.0, 10.0, 100.0):
        model = MCNMF(4, lam_hsic=lam, max_iter=150, tol=0, random_state=0).fit(X)
        a, b, c = model.embeddings_
        means.append(np.mean([cka(a, b), cka(a, c), cka(b, c)]))
    assert means[0] > means[1] > means[2]


def test_unit_atoms_keep_the_product():
    X, U, V = problem(7)
    options = {"lam_hsic": 0.0, "lam_graph": 0.0, "init": (U, V), "tol": 0, "max_iter": 10}
    free = ANMMF(3, **options).fit(X)
    unit = ANMMF(3, normalize="u_columns", **options).fit(X)
    np.testing.assert_allclose(np.linalg.norm(unit.components_, axis=2), 1.0, rtol=1e-12)
    # the plain updates commute with scaling, so that nothing but the scale differs
    np.testing.assert_allclose(
        unit.embeddings_ @ unit.components_, free.embeddings_ @ free.components_, rtol=1e-9
    )


@pytest.mark.parametrize("init", ["nmf", "random"])
def test_starts_are_balanced_and_differ_between_views(init):
    X = problem(8)[0]
    U, V = ANMMF(3, init=init, random_state=0)._start(X)
    for u, v in zip(U, V, strict=True):
        np.testing.assert_allclose(np.linalg.norm(u, axis=1), np.linalg.norm(v, axis=0), rtol=1e-9)
    assert not np.allclose(V[0], V[1])
    fit = np.linalg.norm(X - V[0] @ U[0]) / np.linalg.norm(X)
    assert fit < (0.4 if init == "nmf" else 1.0)


def test_transform_solves_non_negative_least_squares():
    X, U, V = problem(9)
    model = ANMMF(3, init=(U, V), tol=0, max_iter=5).fit(X)
    new = np.random.default_rng(1).random((6, 9)) * X.max()
    codes = model.transform(new)
    assert codes.min() >= 0
    for i, atoms in enumerate(model.components_):
        own = codes[:, 3 * i : 3 * i + 3]
        gradient = (own @ atoms - new) @ atoms.T
        scale = 1e-9 * np.abs(new @ atoms.T).max()
        assert (gradient > -scale).all()  # the conditions of Karush, Kuhn and Tucker
        assert np.abs(gradient * own).max() < scale * own.max()


def test_fit_transform_joins_the_embeddings():
    X = problem(10)[0]
    model = ANMMF(2, n_views=3, max_iter=5, tol=0, random_state=0)
    joined = model.fit_transform(X)
    np.testing.assert_array_equal(joined, np.hstack(list(model.embeddings_)))
    assert list(model.get_feature_names_out()) == [f"anmmf{i}" for i in range(6)]


def test_tolerance_stops_and_its_absence_warns():
    X = problem(11)[0]
    model = ANMMF(2, tol=1e-2, random_state=0).fit(X)
    change = np.abs(np.diff(model.objective_)) / model.objective_[1:]
    assert change[-1] < 1e-2
    assert (change[:-1] >= 1e-2).all()
    with pytest.warns(ConvergenceWarning, match="MCNMF: tol=1e-09 was not reached in max_iter=2"):
        MCNMF(2, tol=1e-9, max_iter=2, random_state=0).fit(X)


def test_data_of_zeros_are_at_rest_at_once():
    model = ANMMF(2, random_state=0).fit(np.zeros((6, 4)))  # a warning would be an error
    assert model.n_iter_ == 1
    assert model.objective_[-1] == 0
    assert np.isfinite(model.embeddings_).all()
    assert np.isfinite(model.components_).all()


X = np.random.default_rng(0).random((6, 4))
U, V = np.ones((3, 2, 4)), np.ones((3, 6, 2))


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ({}, -X, "Negative values in data"),
        ({}, X * np.nan, "NaN"),
        ({}, X[:1], "minimum of 2 is required"),
        ({}, X[0], "2D array"),
        ({"n_components": 0}, X, "ANMMF: n_components must be at least 1"),
        ({"n_views": 0}, X, "n_views must be at least 1"),
        ({"lam_hsic": -1.0}, X, "lam_hsic must lie in"),
        ({"lam_graph": np.inf}, X, "lam_graph must lie in"),
        ({"n_neighbors": 0}, X, "n_neighbors must be at least 1"),
        ({"affinity": "heatt"}, X, "Did you mean 'heat'"),
        ({"affinity": np.eye(5)}, X, r"affinity must have shape \(n, n\) with n=6"),
        ({"affinity": np.triu(np.ones((6, 6)))}, X, "affinity must be symmetric"),
        ({"init": "nnmf"}, X, "Did you mean 'nmf'"),
        ({"init": (U, V[:, :5])}, X, "init codes must have shape"),
        ({"init": (U,)}, X, r"init must be 'nmf', 'random' or a pair \(atoms, codes\); got tuple"),
        ({"init": None}, X, "init must be 'nmf', 'random' or a pair"),
        ({"init": (-U, V)}, X, "init atoms must be non-negative"),
        ({"init": (U, V * np.inf)}, X, "init codes must be finite"),
        ({"init_iter": -1}, X, "init_iter must be at least 0"),
        ({"max_iter": 0}, X, "max_iter must be at least 1"),
        ({"tol": -1.0}, X, "tol must lie in"),
        ({"damping": 0.0}, X, "damping must lie in"),
        ({"normalize": "rows"}, X, "normalize must be one of"),
    ],
)
def test_bad_input_is_refused(options, data, message):
    with pytest.raises(ValueError, match=message):
        ANMMF(**{"n_components": 2, **options}).fit(data)


def test_transform_needs_a_fit_and_the_same_columns():
    with pytest.raises(NotFittedError):
        ANMMF(2).transform(X)
    model = MCNMF(2, max_iter=2, tol=0, random_state=0).fit(X)
    with pytest.raises(ValueError, match="MCNMF is expecting 4 features"):
        model.transform(X[:, :3])
