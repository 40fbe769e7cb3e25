r"""Adversarial climbing: images that show a class more strongly, so that its map covers more of it.

Anti-adversarial manipulation of Lee, Kim and Yoon, CVPR 2021, in the form of SDA-CAM
(``cv_segmentation.methods.sda_cam``).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from cv_core.checks import (
    check_choice,
    check_floating,
    check_indices,
    check_integer,
    check_range,
    check_shape,
)
from jaxtyping import Float, Int
from torch import Tensor

from cv_segmentation.cam_classifier import CAMClassifier, evaluating

Aggregate = Literal["last", "sum"]
NormaliseGrad = Literal["max"]
Score = Literal["logit", "map"]


def adversarial_climb(
    model: CAMClassifier,
    x: Float[Tensor, "b c h w"],
    cls: int | Int[Tensor, " b"],
    *,
    steps: int = 27,
    step_size: float = 0.08,
    delta: float = 7.0,
    beta: float = 0.5,
    others: float = 1.0,
    score: Score = "logit",
    aggregate: Aggregate = "last",
    normalise_grad: NormaliseGrad | None = "max",
    normalise_cam: bool = False,
    clamp: tuple[float, float] | None = None,
) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b h2 w2"]]:
    r"""Move images up the score of a class while the strong parts of its map stay as they are.

    .. math:: X_t = X_{t-1} + \epsilon \nabla L(X_{t-1}), \qquad
              L = s_c - \lambda \sum_{k \ne c} s_k
                  - \delta \big\| Q \odot |\mathrm{CAM}_c(X_{t-1}) - \mathrm{CAM}_c(X_0)| \big\|_1,

    where :math:`Q = 1[\mathrm{CAM}_c(X_{t-1}) / \max \mathrm{CAM}_c(X_{t-1}) > \beta]` is a
    constant for the gradient, and 0 everywhere if the maximum is 0. The network is in evaluation
    mode meanwhile and gets no gradients. Each image goes its own way, whatever else is in the
    batch. Without steps the result is the ordinary map.

    Score and restraint are of different size: where a map rises by 1 at every place, the score
    gains 1 and the restraint costs :math:`\delta` times the number of places that are held. With
    the default, images soon stay where they are, give or take a step.

    The paper takes the gradient as it is (``normalise_grad=None``) and gives no
    :math:`\epsilon`. A pooled logit has pixel gradients of about 1 / (number of pixels), so that
    published step sizes move nothing then; the default is the source method's step, in which the
    pixel that changes most changes by ``step_size``.

    Args:
        model: The classifier.
        x: Images ``(B, C, H, W)`` in the range that the model takes; the paper's are normalised to
            mean 0 and deviation 1.
        cls: The class c, or one for each image ``(B,)``.
        steps: Number of steps, at least 0.
        step_size: :math:`\epsilon`, at least 0, in units of ``x``.
        delta: :math:`\delta`, at least 0. It weighs a sum over places of a map in logits.
        beta: :math:`\beta`; from 1 on nothing is held.
        others: :math:`\lambda`, at least 0; 1 is the paper's.
        score: What :math:`s` is: ``"logit"`` as in the paper, or ``"map"``, the mean of the map
            after its ReLU, as in the source method. There a class that is off has no gradient.
        aggregate: ``"last"`` returns the map of the last image as in the paper, ``"sum"`` the sum
            over all images from :math:`X_0` to the last one as the source method does.
        normalise_grad: ``"max"`` divides each image's gradient by its largest absolute value; None
            takes it as it is.
        normalise_cam: Whether the two maps that are compared are divided by their maxima first.
        clamp: Least and largest value of an image after a step; None for no limit, as in the paper.

    Returns:
        The last images, without a graph, and the maps ``(B, h, w)``, not negative.

    Raises:
        TypeError: If the images are not floating or the classes not integer.
        ValueError: If an option is out of range or a shape does not fit.

    Example:
        >>> from torch import nn
        >>> model = CAMClassifier(nn.Conv2d(3, 4, 3, stride=2), n_classes=2, channels=4)
        >>> climbed, cam = adversarial_climb(model, torch.rand(2, 3, 9, 9), 1, steps=3)
        >>> climbed.shape, cam.shape
        (torch.Size([2, 3, 9, 9]), torch.Size([2, 4, 4]))
    """
    owner = "adversarial_climb"
    check_integer(owner, "steps", steps, low=0)
    for name, value in (
        ("step_size", step_size), ("delta", delta), ("beta", beta), ("others", others)
    ):  # fmt: skip
        check_range(owner, name, value, low=0.0)
    check_choice(owner, "score", score, get_args(Score))
    check_choice(owner, "aggregate", aggregate, get_args(Aggregate))
    check_choice(owner, "normalise_grad", normalise_grad, (None, *get_args(NormaliseGrad)))
    if clamp is not None:
        check_range(owner, "clamp[0]", clamp[0])
        check_range(owner, "clamp[1]", clamp[1], low=clamp[0], low_open=True)
    given = _classes(owner, model, x, cls)
    cams: list[Tensor] = []
    with torch.inference_mode(mode=False), torch.enable_grad(), evaluating(model):
        classes = given.clone()  # autograd keeps it, and refuses a tensor of inference mode
        image = x.detach().clone()
        for _ in range(steps):
            leaf = image.requires_grad_()
            logits, maps = model.activations(leaf)
            cams.append(own_cam(maps, classes).detach())
            objective = climb_objective(
                logits, maps, cams[0], classes, delta=delta, beta=beta, others=others, score=score,
                normalise_cam=normalise_cam,
            )  # fmt: skip
            (gradient,) = torch.autograd.grad(objective.sum(), leaf)
            if normalise_grad == "max":
                gradient = _by_maximum(gradient)
            image = leaf.detach() + step_size * gradient
            if clamp is not None:
                image = image.clamp(*clamp)
        cams.append(own_cam(model.activations(image)[1], classes).detach())
    return image, cams[-1] if aggregate == "last" else torch.stack(cams).sum(0)


def climb_objective(
    logits: Float[Tensor, "b n"],
    maps: Float[Tensor, "b n h w"],
    first: Float[Tensor, "b h w"],
    classes: Int[Tensor, " b"],
    *,
    delta: float = 7.0,
    beta: float = 0.5,
    others: float = 1.0,
    score: Score = "logit",
    normalise_cam: bool = False,
) -> Float[Tensor, " b"]:
    r"""Return what ``adversarial_climb`` climbs, the :math:`L` of each image.

    Args:
        logits: Of all classes.
        maps: Signed maps of all classes.
        first: The class's activation map of the image before the first step.
        classes: The class of each image.
        delta: As in ``adversarial_climb``.
        beta: As in ``adversarial_climb``.
        others: As in ``adversarial_climb``.
        score: As in ``adversarial_climb``.
        normalise_cam: As in ``adversarial_climb``.
    """
    check_choice("adversarial_climb", "score", score, get_args(Score))
    scores = logits if score == "logit" else maps.relu().mean((2, 3))
    own = scores.gather(1, classes[:, None])[:, 0]
    cam = own_cam(maps, classes)
    held = (cam > beta * cam.amax((1, 2), keepdim=True)).detach()
    if normalise_cam:
        cam, first = _by_maximum(cam), _by_maximum(first)
    change = (held * (cam - first).abs()).sum((1, 2))
    return own - others * (scores.sum(1) - own) - delta * change


def own_cam(maps: Float[Tensor, "b n h w"], classes: Int[Tensor, " b"]) -> Float[Tensor, "b h w"]:
    """Return each image's activation map of its own class, from signed maps of all classes."""
    return maps[torch.arange(len(maps), device=maps.device), classes].relu()


def _by_maximum(values: Tensor) -> Tensor:
    """Divide each sample by its largest absolute value; zeros stay zeros."""
    top = values.abs().amax(tuple(range(1, values.ndim)), keepdim=True)
    return values / torch.where(top > 0, top, 1.0)


def _classes(owner: str, model: CAMClassifier, x: Tensor, cls: int | Tensor) -> Tensor:
    check_floating(owner, "x", x)
    sizes = check_shape(owner, "x", x, "b c h w")
    classes = torch.as_tensor(cls, device=x.device)
    check_indices(owner, "cls", classes, high=model.head.out_features, ignore=None)
    if classes.ndim:
        check_shape(owner, "cls", classes, "b", b=sizes["b"])
    return classes.long().expand(sizes["b"])
