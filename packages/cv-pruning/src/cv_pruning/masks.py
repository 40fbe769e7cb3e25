r"""Masks that switch weights off without removing them: unstructured, N:M, and whole channels.

A mask is a buffer of a parametrization (``torch.nn.utils.parametrize``), so that the layer computes
with :math:`M \odot W` while the dense :math:`W` stays underneath. Masked weights get no gradient.
The ``state_dict`` of a masked network holds both, ``parametrizations.weight.original`` and
``parametrizations.weight.0.mask``; after ``remove_masks`` or ``export_masks`` it is that of the
plain network again.

A mask makes no dense kernel faster; ``cv_pruning.measurement.measure`` says so with numbers, and
``cv_pruning.pruning`` removes channels for real.

Example:
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> scores = {name: weight.detach().abs() for name, weight in maskable_weights(model).items()}
    >>> apply_masks(model, unstructured_masks(scores, 0.5, scope="global"))
    >>> share = [float((part.weight == 0).float().mean()) for part in (model[0], model[2])]
    >>> round((32 * share[0] + 16 * share[1]) / 48, 3)
    0.5
    >>> export_masks(model)
    >>> sorted(model.state_dict())
    ['0.bias', '0.weight', '2.bias', '2.weight']
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from cv_core.checks import check_choice, check_integer, check_range
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

Scope = Literal["local", "global"]


class WeightMask(nn.Module):
    """Multiplies a weight by its mask; a parametrization.

    Args:
        mask: Boolean, of the weight's shape; true is kept.
        place: Where the weight stood among the layer's parameters, to put it back there.
    """

    mask: Tensor

    def __init__(self, mask: Bool[Tensor, "..."], *, place: int = 0) -> None:
        super().__init__()
        self.place = place
        self.register_buffer("mask", mask.clone())

    def forward(self, weight: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the weight with 0 where the mask is false, whatever stood there."""
        return weight.masked_fill(~self.mask, 0.0)


def unstructured_mask(scores: Float[Tensor, "..."], ratio: float) -> Bool[Tensor, "..."]:
    """Keep single entries: the share ``ratio`` of least score is masked.

    Args:
        scores: One score per weight, of any shape, such as absolute values.
        ratio: Share to mask, in [0, 1]; ``round(ratio * entries)`` entries.

    Returns:
        True for what is kept. Of equal scores those that come first in memory are masked first.
    """
    _check_scores("unstructured_mask", scores, ratio)
    return _keep_largest(scores.flatten(), ratio).view(scores.shape)


def n_m_mask(scores: Float[Tensor, "o ..."], n: int, m: int) -> Bool[Tensor, "o ..."]:
    """Keep ``n`` of every ``m`` neighbours along the inputs of each output, such as 2:4.

    Args:
        scores: One score per weight: ``(O, I)`` of a linear layer, ``(O, I, kh, kw)`` of a
            convolution, whose groups run along ``I``.
        n: Entries kept in a group, 1 to ``m``.
        m: Size of a group; a divisor of ``I``.

    Returns:
        True for what is kept. Of equal scores those that come first are masked first.
    """
    owner = "n_m_mask"
    check_integer(owner, "m", m, low=1)
    check_integer(owner, "n", n, low=1, high=m)
    _check_scores(owner, scores, 0.0)
    if scores.ndim < 2 or scores.shape[1] % m:
        raise ValueError(
            f"{owner}: scores must have a second axis that m = {m} divides; got shape "
            f"{tuple(scores.shape)}."
        )
    groups = scores.movedim(1, -1).unflatten(-1, (-1, m))
    keep = groups.argsort(dim=-1, stable=True).argsort(dim=-1) >= m - n
    return keep.flatten(-2).movedim(-1, 1).contiguous()


def channel_mask(scores: Float[Tensor, "..."], ratio: float, dim: int = 0) -> Bool[Tensor, "..."]:
    """Keep whole channels: those with the least sum of scores are masked.

    Args:
        scores: One score per weight.
        ratio: Share of the channels to mask, in [0, 1]; ``round(ratio * channels)`` channels.
        dim: The channels' axis: 0 for outputs, 1 for inputs.

    Returns:
        True for what is kept, of the shape of ``scores``.
    """
    owner = "channel_mask"
    _check_scores(owner, scores, ratio)
    check_integer(owner, "dim", dim, low=-scores.ndim, high=scores.ndim - 1)
    keep = _keep_largest(scores.movedim(dim, 0).flatten(1).sum(1), ratio)
    shape = [1] * scores.ndim
    shape[dim] = -1
    return keep.view(shape).expand_as(scores).contiguous()


def unstructured_masks(
    scores: Mapping[str, Tensor], ratio: float, *, scope: Scope = "local"
) -> dict[str, Tensor]:
    """Mask single entries of several weights.

    Args:
        scores: One score per weight, by the weight's name.
        ratio: Share to mask, in [0, 1].
        scope: ``"local"``: that share of every weight; ``"global"``: the least of all together.

    Returns:
        Masks by name.
    """
    check_choice("unstructured_masks", "scope", scope, get_args(Scope))
    if not scores:
        raise ValueError("unstructured_masks: scores must name at least one weight.")
    if scope == "local":
        return {name: unstructured_mask(score, ratio) for name, score in scores.items()}
    keep = unstructured_mask(torch.cat([score.flatten() for score in scores.values()]), ratio)
    parts = keep.split([score.numel() for score in scores.values()])
    return {
        name: part.view(score.shape)
        for (name, score), part in zip(scores.items(), parts, strict=True)
    }


