"""Does Dist-CAM find objects as well as CAM, and is it the closeness of channels that does it?

The place of every object is known (``_located``) and the networks are small (``_embedding``). All
arms of a network weigh the same feature maps; boxes are cut at a threshold that each arm chooses on
other scenes. What could explain a good map other than the paper's weights has its control:

- the features alone: all channels weigh alike;
- any few channels: the reciprocal is heavy-tailed, and a map of few channels is sharp whichever
  they are, so the same weights are dealt out to other channels;
- the reverse: distant channels weigh most;
- any reference: it is that of a class which the scene does not show;
- the direction of the difference: Grad-CAM of the distance, whose weights are its signs.

Scenes of two objects repeat the paper's picture of a cat and a dog: each object's map should be
stronger on it than on the other one, which happens by chance in half of the cases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from cv_core.experiment.declaration import Arm, Case, Claim, Evidence, Experiment, Metric
from cv_core.experiment.trial import Trial
from cv_core.explain.attribution import GradCAM, normalize_maps
from cv_core.explain.faithfulness import energy_in_mask, pointing_game
from cv_core.metrics.detection import box_iou
from cv_core.random import torch_generator
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional

from cv_attention.experiments._embedding import LAYER, Bench, Net, View, prepared
from cv_attention.localization import heatmap_to_box, localization_error
from cv_attention.methods.dist_cam import dist_cam_weights
from cv_attention.prototypes import pooled

Weigh = Callable[[Bench, View, int], Tensor]
"""Weighs the channels (n, k) for each scene's object of a number; CAM and its like, by weights."""

THRESHOLDS = [number / 20 for number in range(1, 20)]


def of_class(bench: Bench, view: View, number: int) -> Tensor:
    """Return CAM's weights, the classifier's rows."""
    return bench.model.get_parameter("fc.weight").detach().cpu()[view.scenes.labels[:, number]]


def close(bench: Bench, view: View, number: int, *, relative_eps: float = 0.0) -> Tensor:  # noqa: ARG001 - one signature
    """Return Dist-CAM's weights."""
    return dist_cam_weights(pooled(view.maps), view.own(number), relative_eps=relative_eps)


def alike(bench: Bench, view: View, number: int) -> Tensor:  # noqa: ARG001 - one signature
    """Return equal weights."""
    return torch.full(view.maps.shape[:2], 1 / view.maps.shape[1])


def distant(bench: Bench, view: View, number: int) -> Tensor:  # noqa: ARG001 - one signature
    """Return the distances themselves, with sum 1."""
    D = (view.own(number) - pooled(view.maps)).abs()
    return D / D.sum(1, keepdim=True)


def other_class(bench: Bench, view: View, number: int) -> Tensor:  # noqa: ARG001 - one signature
    """Return Dist-CAM's weights for a class that the scene does not show."""
    return dist_cam_weights(pooled(view.maps), view.reference(view.scenes.absent[:, number]))


def dealt(bench: Bench, view: View, number: int) -> Tensor:
    """Return Dist-CAM's weights in an order of the channels that is drawn for every map."""
    weights = close(bench, view, number)
    generator = torch_generator(bench.seed, "dealt", number)
    return weights.gather(1, torch.rand(weights.shape, generator=generator).argsort(1))


def run(trial: Trial, *, net: Net, weigh: Weigh | None) -> dict[str, float]:
    """Make one arm's maps of all scenes and judge them; without weights they are Grad-CAM's."""
    if net == "softmax" and trial.case != SCENES:
        trial.skip("images are compared here; no network with a layer FC is trained.")
    if trial.case == SCENES and trial.data.num_classes < 3:
        trial.skip(f"a class besides two is needed; {trial.data.num_classes} came.")
    bench = prepared(trial, net)
    trial.model_cost(bench.model, bench.test.scenes.images[:1].to(trial.device))
    trial.cost(steps=trial.settings.steps)
    found, threshold = locate(bench, weigh)
    first, second = (heat(bench, bench.pairs, number, weigh) for number in (0, 1))
    found |= tell_apart(first, second, bench.pairs.scenes.boxes)
    if weigh is not None and weigh is not of_class:
        weights = weigh(bench, bench.test, 0)
        active = pooled(bench.test.maps)
        found["effective channels"] = float((1 / weights.square().sum(1)).mean())
        found["activity"] = float(((weights * active).sum(1) / active.mean(1)).mean())
    if weigh is close and trial.case == SCENES:
        for power in (-3, -2, -1, 0, 1):
            softer = partial(close, relative_eps=10.0**power)
            error = locate(bench, softer)[0]["localisation error"]
            trial.curve("localisation error by log10 of the relative eps", power, error)
    if trial.seed == 0 and (trial.case == SCENES or weigh is close):  # reports stay small
        maps = heat(bench, bench.test, 0, weigh)
        trial.picture("maps; white: the object, green: the box", drawn(bench.test, maps, threshold))
    return found


