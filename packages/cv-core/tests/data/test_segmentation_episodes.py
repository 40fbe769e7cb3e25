import pytest
import torch
from cv_core.data.segmentation_episodes import FewShotSegmentationEpisodes, episode_batch


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def dataset():
    """Images whose only value is their number; each shows two of the classes 1 to 4."""
    draws = generator()
    pairs = []
    for number in range(24):
        mask = torch.randint(5, (6, 7), generator=draws)
        first = 1 + number % 4
        mask[(mask != 0) & (mask != first) & (mask != 1 + first % 4)] = 0
        mask[0, 0], mask[0, 1], mask[5, 6] = first, 1 + first % 4, 255
        pairs.append((torch.full((3, 6, 7), number / 24), mask))
    return pairs


def number_of(image):
    return round(24 * float(image[0, 0, 0]))


def test_episode_by_definition(dataset):
    sampler = FewShotSegmentationEpisodes(dataset, [1, 3, 4], shots=3, ignore_index=255)
    draws = generator(1)
    for _ in range(60):
        episode = sampler.sample(draws)
        assert episode.label in (1, 3, 4)
        assert episode.support_label == episode.label
        numbers = [*episode.support_index, episode.query_index]
        assert len(set(numbers)) == 4
        shown = [number_of(image) for image in (*episode.support, episode.query)]
        assert shown == numbers
        for mask, index in zip(episode.support_masks, episode.support_index, strict=True):
            assert mask.dtype == torch.float32
            assert torch.equal(mask[0].bool(), dataset[index][1] == episode.label)
        for row, column in torch.cartesian_prod(torch.arange(6), torch.arange(7)).tolist():
            truth = int(dataset[episode.query_index][1][row, column])
            expected = 255 if truth == 255 else int(truth == episode.label)
            assert episode.query_mask[row, column] == expected


def test_classes_queries_and_supports_are_drawn_alike(dataset):
    sampler = FewShotSegmentationEpisodes(dataset, [1, 2], shots=1)
    draws, times = generator(2), 6000
    labels, queries, supports = torch.zeros(3), torch.zeros(24), torch.zeros(24)
    for _ in range(times):
        episode = sampler.sample(draws)
        labels[episode.label] += 1
        queries[episode.query_index] += 1
        supports[episode.support_index[0]] += 1
    # each class is shown by 12 images, and 6 show both
    shows = torch.tensor(
        [sum(bool((y == label).any()) for label in (1, 2)) for _, y in dataset]
    ).float()
    assert shows.sum() == 24
    expected = shows / 24
    margin = 4.5 * (expected * (1 - expected) / times).sqrt() + 1e-9
    assert ((queries / times - expected).abs() <= margin).all()
    assert ((supports / times - expected).abs() <= margin).all()
    assert abs(float(labels[1]) / times - 0.5) < 4.5 * (0.25 / times) ** 0.5


def test_shots_and_wrong_supports_leave_the_query_as_it_is(dataset):
    one = FewShotSegmentationEpisodes(dataset, [1, 2, 3, 4], shots=1)
    five = FewShotSegmentationEpisodes(dataset, [1, 2, 3, 4], shots=5)
    others = set()
    for seed in range(200):
        first, more = one.sample(generator(seed)), five.sample(generator(seed))
        assert (first.label, first.query_index) == (more.label, more.query_index)
        assert first.support_index == more.support_index[:1]
        wrong = five.sample(generator(seed), wrong_support=True)
        assert (wrong.label, wrong.query_index) == (first.label, first.query_index)
        assert torch.equal(wrong.query_mask, first.query_mask)
        assert wrong.support_label != wrong.label
        others.add((wrong.label, wrong.support_label))
        assert wrong.query_index not in wrong.support_index
        for mask, index in zip(wrong.support_masks, wrong.support_index, strict=True):
            assert torch.equal(mask[0].bool(), dataset[index][1] == wrong.support_label)
    assert len(others) == 12


def test_small_regions_do_not_show_a_class():
    masks = torch.zeros(4, 3, 3, dtype=torch.int64)
    masks[:, 0, 0] = 1
    masks[1:, 1] = 1
    pairs = list(zip(torch.rand(4, 3, 3, 3, generator=generator()), masks, strict=True))
    sampler = FewShotSegmentationEpisodes(pairs, [1], shots=2, min_pixels=4)
    assert sampler.members == {1: [1, 2, 3]}
    with pytest.raises(ValueError, match="class 1 by 3 of 4 images"):
        FewShotSegmentationEpisodes(pairs, [1], shots=3, min_pixels=4)


def test_ignored_pixels_are_not_the_class_in_a_support(dataset):
    sampler = FewShotSegmentationEpisodes(dataset, [1, 2], ignore_index=255)
    episode = sampler.sample(generator(3))
    assert episode.support_masks[0, 0, 5, 6] == 0.0
    assert episode.query_mask[5, 6] == 255


def test_batch_stacks_in_order(dataset):
    sampler = FewShotSegmentationEpisodes(dataset, [1, 2], shots=2)
    draws = generator(4)
    episodes = [sampler.sample(draws) for _ in range(3)]
    support, support_masks, query, query_mask = episode_batch(episodes)
    assert support.shape == (3, 2, 3, 6, 7)
    assert support_masks.shape == (3, 2, 1, 6, 7)
    for row, episode in enumerate(episodes):
        assert torch.equal(support[row], episode.support)
        assert torch.equal(support_masks[row], episode.support_masks)
        assert torch.equal(query[row], episode.query)
        assert torch.equal(query_mask[row], episode.query_mask)


def test_what_cannot_be_drawn_is_refused(dataset):
    build = FewShotSegmentationEpisodes
    for classes in ([], [1, 1], [255]):
        with pytest.raises(ValueError, match="classes must be different ones"):
            build(dataset, classes, ignore_index=255)
    with pytest.raises(ValueError, match="class 7 by 0 of 24 images"):
        build(dataset, [1, 7])
    with pytest.raises(ValueError, match="shots must be at least 1"):
        build(dataset, [1], shots=0)
    with pytest.raises(ValueError, match="two or more for a wrong support"):
        build(dataset, [1]).sample(generator(), wrong_support=True)
    image, mask = dataset[0]
    with pytest.raises(TypeError, match="the mask of image 1 must hold class indices"):
        build([dataset[1], (image, mask.float())], [1])
    with pytest.raises(ValueError, match=r"image 0 must have shape \(c, h, w\) with h=6, w=7"):
        build([(image[:, 1:], mask)], [1])
    with pytest.raises(ValueError, match="the mask of image 0 must lie in"):
        build([(image, mask - 9)], [1])
