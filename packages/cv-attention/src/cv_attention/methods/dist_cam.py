r"""Dist-CAM: a class activation map for networks that compare instead of classify.

*Distance-Based Class Activation Map for Metric Learning*, Shen, Ma, Zhang, Hu and Dong, PRCV 2021,
LNCS 13022, pp. 336-347.

A class activation map weighs the channels of the last feature map :math:`Q \in R^{K \times H
\times W}` by a classifier's row. Embedding networks have no such row. Dist-CAM weighs a channel by
how close the pooled query comes to a pooled reference there: with :math:`S` the feature maps of N
reference images of class c and GAP the mean over places,

.. math:: P^c = \frac1N \sum_i \mathrm{GAP}(S^c_i), \qquad
          D^c_k = |P^c_k - \mathrm{GAP}(Q)_k|, \qquad
          \hat c = \arg\min_c \sum_k D^c_k,

.. math:: W^c = \mathrm{norm}(1 / D^c), \qquad M^c = \sum_k W^c_k Q_k.

N = 1 is retrieval (the nearest gallery image) and one-shot learning (the support image). There is
nothing to train and no gradient. Q should be what the last ReLU returns, so that M is not negative.

Only the size of each difference counts, not its sign. The gradient of :math:`-\sum_k D^c_k` is the
opposite: Grad-CAM of it has the weights :math:`\mathrm{sign}(P^c - \mathrm{GAP}(Q)) / HW`.

Deviations from the paper, and why:

- Its norm is not defined. ``"sum"`` divides by the sum; ``"l2"`` and ``"max"`` give the same map up
  to a positive factor. ``"minmax"`` does not: it removes the channel of the largest distance.
- It does not say what happens at a distance of 0: ``eps`` is added to each. Small as it is, single
  channels that agree by accident dominate a map: of 512 half-normal distances the closest channel
  carries about a quarter of all weight. ``relative_eps=0.01`` adds that share of the mean distance,
  and leaves it some 5 %; the printed form is the default.
- Its boxes need a threshold, which is not given; see ``heatmap_to_box``.

Example:
    >>> from cv_attention.prototypes import class_prototypes
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> images, labels = torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    >>> with DistCAM(model, "1") as cam:
    ...     prototypes = class_prototypes(cam.features(images), labels, 3)
    ...     heat, predicted = cam(images, prototypes)
    >>> heat.shape, predicted.shape
    (torch.Size([6, 8, 8]), torch.Size([6]))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from cv_core.checks import (
    check_choice,
    check_finite,
    check_floating,
    check_indices,
    check_range,
    check_shape,
)
from cv_core.explain.attribution import normalize_maps
from cv_core.explain.scores import resolve_target
from cv_core.nn.hooks import tap
from cv_core.nn.surgery import find
from cv_core.registry import Card, Example, Reference
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from cv_attention.prototypes import pooled, prototype_distances, widened

Normalize = Literal["sum", "l2", "max", "minmax"]


def dist_cam(
    query: Float[Tensor, "b k h w"],
    reference: Float[Tensor, "..."],
    *,
    normalize: Normalize = "sum",
    eps: float = 1e-6,
    relative_eps: float = 0.0,
) -> Float[Tensor, "b h w"]:
    """Compute Dist-CAM, the sum of the query's channels by their closeness to a reference.

    Args:
        query: Feature maps ``(B, K, H, W)``.
        reference: Pooled, ``(K,)`` or one for each query ``(B, K)``; or feature maps of any size,
            ``(K, H, W)`` or ``(B, K, H, W)``, which are pooled here.
        normalize: The paper's norm: ``"sum"``, ``"l2"``, ``"max"`` or ``"minmax"``.
        eps: What is added to every distance, above 0.
        relative_eps: Share of an image's mean distance that is added, at least 0.

    Returns:
        Maps ``(B, H, W)``, neither enlarged nor brought to [0, 1].

    Raises:
        TypeError: If an input is not a floating-point tensor.
        ValueError: If a shape does not fit, a pooled feature is not finite, or an option is wrong.

    Example:
        >>> query = torch.tensor([[[[4.0, 0.0]], [[0.0, 4.0]]]])  # both channels have the mean 2
        >>> dist_cam(query, torch.tensor([1.0, -1.0]))  # distances of 1 and 3
        tensor([[[3.0000, 1.0000]]])
    """
    owner = "dist_cam"
    check_floating(owner, "query", query)
    check_floating(owner, "reference", reference)
    check_shape(owner, "query", query, "b k h w")
    if reference.ndim > 2:
        check_shape(owner, "reference", reference, "... h w")
        reference = pooled(reference)
    weights = _weights(owner, pooled(query), reference, normalize, eps, relative_eps)
    return torch.einsum("bk,bkhw->bhw", weights.to(query.dtype), query)


def dist_cam_weights(
    query: Float[Tensor, "b k"],
    reference: Float[Tensor, "..."],
    *,
    normalize: Normalize = "sum",
    eps: float = 1e-6,
    relative_eps: float = 0.0,
) -> Float[Tensor, "b k"]:
    """Compute the channels' weights ``norm(1 / |reference - query|)`` of Dist-CAM.

    Args:
        query: Pooled features ``(B, K)``.
        reference: Pooled features ``(K,)`` or ``(B, K)``.
        normalize: The paper's norm: ``"sum"``, ``"l2"``, ``"max"`` or ``"minmax"``.
        eps: What is added to every distance, above 0.
        relative_eps: Share of an image's mean distance that is added, at least 0.

    Returns:
        Non-negative weights ``(B, K)``, at least in float32.

    Raises:
        TypeError: If an input is not a floating-point tensor.
        ValueError: If a shape does not fit, a feature is not finite, or an option is wrong.

    Example:
        >>> dist_cam_weights(torch.tensor([[1.0, 5.0]]), torch.tensor([2.0, 2.0]))
        tensor([[0.7500, 0.2500]])
    """
    return _weights("dist_cam_weights", query, reference, normalize, eps, relative_eps)


def cam(
    query: Float[Tensor, "b k h w"],
    fc_weight: Float[Tensor, "c k"],
    class_index: int | Int[Tensor, " b"],
) -> Float[Tensor, "b h w"]:
    r"""Compute the class activation map :math:`\sum_k w^c_k Q_k` of Zhou et al., CVPR 2016.

    Args:
        query: Feature maps ``(B, K, H, W)`` in front of the global average pooling.
        fc_weight: Weight ``(C, K)`` of the linear layer behind the pooling.
        class_index: The class, or one for each image ``(B,)``.

    Returns:
        Signed maps ``(B, H, W)``, neither enlarged nor brought to [0, 1].

    Raises:
        TypeError: If an input is of a wrong type.
        ValueError: If a shape does not fit or a class is out of range.

    Example:
        >>> cam(torch.ones(1, 2, 1, 3), torch.tensor([[1.0, 2.0], [0.0, -1.0]]), 1)
        tensor([[[-1., -1., -1.]]])
    """
    owner = "cam"
    check_floating(owner, "query", query)
    check_floating(owner, "fc_weight", fc_weight)
    sizes = check_shape(owner, "query", query, "b k h w")
    check_shape(owner, "fc_weight", fc_weight, "c k", k=sizes["k"])
    classes = torch.as_tensor(class_index, device=query.device)
    check_indices(owner, "class_index", classes, high=len(fc_weight), ignore=None)
    if classes.ndim:
        check_shape(owner, "class_index", classes, "b", b=sizes["b"])
    rows = fc_weight[classes.long().expand(sizes["b"])].to(query.dtype)
    return torch.einsum("bk,bkhw->bhw", rows, query)


class DistCAM:
    """Dist-CAM of a whole network, enlarged bilinearly to the size of the image.

    The network is used in the mode it is in and gets no gradients; no hook stays behind, so that
    the ``with`` block of other class activation maps is allowed but not needed.

    Args:
        model: Any network; what comes behind the layer is not looked at.
        layer: The layer with the output ``(B, K, h, w)``, or its name. It should end in a ReLU.
        prototypes: References for ``attribute``: pooled ``(C, K)``, or feature maps
            ``(C, K, h, w)``. They are class means, support images, or a gallery.
        reshape: Changes the layer's output before it is used: tokens into maps, say, or
            ``torch.relu`` where the network applies it outside of any layer, as DenseNet does.
        normalize: As in ``dist_cam``.
        eps: As in ``dist_cam``.
        relative_eps: As in ``dist_cam``.

    Raises:
        ValueError: If the layer is not one of the model's, or an option is wrong.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
        >>> explainer = DistCAM(model, "1", torch.rand(5, 4))
        >>> explainer.attribute(torch.rand(2, 1, 6, 6), target=torch.tensor([0, 3])).shape
        torch.Size([2, 6, 6])
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str | nn.Module,
        prototypes: Float[Tensor, "c k *size"] | None = None,
        *,
        reshape: Callable[[Tensor], Tensor] | None = None,
        normalize: Normalize = "sum",
        eps: float = 1e-6,
        relative_eps: float = 0.0,
    ) -> None:
        _check_options("DistCAM", normalize, eps, relative_eps)
        self.model = model
        self.layer = _layer_name(model, layer)
        self.prototypes = prototypes
        self.reshape = reshape
        self.normalize: Normalize = normalize
        self.eps = eps
        self.relative_eps = relative_eps

    def __enter__(self) -> DistCAM:
        """Return the explainer itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing: every call has removed its hook."""

    @torch.no_grad()
    def features(self, inputs: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h2 w2"]:
        """Return the layer's output for images ``(B, C, H, W)``, to make references of it.

        With it, ``dist_cam`` gives the maps of several classes after one forward pass.
        """
        check_floating("DistCAM", "inputs", inputs)
        check_shape("DistCAM", "inputs", inputs, "b c h w")
        # a copy, for a later layer may write into the output
        with tap(self.model, self.layer, keep="all", copy=True) as taps:
            self.model(inputs)
        outputs = taps[self.layer].outputs
        if len(outputs) != 1:
            raise ValueError(
                f"DistCAM: layer must run once in a pass; it ran {len(outputs)} times."
            )
        output: Tensor = outputs[0] if self.reshape is None else self.reshape(outputs[0])
        check_floating("DistCAM", "the layer's output", output)
        check_shape("DistCAM", "the layer's output", output, "b k h w")
        return output

    def attribute(
        self, inputs: Float[Tensor, "b c h w"], target: int | Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b h w"]:
        """Return one map per image for the prototypes given at construction.

        Args:
            inputs: Images ``(B, C, H, W)``.
            target: Which prototype, or which for each image ``(B,)``; None for the nearest one.

        Returns:
            float32 maps ``(B, H, W)``, not brought to [0, 1].

        Raises:
            TypeError: If the target is of another type.
            ValueError: If there are no prototypes, a shape does not fit, or a target is out of
                range.
        """
        return self._explain(inputs, self.prototypes, target)[0]

    def __call__(
        self,
        inputs: Float[Tensor, "b c h w"],
        prototypes: Float[Tensor, "c k *size"] | None = None,
        target: int | Int[Tensor, " b"] | None = None,
    ) -> tuple[Float[Tensor, "b h w"], Int[Tensor, " b"]]:
        """Return maps in [0, 1] and the nearest prototype of each image.

        Args:
            inputs: Images ``(B, C, H, W)``.
            prototypes: In place of those given at construction.
            target: As in ``attribute``; it does not change the second result.

        Returns:
            Maps ``(B, H, W)`` and predictions ``(B,)``.
        """
        maps, predicted = self._explain(
            inputs, self.prototypes if prototypes is None else prototypes, target
        )
        return normalize_maps(maps), predicted

    @torch.no_grad()
    def _explain(
        self, inputs: Tensor, prototypes: Tensor | None, target: int | Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if prototypes is None:
            raise ValueError("DistCAM: prototypes must be given, at construction or in the call.")
        check_floating("DistCAM", "prototypes", prototypes)
        maps = self.features(inputs)
        references = pooled(prototypes) if prototypes.ndim == 4 else prototypes
        distances = prototype_distances(pooled(maps), references)
        chosen = resolve_target(-distances, target, "DistCAM")
        if not isinstance(chosen, Tensor):
            raise TypeError("DistCAM: target must be a prototype, one per image, or None.")
        heat = dist_cam(
            maps, references[chosen.long()], normalize=self.normalize, eps=self.eps,
            relative_eps=self.relative_eps,
        )  # fmt: skip
        size = inputs.shape[2:]
        large = functional.interpolate(heat.float()[:, None], size=size, mode="bilinear")[:, 0]
        return large, distances.argmin(1)


def _check_options(owner: str, normalize: str, eps: float, relative_eps: float) -> None:
    check_choice(owner, "normalize", normalize, get_args(Normalize))
    check_range(owner, "eps", eps, low=0.0, low_open=True)
    check_range(owner, "relative_eps", relative_eps, low=0.0)


def _check_pooled(owner: str, name: str, pooled: Tensor) -> None:
    check_floating(owner, name, pooled)
    check_finite(owner, name, pooled)


def _weights(
    owner: str,
    query: Tensor,
    reference: Tensor,
    normalize: Normalize,
    eps: float,
    relative_eps: float,
) -> Tensor:
    _check_options(owner, normalize, eps, relative_eps)
    _check_pooled(owner, "query", query)
    _check_pooled(owner, "reference", reference)
    sizes = check_shape(owner, "query", query, "b k")
    if reference.ndim == 1:
        check_shape(owner, "reference", reference, "k", k=sizes["k"])
    else:
        check_shape(owner, "reference", reference, "b k", **sizes)
    query = widened(query)
    D = (reference.to(query) - query).abs()
    D = D + relative_eps * D.mean(1, keepdim=True) + max(eps, torch.finfo(D.dtype).tiny)
    # 1 / D in units of its maximum: no norm below depends on a factor, and nothing overflows
    W = D.amin(1, keepdim=True) / D
    if normalize == "sum":
        return W / W.sum(1, keepdim=True)
    if normalize == "l2":
        return W / W.norm(dim=1, keepdim=True)
    if normalize == "max":
        return W
    low = W.amin(1, keepdim=True)
    return torch.where(low < 1.0, (W - low) / torch.where(low < 1.0, 1.0 - low, 1.0), 1.0)


def _layer_name(model: nn.Module, layer: str | nn.Module) -> str:
    if isinstance(layer, nn.Module):
        names = [name for name, module in model.named_modules() if module is layer]
        if not names:
            raise ValueError(f"DistCAM: layer must be one of the model's; got {layer}.")
        return names[0]
    found = find(model, layer)
    if len(found) != 1:
        raise ValueError(f"DistCAM: layer must select one layer; {layer!r} selects {[*found]}.")
    return next(iter(found))


def _examples() -> list[Example]:
    def vector(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        query = torch.rand(2, 5, 3, 4, generator=generator)
        return query, torch.rand(2, 5, generator=generator)

    def maps(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return tuple(torch.rand(2, 2, 5, 3, 4, generator=generator))

    return [
        Example(build=lambda: dist_cam, inputs=vector, output_shapes=((2, 3, 4),)),
        Example(build=lambda: dist_cam, inputs=maps, output_shapes=((2, 3, 4),)),
    ]


CARD = Card(
    slug="dist-cam",
    title="Class activation maps for metric learning, from channel-wise distances",
    reference=Reference(
        title="Distance-Based Class Activation Map for Metric Learning",
        authors="Shen, Ma, Zhang, Hu, Dong",
        venue="PRCV, LNCS 13022",
        year=2021,
        pages="336-347",
    ),
    kind="function",
    objects=(
        "cv_attention.methods.dist_cam.DistCAM",
        "cv_attention.methods.dist_cam.dist_cam",
        "cv_attention.methods.dist_cam.dist_cam_weights",
        "cv_attention.prototypes.class_prototypes",
        "cv_attention.prototypes.nearest_prototype",
        "cv_attention.prototypes.prototype_distances",
        "cv_attention.methods.dist_cam.cam",
        "cv_attention.localization.heatmap_to_box",
        "cv_attention.localization.localization_error",
    ),
    examples=_examples,
    properties=("batch-independent", "deterministic"),
)
