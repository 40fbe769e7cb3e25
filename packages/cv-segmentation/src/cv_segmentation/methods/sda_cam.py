r"""SDA-CAM: three remedies for class activation maps that are too small and leak into the context.

*Adversarial Decoupling for Weakly Supervised Semantic Segmentation*, Sun, Yang and Luo, PRCV 2021,
LNCS 13022, pp. 188-200.

Labels of whole images train a classifier; its class activation maps are seeds for segmentation.
They mark the most telling part of an object only, and what usually surrounds it. The paper joins
three known remedies, which are three separate parts here:

- *Sub-categories* (``subcategory_labels``, ``subcategory_loss``): each class is split into K
  clusters of pooled features, and a second layer has to tell them apart,
  :math:`L = L_{CE}(H_p(f), Y_p) + \gamma L_{CE}(H_s(f), Y_s)`. Maps are read from :math:`H_p`.
- *Context decoupling* (``cut_objects``, ``ContextDecoupling``): objects cut out by refined seeds
  are pasted into images of other classes, :math:`Y^{Aug} = Y \vee \mathrm{onehot}(c)`; the
  classifier is trained on both.
- *Adversarial climbing* (``adversarial_climb``), at test time, for each class c that is shown:

  .. math:: X_t = X_{t-1} + \epsilon \nabla \Big(s_c - \sum_{k \ne c} s_k
            - \delta \big\| Q \odot |\mathrm{CAM}_c(X_{t-1}) - \mathrm{CAM}_c(X_0)| \big\|_1\Big),
            \qquad Q = 1\Big[\frac{\mathrm{CAM}_c(X_{t-1})}{\max \mathrm{CAM}_c(X_{t-1})} > \beta
            \Big].

  The map of the last image is SDA-CAM (``sda_cam``).

The paper's order: train; cluster; train with sub-categories; cut objects out by its refined maps;
train with both; climb; refine. ``seed_labels``, ``seed_miou`` and ``refine_seeds`` turn maps into
label maps and judge them. What follows in the paper, a segmentation network trained on these label
maps, is any segmentation network.

Deviations from the paper, and why:

- It reports neither :math:`\gamma, \epsilon, \delta, \beta, K` nor the number of steps. The
  defaults are those of the methods it takes up: :math:`\gamma = 5`, 27 steps,
  :math:`\delta = 7, \beta = 0.5`. Their step is 0.08 along the gradient divided by its
  largest value, which is the default; ``normalise_grad=None`` is the printed rule.
- Cross entropy of several labels at once is the binary one, averaged over classes.
- :math:`Q` is a constant for the gradient, and 0 where the map is 0 everywhere.
- The refinement by IRNet, a network of its own, is a dense CRF on the seeds.
- How far off the centre objects are pasted, how their edges are smoothed and how classes are drawn
  is not given; see ``ContextDecoupling``.

Example:
    >>> from functools import partial
    >>> from cv_segmentation.seeds import refine_seeds
    >>> backbone = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.ReLU())
    >>> model, images = CAMClassifier(backbone, 3, channels=8), torch.rand(2, 3, 32, 32)
    >>> labels = torch.tensor([[1, 0, 1], [0, 1, 0]])
    >>> maps = sda_cam(model, images, labels, climb=partial(adversarial_climb, steps=2))
    >>> refine_seeds(maps, images, 0.3).shape
    torch.Size([2, 32, 32])
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from cv_core.checks import check_integer, check_shape
from cv_core.registry import Card, Example, Reference
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from cv_segmentation.cam_classifier import CAMClassifier
from cv_segmentation.climbing import adversarial_climb

Climb = Callable[[CAMClassifier, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Maps a classifier, images and a class for each to changed images and their maps."""


def sda_cam(
    model: CAMClassifier,
    x: Float[Tensor, "b c h w"],
    labels: Shaped[Tensor, "b n"],
    *,
    climb: Climb = adversarial_climb,
    batch_size: int = 64,
) -> Float[Tensor, "b n h2 w2"]:
    """Return SDA-CAM of every class that an image shows, and 0 for the others.

    Args:
        model: The classifier, trained with sub-categories and context decoupling or without.
        x: Images ``(B, C, H, W)`` as the model takes them.
        labels: 1 or True for each class that an image shows ``(B, n_classes)``.
        climb: ``adversarial_climb``, or one with options bound by ``functools.partial``.
        batch_size: How many pairs of image and class climb at once.

    Returns:
        Maps ``(B, n_classes, h, w)``, not negative, not brought to [0, 1].

    Raises:
        TypeError: If the images are not floating.
        ValueError: If a shape does not fit.

    Example:
        >>> model = CAMClassifier(nn.Conv2d(3, 4, 3), n_classes=2, channels=4)
        >>> maps = sda_cam(model, torch.rand(1, 3, 8, 8), torch.tensor([[0, 1]]))
        >>> maps.shape, maps[0, 0].any()
        (torch.Size([1, 2, 6, 6]), tensor(False))
    """
    check_integer("sda_cam", "batch_size", batch_size, low=1)
    check_shape("sda_cam", "labels", labels, "b n", b=len(x), n=model.head.out_features)
    maps = model.cam(x[:1])  # of one image, for their size: the others are not needed
    maps = maps.new_zeros(len(x), *maps.shape[1:])
    for pairs in (labels != 0).nonzero().split(batch_size):
        image, label = pairs.T
        maps[image, label] = climb(model, x[image], label)[1]
    return maps


def _examples() -> list[Example]:
    def backbone() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.Softplus())

    def inputs(generator: torch.Generator) -> tuple[Tensor]:
        return (torch.rand(2, 3, 9, 8, generator=generator),)

    return [
        Example(
            build=lambda: CAMClassifier(backbone(), 4, channels=6), inputs=inputs,
            output_shapes=((2, 4),),
        ),
        Example(
            build=lambda: CAMClassifier(backbone(), 4, 3, channels=6), inputs=inputs,
            output_shapes=((2, 4), (2, 12)),
        ),
    ]  # fmt: skip


CARD = Card(
    slug="sda-cam",
    title="Larger and cleaner class activation maps: sub-categories, decoupled contexts, climbing",
    reference=Reference(
        title="Adversarial Decoupling for Weakly Supervised Semantic Segmentation",
        authors="Sun, Yang, Luo",
        venue="PRCV, LNCS 13022",
        year=2021,
        pages="188-200",
    ),
    kind="module",
    objects=(
        "cv_segmentation.methods.sda_cam.sda_cam",
        "cv_segmentation.cam_classifier.CAMClassifier",
        "cv_segmentation.climbing.adversarial_climb",
        "cv_segmentation.context_decoupling.ContextDecoupling",
        "cv_segmentation.context_decoupling.cut_objects",
        "cv_segmentation.subcategories.assign_subcategories",
        "cv_segmentation.subcategories.subcategory_centres",
        "cv_segmentation.subcategories.subcategory_labels",
        "cv_segmentation.subcategories.subcategory_loss",
        "cv_segmentation.seeds.refine_seeds",
        "cv_segmentation.seeds.seed_labels",
        "cv_segmentation.seeds.seed_miou",
    ),
    examples=_examples,
    properties=("batch-independent", "deterministic"),
)
