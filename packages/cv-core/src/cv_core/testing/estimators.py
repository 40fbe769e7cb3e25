"""Common checks of scikit-learn estimators."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np

from cv_core.testing.checks import Subject, common_check
from cv_core.testing.tensors import global_state


def _learned(estimator: Any) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(estimator).items()
        if name.endswith("_") and not name.startswith("_") and isinstance(value, np.ndarray)
    }


@common_check("estimator")
def check_sklearn_estimator(subject: Subject) -> None:
    """scikit-learn's own suite for estimators passes without exceptions."""
    from sklearn.utils.estimator_checks import check_estimator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the suite provokes warnings on purpose
        check_estimator(subject.build(), on_skip=None)


@common_check("estimator")
def check_seed_decides(subject: Subject) -> None:
    """The same ``random_state`` learns the same bits, and the global generators stay untouched."""
    first = subject.build()
    with global_state() as changed:
        first.fit(*subject.inputs())
        assert not changed(), f"fit changed {', '.join(changed())}"
    second = subject.build().fit(*subject.inputs())
    learned = _learned(first)
    assert learned, "fit learned no array"
    for name, value in learned.items():
        assert np.array_equal(value, getattr(second, name)), f"{name} differs between two fits"


@common_check("estimator")
def check_data_not_modified(subject: Subject) -> None:
    """``fit`` leaves the data as they were."""
    inputs = subject.inputs()
    before = copy.deepcopy(inputs)
    subject.build().fit(*inputs)
    for old, new in zip(before, inputs, strict=True):
        if isinstance(new, np.ndarray):
            assert np.array_equal(old, new), "fit changed its data in place"


@common_check("estimator")
def check_objective_recorded(subject: Subject) -> None:
    """What is minimised is recorded as ``objective_``, finite in every sweep."""
    fitted = subject.build().fit(*subject.inputs())
    history = np.asarray(getattr(fitted, "objective_", []))
    assert history.size, "an estimator must record objective_"
    assert bool(np.isfinite(history).all()), "objective_ holds NaN or an infinity"
