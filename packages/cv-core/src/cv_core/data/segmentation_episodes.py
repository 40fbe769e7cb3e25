"""Episodes for few-shot segmentation: K annotated images of a class, and one image to segment.

The protocol of Shaban et al. (BMVC 2017): the class is drawn first, then images that show it; in
every mask the class is 1 and all else is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from cv_core.checks import check_indices, check_integer, check_shape

_LARGEST = torch.iinfo(torch.int64).max


@runtime_checkable  # the tests check types
class MaskedImages(Protocol):
    """What episodes are drawn from: a list of pairs, or a data set of torch that has a length."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]:
        """Return an image ``(C, H, W)`` and its class indices ``(H, W)``."""


@dataclass(frozen=True, slots=True, eq=False)
class SegmentationEpisode:
    """One class to segment.

    Args:
        support: Images whose masks are given.
        support_masks: 1 where ``support_label`` is, else 0.
        query: The image to segment.
        query_mask: 1 where ``label`` is, else 0; pixels to ignore keep their index.
        label: Class to segment.
        support_label: Class that the supports show: ``label``, but in the control.
        support_index: Where the supports are in the data set.
        query_index: Where the query is.
    """

    support: Float[Tensor, "k c h w"]
    support_masks: Float[Tensor, "k 1 h w"]
    query: Float[Tensor, "c h w"]
    query_mask: Int64[Tensor, "h w"]
    label: int
    support_label: int
    support_index: tuple[int, ...]
    query_index: int


class FewShotSegmentationEpisodes:
    """Draws a class, a query that shows it, and K other images that show it.

    Two samplers of one data set that differ in ``shots`` draw, from generators in one state, the
    same class and query, and supports of which the fewer are the first of the more. Every mask is
    read once at construction.

    Args:
        dataset: Pairs of an image and its class indices; in an episode all sizes must be equal.
        classes: Those to draw, such as the ones that were not trained on.
        shots: Supports of an episode, K.
        ignore_index: Index of pixels that do not count; in a support they are not the class.
        min_pixels: Pixels that a class needs for an image to show it.

    Raises:
        TypeError: If a mask does not hold integers.
        ValueError: If a class is shown by no more than ``shots`` images, a mask has another size
            than its image or a negative index, or an option is wrong.

    Example:
        >>> masks = [torch.tensor([[0, label]]) for label in (1, 1, 2, 2)]
        >>> episodes = FewShotSegmentationEpisodes([(torch.rand(3, 1, 2), y) for y in masks], [1])
        >>> episode = episodes.sample(torch.Generator().manual_seed(0))
        >>> sorted([episode.query_index, *episode.support_index]), episode.query_mask
        ([0, 1], tensor([[0, 1]]))
    """

    def __init__(
        self,
        dataset: MaskedImages,
        classes: Sequence[int],
        shots: int = 1,
        *,
        ignore_index: int | None = None,
        min_pixels: int = 1,
    ) -> None:
        owner = "FewShotSegmentationEpisodes"
        check_integer(owner, "shots", shots, low=1)
        check_integer(owner, "min_pixels", min_pixels, low=1)
        for label in classes:
            check_integer(owner, "classes", label, low=0)
        if not len(classes) or len(set(classes)) < len(classes) or ignore_index in classes:
            raise ValueError(
                f"{owner}: classes must be different ones, without ignore_index={ignore_index}; "
                f"got {list(classes)}."
            )
        self.dataset, self.shots, self.ignore_index = dataset, shots, ignore_index
        self.members = _members(owner, dataset, classes, min_pixels, ignore_index)
        for label, found in self.members.items():
            if len(found) <= shots:
                raise ValueError(
                    f"{owner}: every class must be shown by more images than shots={shots}; class "
                    f"{label} by {len(found)} of {len(dataset)} images, with {min_pixels} pixels "
                    "or more."
                )

    def sample(
        self, generator: torch.Generator, *, wrong_support: bool = False
    ) -> SegmentationEpisode:
        """Draw an episode.

        Args:
            generator: A CPU generator, the source of the draws.
            wrong_support: Whether the supports show another class than the one to segment, with
                that class's masks. A network that segments the query as well from them does not use
                its support. From a generator in the same state the query is the same.

        Returns:
            An episode without repeated images.

        Raises:
            ValueError: If ``wrong_support`` and there is no other class.
        """
        labels = list(self.members)
        label = labels[_draw(len(labels), generator)]
        query = self.members[label][_draw(len(self.members[label]), generator)]
        shown = label
        if wrong_support:
            others = [other for other in labels if other != label]
            if not others:
                raise ValueError(
                    "FewShotSegmentationEpisodes: classes must hold two or more for a wrong support"
                    f"; got {labels}."
                )
            shown = others[_draw(len(others), generator)]
        left = [index for index in self.members[shown] if index != query]
        order = torch.randperm(len(left), generator=generator)[: self.shots]
        return self._episode(label, shown, query, tuple(left[place] for place in order.tolist()))

    def _episode(
        self, label: int, shown: int, query: int, supports: tuple[int, ...]
    ) -> SegmentationEpisode:
        image, mask = self.dataset[query]
        target = (mask == label).long()
        if self.ignore_index is not None:
            target[mask == self.ignore_index] = self.ignore_index
        images, masks = zip(*(self.dataset[index] for index in supports), strict=True)
        return SegmentationEpisode(
            support=torch.stack(images),
            support_masks=(torch.stack(masks) == shown)[:, None].to(image.dtype),
            query=image,
            query_mask=target,
            label=label,
            support_label=shown,
            support_index=supports,
            query_index=query,
        )


def episode_batch(
    episodes: Sequence[SegmentationEpisode],
) -> tuple[
    Float[Tensor, "b k c h w"],
    Float[Tensor, "b k 1 h w"],
    Float[Tensor, "b c h w"],
    Int64[Tensor, "b h w"],
]:
    """Stack episodes: supports, their masks, queries, and the queries' masks."""
    return (
        torch.stack([episode.support for episode in episodes]),
        torch.stack([episode.support_masks for episode in episodes]),
        torch.stack([episode.query for episode in episodes]),
        torch.stack([episode.query_mask for episode in episodes]),
    )


def _members(
    owner: str,
    dataset: MaskedImages,
    classes: Sequence[int],
    min_pixels: int,
    ignore_index: int | None,
) -> dict[int, list[int]]:
    """Find the images that show each class."""
    members: dict[int, list[int]] = {label: [] for label in classes}
    for index in range(len(dataset)):
        image, mask = dataset[index]
        name = f"the mask of image {index}"
        sizes = check_shape(owner, name, mask, "h w")
        check_shape(owner, f"image {index}", image, "c h w", **sizes)
        check_indices(owner, name, mask, high=_LARGEST, ignore=ignore_index)
        labels, counts = mask.unique(return_counts=True)
        for label, count in zip(labels.tolist(), counts.tolist(), strict=True):
            if label in members and count >= min_pixels:
                members[label].append(index)
    return members


def _draw(high: int, generator: torch.Generator) -> int:
    return int(torch.randint(high, (), generator=generator))