def heat(bench: Bench, view: View, number: int, weigh: Weigh | None) -> Float[Tensor, "n h w"]:
    """Return an arm's maps in [0, 1] for each scene's object of a number, in the images' size."""
    if weigh is None:
        return normalize_maps(gradients(bench, view, number))
    maps = torch.einsum("nk,nkhw->nhw", weigh(bench, view, number), view.maps)
    size = view.scenes.images.shape[2:]
    return normalize_maps(functional.interpolate(maps[:, None], size=size, mode="bilinear")[:, 0])


def gradients(bench: Bench, view: View, number: int) -> Float[Tensor, "n h w"]:
    """Return Grad-CAM's maps, of the class's logit or of the negative distance to its reference."""
    device = next(bench.model.parameters()).device
    own = view.own(number).to(device)

    def closeness(outputs: Tensor) -> Tensor:
        return -(outputs - own).abs().sum(1)

    target = view.scenes.labels[:, number].to(device) if bench.net == "softmax" else closeness
    images = view.scenes.images.to(device)
    return GradCAM(bench.model, LAYER).attribute(images, target).cpu()


def locate(bench: Bench, weigh: Weigh | None) -> tuple[dict[str, float], float]:
    """Judge boxes on scenes of one object, cut at the threshold that is best on others."""
    others = heat(bench, bench.validation, 0, weigh)
    truth = bench.validation.scenes.boxes[:, 0]
    threshold = min(
        THRESHOLDS, key=lambda t: float(localization_error(heatmap_to_box(others, t), truth).mean())
    )
    maps, truth = heat(bench, bench.test, 0, weigh), bench.test.scenes.boxes[:, 0]
    boxes, right = heatmap_to_box(maps, threshold), predicted_right(bench)
    shares = {
        "localisation error": localization_error(boxes, truth),
        "top-1 localisation error": localization_error(boxes, truth, correct=right),
        "IoU": box_iou(boxes, truth).diagonal(),
        "energy in box": energy_in_mask(maps, filled(truth, maps)),
        "accuracy": right.float(),
    }
    found = {name: 100 * float(share.mean()) for name, share in shares.items()}
    return {**found, "threshold": threshold}, threshold


def predicted_right(bench: Bench) -> Bool[Tensor, " n"]:
    """Tell which test scenes are classified rightly, by the layer FC or the nearest reference."""
    query, labels = pooled(bench.test.maps), bench.test.scenes.labels[:, 0]
    if bench.net == "softmax":
        weight, bias = (
            part.detach().cpu() for part in bench.model.get_submodule("fc").parameters()
        )
        return functional.linear(query, weight, bias).argmax(1) == labels
    distance = (bench.test.references - query[:, None]).abs().sum(2)
    return distance.argmin(1) == labels


def tell_apart(
    first: Float[Tensor, "n h w"], second: Float[Tensor, "n h w"], boxes: Float[Tensor, "n 2 4"]
) -> dict[str, float]:
    """Judge maps of two objects: is the maximum on the object, and is it stronger than beside?"""
    masks = [filled(boxes[:, number], first) for number in (0, 1)]
    pointed, right = [], []
    for maps, own, other in ((first, *masks), (second, *masks[::-1])):
        pointed.append(pointing_game(maps, own))
        difference = (maps * own).amax((1, 2)) - (maps * other).amax((1, 2))
        right.append((1 + difference.sign()) / 2)
    return {
        "pointing game": 100 * float(torch.cat(pointed).mean()),
        "right one of two": 100 * float(torch.cat(right).mean()),
    }


