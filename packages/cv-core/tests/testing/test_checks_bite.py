"""Every common check passes a sound component and catches one that is broken on purpose."""

import numpy as np
import pytest
import torch
from cv_core.checks import check_floating, check_indices, check_shape
from cv_core.registry import Card, Example, Reference
from cv_core.testing.checks import Subject, all_checks, cases
from sklearn.base import BaseEstimator, ClusterMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn


class Sound(nn.Module):
    """Scales images by a learned factor; *A sound title*; deviations: none. Args: factor.

    >>> Sound(2.0).weight.item()
    2.0
    """

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(factor))

    def forward(self, x):
        check_floating(type(self).__name__, "x", x)
        check_shape(type(self).__name__, "x", x, "b c h w")
        return self.compute(x)

    def compute(self, x):
        return x * self.weight


class SoundLoss(nn.Module):
    """Weighted squared softmax error of the label."""

    def __init__(self) -> None:
        super().__init__()
        self.reduction, self.ignore_index = "mean", -100

    def forward(self, logits, target):
        owner = type(self).__name__
        check_floating(owner, "logits", logits)
        sizes = check_shape(owner, "logits", logits, "b k")
        check_shape(owner, "target", target, "b", b=sizes["b"])
        check_indices(owner, "target", target, high=sizes["k"], ignore=self.ignore_index)
        valid = target != self.ignore_index
        p = logits.softmax(1).gather(1, target.clamp(min=0)[:, None]).squeeze(1)
        return self.reduce(torch.where(valid, (1 - p) ** 2, 0.0), valid)

    def reduce(self, each, valid):
        if self.reduction == "none":
            return each
        return each.sum() if self.reduction == "sum" else each.sum() / valid.sum()


class SoundEstimator(ClusterMixin, TransformerMixin, BaseEstimator):
    """Subtracts the mean."""

    def __init__(self, random_state=None) -> None:
        self.random_state = random_state

    def fit(self, X, y=None):  # noqa: ARG002 - scikit-learn's signature
        X = validate_data(self, X)
        self.mean_ = X.mean(axis=0)
        self.labels_ = (X[:, 0] > self.mean_[0]).astype(int)
        self.objective_ = np.array([float(((X - self.mean_) ** 2).sum())])
        return self

    def transform(self, X):
        check_is_fitted(self)
        return validate_data(self, X, reset=False) - self.mean_


class SoundAttack:
    """Moves every pixel by eps along the sign of the gradient."""

    def __call__(self, model, x, y):
        x = x.clone().requires_grad_()
        with torch.enable_grad():
            loss = nn.functional.cross_entropy(model(x), y)
            (gradient,) = torch.autograd.grad(loss, x)
        return (x + 0.1 * gradient.sign()).clamp(0, 1).detach()


class SoundGraph(nn.Module):
    """Sums what neighbours send."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x, edge_index):
        check_floating(type(self).__name__, "x", x)
        check_shape(type(self).__name__, "x", x, "n f")
        check_shape(type(self).__name__, "edge_index", edge_index, "2 e")
        if edge_index.is_floating_point():
            raise TypeError(f"{type(self).__name__}: edge_index must hold int64.")
        sent = (x * self.weight)[edge_index[0]]
        return self.collect(torch.zeros_like(x), edge_index, sent)

    def collect(self, zeros, edge_index, sent):
        return zeros.index_add(0, edge_index[1], sent)


def images(generator):
    return (torch.randn(4, 3, 5, 5, generator=generator),)


def labelled(generator):
    return torch.randn(6, 4, generator=generator), torch.randint(4, (6,), generator=generator)


def matrix(generator):
    return (torch.rand(20, 4, generator=generator, dtype=torch.float64).numpy(),)


def attacked(generator):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Dropout(0.0))
    weight = torch.randn(3, 12, generator=generator)
    model[1].weight = nn.Parameter(weight)
    model[1].bias = nn.Parameter(torch.zeros(3))
    x = torch.rand(4, 3, 2, 2, generator=generator)
    return model, x, torch.randint(3, (4,), generator=generator)


def graph(generator):
    x = torch.randn(5, 3, generator=generator)
    return x, torch.randint(5, (2, 12), generator=generator)


INPUTS = {
    "module": images,
    "loss": labelled,
    "estimator": matrix,
    "attack": attacked,
    "graph-module": graph,
}
SOUND = {
    "module": Sound,
    "loss": SoundLoss,
    "estimator": SoundEstimator,
    "attack": SoundAttack,
    "graph-module": SoundGraph,
}
PROPERTIES = {
    "module": ("batch-independent", "deterministic", "shape-preserving"),
    "loss": ("deterministic", "non-negative", "parameter-free", "twice-differentiable"),
}


def card(kind="module", build=None, inputs=None, shapes=(), objects=(), title="A sound title"):
    return Card(
        slug="toy",
        title="toy",
        reference=Reference(title=title, authors="A", venue="V", year=2000),
        kind=kind,
        objects=objects or (f"{__name__}.Sound",),
        examples=lambda: [
            Example(build=build or SOUND[kind], inputs=inputs or INPUTS[kind], output_shapes=shapes)
        ],
        properties=PROPERTIES.get(kind, ()),
    )


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Let dotted names of this file resolve, whatever name pytest imported it under."""
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or _this_module())