def _check_scores(owner: str, scores: Tensor, ratio: float) -> None:
    check_range(owner, "ratio", ratio, low=0.0, high=1.0)
    if scores.numel() == 0 or scores.ndim == 0:
        raise ValueError(f"{owner}: scores is empty: shape {tuple(scores.shape)}.")
    if bool(scores.isnan().any()):
        raise ValueError(f"{owner}: scores must not be NaN.")


def _keep_largest(scores: Tensor, ratio: float) -> Tensor:
    keep = torch.ones(len(scores), dtype=torch.bool, device=scores.device)
    keep[scores.argsort(stable=True)[: round(ratio * len(scores))]] = False
    return keep


def maskable_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of linear and convolutional layers by name, as they are computed with.

    A weight that two layers share is named once.
    """
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    layers = [(name, part) for name, part in model.named_modules() if isinstance(part, kinds)]
    found = {f"{name}.weight" if name else "weight": part.weight for name, part in layers}
    names = {id(weight): name for name, weight in reversed(found.items())}
    return {name: found[name] for name in found if names[id(found[name])] == name}


def apply_masks(model: nn.Module, masks: Mapping[str, Bool[Tensor, "..."]]) -> None:
    """Mask parameters, in place; masks that are there already are replaced.

    Args:
        model: Any network.
        masks: Boolean masks by the parameter's name, such as ``"layer1.0.conv1.weight"``.

    Raises:
        TypeError: If a mask is not boolean.
        ValueError: If a name or a shape does not fit, or the parameter is shared with another
            layer; nothing has been changed then.
    """
    places = {name: _place(model, name, mask) for name, mask in masks.items()}
    for name, (layer, attribute) in places.items():
        weight = getattr(layer, attribute)
        mask = masks[name].to(weight.device)
        existing = _mask_of(layer, attribute)
        if existing is None:
            _own_class(layer)
            names = list(layer._parameters)
            place = names.index(attribute) if attribute in names else 0
            parametrize.register_parametrization(layer, attribute, WeightMask(mask, place=place))
        else:
            existing.mask = mask.clone()


def _place(model: nn.Module, name: str, mask: Tensor) -> tuple[nn.Module, str]:
    path, _, attribute = name.rpartition(".")
    layers = dict(model.named_modules())
    layer = layers.get(path)
    weight: Any = getattr(layer, attribute, None)
    masked = layer is not None and parametrize.is_parametrized(layer, attribute)
    if layer is None or not (masked or isinstance(weight, nn.Parameter)):
        raise ValueError(f"apply_masks: the model has no parameter {name!r}.")
    if mask.dtype != torch.bool:
        raise TypeError(f"apply_masks: the mask of {name!r} must be boolean; got {mask.dtype}.")
    if mask.shape != weight.shape:
        raise ValueError(
            f"apply_masks: the mask of {name!r} must have shape {tuple(weight.shape)}; got "
            f"{tuple(mask.shape)}."
        )
    owners = [n for n, p in model.named_parameters(remove_duplicate=False) if p is weight]
    if len(owners) > 1:
        raise ValueError(f"apply_masks: {name!r} is shared: {owners}. Untie the weights first.")
    return layer, attribute


def _chain(layer: nn.Module, attribute: str) -> Any:
    chains: Any = layer.parametrizations
    return chains[attribute]


def _mask_of(layer: nn.Module, attribute: str) -> WeightMask | None:
    if not parametrize.is_parametrized(layer, attribute):
        return None
    return next((part for part in _chain(layer, attribute) if isinstance(part, WeightMask)), None)


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of the masks of a network by the parameter's name."""
    return {
        f"{path}.{attribute}" if path else attribute: mask.mask.clone()
        for path, _, attribute, mask in _masked(model)
    }


def _masked(model: nn.Module) -> list[tuple[str, nn.Module, str, WeightMask]]:
    found = []
    for path, layer in model.named_modules():
        if parametrize.is_parametrized(layer):
            chains: Any = layer.parametrizations
            for attribute in chains:
                mask = _mask_of(layer, attribute)
                if mask is not None:
                    found.append((path, layer, attribute, mask))
    return found


def remove_masks(model: nn.Module) -> None:
    """Take all masks off: the dense weights are back, with what they have learnt since."""
    _take_off(model, bake=False)


def export_masks(model: nn.Module) -> None:
    """Take all masks off and leave zeros in the weights instead."""
    _take_off(model, bake=True)


def _take_off(model: nn.Module, *, bake: bool) -> None:
    places = _masked(model)
    for path, layer, attribute, _ in places:
        if len(_chain(layer, attribute)) > 1:
            raise ValueError(
                f"remove_masks: {path}.{attribute} has further parametrizations; remove them first."
            )
    for _, layer, attribute, mask in reversed(places):  # the last one first, for the places
        original = _chain(layer, attribute).original
        if bake:
            with torch.no_grad():
                original.masked_fill_(~mask.mask, 0.0)
        _own_class(layer)
        parametrize.remove_parametrizations(layer, attribute, leave_parametrized=False)
        following = [n for n in layer._parameters if n != attribute][mask.place :]
        for name in following:  # optimisers' states are loaded by the order of parameters
            layer._parameters[name] = layer._parameters.pop(name)


def _own_class(layer: nn.Module) -> None:
    """Give a parametrized layer a class of its own.

    Torch keeps a parametrization as a property of a class that it makes for the layer, which deep
    copies of the layer share: without this, taking it off one would break the other.
    """
    kind = type(layer)
    if parametrize.is_parametrized(layer):
        layer.__class__ = type(kind.__name__, kind.__bases__, dict(kind.__dict__))