def filled(boxes: Float[Tensor, "n 4"], like: Float[Tensor, "n h w"]) -> Bool[Tensor, "n h w"]:
    """Return masks that are True inside the boxes."""
    left, top, right, bottom = boxes[:, :, None, None].unbind(1)
    y, x = torch.arange(like.shape[1])[:, None] + 0.5, torch.arange(like.shape[2]) + 0.5
    return (x > left) & (x < right) & (y > top) & (y < bottom)


def drawn(
    view: View, maps: Float[Tensor, "n h w"], threshold: float, count: int = 2
) -> UInt8[Tensor, "rows columns 3"]:
    """Draw scenes with the map in red, the true box in white and the found one in green."""
    boxes = heatmap_to_box(maps[:count], threshold)
    grey = 0.5 * view.scenes.images[:count].mean(1)
    picture = torch.stack([grey + 0.5 * (5 * maps[:count]).round() / 5, grey, grey], dim=3)
    picture = (12 * picture).round() / 12  # few colours make a small file
    for number in range(count):
        for box, colour in (
            (view.scenes.boxes[number, 0], (1.0, 1.0, 1.0)), (boxes[number], (0.2, 0.9, 0.2))
        ):  # fmt: skip
            left, top, right, bottom = box.int().tolist()
            here = picture[number, top:bottom, left:right]
            inside = here[1:-1, 1:-1].clone()
            here[:] = torch.tensor(colour)
            here[1:-1, 1:-1] = inside
    rows = torch.cat(list(picture), dim=1)
    return (255 * rows).byte().repeat_interleave(2, 0).repeat_interleave(2, 1)


DIST, CAM, OF_SOFTMAX = "Dist-CAM", "CAM", "Dist-CAM, softmax net"
UNIFORM, REVERSED, WRONG, DEALT = "uniform", "reversed", "wrong reference", "shuffled channels"
GRAD, GRAD_METRIC, ROBUST = "Grad-CAM", "Grad-CAM of distance", "Dist-CAM, relative eps"
SCENES, RETRIEVAL, SHOTS = "classes", "retrieval (CIFAR-10)", "one shot (Omniglot)"

_COMMON: Mapping[str, Any] = {
    "retrieval": False, "clutter": 0.25, "train": 1200, "validation": 200, "test": 300,
    "width": 32, "ways": 10, "shots": 8, "steps": 120, "rate": 1e-2,
    "base": 100, "novel": 40, "supports": 4, "test_ways": 5,
}  # fmt: skip