def _this_module():
    import types

    module = types.ModuleType(__name__)
    vars(module).update(globals())
    return module


@pytest.mark.parametrize("kind", SOUND)
def test_sound_components_pass(kind):
    passed = []
    for check, subject in cases(card(kind)):
        check.run(subject)
        passed.append(check.name)
    assert len(passed) >= 6


def altered(base, **methods):
    """A subclass of a sound component with methods replaced."""
    return type(f"Broken{base.__name__}", (base,), methods)


def _leaks(what):
    def forward(self, x):
        what()
        return Sound.forward(self, x)

    return altered(Sound, forward=forward)


class Counter(Sound):
    calls = 0

    def compute(self, x):
        type(self).calls += 1
        return x * self.weight + type(self).calls


class Forgetful(Sound):
    """Keeps something that is neither parameter nor buffer and is drawn at construction."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = torch.randn(())

    def compute(self, x):
        return x * self.weight + self.offset


class LeavesEval(Sound):
    def compute(self, x):
        self.training = True
        return x * self.weight


class Deaf(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(2))


def _in_place(self, x):
    x.mul_(2.0)
    return x * self.weight


def _no_checks(self, x):
    return self.compute(x)


def _wrong_gradient(self, x):
    return (x * self.weight).detach() + x


class OnceOnly(torch.autograd.Function):
    """A square whose gradient is right, and is a constant to whoever differentiates it again."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0].detach() * grad


def _wrong_second_gradient(self, each, valid):
    return OnceOnly.apply(each).sum() / valid.sum()


def _drops_dtype(self, x):
    return (x * self.weight).float()


def _drops_channels(self, x):
    return x.mean(1) * self.weight


def _unchecked(self, X):
    return X


def _mixes(self, x):
    return x * x.mean() * self.weight


def _infinite(self, x):
    return torch.exp(x) * self.weight


def _ignores_reduction(self, each, valid):
    return each if self.reduction == "none" else each.sum()


def _counts_ignored(self, each, valid):
    if self.reduction == "none":
        return each
    return each.sum() if self.reduction == "sum" else each.mean()


def _first_wins(self, each, valid):
    each = each + each[0] if len(each) > 1 else each
    return SoundLoss.reduce(self, each, valid)


def _overwrites(self, zeros, edge_index, sent):
    zeros = zeros.clone()
    zeros[edge_index[1]] = sent  # the last edge wins
    return zeros


def _draws_globally(self, X, y=None):
    np.random.rand()  # noqa: NPY002 - the fault to be caught
    return SoundEstimator.fit(self, X, y)


def _changes_data(self, X, y=None):
    SoundEstimator.fit(self, X, y)
    X[0, 0] = 7.0
    return self


def _no_record(self, X, y=None):
    SoundEstimator.fit(self, X, y)
    del self.objective_
    return self


def _leaves_gradients(self, model, x, y):
    nn.functional.cross_entropy(model(x), y).backward()
    return SoundAttack.__call__(self, model, x, y)


def _unclipped(self, model, x, y):
    return x + 1.0


class Undocumented:
    pass


