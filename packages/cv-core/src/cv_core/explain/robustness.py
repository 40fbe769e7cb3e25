"""Does an explanation hold? ROAD, sensitivity to noise, and dependence on what was learned.

Every function returns one number per image ``(B,)``. A mean with its interval over the images:

    >>> from cv_core.experiment.statistics import bca_interval
    >>> values = torch.tensor([0.31, 0.12, 0.25, 0.40, 0.22, 0.18, 0.35, 0.29, 0.21, 0.27])
    >>> interval = bca_interval(values.numpy())
    >>> interval.low < interval.mean < interval.high
    True
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cv_core.checks import check_finite, check_integer, check_range, check_shape
from cv_core.explain.attribution import Explainer
from cv_core.explain.scores import Target, check_images, chunks, decide
from cv_core.nn.surgery import Where, find
from cv_core.random import torch_generator

_TENTHS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


# ------------------------------------------------------------------------------------------- ROAD


@lru_cache(maxsize=4)
def _neighbours(height: int, width: int) -> Any:
    """Return the weights between pixels, sparse ``(H W, H W)``: 1/6 beside, 1/12 across."""
    from scipy import sparse

    def line(size: int) -> Any:  # which pixels are next to each other in one direction
        if size == 1:
            return sparse.csr_array((1, 1))
        return sparse.diags_array([np.ones(size - 1)] * 2, offsets=(-1, 1), shape=(size, size))

    rows, columns = line(height), line(width)
    eyes = sparse.eye_array(height), sparse.eye_array(width)
    beside = sparse.kron(rows, eyes[1]) + sparse.kron(eyes[0], columns)
    return (beside / 6.0 + sparse.kron(rows, columns) / 12.0).tocsr()


def linear_imputation(
    images: Float[Tensor, "b c h w"], missing: Bool[Tensor, "b h w"]
) -> Float[Tensor, "b c h w"]:
    r"""Fill in missing pixels so that each is the weighted mean of its neighbours.

    .. math:: \sum_{j \in N(i)} w_{ij} (x_i - x_j) = 0 \quad \text{for all missing } i

    with weights 1/6 for the four neighbours beside a pixel and 1/12 for the four across (Rong et
    al., ICML 2022, section 4.2). Neighbours beyond the border are left out. The sparse system is
    solved on the CPU in float64.

    Args:
        images: Images ``(B, C, H, W)``; what stands in missing pixels does not matter.
        missing: Where to fill in ``(B, H, W)``.

    Returns:
        The images, filled in.

    Raises:
        ValueError: If an image has no pixel left.
    """
    owner = "linear_imputation"
    check_images(owner, images)
    sizes = check_shape(owner, "images", images, "b c h w")
    check_shape(owner, "missing", missing, "b h w", b=sizes["b"], h=sizes["h"], w=sizes["w"])
    if missing.dtype != torch.bool:
        raise TypeError(f"{owner}: missing must be of type bool; got {missing.dtype}.")
    if bool(missing.flatten(1).all(1).any()):
        raise ValueError(f"{owner}: missing must leave at least one pixel in every image.")
    pixels = images.detach().flatten(2).mT.double().cpu().numpy()
    holes = missing.flatten(1).cpu().numpy()
    weights = _neighbours(sizes["h"], sizes["w"])
    filled = np.stack([_solve(weights, *pair) for pair in zip(pixels, holes, strict=True)])
    return torch.from_numpy(filled).mT.reshape(images.shape).to(images)


def _solve(weights: Any, pixels: np.ndarray, holes: np.ndarray) -> np.ndarray:
    """Fill in one image ``(pixels, channels)``."""
    from scipy import sparse
    from scipy.sparse.linalg import splu

    if not holes.any():
        return pixels
    rows = weights[holes]
    system = sparse.diags_array(rows.sum(1)) - rows[:, holes]
    # symmetric and positive definite: no pivoting, which keeps the factors sparse
    factors = splu(
        system.tocsc(),
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )
    filled = pixels.copy()
    filled[holes] = factors.solve(rows[:, ~holes] @ pixels[~holes])
    return filled


def road(
    model: nn.Module,
    inputs: Float[Tensor, "b c h w"],
    maps: Float[Tensor, "b h w"],
    *,
    target: int | Tensor | None = None,
    fractions: Sequence[float] = _TENTHS,
    noise: float = 0.01,
    seed: int = 0,
    batch_size: int = 64,
) -> Float[Tensor, "b"]:
    r"""Remove and debias, of Rong et al., ICML 2022: do the pixels a map marks hold the evidence?

    .. math:: \frac1{|F|} \sum_{f \in F} \big(p(x^{\text{least } f}) - p(x^{\text{most } f})\big)

    with the probability p of the class after the share f of the pixels that the map ranks lowest,
    or highest, was replaced by ``linear_imputation`` and noise. What is filled in gives away
    little of the shape of what was removed, which would be evidence by itself.

    Args:
        model: A classifier, used in the mode it is in.
        inputs: Images ``(B, C, H, W)``.
        maps: ``(B, H, W)``; equal values go in reading order.
        target: A class, classes ``(B,)``, or None for the decision on the whole images.
        fractions: Shares of the pixels, each in [0, 1).
        noise: Standard deviation of what is added to the pixels filled in, in units of the images.
        seed: Of the noise, which is the same for both orders.
        batch_size: How many images go through the network at once.

    Returns:
        ``(B,)`` in [-1, 1]; above 0 for a faithful map, 0 for a constant one, and 0 on average for
        a random one.

    Raises:
        ValueError: If the shapes do not fit, a map is not finite, or an option is out of range.

    Deviations from the paper: it reports the accuracy for either order; here it is the difference
    of the probabilities, so that every image has one number.
    """
    owner = "road"
    check_images(owner, inputs)
    sizes = check_shape(owner, "inputs", inputs, "b c h w")
    check_shape(owner, "maps", maps, "b h w", b=sizes["b"], h=sizes["h"], w=sizes["w"])
    check_finite(owner, "maps", maps)
    if not len(fractions):
        raise ValueError(f"{owner}: fractions must hold at least one number; got none.")
    for fraction in fractions:
        check_range(owner, "fractions", fraction, low=0.0, high=1.0, high_open=True)
    check_range(owner, "noise", noise, low=0.0)
    check_integer(owner, "batch_size", batch_size, low=1)
    classes = decide(model, inputs, target, owner, batch_size)
    if not isinstance(classes, Tensor):
        raise TypeError(f"{owner}: target must be a class, classes or None; got a function.")
    most, least = (_ranks(maps, descending=descending) for descending in (True, False))
    generator = torch_generator(seed, "ROAD")
    total = torch.zeros(len(inputs), dtype=torch.float64, device=inputs.device)
    for fraction in fractions:
        draws = torch.randn(inputs.shape, generator=generator, dtype=torch.float64)
        for ranks, sign in ((least, 1.0), (most, -1.0)):
            missing = ranks < min(round(fraction * maps[0].numel()), maps[0].numel() - 1)
            changed = linear_imputation(inputs, missing)
            changed = changed + noise * draws.to(inputs) * missing[:, None]
            total += sign * _probabilities(model, changed, classes, batch_size)
    return (total / len(fractions)).float()


def _ranks(maps: Tensor, *, descending: bool) -> Tensor:
    order = maps.flatten(1).argsort(dim=1, descending=descending, stable=True)
    return order.argsort(dim=1).view_as(maps)


def _probabilities(model: nn.Module, images: Tensor, classes: Tensor, batch_size: int) -> Tensor:
    with torch.no_grad():
        found = [
            model(images[chunk]).softmax(1).gather(1, classes[chunk, None])[:, 0]
            for chunk in chunks(len(images), batch_size, images.device)
        ]
    return torch.cat(found).double()


# ------------------------------------------------------------------------------------ sensitivity


def max_sensitivity(
    explainer: Explainer,
    inputs: Float[Tensor, "b c h w"],
    *,
    target: Target = None,
    radius: float = 0.02,
    samples: int = 10,
    seed: int = 0,
) -> Float[Tensor, "b"]:
    r"""How far a map moves when the image is disturbed (Yeh et al., NeurIPS 2019).

    .. math:: \max_{\|\delta\|_\infty \le r} \frac{\|M(x + \delta) - M(x)\|_2}{\|M(x)\|_2}

    estimated from below by uniform draws of :math:`\delta`. The class explained stays that of the
    clean image. A map of zeros is compared with 1.

    Args:
        explainer: Any explainer.
        inputs: Images ``(B, C, H, W)``.
        target: A class, classes ``(B,)``, a function of the outputs, or None for the decision.
        radius: The r, in units of the images.
        samples: Number of draws.
        seed: Of the draws.

    Returns:
        ``(B,)``, at least 0; 0 for a map that does not move.

    Raises:
        ValueError: If an option is out of range or a map is not finite.

    Deviations from the paper: the norm of the map divides, so that explainers of different scales
    compare, as the paper's experiments do by normalising the maps.
    """
    owner = "max_sensitivity"
    check_images(owner, inputs)
    check_range(owner, "radius", radius, low=0.0)
    check_integer(owner, "samples", samples, low=1)
    classes = decide(explainer.model, inputs, target, owner)
    maps = explainer.attribute(inputs, classes)
    check_finite(owner, "maps", maps)
    scale = _norm(maps)
    scale = torch.where(scale > 0.0, scale, 1.0)
    worst = torch.zeros_like(scale)
    generator = torch_generator(seed, "max sensitivity")
    for _ in range(samples):
        delta = torch.rand(inputs.shape, generator=generator).to(inputs) * 2.0 - 1.0
        moved = explainer.attribute(inputs.detach() + radius * delta, classes)
        check_finite(owner, "maps", moved)
        worst = torch.maximum(worst, _norm(moved - maps) / scale)
    return worst


def _norm(maps: Tensor) -> Tensor:
    return torch.linalg.vector_norm(maps, dim=(1, 2))


# ----------------------------------------------------------------------------------- randomisation


def randomization_similarity(
    model: nn.Module,
    build: Callable[[nn.Module], Explainer],
    inputs: Float[Tensor, "b c h w"],
    *,
    target: Target = None,
    layers: Sequence[Where] | None = None,
    seed: int = 0,
) -> Float[Tensor, "b"]:
    """How much of a map outlives the network's weights (Adebayo et al., NeurIPS 2018).

    A copy of the network loses its weights layer by layer, from the output to the input, each layer
    staying random from then on (the cascading randomisation). After every layer the image is
    explained again, for the class that the intact network was asked about.

    Args:
        model: A classifier; only a copy of it is changed.
        build: Makes the explainer of a network: ``lambda copy: GradCAM(copy, "layer4")``.
        inputs: Images ``(B, C, H, W)``.
        target: A class, classes ``(B,)``, a function of the outputs, or None for the decision.
        layers: What loses its weights at each step, the output first: name patterns or classes.
            By default every module that holds parameters of its own, in reverse order.
        seed: Of the random weights.

    Returns:
        ``(B,)`` in [-1, 1]: Spearman's rank correlation with the map of the intact network, mean
        over the steps. Near 0 for a map that depends on the weights, 1 for one that does not, such
        as an edge detector's. Two constant maps have 1, a constant map and another one 0.

    Raises:
        ValueError: If no parameters are selected or a map is not finite.

    Deviations from the paper: a tensor of weights is drawn from the normal distribution with its
    own mean and standard deviation, because a foreign network does not tell how it was
    initialised; statistics of BatchNorm stay.
    """
    owner = "randomization_similarity"
    check_images(owner, inputs)
    classes = decide(model, inputs, target, owner)
    before = _map_ranks(owner, build(model).attribute(inputs, classes))
    with torch.inference_mode(mode=False):  # a copy made inside it would have no gradients
        changed = copy.deepcopy(model)
    steps = _steps(owner, changed, layers)
    total = np.zeros(len(inputs))
    generator = torch_generator(seed, "randomisation")
    for parameters in steps:
        for parameter in parameters:
            _randomize(parameter, generator)
        after = build(changed).attribute(inputs, classes)
        total += _correlation(before, _map_ranks(owner, after))
    return torch.from_numpy(total / len(steps)).to(inputs.device, torch.float32)


def _steps(
    owner: str, model: nn.Module, layers: Sequence[Where] | None
) -> list[list[nn.Parameter]]:
    if layers is None:
        found = [list(module.parameters(recurse=False)) for module in model.modules()]
        steps = [parameters for parameters in reversed(found) if parameters]
    else:
        if isinstance(layers, str):
            raise TypeError(f"{owner}: layers must be a list, one entry per step; got {layers!r}.")
        chosen = [find(model, where).values() for where in layers]
        steps = [[p for module in modules for p in module.parameters()] for modules in chosen]
    if not any(steps):
        raise ValueError(f"{owner}: layers must hold parameters; those selected hold none.")
    return steps


def _randomize(parameter: nn.Parameter, generator: torch.Generator) -> None:
    with torch.no_grad():
        values = parameter.detach().float()
        spread, mean = values.std(correction=0), values.mean()
        draws = torch.randn(parameter.shape, generator=generator).to(values)
        parameter.copy_(mean + spread * draws)


def _map_ranks(owner: str, maps: Tensor) -> np.ndarray:
    """Return the ranks of each map's values, equal ones sharing theirs, centred."""
    from scipy.stats import rankdata

    check_finite(owner, "maps", maps)
    ranks = rankdata(maps.detach().flatten(1).cpu().numpy(), axis=1)
    return np.asarray(ranks - ranks.mean(1, keepdims=True))


def _correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    product = (first * second).sum(1)
    scale = np.sqrt((first**2).sum(1) * (second**2).sum(1))
    both_constant = ~first.any(1) & ~second.any(1)
    return np.where(scale > 0, product / np.where(scale > 0, scale, 1.0), both_constant)
