r"""Shape or texture: how much each view of an image contributes to a vote that learns its weights.

*A Competition of Shape and Texture Bias by Multi-view Image Representation*, Kong, Wang, Huang and
Xiao, PRCV 2021, LNCS 13022, pp. 140-151.

A frozen network's features are taken apart into a shape code (instance normalisation deletes each
channel's mean and deviation), a texture code (pooled over places) and, if wanted, a code of the
background. One linear classifier per view votes:

.. math::
    p = \sum_v w_v p_v, \qquad w = \mathrm{softmax}(a), \qquad
    L = -\eta \log p_y + \alpha |G - x| + \beta \sum_{u < v} \cos(c_u, c_v)

with G the image that an AdaIN decoder makes of the codes. The learned weights w are the read-out.

Deviations from the paper, and why:

- Its Eq. 5 takes the argmax, which has no gradient: the mixture's likelihood is maximised. A
  weighted sum of the views' own losses, as the introduction words it, is linear in w and would end
  at the view of least loss.
- w is the softmax of three free numbers for the whole data set, equal at first; the paper does not
  say. A read-out that depends on the start measures the start: see ``start`` and the experiment.
- The pooled form of the texture code (``mode="gap"``), as its formula has it, is linear in the
  channel means and holds no correlations; ``mode="gram"`` follows the prose.
- The cosines need codes of one length: each is pooled and mapped to ``dim`` entries. The
  reconstruction is a mean, not a sum, of absolute differences.
- A mask takes the place of image matting; Otsu's threshold where none is given.
- The frozen network is any network. Instance normalisation stands in the residual branch: the
  shortcut carries the backbone's own statistics on, so that the shape code is not free of texture.
  ``linear_probe`` measures how much of one label a code of the other tells.

Example:
    >>> import torch
    >>> from cv_core.models.small import SmallCNN
    >>> net = MultiViewBiasNet(
    ...     SmallCNN(1, 10, width=4), 10, shape_layer="relu2", texture_layers=("relu1", "relu2"),
    ...     example=torch.zeros(1, 1, 16, 16),
    ... )
    >>> contribution_weights(net)
    {'shape': 0.5, 'texture': 0.5}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any, Literal, get_args

import torch
from cv_core.checks import (
    check_choice,
    check_finite,
    check_floating,
    check_indices,
    check_integer,
    check_range,
    check_same_shape,
    check_shape,
)
from cv_core.nn.blocks import ConvNormAct
from cv_core.nn.frozen import Frozen
from cv_core.nn.hooks import tap
from cv_core.numerics.linear import ridge_solve
from cv_core.registry import Card, Example, Reference
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from cv_factorization.view_codes import (
    AdaINDecoder,
    Mode,
    ShapeEncoder,
    TextureEncoder,
    otsu_mask,
)

Opposition = Literal["signed", "abs", "square"]
VIEWS = ("shape", "texture", "background")


class MultiViewBiasNet(nn.Module):
    r"""Views of a frozen network's features, a classifier for each, and weights that are learned.

    Args:
        backbone: Any network; it is copied, frozen, and run for its activations only.
        n_classes: Number of classes.
        views: At least two of ``"shape"``, ``"texture"`` and ``"background"``, the first two among
            them.
        shape_layer: Name of the layer whose map becomes the shape code.
        texture_layers: Names of the layers whose statistics become the texture code.
        example: One input (1, C, H, W), from which the layers' channels are read.
        channels: Channels of the shape code.
        dim: Entries of each view's vector.
        n_blocks: Blocks of the shape encoder.
        mode: Of the texture encoder.
        start: First weights of the views, each above 0 with sum 1; equal by default.
    """

    def __init__(
        self,
        backbone: nn.Module,
        n_classes: int,
        *,
        views: Sequence[str] = ("shape", "texture"),
        shape_layer: str,
        texture_layers: Sequence[str],
        example: Float[Tensor, "1 c h w"],
        channels: int = 16,
        dim: int = 16,
        n_blocks: int = 4,
        mode: Mode = "gap",
        start: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        owner = "MultiViewBiasNet"
        check_integer(owner, "n_classes", n_classes, low=2)
        check_shape(owner, "example", example, "1 c h w")
        for view in views:
            check_choice(owner, "views", view, VIEWS)
        if set(views) not in ({"shape", "texture"}, set(VIEWS)) or len(set(views)) != len(views):
            raise ValueError(f"{owner}: views must hold shape and texture once; got {views!r}.")
        self.views = tuple(views)
        self.shape_layer, self.texture_layers = shape_layer, tuple(texture_layers)
        self.backbone = Frozen(backbone)
        s, layers = self._activations(example)
        self.shape_encoder = ShapeEncoder(s.shape[1], channels, n_blocks=n_blocks)
        self.texture_encoder = TextureEncoder([t.shape[1] for t in layers], dim, mode=mode)
        self.shape_fc = nn.Linear(channels, dim)
        maps = channels
        if "background" in views:
            self.background_encoder = nn.Sequential(
                ConvNormAct(example.shape[1], channels, stride=2, norm=None),
                ConvNormAct(channels, channels, norm=None),
            )
            self.background_fc = nn.Linear(channels, dim)
            maps += channels
        scale = max(1, round(example.shape[2] / s.shape[2]))
        self.decoder = AdaINDecoder(maps, dim, example.shape[1], n_up=(scale - 1).bit_length())
        self.heads = nn.ModuleDict({view: nn.Linear(dim, n_classes) for view in views})
        self.weight_logits = nn.Parameter(_start(owner, self.views, start).log())

    def forward(
        self, x: Float[Tensor, "b c h w"], mask: Float[Tensor, "b 1 h w"] | None = None
    ) -> dict[str, Any]:
        """Take images apart, vote, and put them together.

        Args:
            x: Images.
            mask: 1 on the object, for the background view; by Otsu's threshold by default.

        Returns:
            ``p`` (B, K), ``view_probs`` by view (B, K), ``weights`` (V,), ``recon`` (B, C, H, W)
            and ``codes`` by view (B, dim).
        """
        check_floating("MultiViewBiasNet", "x", x)
        check_shape("MultiViewBiasNet", "x", x, "b c h w")
        ground = None
        if "background" in self.views:
            mask = otsu_mask(x) if mask is None else mask
            check_shape("MultiViewBiasNet", "mask", mask, "b 1 h w", b=len(x))
            ground = self.background_encoder(x * (1.0 - mask))
            x_front = x * mask
        else:
            x_front = x
        shape, codes = self.encode(x_front)
        maps = shape
        if ground is not None:
            codes["background"] = self.background_fc(ground.mean(dim=(2, 3)))
            fitted = functional.adaptive_avg_pool2d(ground, (shape.shape[2], shape.shape[3]))
            maps = torch.cat([shape, fitted], dim=1)
        codes = {view: codes[view] for view in self.views}
        probs = {view: self.heads[view](code).softmax(dim=1) for view, code in codes.items()}
        weights = self.weight_logits.softmax(dim=0)
        p = torch.einsum("v,vbk->bk", weights, torch.stack(list(probs.values())))
        recon = self.decoder(maps, codes["texture"])
        if recon.shape[2:] != x.shape[2:]:
            recon = functional.interpolate(recon, x.shape[2:], mode="bilinear")
        return {"p": p, "view_probs": probs, "weights": weights, "recon": recon, "codes": codes}

    def encode(
        self, x: Float[Tensor, "b c h w"]
    ) -> tuple[Float[Tensor, "b c2 h2 w2"], dict[str, Float[Tensor, "b d"]]]:
        """Return the map of the shape code, and the vectors of shape and texture."""
        s, layers = self._activations(x)
        shape = self.shape_encoder(s)
        vector = self.shape_fc(shape.mean(dim=(2, 3)))
        return shape, {"shape": vector, "texture": self.texture_encoder(layers)}

    def _activations(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        names = list(dict.fromkeys((self.shape_layer, *self.texture_layers)))
        with tap(self.backbone.module, names, copy=True) as taps:
            self.backbone(x)
        for name in names:
            check_shape("MultiViewBiasNet", f"the activation of {name!r}", taps[name].output,
                        "b c h w")  # fmt: skip
        return taps[self.shape_layer].output, [taps[name].output for name in self.texture_layers]


def _start(owner: str, views: Sequence[str], start: Mapping[str, float] | None) -> Tensor:
    if start is None:
        return torch.full((len(views),), 1.0 / len(views))
    if set(start) != set(views) or abs(sum(start.values()) - 1.0) > 1e-6:
        raise ValueError(f"{owner}: start must give {views} weights of sum 1; got {dict(start)}.")
    for value in start.values():
        check_range(owner, "start", value, low=0.0, high=1.0, low_open=True)
    return torch.tensor([start[view] for view in views])


def discrepancy(
    codes: Mapping[str, Float[Tensor, "b d"]], *, kind: Opposition = "signed"
) -> Float[Tensor, ""]:
    """Return the cosines of all pairs of codes, added over pairs and averaged over samples.

    Args:
        codes: A vector of each view, of one length.
        kind: ``"signed"`` as printed, which minimised drives codes into opposite directions;
            ``"abs"`` or ``"square"`` towards right angles.
    """
    check_choice("discrepancy", "kind", kind, get_args(Opposition))
    if len(codes) < 2:
        raise ValueError(f"discrepancy: codes must be of at least two views; got {len(codes)}.")
    cosines = [
        functional.cosine_similarity(one, other, dim=1)
        for one, other in combinations(codes.values(), 2)
    ]
    stacked = torch.stack(cosines)
    if kind != "signed":
        stacked = stacked.abs() if kind == "abs" else stacked.square()
    return stacked.sum(dim=0).mean()


def multiview_loss(
    out: Mapping[str, Any],
    x: Float[Tensor, "b c h w"],
    y: Int64[Tensor, " b"],
    *,
    eta: float = 1.0,
    alpha: float = 1.0,
    beta: float = 0.1,
) -> Float[Tensor, ""]:
    """Return the loss of what ``MultiViewBiasNet`` returned.

    Args:
        out: What it returned.
        x: The images.
        y: Their classes.
        eta: Weight of the mixture's negative log-likelihood, at least 0.
        alpha: Weight of the mean absolute error of the reconstruction, at least 0.
        beta: Weight of the discrepancy, at least 0.
    """
    for name, value in (("eta", eta), ("alpha", alpha), ("beta", beta)):
        check_range("multiview_loss", name, value, low=0.0)
    check_indices("multiview_loss", "y", y, high=out["p"].shape[1], ignore=None)
    check_same_shape("multiview_loss", x=x, recon=out["recon"])
    likelihood = out["p"].gather(1, y[:, None]).clamp_min(torch.finfo(x.dtype).tiny).log().mean()
    reconstruction = (out["recon"] - x).abs().mean()
    return -eta * likelihood + alpha * reconstruction + beta * discrepancy(out["codes"])


def contribution_weights(model: MultiViewBiasNet) -> dict[str, float]:
    """Return the learned weight of each view; they sum to 1.

    Args:
        model: The network.
    """
    weights = model.weight_logits.detach().softmax(dim=0).tolist()
    return dict(zip(model.views, weights, strict=True))


def weight_sweep(
    model: MultiViewBiasNet,
    loader: Iterable[tuple[Tensor, Tensor]],
    view: str,
    grid: Sequence[float],
) -> list[float]:
    """Return the accuracy for each weight of one view, the others' staying as learned.

    Args:
        model: The network; it is not changed.
        loader: Batches of images and classes.
        view: The view whose weight varies.
        grid: Its weights, at least 0; with the others' they need not sum to 1.
    """
    check_choice("weight_sweep", "view", view, model.views)
    for weight in grid:
        check_range("weight_sweep", "grid", weight, low=0.0)
    learned = contribution_weights(model)
    right, count = [0] * len(grid), 0
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for x, y in loader:
                probs = model(x)["view_probs"]
                fixed = sum(learned[name] * p for name, p in probs.items() if name != view)
                for index, weight in enumerate(grid):
                    votes = (fixed + weight * probs[view]).argmax(dim=1)
                    right[index] += int((votes == y).sum())
                count += len(y)
    finally:
        model.train(training)
    if not count:
        raise ValueError("weight_sweep: loader must hold at least one sample.")
    return [hits / count for hits in right]


def linear_probe(
    train: Float[Tensor, "n d"],
    train_y: Int64[Tensor, " n"],
    test: Float[Tensor, "m d"],
    test_y: Int64[Tensor, " m"],
    *,
    ridge: float = 1e-2,
) -> float:
    """Return how often a linear classifier reads a label off codes it was not fitted to.

    Ridge regression on one-hot labels, with codes standardised by the fitted ones.

    Args:
        train: Codes to fit to.
        train_y: Their labels.
        test: Codes to judge.
        test_y: Their labels.
        ridge: Penalty per fitted sample, above 0.
    """
    check_finite("linear_probe", "train", train)
    check_range("linear_probe", "ridge", ridge, low=0.0, low_open=True)
    mean, deviation = train.mean(dim=0), train.std(dim=0).clamp_min(1e-8)

    def design(codes: Tensor) -> Tensor:
        scaled = (codes - mean) / deviation
        return torch.cat([scaled, torch.ones_like(scaled[:, :1])], dim=1)

    targets = functional.one_hot(train_y).to(train)
    coefficients = ridge_solve(design(train), targets, ridge * len(train))
    return float(((design(test) @ coefficients).argmax(dim=1) == test_y).float().mean())


def _examples() -> Sequence[Example]:
    from cv_core.models.small import SmallCNN
    from cv_core.random import seeded

    def build(mode: Mode, views: Sequence[str]) -> MultiViewBiasNet:
        with seeded(0, "backbone"):  # it is no part of the state dict
            backbone = SmallCNN(1, 3, width=2)
        return MultiViewBiasNet(
            backbone, 3, views=views, shape_layer="relu2", texture_layers=("relu1", "relu2"),
            example=torch.zeros(1, 1, 12, 12), channels=4, dim=5, n_blocks=2, mode=mode,
        )  # fmt: skip

    def images(generator: torch.Generator) -> tuple[Tensor]:
        return (torch.rand(3, 1, 12, 12, generator=generator),)

    two: tuple[tuple[int, ...], ...] = (
        (3, 3), (3, 3), (3, 3), (2,), (3, 1, 12, 12), (3, 5), (3, 5)
    )  # fmt: skip
    return [
        Example(build=partial(build, "gap", VIEWS[:2]), inputs=images, output_shapes=two),
        Example(build=partial(build, "gram", VIEWS), inputs=images),
    ]


CARD = Card(
    slug="shape-texture-bias",
    title="How much shape and texture contribute: a vote of views with learned weights",
    reference=Reference(
        title=("A Competition of Shape and Texture Bias by Multi-view Image Representation"),
        authors="Kong, Wang, Huang, Xiao",
        venue="PRCV, LNCS 13022",
        year=2021,
        pages="140-151",
    ),
    kind="module",
    objects=(
        "cv_factorization.methods.shape_texture_bias.MultiViewBiasNet",
        "cv_factorization.view_codes.ShapeEncoder",
        "cv_factorization.view_codes.TextureEncoder",
        "cv_factorization.view_codes.AdaINDecoder",
        "cv_factorization.methods.shape_texture_bias.multiview_loss",
        "cv_factorization.methods.shape_texture_bias.discrepancy",
        "cv_factorization.methods.shape_texture_bias.contribution_weights",
        "cv_factorization.methods.shape_texture_bias.weight_sweep",
        "cv_factorization.methods.shape_texture_bias.linear_probe",
        "cv_factorization.view_codes.otsu_mask",
        "cv_factorization.cue_conflict.cue_conflict",
    ),
    examples=_examples,
    exceptions={"eval_repeatable": "the frozen backbone stays in evaluation mode while training"},
)