def _clamps_nothing(self, logits, target):
    return SoundLoss.reduce(self, logits.mean(1) - 1.0, target != -100)


def _takes_any_class(self, logits, target):
    check_floating(type(self).__name__, "logits", logits)
    check_shape(type(self).__name__, "target", target, "b")
    p = logits.softmax(1).gather(1, target.clamp(0, 3)[:, None]).squeeze(1)
    return self.reduce((1 - p) ** 2, target >= 0)


class HasBuffer(SoundLoss):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))


def _off_device(self, x):
    return (x * self.weight).to("meta") if x.device.type == "cpu" else x


def _ignores_generator(generator):
    return (torch.randn(4, 3, 5, 5),)


BROKEN = {
    "documented_shapes": card(shapes=((4, 3, 5, 6),)),
    "float64_agrees": card(build=altered(Sound, compute=_drops_dtype)),
    "finite": card(build=altered(Sound, compute=_infinite)),
    "gradients": card(build=altered(Sound, compute=_wrong_gradient)),
    "second_gradients": card("loss", altered(SoundLoss, reduce=_wrong_second_gradient)),
    "parameters_get_gradients": card(build=Deaf),
    "input_not_modified": card(build=altered(Sound, compute=_in_place)),
    "global_state_untouched": card(build=_leaks(lambda: torch.rand(()))),
    "eval_repeatable": card(build=LeavesEval),
    "deterministic": card(build=Counter),
    "saved_and_copied": card(build=Forgetful),
    "empty_refused": card(build=altered(Sound, forward=_no_checks)),
    "scalar_refused": card(build=altered(Sound, forward=_no_checks)),
    "wrong_type_refused": card(build=altered(Sound, forward=_no_checks)),
    "parameter_free": card("loss", HasBuffer),
    "non_negative": card("loss", altered(SoundLoss, forward=_clamps_nothing)),
    "shape_preserving": card(build=altered(Sound, compute=_drops_channels)),
    "batch_independent": card(build=altered(Sound, compute=_mixes)),
    "devices_agree": card(build=altered(Sound, compute=_off_device)),
    "example_repeatable": card(inputs=_ignores_generator),
    "reductions": card("loss", altered(SoundLoss, reduce=_ignores_reduction)),
    "ignore_index": card("loss", altered(SoundLoss, reduce=_counts_ignored)),
    "classes_refused": card("loss", altered(SoundLoss, forward=_takes_any_class)),
    "one_sample": card("loss", altered(SoundLoss, reduce=_first_wins)),
    "sklearn_estimator": card("estimator", altered(SoundEstimator, transform=_unchecked)),
    "seed_decides": card("estimator", altered(SoundEstimator, fit=_draws_globally)),
    "data_not_modified": card("estimator", altered(SoundEstimator, fit=_changes_data)),
    "objective_recorded": card("estimator", altered(SoundEstimator, fit=_no_record)),
    "pixels_stay_valid": card("attack", altered(SoundAttack, __call__=_unclipped)),
    "model_untouched": card("attack", altered(SoundAttack, __call__=_leaves_gradients)),
    "edge_order_free": card("graph-module", altered(SoundGraph, collect=_overwrites)),
    "docstrings": card(objects=(f"{__name__}.Undocumented",)),
    "paper_named": card(title="Another paper altogether"),
}


def test_every_check_has_its_broken_component():
    assert set(BROKEN) == set(all_checks())


@pytest.mark.parametrize("name", BROKEN)
def test_check_catches_the_broken_component(name):
    broken = BROKEN[name]
    check = all_checks()[name]
    assert check.applies_to(broken), "the broken component's card does not ask for this check"
    with pytest.raises(AssertionError):
        check.run(Subject(broken, broken.examples()[0]))


def test_exceptions_for_checks_that_do_not_apply_are_refused():
    wrong = Card(**{**vars(card()), "exceptions": {"edge_order_free": "no graph here"}})
    with pytest.raises(ValueError, match="name no check that applies"):
        list(cases(wrong))


def test_a_card_without_examples_is_refused():
    empty = Card(**{**vars(card()), "examples": list})
    with pytest.raises(ValueError, match="needs at least one example"):
        list(cases(empty))
