import pytest
import torch
from cv_core.data.episodes import EpisodeSampler


def test_episode_by_definition():
    y = torch.arange(200) % 20
    sampler = EpisodeSampler(y, ways=5, shots=2, queries=3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        episode = sampler.sample(generator)
        assert len(set(episode.classes.tolist())) == 5
        assert len(episode.support) == 10
        assert len(episode.query) == 15
        drawn = episode.support.tolist() + episode.query.tolist()
        assert len(set(drawn)) == 25  # no sample twice
        assert torch.equal(episode.classes[episode.support_y], y[episode.support])
        assert torch.equal(episode.classes[episode.query_y], y[episode.query])
        assert episode.support_y.bincount().tolist() == [2] * 5
        assert episode.query_y.bincount().tolist() == [3] * 5


def test_classes_and_samples_are_drawn_alike():
    y = torch.arange(12) % 4
    sampler = EpisodeSampler(y, ways=2, shots=1, queries=1)
    generator = torch.Generator().manual_seed(1)
    counts = torch.zeros(12)
    draws = 6000
    for _ in range(draws):
        counts[sampler.sample(generator).support] += 1
    expected = 0.5 / 3  # the class is drawn in half of the episodes, then one of its 3 samples
    error = (expected * (1 - expected) / draws) ** 0.5
    assert (counts / draws - expected).abs().max() < 4.5 * error


def test_same_seed_same_episode():
    y = torch.arange(100) % 10
    sampler = EpisodeSampler(y, ways=3, shots=1, queries=2)
    first, second, other = (
        sampler.sample(torch.Generator().manual_seed(seed)) for seed in (4, 4, 5)
    )
    assert torch.equal(first.query, second.query)
    assert not torch.equal(first.query, other.query)


def test_small_classes_are_left_out():
    y = torch.tensor([0, 0, 0, 1, 2, 2, 2, 3, 3, 3])
    sampler = EpisodeSampler(y, ways=3, shots=2, queries=1)
    episode = sampler.sample(torch.Generator().manual_seed(0))
    assert sorted(episode.classes.tolist()) == [0, 2, 3]


def test_too_few_classes_are_refused():
    with pytest.raises(ValueError, match=r"ways=3 classes .* got 1 such classes of 2"):
        EpisodeSampler(torch.tensor([0, 0, 1]), ways=3, shots=1, queries=1)
    with pytest.raises(ValueError, match="y must lie"):
        EpisodeSampler(torch.tensor([-1, 0, 1]), ways=2, shots=1, queries=1)
    with pytest.raises(ValueError, match="shots must be at least 1"):
        EpisodeSampler(torch.tensor([0, 1]), ways=2, shots=0, queries=1)
