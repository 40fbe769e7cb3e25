r"""MEMA-NAS: one agent per edge samples one operation, and a common loss scores what was sampled.

Kong, Xu, Zhang: *MEMA-NAS: Memory-Efficient Multi-Agent Neural Architecture Search*, PRCV 2021,
LNCS 13022, pp. 176-187.

Differentiable search keeps all K candidate operations of every edge in memory. Here agent i holds
one score for each of its candidates and samples one of them at a time,

.. math:: \pi^{(i)}[k] = \frac{\exp(c^{(i)}[k] / \tau)}{\sum_j \exp(c^{(i)}[j] / \tau)},
          \qquad a^{(i)} \sim \pi^{(i)}

so that the activations of candidates need about 1/K of the memory. All agents see the same loss
:math:`L(a)` of the sampled network on validation data, and move the score of what they sampled,

.. math:: c^{(i)}[a^{(i)}] \leftarrow (1 - \mu) \, c^{(i)}[a^{(i)}] - \mu L(a)

A resource term may be added to the loss: :math:`\lambda \sum_i C(a^{(i)})`, where :math:`C` adds
parameters, multiply-accumulates and memory accesses of the operation, each divided by the largest
among the candidates. In the end every agent takes its best operation.

Deviations from the paper, and why:

- A score starts at 0, above any negative loss, and a rarely sampled one stays near it: the printed
  argmax would take operations for being unknown. Scores are divided by
  :math:`1 - (1 - \mu)^n` after n draws before they are compared; ``best(debias=False)`` is as
  printed. Sampling follows the printed rule, in which the same bias acts as optimism.
- Its softmax is nearly uniform where losses differ little; ``temperature`` divides the scores, 1 by
  default.
- Its resource term's brackets would count the detector's head once for each edge of the neck; here
  every edge counts once.
- It states neither :math:`\mu` nor the candidates; 0.1 and a list after Auto-FPN are the defaults.

Example:
    >>> from cv_pruning.search_space import attach_choices, derive
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3))
    >>> choices = attach_choices(model, "0", lambda conv: [conv, nn.Conv2d(1, 4, 5, padding=2)])
    >>> search = MultiAgentSearch([len(op) for op in choices.values()])
    >>> for _ in range(20):
    ...     set_architecture_(model, actions := search.sample())
    ...     search.update(actions, loss=float(actions[0]))  # pretend that 5x5 is worse
    >>> derive(model, search.best())[0].kernel_size
    (3, 3)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from cv_core.checks import check_integer, check_range
from cv_core.engine.evaluation import modes_kept
from cv_core.nn.hooks import tap
from cv_core.registry import Card, Example, Reference
from torch import Tensor, nn

from cv_pruning.search_cost import resource_cost
from cv_pruning.search_space import Actions, MixedOp, checked_actions, mixed_ops, set_architecture_


class MultiAgentSearch:
    """The agents: their scores, draws and sampling policies. It knows nothing of networks.

    Args:
        choices: For every agent the number of its candidates, each at least 1.
        mu: Share of the newest loss in a score, in [0, 1]: 0 never learns, 1 forgets all before.
        temperature: Divides the scores in the policy, above 0.
        init: Initial score.
        seed: Seed of the sampling, or a generator.

    Raises:
        ValueError: If there is no agent or an option is out of range.

    Example:
        >>> search = MultiAgentSearch([2, 3], mu=0.5)
        >>> search.update((1, 0), loss=2.0)
        >>> [score.tolist() for score in search.scores]
        [[0.0, -1.0], [-1.0, 0.0, 0.0]]
    """

    def __init__(
        self,
        choices: Sequence[int],
        mu: float = 0.1,
        *,
        temperature: float = 1.0,
        init: float = 0.0,
        seed: int | np.random.Generator = 0,
    ) -> None:
        owner = "MultiAgentSearch"
        if not len(choices):
            raise ValueError(f"{owner}: choices must name at least one agent; got none.")
        for count in choices:
            check_integer(owner, "choices", count, low=1)
        check_range(owner, "mu", mu, low=0.0, high=1.0)
        check_range(owner, "temperature", temperature, low=0.0, low_open=True)
        check_range(owner, "init", init)
        self.choices = tuple(int(count) for count in choices)
        self.mu = float(mu)
        self.temperature = float(temperature)
        self.init = float(init)
        self._rng = np.random.default_rng(seed)
        # one row for each agent; what lies beyond its candidates has a score of minus infinity
        self._there = np.arange(max(self.choices)) < np.array(self.choices)[:, None]
        self._scores = np.where(self._there, self.init, -np.inf)
        self._draws = np.zeros(self._scores.shape, dtype=np.int64)
        self._agents = np.arange(len(self.choices))

    @property
    def scores(self) -> tuple[np.ndarray, ...]:
        """The scores of every agent's candidates (copies)."""
        return self._rows(self._scores)

    @property
    def draws(self) -> tuple[np.ndarray, ...]:
        """How often every candidate has been scored."""
        return self._rows(self._draws)

    def probabilities(self) -> tuple[np.ndarray, ...]:
        """Return the policy of every agent: one probability for each candidate."""
        shifted = self._scores - self._scores.max(axis=1, keepdims=True)
        weights = np.exp(shifted / self.temperature)
        return self._rows(weights / weights.sum(axis=1, keepdims=True))

    def sample(self) -> tuple[int, ...]:
        """Draw one candidate for each agent from its policy."""
        # the largest of score + Gumbel noise is a draw from the softmax of the scores
        noise = self._rng.gumbel(size=self._scores.shape)
        return tuple((self._scores / self.temperature + noise).argmax(axis=1).tolist())

    def update(self, actions: Actions, loss: float) -> None:
        """Move the scores of the sampled candidates towards the negative loss.

        Args:
            actions: The candidate of each agent.
            loss: The loss of the network made of them, finite.

        Raises:
            ValueError: If an action does not exist or the loss is not finite.
        """
        chosen = checked_actions("MultiAgentSearch.update", actions, self.choices)
        check_range("MultiAgentSearch.update", "loss", loss)
        at = (self._agents, chosen)
        self._scores[at] = (1 - self.mu) * self._scores[at] - self.mu * loss
        self._draws[at] += 1

    def best(self, *, debias: bool = True) -> tuple[int, ...]:
        r"""Return the best candidate of each agent; among equals the first.

        Args:
            debias: Whether the initial score's share :math:`(1 - \mu)^n` is taken out before the
                comparison, and candidates never scored are left aside; if not, the printed argmax.

        Raises:
            ValueError: If ``debias`` and nothing has been scored yet.
        """
        if not debias:
            return tuple(self._scores.argmax(axis=1).tolist())
        if not self._draws.any():
            raise ValueError("MultiAgentSearch.best: nothing has been scored yet; call update.")
        rest = (1 - self.mu) ** self._draws  # share of the initial score
        seen = (self._draws > 0) & (rest < 1)
        scores = np.where(self._draws > 0, self._scores, -np.inf)
        scores[seen] = (self._scores[seen] - rest[seen] * self.init) / (1 - rest[seen])
        return tuple(scores.argmax(axis=1).tolist())

    def _rows(self, table: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(row[:count].copy() for row, count in zip(table, self.choices, strict=True))


class ResourceRegulariser:
    r"""The resource term :math:`\lambda \sum_i C(a^{(i)})` of a network's mixed operations.

    C adds an operation's parameters, multiply-accumulates and memory accesses, each divided by the
    largest among all candidates of its group.

    Args:
        model: A network with mixed operations; it stays as it is.
        example: A batch that the network can take; only the shapes count.
        lam: The weight :math:`\lambda`, at least 0; 0.02 in the paper.
        group: Maps the name of a mixed operation to its group (backbone, neck, head); one group of
            all by default.

    Attributes:
        table: For every agent the C of each of its candidates.

    Raises:
        ValueError: If there is no mixed operation or ``lam`` is negative.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        lam: float,
        *,
        group: Callable[[str], str] | None = None,
    ) -> None:
        check_range("ResourceRegulariser", "lam", lam, low=0.0)
        self.lam = float(lam)
        ops = mixed_ops(model)
        with torch.no_grad(), modes_kept(model), tap(model, list(ops)) as seen:
            model.eval()
            model(example)
        rows: dict[str, list[np.ndarray]] = {}
        for name, op in ops.items():
            shape = (1, *seen[name].input.shape[1:])
            costs = [resource_cost(each, shape) for each in op.candidates]
            counts = np.array([[c.parameters, c.macs, c.memory_access] for c in costs], dtype=float)
            rows.setdefault(group(name) if group else "", []).append(counts)
        largest = {key: np.concatenate(part).max(axis=0) for key, part in rows.items()}
        parts = {key: iter(part) for key, part in rows.items()}
        self.table: list[np.ndarray] = []
        for name in ops:
            key = group(name) if group else ""
            self.table.append((next(parts[key]) / np.maximum(largest[key], 1)).sum(axis=1))

    def cost(self, actions: Actions) -> float:
        r"""Return :math:`\sum_i C(a^{(i)})` of an architecture."""
        chosen = checked_actions("ResourceRegulariser", actions, [len(row) for row in self.table])
        return float(sum(row[index] for row, index in zip(self.table, chosen, strict=True)))

    def __call__(self, actions: Actions) -> float:
        r"""Return :math:`\lambda \sum_i C(a^{(i)})` of an architecture."""
        return self.lam * self.cost(actions)


@dataclass(frozen=True)
class SearchRecord:
    """One iteration of the search.

    Args:
        step: Number of the iteration, from 0 on.
        actions: The architecture that was scored.
        train_loss: Loss of another sampled architecture on training data, before its step.
        validation_loss: Loss of ``actions`` on validation data, without the resource term.
        penalty: The resource term of ``actions``.
    """

    step: int
    actions: tuple[int, ...]
    train_loss: float
    validation_loss: float
    penalty: float


def mema_search(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Any], Tensor],
    train_loader: Iterable[tuple[Tensor, Any]],
    val_loader: Iterable[tuple[Tensor, Any]],
    optimizer: torch.optim.Optimizer,
    search: MultiAgentSearch,
    regulariser: ResourceRegulariser | None = None,
    *,
    steps: int,
) -> Iterator[SearchRecord]:
    """Train a network's shared weights and the agents' scores in turn.

    Every iteration samples an architecture and lets the optimiser step on a training batch, then
    samples another and scores it on a validation batch. Weights that were not sampled have no
    gradient, so that the optimiser leaves them alone. The network runs in the mode it is in; in
    training mode, as is usual for shared weights, normalisations use the batches' statistics.

    Args:
        model: A network with mixed operations; ``set_architecture_`` is called on it.
        loss_fn: Maps outputs and targets to a scalar loss.
        train_loader: Batches (input, target) for the weights, on the model's device; iterated as
            often as needed.
        val_loader: Batches for the scores, of other samples.
        optimizer: Of the model's parameters.
        search: One agent for each of ``mixed_ops(model)``.
        regulariser: Adds the resource term to the loss that the agents see.
        steps: Number of iterations.

    Yields:
        A record of every iteration.

    Raises:
        ValueError: If agents and mixed operations do not match, a loader is empty, or a loss is
            not finite.
    """
    check_integer("mema_search", "steps", steps, low=1)
    sizes = tuple(len(op) for op in mixed_ops(model).values())
    if sizes != search.choices:
        raise ValueError(
            f"mema_search: search must have the choices of model, {sizes}; got {search.choices}."
        )
    train, validation = _forever("train_loader", train_loader), _forever("val_loader", val_loader)
    for step in range(steps):
        set_architecture_(model, search.sample())
        x, y = next(train)
        optimizer.zero_grad(set_to_none=True)
        train_loss = loss_fn(model(x), y)
        train_loss.backward()
        optimizer.step()

        actions = search.sample()
        set_architecture_(model, actions)
        x, y = next(validation)
        with torch.no_grad():
            validation_loss = float(loss_fn(model(x), y))
        penalty = 0.0 if regulariser is None else regulariser(actions)
        search.update(actions, validation_loss + penalty)
        yield SearchRecord(step, actions, float(train_loss.detach()), validation_loss, penalty)


def _forever(name: str, loader: Iterable[tuple[Tensor, Any]]) -> Iterator[tuple[Tensor, Any]]:
    while True:
        batch = None
        for batch in loader:
            yield batch
        if batch is None:
            raise ValueError(f"mema_search: {name} must yield a batch whenever it is iterated.")


def _examples() -> list[Example]:
    def inputs(generator: torch.Generator) -> tuple[Tensor]:
        return (torch.randn(2, 3, 5, 6, generator=generator),)

    def build() -> MixedOp:
        return MixedOp([nn.Identity(), nn.Sequential(nn.Tanh(), nn.Conv2d(3, 3, 1))], active=1)

    return [Example(build=build, inputs=inputs, output_shapes=((2, 3, 5, 6),))]


CARD = Card(
    slug="mema-nas",
    title="Architecture search by agents that sample one operation each and share one loss",
    reference=Reference(
        title="MEMA-NAS: Memory-Efficient Multi-Agent Neural Architecture Search",
        authors="Kong, Xu, Zhang",
        venue="PRCV, LNCS 13022",
        year=2021,
        pages="176-187",
    ),
    kind="module",
    objects=(
        "cv_pruning.methods.mema_nas.MultiAgentSearch",
        "cv_pruning.methods.mema_nas.ResourceRegulariser",
        "cv_pruning.methods.mema_nas.SearchRecord",
        "cv_pruning.methods.mema_nas.mema_search",
        "cv_pruning.search_cost.ActivationMemory",
        "cv_pruning.search_cost.Resources",
        "cv_pruning.search_cost.resource_cost",
        "cv_pruning.search_space.MixedOp",
        "cv_pruning.search_space.attach_choices",
        "cv_pruning.search_space.candidate",
        "cv_pruning.search_space.derive",
        "cv_pruning.search_space.mixed_ops",
        "cv_pruning.search_space.set_architecture_",
    ),
    examples=_examples,
    properties=("batch-independent", "deterministic", "shape-preserving", "twice-differentiable"),
)
