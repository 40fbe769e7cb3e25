from __future__ import annotations

import copy
import io
import itertools

import pytest
import torch
from cv_pruning.masks import (
    apply_masks,
    channel_mask,
    export_masks,
    maskable_weights,
    masks_of,
    n_m_mask,
    remove_masks,
    unstructured_mask,
    unstructured_masks,
)
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
        ).eval()


def images() -> Tensor:
    return torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def masks(model: nn.Module, ratio: float = 0.5) -> dict[str, Tensor]:
    weights = maskable_weights(model)
    return unstructured_masks({name: w.detach().abs() for name, w in weights.items()}, ratio)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 1.0])
def test_equal_to_torch_prune_unstructured(ratio: float) -> None:
    model, peer = network(), network()
    for name, mask in masks(model, ratio).items():
        layer = peer.get_submodule(name.removesuffix(".weight"))
        prune.l1_unstructured(layer, "weight", amount=ratio)
        assert torch.equal(mask, layer.weight_mask.bool())
    apply_masks(model, masks(model, ratio))
    assert torch.equal(model(images()), peer(images()))


def test_equal_to_torch_prune_global() -> None:
    model, peer = network(), network()
    weights = maskable_weights(model)
    scores = {name: weight.detach().abs() for name, weight in weights.items()}
    apply_masks(model, unstructured_masks(scores, 0.4, scope="global"))
    prune.global_unstructured(
        [(peer[0], "weight"), (peer[4], "weight")], prune.L1Unstructured, amount=0.4
    )
    assert torch.equal(model[0].weight, peer[0].weight)
    assert torch.equal(model[4].weight, peer[4].weight)
    shares = [float((layer.weight == 0).float().mean()) for layer in (model[0], model[4])]
    assert shares[0] != shares[1]  # otherwise the scope would not matter


@pytest.mark.parametrize("dim", [0, 1])
def test_equal_to_torch_prune_structured(dim: int) -> None:
    for layer in (nn.Conv2d(4, 6, 3), nn.Linear(8, 6)):
        mask = channel_mask(layer.weight.detach().square(), 0.5, dim)
        prune.ln_structured(layer, "weight", amount=0.5, n=2, dim=dim)
        assert torch.equal(mask, layer.weight_mask.bool())


@pytest.mark.parametrize("shape", [(3, 8), (3, 8, 2, 1)])
def test_n_of_m_against_all_choices(shape: tuple[int, ...]) -> None:
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    for n, m in ((2, 4), (1, 2), (4, 8), (4, 4)):
        mask = n_m_mask(scores, n, m)
        assert mask.shape == scores.shape
        flat, kept = (t.reshape(3, 8, -1) for t in (scores, mask))
        for row, column in itertools.product(range(3), range(flat.shape[2])):
            for start in range(0, 8, m):
                group = flat[row, start : start + m, column]
                best = max(
                    itertools.combinations(range(m), n), key=lambda c: sum(group[list(c)].tolist())
                )
                assert kept[row, start : start + m, column].nonzero().flatten().tolist() == list(
                    best
                )


def test_equal_scores_fall_in_order() -> None:
    ties = torch.zeros(2, 4)
    assert unstructured_mask(ties, 0.5).tolist() == [[False] * 4, [True] * 4]
    assert n_m_mask(ties, 1, 2).tolist() == [[False, True] * 2] * 2
    assert channel_mask(ties, 0.5, -1).tolist() == [[False, False, True, True]] * 2


def test_removing_gives_back_the_dense_network() -> None:
    model = network()
    before, out = copy.deepcopy(model.state_dict()), model(images())
    tensors = {name: id(parameter) for name, parameter in model.named_parameters()}
    apply_masks(model, masks(model))
    assert not torch.equal(model(images()), out)
    remove_masks(model)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == tensors
    assert not any(parametrize.is_parametrized(part) for part in model.modules())
    assert type(model[0]) is nn.Conv2d
    both = {**masks(model), "0.bias": torch.zeros(4, dtype=torch.bool)}
    apply_masks(model, dict(sorted(both.items(), reverse=True)))
    export_masks(model)
    assert list(model.state_dict()) == list(before)  # which optimisers' states go by


def test_exporting_bakes_the_masks_in() -> None:
    model = network()
    chosen = masks(model)
    expected = {name: w.detach() * chosen[name] for name, w in maskable_weights(model).items()}
    apply_masks(model, chosen)
    out = model(images())
    export_masks(model)
    assert list(model.state_dict()) == list(network().state_dict())
    assert all(torch.equal(w, expected[name]) for name, w in maskable_weights(model).items())
    assert torch.equal(model(images()), out)
    network().load_state_dict(model.state_dict(), strict=True)


