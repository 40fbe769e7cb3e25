import jaxtyping
import pytest
import torch
from cv_core.data.label_noise import (
    circular_label_noise,
    confusion_transition,
    transition_label_noise,
    uniform_label_noise,
)

N, K = 200_000, 5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def y():
    return torch.randint(0, K, (N,), generator=generator(9))


def rates(y, noisy, classes=K):
    """Count how often each class became each other one."""
    table = torch.bincount(classes * y + noisy, minlength=classes**2).reshape(classes, classes)
    return table.double() / table.sum(1, keepdim=True)


def within_four_errors(found, expected, count):
    error = (expected * (1 - expected) / count).sqrt()
    assert ((found - expected).abs() <= 4 * error + 1e-12).all()


@pytest.mark.parametrize("eta", [0.2, 0.4, 0.8])
def test_uniform_rates(y, eta):
    noisy, flipped = uniform_label_noise(y, eta, K, generator())
    expected = torch.full((K, K), eta / (K - 1), dtype=torch.float64)
    expected.fill_diagonal_(1 - eta)
    within_four_errors(rates(y, noisy), expected, N / K)
    assert torch.equal(flipped, noisy != y)  # a flipped label is always wrong


@pytest.mark.parametrize("eta", [0.2, 0.4])
def test_circular_rates(y, eta):
    noisy, flipped = circular_label_noise(y, eta, K, generator())
    expected = (1 - eta) * torch.eye(K, dtype=torch.float64)
    expected += eta * torch.eye(K, dtype=torch.float64).roll(1, dims=1)
    within_four_errors(rates(y, noisy), expected, N / K)
    assert torch.equal(flipped, noisy != y)


def test_no_noise_and_only_noise(y):
    for noise in (uniform_label_noise, circular_label_noise):
        noisy, flipped = noise(y, 0.0, K, generator())
        assert torch.equal(noisy, y)
        assert not flipped.any()
        noisy, flipped = noise(y, 1.0, K, generator())
        assert (noisy != y).all()
        assert flipped.all()
    assert torch.equal(circular_label_noise(y, 1.0, K, generator())[0], (y + 1) % K)


def test_both_kinds_flip_the_same_samples(y):
    # paired: one stream decides which samples, whatever they become
    _, first = uniform_label_noise(y, 0.3, K, generator())
    _, second = circular_label_noise(y, 0.3, K, generator())
    assert torch.equal(first, second)


def test_more_noise_flips_more_of_the_same(y):
    _, less = uniform_label_noise(y, 0.2, K, generator())
    _, more = uniform_label_noise(y, 0.4, K, generator())
    assert not (less & ~more).any()


def test_transition_rates(y):
    transition = torch.rand(K, K, generator=generator(3), dtype=torch.float64)
    transition[2] = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])
    transition /= transition.sum(1, keepdim=True)
    noisy, flipped = transition_label_noise(y, transition, generator())
    found = rates(y, noisy)
    within_four_errors(found, transition, N / K * 0.98)
    assert found[2, 1] == 1  # what cannot happen does not
    assert torch.equal(flipped, noisy != y)


def test_transition_equal_to_the_identity_keeps_labels(y):
    noisy, flipped = transition_label_noise(y, torch.eye(K), generator())
    assert torch.equal(noisy, y)
    assert not flipped.any()


def test_usual_confusions_of_mnist():
    transition = confusion_transition("mnist", 0.4)
    torch.testing.assert_close(transition.sum(1), torch.ones(10, dtype=torch.float64))
    wrong = {(2, 7), (3, 8), (5, 6), (6, 5), (7, 1)}
    for true in range(10):
        for given in range(10):
            confused = any(pair[0] == true for pair in wrong)
            expected = (1 - 0.4 * confused) if true == given else 0.4 * ((true, given) in wrong)
            assert transition[true, given] == pytest.approx(expected)


def test_same_generator_same_noise_and_the_global_one_untouched(y):
    state = torch.random.get_rng_state()
    first = uniform_label_noise(y, 0.3, K, generator(5))[0]
    second = uniform_label_noise(y, 0.3, K, generator(5))[0]
    other = uniform_label_noise(y, 0.3, K, generator(6))[0]
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.random.get_rng_state())


def test_labels_are_not_modified(y):
    before = y.clone()
    uniform_label_noise(y, 0.5, K, generator())
    transition_label_noise(y, torch.full((K, K), 1 / K), generator())
    assert torch.equal(y, before)


@pytest.mark.parametrize("noise", [uniform_label_noise, circular_label_noise])
def test_wrong_arguments_are_refused(noise):
    y = torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\]"):
        noise(y, 1.5, 3, generator())
    with pytest.raises(ValueError, match=r"y must lie in \[0, 1\]"):
        noise(y, 0.5, 2, generator())
    with pytest.raises(ValueError, match="num_classes must be at least 2"):
        noise(y, 0.5, 1, generator())


def test_wrong_transitions_are_refused():
    y = torch.tensor([0, 1])
    for wrong in (torch.tensor([[0.5, 0.6], [0.0, 1.0]]), torch.tensor([[1.5, -0.5], [0.0, 1.0]])):
        with pytest.raises(ValueError, match="rows with sum 1"):
            transition_label_noise(y, wrong, generator())
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match=r"shape|Expected type"):
        transition_label_noise(y, torch.ones(2, 3), generator())
    with pytest.raises(ValueError, match="name must be one of"):
        confusion_transition("mnits", 0.1)
