"""TensorLoader: the same batches as a DataLoader, and an exact continuation."""

import pytest
import torch
from cv_core.engine.loader import TensorLoader
from cv_core.random import derive_seed
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset


def rows(count: int) -> torch.Tensor:
    return torch.arange(count * 6, dtype=torch.float32).view(count, 2, 3)


def same(left: list[tuple[torch.Tensor, ...]], right: list[tuple[torch.Tensor, ...]]) -> bool:
    return len(left) == len(right) and all(
        len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        for a, b in zip(left, right, strict=True)
    )


@given(
    count=st.integers(1, 23),
    size=st.integers(1, 9),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
)
def test_batches_equal_a_data_loaders_in_the_same_order(count, size, shuffle, drop_last):
    x, y = rows(count), torch.arange(count)
    if drop_last and count < size:
        with pytest.raises(ValueError, match="No batch would come out"):
            TensorLoader(x, y, batch_size=size, drop_last=True)
        return
    ours = TensorLoader(x, y, batch_size=size, shuffle=shuffle, seed=3, drop_last=drop_last)
    for epoch in (1, 2):
        order = list(range(count))
        if shuffle:
            generator = torch.Generator().manual_seed(derive_seed(3, "order", epoch))
            order = torch.randperm(count, generator=generator).tolist()
        dataset = TensorDataset(x, y)
        peer = DataLoader(dataset, batch_size=size, sampler=order, drop_last=drop_last)
        assert same(list(ours), [tuple(batch) for batch in peer])
        assert len(ours) == len(peer)


def test_blocks_are_invisible(monkeypatch):
    x = rows(50)
    whole = list(TensorLoader(x, batch_size=4, shuffle=True))
    monkeypatch.setattr("cv_core.engine.loader._BLOCK_BYTES", 200)  # two batches per block
    assert same(whole, list(TensorLoader(x, batch_size=4, shuffle=True)))


def test_every_epoch_has_its_own_order_and_every_sample_once():
    loader = TensorLoader(torch.arange(100), batch_size=7, shuffle=True)
    first, second = (torch.cat([batch[0] for batch in loader]) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, torch.arange(100))
    assert torch.equal(second.sort().values, torch.arange(100))


@given(stop=st.integers(0, 12), shuffle=st.booleans())
def test_continues_inside_an_epoch(stop, shuffle):
    def make() -> TensorLoader:
        def noise(batch, generator):
            return (batch[0] + torch.rand(batch[0].shape, generator=generator),)

        return TensorLoader(rows(33), batch_size=6, shuffle=shuffle, transform=noise)

    stream = make()
    everything = [batch for _ in range(3) for batch in stream]
    broken = make()
    seen = []
    while len(seen) < stop:
        for batch in broken:
            seen.append(batch)
            if len(seen) == stop:
                break
    state = broken.state_dict()
    other = make()
    other.load_state_dict(state)
    while len(seen) < len(everything):
        seen.extend(other)
    assert same(seen, everything)


def test_breaking_off_begins_the_next_epoch():
    loader = TensorLoader(torch.arange(6), batch_size=2, shuffle=True, seed=1)
    orders = [[b[0].tolist() for b in loader] for _ in range(2)]
    again = TensorLoader(torch.arange(6), batch_size=2, shuffle=True, seed=1)
    assert next(iter(again))[0].tolist() == orders[0][0]
    assert [b[0].tolist() for b in again] == orders[1]


def test_a_batch_is_the_callers_own():
    x = rows(10)
    before = x.clone()
    for shuffle in (False, True):
        for (batch,) in TensorLoader(x, batch_size=3, shuffle=shuffle):
            batch.zero_()
    assert torch.equal(x, before)


def test_changing_a_batch_does_not_invalidate_anothers_graph():
    (first,), (second,) = TensorLoader(rows(4), batch_size=2)
    weight = torch.ones(3, requires_grad=True)
    loss = (first * weight).square().sum()  # keeps first for the backward pass
    second.zero_()
    loss.backward()
    assert torch.equal(weight.grad, 2 * first.square().sum((0, 1)))


def test_global_generator_is_untouched():
    before = torch.get_rng_state()
    list(TensorLoader(rows(9), batch_size=2, shuffle=True, transform=lambda b, _: b))
    assert torch.equal(before, torch.get_rng_state())


def test_a_generator_serves_as_seed():
    def order(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        loader = TensorLoader(torch.arange(50), batch_size=50, shuffle=True, seed=generator)
        return next(iter(loader))[0].tolist()

    assert order(0) == order(0)
    assert order(0) != order(1)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("count", [24, 27])
def test_shares_join_to_the_batch(shuffle, count):
    def make() -> TensorLoader:
        return TensorLoader(torch.arange(count), batch_size=8, shuffle=shuffle)

    shares = [list(make().shard(rank, 4)) for rank in range(4)]
    joined = [torch.cat([share[i][0] for share in shares]) for i in range(len(shares[0]))]
    whole = [batch for (batch,) in make()]
    assert len({len(share) for share in shares}) == 1
    for got, expected in zip(joined, whole, strict=False):
        assert torch.equal(got, expected[: len(got)])
    assert sum(map(len, joined)) == count // 4 * 4  # what cannot be shared evenly is left out


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((), {}, ValueError, "at least one tensor"),
        (([1, 2],), {}, TypeError, r"tensors\[0\] must be a tensor; got list"),
        ((torch.zeros(3), torch.zeros(4)), {}, ValueError, r"same length; got \[3, 4\]"),
        ((torch.zeros(0, 2),), {}, ValueError, "at least one sample"),
        ((torch.tensor(1.0),), {}, ValueError, "must have rows; got a scalar"),
        ((torch.zeros(3),), {"batch_size": 0}, ValueError, "batch_size must be at least 1"),
    ],
)
def test_refuses(arguments, options, error, message):
    with pytest.raises(error, match=message):
        TensorLoader(*arguments, **{"batch_size": 2, **options})


def test_refuses_a_foreign_state_and_uneven_shares():
    loader = TensorLoader(torch.zeros(10), batch_size=4)
    with pytest.raises(ValueError, match="samples=10; got 9"):
        loader.load_state_dict(TensorLoader(torch.zeros(9), batch_size=4).state_dict())
    with pytest.raises(ValueError, match="must divide batch_size=4; got 3"):
        loader.shard(0, 3)
    with pytest.raises(ValueError, match="too few for 4"):
        TensorLoader(torch.zeros(3), batch_size=4).shard(0, 4)
