import pytest
import torch
from cv_core.data.sources import load
from cv_graph.splits import published_node_split, random_node_split

Y = torch.tensor([0, 1, 2, -1, 1, 0, 0, 2, 1, 2, 0, -1] * 5)


def test_random_parts_are_disjoint_and_hold_every_labelled_node():
    split = random_node_split(Y, per_class=4, validation=11, seed=3)
    assert [len(part) for part in split] == [12, 11, 50 - 23]
    together = torch.cat(split)
    assert together.sort().values.tolist() == (Y >= 0).nonzero().flatten().tolist()
    assert torch.bincount(Y[split.train]).tolist() == [4, 4, 4]
    for part in split:
        assert part.tolist() == sorted(part.tolist())
        assert part.dtype == torch.int64


def test_the_seed_decides():
    one, again, other = (
        random_node_split(Y, per_class=4, validation=11, seed=seed) for seed in (0, 0, 1)
    )
    assert all(map(torch.equal, one, again))
    assert not torch.equal(one.train, other.train)
    assert not torch.equal(one.val, other.val)
    # validation nodes are drawn and not the first
    assert one.val.tolist() != torch.cat([one.val, one.test]).sort().values[:11].tolist()
    none = random_node_split(Y, per_class=4, seed=0)
    assert torch.equal(none.train, one.train)
    assert len(none.val) == 0
    assert len(none.test) == 38


def test_random_splits_that_cannot_be():
    with pytest.raises(ValueError, match="class 1 must have at least 16 samples; got 15"):
        random_node_split(Y, per_class=16, seed=0)
    with pytest.raises(ValueError, match="validation must leave a test node"):
        random_node_split(Y, per_class=15, validation=5, seed=0)
    with pytest.raises(ValueError, match="validation must be at least 0"):
        random_node_split(Y, per_class=1, validation=-1, seed=0)


def test_published_splits():
    club = load("karate-club")
    split = published_node_split(club)
    assert split.train.tolist() == [0, 33]
    assert len(split.val) == 0
    assert split.test.tolist() == list(range(1, 33))
    digits = load("digits-hypergraph")
    for number in (0, 9):
        split = published_node_split(digits, number)
        assert torch.equal(split.train, digits.splits[number][0])
        assert torch.equal(split.test, digits.splits[number][1])
        assert len(split.val) == 0
    for data, number in ((club, 1), (digits, 10)):
        with pytest.raises(ValueError, match="number must be at least 0 and at most"):
            published_node_split(data, number)
