"""Episodes for few-shot learning: N classes, K labelled and Q unlabelled samples of each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from cv_core.checks import check_indices, check_integer, check_shape


@dataclass(frozen=True, slots=True, eq=False)
class Episode:
    """Indices of the samples of one episode; labels count the classes of the episode from 0.

    Args:
        support: Samples whose labels are given, class by class.
        support_y: Their labels.
        query: Samples to classify, class by class.
        query_y: Their labels.
        classes: The original class of every label.
    """

    support: Int64[Tensor, " nk"]
    support_y: Int64[Tensor, " nk"]
    query: Int64[Tensor, " nq"]
    query_y: Int64[Tensor, " nq"]
    classes: Int64[Tensor, " n"]


class EpisodeSampler:
    """Draws N-way K-shot episodes with Q queries per class from labelled samples.

    Args:
        y: (N,) classes, at least 0; classes with fewer than ``shots + queries`` samples are not
            drawn.
        ways: Classes per episode.
        shots: Support samples per class.
        queries: Query samples per class.

    Raises:
        ValueError: If fewer than ``ways`` classes have enough samples.

    Example:
        >>> sampler = EpisodeSampler(torch.tensor([0, 0, 1, 1, 2, 2]), ways=2, shots=1, queries=1)
        >>> sampler.sample(torch.Generator().manual_seed(0)).query_y
        tensor([0, 1])
    """

    def __init__(self, y: Int64[Tensor, " n"], *, ways: int, shots: int, queries: int) -> None:
        owner = "EpisodeSampler"
        check_shape(owner, "y", y, "n")
        check_indices(owner, "y", y, high=torch.iinfo(torch.int64).max, ignore=None)
        check_integer(owner, "ways", ways, low=2)
        check_integer(owner, "shots", shots, low=1)
        check_integer(owner, "queries", queries, low=1)
        self.ways, self.shots, self.queries = ways, shots, queries
        members = {label: (y == label).nonzero()[:, 0] for label in sorted(set(y.tolist()))}
        needed = shots + queries
        self.members = {label: found for label, found in members.items() if len(found) >= needed}
        if len(self.members) < ways:
            raise ValueError(
                f"{owner}: y must hold at least ways={ways} classes with shots + queries = {needed}"
                f" samples; got {len(self.members)} such classes of {len(members)}."
            )

    def sample(self, generator: torch.Generator) -> Episode:
        """Draw an episode.

        Args:
            generator: A CPU generator, the source of the draws.

        Returns:
            An episode without repeated classes or samples.
        """
        labels = list(self.members)
        order = torch.randperm(len(labels), generator=generator)[: self.ways]
        chosen = [labels[int(place)] for place in order]
        support, query = [], []
        for label in chosen:
            found = self.members[label]
            drawn = found[torch.randperm(len(found), generator=generator).to(found.device)]
            support.append(drawn[: self.shots])
            query.append(drawn[self.shots : self.shots + self.queries])
        numbers = torch.arange(self.ways)
        return Episode(
            support=torch.cat(support),
            support_y=numbers.repeat_interleave(self.shots),
            query=torch.cat(query),
            query_y=numbers.repeat_interleave(self.queries),
            classes=torch.tensor(chosen),
        )