EXPERIMENT = Experiment(
    slug="dist-cam",
    question=(
        "Does Dist-CAM find objects as well as CAM, and does it do so because close channels "
        "weigh most?"
    ),
    data={"smoke": "digits", "default": "digits", "full": "fashion-mnist"},
    # the two networks in turn, so that two processes begin with one each
    arms=(
        Arm(CAM, partial(run, net="softmax", weigh=of_class), "baseline", "Rows of the layer FC."),
        Arm(DIST, partial(run, net="metric", weigh=close), "paper", "norm(1 / D), eps = 1e-6."),
        Arm(
            GRAD, partial(run, net="softmax", weigh=None), "baseline",
            "Gradient of the logit; behind global pooling the positive part of CAM.",
        ),
        Arm(
            OF_SOFTMAX, partial(run, net="softmax", weigh=close), "control",
            "Dist-CAM of the classifier's features, without its layer FC.",
        ),
        Arm(
            ROBUST, partial(run, net="metric", weigh=partial(close, relative_eps=0.01)), "control",
            "A hundredth of the mean distance is added to each.",
        ),
        Arm(UNIFORM, partial(run, net="metric", weigh=alike), "control", "Mean of all channels."),
        Arm(REVERSED, partial(run, net="metric", weigh=distant), "control", "norm(D)."),
        Arm(
            WRONG, partial(run, net="metric", weigh=other_class), "control",
            "Dist-CAM for a class that the scene does not show.",
        ),
        Arm(
            DEALT, partial(run, net="metric", weigh=dealt), "control",
            "Dist-CAM's weights, each for another channel drawn by lot.",
        ),
        Arm(
            GRAD_METRIC, partial(run, net="metric", weigh=None), "control",
            "Gradient of -sum D: weights sign(P - GAP(Q)), positive part of the map.",
        ),
    ),
    cases=(
        Case(SCENES),
        Case(RETRIEVAL, {"retrieval": True}, data="cifar10", budgets=("default", "full")),
        Case(SHOTS, data="omniglot", budgets=("default", "full")),
    ),
    metrics=(
        Metric(
            "localisation error", "%", "lower", "IoU with the true box below 0.5; class known."
        ),
        Metric("top-1 localisation error", "%", "lower", "A wrong class is an error too."),
        Metric("IoU", "%", note="Of the found box with the true one."),
        Metric("energy in box", "%", note="Share of the map, scaled to [0, 1], in the true box."),
        Metric("pointing game", "%", note="Two objects: the map's maximum is in its object's box."),
        Metric(
            "right one of two", "%",
            note="The map's maximum in its object's box exceeds that in the other's; chance: 50.",
        ),
        Metric("accuracy", "%", "neither", "By the layer FC, or the nearest reference in L1."),
        Metric("threshold", "", "neither", "Of the box, chosen on other scenes."),
        Metric("effective channels", "", "neither", "1 / sum of squared weights; at most 64."),
        Metric(
            "activity", "", "neither",
            "Mean of the map over the uniform map's: below 1, quiet channels weigh most.",
        ),
    ),
    claims=(
        Claim(
            arm=DIST, below=CAM, metric="top-1 localisation error", cases=(SCENES,),
            paper=(54.7, 56.2), source="ILSVRC-2012, ResNet-50",
        ),
        Claim(
            arm=DIST, below=CAM, metric="localisation error", cases=(SCENES,),
            source="The same with the class known.",
        ),
        Claim(
            arm=OF_SOFTMAX, below=CAM, metric="localisation error", cases=(SCENES,),
            source="Implied: the layer FC is not needed.",
        ),
        *(
            Claim(arm=DIST, below=other, metric="localisation error", source=f"Implied: {why}.")
            for other, why in (
                (UNIFORM, "the features alone do not do it"),
                (REVERSED, "close channels show the object, distant ones do not"),
                (DEALT, "it is the channels' relevance, not their small number"),
                (WRONG, "it is the reference of the object's class"),
                (GRAD_METRIC, "the size of the difference tells more than its sign"),
            )
        ),
        *(
            Claim(
                arm=DIST, above=other, metric="right one of two",
                source="The picture of a cat and a dog: each class's map shows its animal.",
            )
            for other in (UNIFORM, DEALT, WRONG)
        ),
    ),
    settings={
        "smoke": {
            **_COMMON, "train": 160, "validation": 12, "test": 12, "width": 4, "ways": 4,
            "shots": 4, "steps": 3,
        },
        "default": _COMMON,
        "full": {
            **_COMMON, "train": 20_000, "validation": 1000, "test": 2000, "width": 128,
            "shots": 16, "steps": 3000, "rate": 3e-3,
        },
    },
    evidence=Evidence(data="mnist"),
    selection=(
        "The paper gives no norm, eps or loss: sum, 1e-6 and cross entropy of negative L1 "
        "distances to class means, which fits its prediction. The threshold of the boxes is chosen "
        "for every arm by its localisation error on scenes of other glyphs. One rate of Adam for "
        "all networks: of 0.003 and 0.01 the one with which both kinds read more scenes of seed "
        "100, which is not judged. On that seed the canvas was also thinned to a quarter of its "
        "fragments, and one of two networks taken, for with full clutter so short a training "
        "reads few scenes."
    ),
    notes=(
        (
            "The paper's networks have 512 to 2208 channels and are trained on ILSVRC-2012; these "
            "have 64 and are trained for 120 steps. Compare signs, not sizes."
        ),
        "The retrieval case's network reads few of the photographs rightly after so few steps.",
        (
            "The uniform map is the same for both objects, so that it is right in exactly half of "
            "the choices: what chance is."
        ),
    ),
)  # fmt: skip
