import numpy as np
import pytest
import torch
from cv_core.testing.tensors import global_state
from cv_graph.construction import knn_hypergraph
from cv_graph.methods.hybrid_hgcn import order_propagations
from cv_graph.transductive import HybridHGCNClassifier
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.semi_supervised import LabelSpreading
from sklearn.utils.estimator_checks import check_estimator


def digits(count=400, known=40):
    X, y = load_digits(return_X_y=True)
    X, y = X[:count] / 16, y[:count]
    partial = y.copy()
    partial[known:] = -1
    return X, y, partial


def quick(**options):
    return HybridHGCNClassifier(**{"epochs": 40, "lr": 0.05, "random_state": 0, **options})


def test_scikit_learns_own_suite():
    reason = "-1 means unknown here, as in LabelSpreading, which the suite excuses by its name"
    check_estimator(
        quick(n_neighbors=5, orders=(1, 2), epochs=15, lr=0.1),
        on_skip=None,
        expected_failed_checks={"check_classifiers_classes": reason},
    )


def test_unlabelled_samples_are_classified():
    X, y, partial = digits()
    model = quick().fit(X, partial)
    unknown = partial == -1
    assert model.classes_.tolist() == list(range(10))
    # not by much more than chance, but as well as what scikit-learn has
    peer = LabelSpreading(kernel="knn", n_neighbors=10).fit(X, partial)
    ours = (model.transduction_ == y)[unknown].mean()
    assert ours > (peer.transduction_ == y)[unknown].mean() - 0.05
    assert ours > 0.8
    assert len(model.objective_) == 40
    assert model.objective_[-1] < 0.3 * model.objective_[0]


def test_answers_are_those_of_its_network():
    X, _, partial = digits(120)
    model = quick(weight="hgnn", orders=(1, 2), mix="mean").fit(X, partial)
    x = torch.tensor(X, dtype=torch.float32)
    operators = order_propagations(knn_hypergraph(x, 10, weight="hgnn"), (1, 2))
    assert not model.network_.training
    with torch.no_grad():
        expected = model.network_(x, operators).softmax(dim=1)
    np.testing.assert_allclose(model.label_distributions_, expected, rtol=1e-5, atol=1e-7)
    expected = model.classes_[model.label_distributions_.argmax(axis=1)]
    np.testing.assert_array_equal(model.transduction_, expected)


def test_new_samples_get_the_mean_answer_of_their_neighbours():
    X, _, partial = digits(120)
    new = load_digits(return_X_y=True)[0][500:510] / 16
    model = quick(n_neighbors=7).fit(X, partial)
    for row, answer in zip(new, model.predict_proba(new), strict=True):
        nearest = np.argsort(((X - row) ** 2).sum(axis=1))[:7]
        np.testing.assert_allclose(answer, model.label_distributions_[nearest].mean(axis=0), 1e-5)
    np.testing.assert_array_equal(model.predict(new), model.predict_proba(new).argmax(axis=1))


def test_the_unknown_labels_do_not_matter_and_the_names_of_classes_neither():
    X, y, _ = digits(120, 120)
    numbers = quick(epochs=5).fit(X, y)
    names = quick(epochs=5).fit(X, np.array([f"digit {label}" for label in y]))
    np.testing.assert_array_equal(names.label_distributions_, numbers.label_distributions_)
    assert names.predict(X[:2])[0] == f"digit {numbers.predict(X[:2])[0]}"


def test_the_seed_decides_and_nothing_global_changes():
    X, _, partial = digits(120)
    with global_state() as changed:
        first = quick(epochs=3).fit(X, partial)
        first.predict(X)
        assert not changed()
    again = clone(first).fit(X, partial)
    other = quick(epochs=3, random_state=1).fit(X, partial)
    np.testing.assert_array_equal(first.label_distributions_, again.label_distributions_)
    assert not np.allclose(first.label_distributions_, other.label_distributions_)
    with torch.no_grad():  # training works, and the mode stays
        inside = quick(epochs=3).fit(X, partial)
        assert not torch.is_grad_enabled()
    np.testing.assert_array_equal(inside.label_distributions_, first.label_distributions_)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_neighbors": 0}, "n_neighbors must be at least 1"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"lr": 0.0}, "lr must lie in"),
        ({"weight_decay": -1.0}, "weight_decay must lie in"),
        ({"orders": ()}, "number of orders must be at least 1"),
        ({"mix": "sum"}, "mix must be one of"),
        ({"weight": "heat"}, "weight must be one of"),
    ],
)
def test_bad_options_are_refused(options, message):
    X, _, partial = digits(30, 10)
    with pytest.raises(ValueError, match=message):
        quick(**options).fit(X, partial)


def test_bad_data_are_refused():
    X, y, partial = digits(30, 10)
    with pytest.raises(ValueError, match="all 30 samples are unknown"):
        quick().fit(X, np.full(30, -1))
    with pytest.raises(ValueError, match="Unknown label type"):
        quick().fit(X, y + 0.5)
    with pytest.raises(ValueError, match="NaN"):
        quick().fit(X * np.nan, partial)
    with pytest.raises(NotFittedError):
        quick().predict(X)
    with pytest.raises(ValueError, match="expecting 64 features"):
        quick(epochs=1).fit(X, partial).predict(X[:, :5])