def test_masked_weights_get_no_gradient_and_do_not_move() -> None:
    model = network()
    chosen = masks(model)
    apply_masks(model, chosen)
    dense = model[0].parametrizations.weight.original
    before, out = dense.detach().clone(), model(images())
    out.square().sum().backward()
    assert not dense.grad[~chosen["0.weight"]].any()
    assert dense.grad[chosen["0.weight"]].all()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    still = dense == before
    assert torch.equal(still, ~chosen["0.weight"])
    bad = torch.full((2, 2), float("nan"))
    layer = nn.Linear(2, 2)
    layer.weight.data = bad
    apply_masks(layer, {"weight": torch.zeros(2, 2, dtype=torch.bool)})
    assert not layer.weight.any()  # whatever stood there


def test_new_masks_replace_old_ones() -> None:
    model = network()
    apply_masks(model, masks(model, 0.9))
    dense = {name: torch.ones_like(mask) for name, mask in masks_of(model).items()}
    apply_masks(model, dense)
    assert torch.equal(model(images()), network()(images()))
    assert len(model[0].parametrizations.weight) == 1


def test_copies_and_saved_states() -> None:
    model = network()
    chosen = masks(model)
    apply_masks(model, chosen)
    out, twin = model(images()), copy.deepcopy(model)
    remove_masks(model)
    apply_masks(model, {"0.bias": torch.zeros(4, dtype=torch.bool)})
    assert torch.equal(twin(images()), out)
    assert "bias" in twin[0]._parameters
    file = io.BytesIO()
    torch.save(twin.state_dict(), file)
    file.seek(0)
    loaded = network()
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.zero_()
    apply_masks(loaded, {name: torch.ones_like(mask) for name, mask in chosen.items()})
    loaded.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(loaded(images()), out)
    found = masks_of(loaded)
    assert found.keys() == chosen.keys()
    assert all(torch.equal(found[name], chosen[name]) for name in chosen)
    assert [key for key in twin.state_dict() if "mask" in key] == [
        "0.parametrizations.weight.0.mask",
        "4.parametrizations.weight.0.mask",
    ]


def test_shared_weights_are_named_once_and_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert list(maskable_weights(model)) == ["0.weight"]
    with pytest.raises(ValueError, match=r"shared: \['0.weight', '1.weight'\]"):
        apply_masks(model, masks(model))


def test_errors_leave_the_model_alone() -> None:
    model, scores = network(), torch.rand(4, 6)
    good = masks(model)
    for name, mask, message in (
        ("0.wieght", good["0.weight"], "no parameter '0.wieght'"),
        ("9.weight", good["0.weight"], "no parameter '9.weight'"),
        ("4.weight", good["0.weight"], "must have shape"),
    ):
        with pytest.raises(ValueError, match=message):
            apply_masks(model, {"0.weight": good["0.weight"], name: mask})
    with pytest.raises(TypeError, match="must be boolean"):
        apply_masks(model, {"0.weight": good["0.weight"].float()})
    assert not any(parametrize.is_parametrized(part) for part in model.modules())
    with pytest.raises(ValueError, match="ratio must lie in"):
        unstructured_mask(scores, 1.5)
    with pytest.raises(ValueError, match="NaN"):
        channel_mask(scores * float("nan"), 0.5)
    with pytest.raises(ValueError, match="n must be at least 1 and at most 4"):
        n_m_mask(scores, 5, 4)
    with pytest.raises(ValueError, match="m = 4 divides"):
        n_m_mask(scores, 2, 4)
    with pytest.raises(ValueError, match="scope must be one of"):
        unstructured_masks({"a": scores}, 0.5, scope="globl")
    with pytest.raises(ValueError, match="at least one weight"):
        unstructured_masks({}, 0.5)


def test_foreign_parametrizations_are_kept() -> None:
    layer = nn.Linear(3, 3)
    nn.utils.parametrizations.weight_norm(layer)
    expected = layer.weight.detach().clone()
    apply_masks(layer, {"weight": torch.ones(3, 3, dtype=torch.bool)})
    with pytest.raises(ValueError, match="further parametrizations"):
        remove_masks(layer)
    torch.testing.assert_close(layer.weight, expected)
