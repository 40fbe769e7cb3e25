"""Does sampling by agents save memory, and does it find better networks than simpler samplers?

In the first case there is no network: six agents with five candidates each, a table of losses that
adds up over the agents, and noise. The best candidates are known, so that it can be counted how
many are found after so many evaluations. In the second case six edges of a small network have a
choice of five operations; every arm searches for as many steps on the same batches, and the network
it finds is trained from fresh weights. What else could explain what the agents find:

- the shared credit alone: operations are sampled uniformly, and the one with the least mean loss in
  each place is taken, without any learned policy;
- any network would do: one drawn by lot, or the best single draw of uniform sampling;
- the correction of the scores: the printed argmax, which takes scores that are near zero for good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial, reduce

import numpy as np
import torch
from cv_core.engine.loader import TensorLoader
from cv_core.engine.loop import evaluate, fit
from cv_core.engine.schedule import cosine_with_warmup
from cv_core.engine.task import SupervisedTask
from cv_core.experiment.declaration import Arm, Case, Claim, Evidence, Experiment, Metric
from cv_core.experiment.trial import Trial
from torch import Tensor, nn
from torch.nn import functional

from cv_pruning._shared.small_images import Images, small_images
from cv_pruning.methods.mema_nas import (
    MultiAgentSearch,
    ResourceRegulariser,
    SearchRecord,
    mema_search,
)
from cv_pruning.search_cost import ActivationMemory
from cv_pruning.search_space import MixedOp, candidate, derive, mixed_ops

TABLES, NETWORK = "tables of losses", "network of six edges"
OPERATIONS = ("skip", "conv3", "conv5", "sep3", "dil3_r2")
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
UNIFORM = 1e9
"""A temperature at which every candidate is equally likely."""

Draws = Sequence[tuple[tuple[int, ...], float]]
"""The architectures that were scored, each with its loss."""

Selection = Callable[[MultiAgentSearch, Draws], tuple[int, ...]]
"""Chooses an architecture after a search."""


def best_score(search: MultiAgentSearch, draws: Draws) -> tuple[int, ...]:  # noqa: ARG001
    """Take the best debiased score in each place: the method."""
    return search.best()


def printed_argmax(search: MultiAgentSearch, draws: Draws) -> tuple[int, ...]:  # noqa: ARG001
    """Take the best score in each place as it stands."""
    return search.best(debias=False)


def least_mean_loss(search: MultiAgentSearch, draws: Draws) -> tuple[int, ...]:
    """Take the candidate with the least mean loss in each place."""
    actions = np.array([drawn for drawn, _ in draws])
    losses = np.array([loss for _, loss in draws])
    best = []
    for place, count in enumerate(search.choices):
        sums = np.bincount(actions[:, place], losses, minlength=count)
        drawn = np.bincount(actions[:, place], minlength=count)
        best.append(int(np.where(drawn > 0, sums / np.maximum(drawn, 1), np.inf).argmin()))
    return tuple(best)


def best_draw(search: MultiAgentSearch, draws: Draws) -> tuple[int, ...]:  # noqa: ARG001
    """Take the single draw with the least loss."""
    return min(draws, key=lambda draw: draw[1])[0]


def run_sampler(
    trial: Trial, *, select: Selection, temperature: float = 1.0, lam: float = 0.0
) -> dict[str, float]:
    """Search by sampling one operation in each place."""
    if trial.case == TABLES:
        if lam:
            trial.skip("a table of losses has no resources")
        return search_tables(trial, select, temperature)
    fitted = small_images(trial)
    model = supernet(trial, fitted, "search").to(trial.device)
    example = fitted.x[:1].to(trial.device)
    regulariser = ResourceRegulariser(model, example, lam)
    search = MultiAgentSearch(
        [len(OPERATIONS)] * len(EDGES), temperature=temperature, seed=trial.rng("agents")
    )
    records = list(
        mema_search(
            model,
            functional.cross_entropy,
            loader(trial, fitted, "weights"),
            loader(trial, fitted, "scores"),
            sgd(model.parameters()),
            search,
            regulariser,
            steps=trial.settings.search_steps,
        )
    )
    show_search(trial, search, records)
    draws = [(each.actions, each.validation_loss + each.penalty) for each in records]
    actions = select(search, draws)
    return {
        **retrain(trial, fitted, actions),
        "cost of the found network": regulariser.cost(actions),
        "saved activations": peak_memory(model, example, [drawn for drawn, _ in draws]),
    }


def run_darts(trial: Trial) -> dict[str, float]:
    """Search by the weighted sum of all candidates (DARTS, first order)."""
    if trial.case == TABLES:
        trial.skip("a table of losses has no gradient")
    fitted = small_images(trial)
    model = mixture(trial, fitted).to(trial.device)
    mixtures = [part for part in model.modules() if isinstance(part, Mixture)]
    steps = trial.settings.search_steps
    own = [part.weight for part in mixtures]
    others = [p for p in model.parameters() if all(p is not weight for weight in own)]
    optimizer = sgd(others)
    architect = torch.optim.Adam(own, lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
    batches = zip(
        forever(loader(trial, fitted, "scores")),
        forever(loader(trial, fitted, "weights")),
        range(steps),
        strict=False,
    )
    for (x, y), (x_w, y_w), step in batches:
        for rule, inputs, targets in ((architect, x, y), (optimizer, x_w, y_w)):
            model.zero_grad(set_to_none=True)
            loss = functional.cross_entropy(model(inputs), targets)
            loss.backward()
            rule.step()
        if step % 10 == 0:
            trial.curve("training loss of the search", step, float(loss.detach()))
    trial.cost(search_steps=steps)
    actions = tuple(int(part.weight.argmax()) for part in mixtures)
    table = ResourceRegulariser(supernet(trial, fitted, "search"), fitted.x[:1], 0.0)
    return {
        **retrain(trial, fitted, actions),
        "cost of the found network": table.cost(actions),
        "saved activations": 100.0,
    }


def run_by_lot(trial: Trial) -> dict[str, float]:
    """Train a network drawn by lot."""
    if trial.case == TABLES:
        trial.skip("best draw shows what chance finds")
    fitted = small_images(trial)
    actions = tuple(trial.rng("lot").integers(len(OPERATIONS), size=len(EDGES)).tolist())
    table = ResourceRegulariser(supernet(trial, fitted, "search"), fitted.x[:1], 0.0)
    found = retrain(trial, fitted, actions)
    return {**found, "cost of the found network": table.cost(actions)}


# --- tables of losses ---


def search_tables(trial: Trial, select: Selection, temperature: float) -> dict[str, float]:
    """Count the best candidates found, over many tables and for several numbers of draws."""
    agents, candidates = 6, 5
    found: dict[str, list[float]] = {}
    for number in range(trial.settings.tables):
        rng = trial.rng("table", number)
        table = rng.uniform(size=(agents, candidates))
        search = MultiAgentSearch([candidates] * agents, temperature=temperature, seed=rng)
        draws: list[tuple[tuple[int, ...], float]] = []
        for count in trial.settings.draws:
            while len(draws) < count:
                actions = search.sample()
                loss = table[np.arange(agents), actions].sum() + 0.1 * rng.standard_normal()
                search.update(actions, loss)
                draws.append((actions, loss))
            chosen = np.array(select(search, draws))
            losses = table[np.arange(agents), chosen]
            right = 100 * float((chosen == table.argmin(axis=1)).mean())
            regret = float((losses - table.min(axis=1)).sum())
            found.setdefault(f"best candidates found, {count} draws", []).append(right)
            found.setdefault(f"regret, {count} draws", []).append(regret)
    return {name: float(np.mean(values)) for name, values in found.items()}


# --- the network of six edges ---


def loader(trial: Trial, fitted: Images, part: str) -> TensorLoader:
    """Serve a half of the images for the weights, the other for the scores, or all of them."""
    half = len(fitted.y) // 2
    rows = {"weights": slice(0, half), "scores": slice(half, None), "all": slice(None)}[part]
    return TensorLoader(
        fitted.x[rows], fitted.y[rows], batch_size=trial.settings.batch, shuffle=True,
        drop_last=True, seed=trial.generator("order", part), device=trial.device,
    )  # fmt: skip


def forever(batches: TensorLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over a loader again and again."""
    while True:
        yield from batches


class Graph(nn.Module):
    """Four nodes behind a stem; each is the sum of the edges from all before it."""

    def __init__(self, in_channels: int, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.edges = nn.ModuleList(
            MixedOp([candidate(name, channels) for name in OPERATIONS]) for _ in EDGES
        )
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits."""
        nodes = [self.stem(x)]
        for node in (1, 2, 3):
            into = [k for k, (_, end) in enumerate(EDGES) if end == node]
            terms = [self.edges[k](nodes[EDGES[k][0]]) for k in into]
            nodes.append(reduce(torch.add, terms))
        return self.fc(nodes[-1].mean((2, 3)))


class Mixture(nn.Module):
    """The sum of all candidates, weighted by the softmax of one number for each."""

    def __init__(self, op: MixedOp) -> None:
        super().__init__()
        self.candidates = op.candidates
        self.weight = nn.Parameter(torch.zeros(len(op)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the weighted sum."""
        shares = self.weight.softmax(0)
        total = shares[0] * self.candidates[0](x)
        for share, op in zip(shares[1:], self.candidates[1:], strict=True):
            total = total + share * op(x)
        return total


def supernet(trial: Trial, fitted: Images, stream: str) -> Graph:
    """Build the network with all its choices."""
    with trial.seeded(stream):
        return Graph(fitted.x.shape[1], trial.settings.channels, fitted.classes)


def mixture(trial: Trial, fitted: Images) -> Graph:
    """Build the network whose edges are weighted sums, from the weights of the one with choices."""
    model = supernet(trial, fitted, "search")
    for place, op in enumerate(mixed_ops(model).values()):
        model.edges[place] = Mixture(op)
    return model


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.SGD:
    """Return the optimiser of the weights, with the rates of DARTS."""
    return torch.optim.SGD(parameters, lr=0.025, momentum=0.9, weight_decay=3e-4)


def saved_bytes(op: nn.Module, example: Tensor) -> int:
    """Count what an operation on an edge saves for the backward pass."""
    x = torch.zeros_like(example, requires_grad=True)
    with ActivationMemory(ignore=op) as memory:
        op(x)
    return memory.distinct_bytes


def peak_memory(model: Graph, example: Tensor, draws: Sequence[tuple[int, ...]]) -> float:
    """Return the most that the edges of a drawn architecture save, in % of the weighted sums."""
    with torch.no_grad():
        inside = model.stem(example)  # all edges see maps of this size
    op = next(iter(mixed_ops(model).values()))
    each = [saved_bytes(part, inside) for part in op.candidates]
    peak = max(sum(each[index] for index in actions) for actions in draws)
    whole = len(EDGES) * saved_bytes(Mixture(op).to(example.device), inside)
    return 100 * peak / whole


def retrain(trial: Trial, fitted: Images, actions: Sequence[int]) -> dict[str, float]:
    """Train the found network from fresh weights on all images and judge it."""
    model = derive(supernet(trial, fitted, "retrain"), actions).to(trial.device)
    trial.model_cost(model, fitted.x[:1].to(trial.device))
    steps, optimizer = trial.settings.train_steps, sgd(model.parameters())
    result = fit(
        SupervisedTask(model),
        loader(trial, fitted, "all"),
        optimizer,
        max_steps=steps,
        scheduler=cosine_with_warmup(optimizer, steps),
        fabric=trial.fabric,
    )
    for step, loss in enumerate(result.history.steps["loss"]):
        if step % 10 == 0:
            trial.curve("training loss of the found network", step, loss)
    trial.cost(steps=steps)
    test = TensorLoader(fitted.test_x, fitted.test_y, batch_size=500, device=trial.device)
    return {"test accuracy": 100 * evaluate(SupervisedTask(model), test)["accuracy"]}


def show_search(trial: Trial, search: MultiAgentSearch, records: Sequence[SearchRecord]) -> None:
    """Leave the losses that the agents saw and a picture of their last policies."""
    for first in range(0, len(records), 10):
        part = [record.validation_loss for record in records[first : first + 10]]
        trial.curve("validation loss of the search", first, sum(part) / len(part))
    policies = np.stack(search.probabilities())
    grid = (policies / policies.max()).repeat(24, 0).repeat(24, 1)
    trial.picture("policies: a row for each edge, a column for each operation", grid)
    trial.cost(search_steps=len(records))


_SAMPLED = {
    "MEMA": partial(run_sampler, select=best_score),
    "printed argmax": partial(run_sampler, select=printed_argmax),
    "uniform sampling": partial(run_sampler, select=least_mean_loss, temperature=UNIFORM),
    "random search": partial(run_sampler, select=best_draw, temperature=UNIFORM),
}
_COMMON = {
    "channels": 8, "batch": 32, "largest_side": 16, "draws": (60, 300, 1500),
}  # fmt: skip
_FOUND, _REGRET = "best candidates found, {} draws", "regret, {} draws"

EXPERIMENT = Experiment(
    slug="mema-nas",
    question="Do agents that sample one operation save memory and find better networks?",
    data={"smoke": "digits", "default": "digits", "full": "cifar10"},
    arms=(
        Arm("DARTS", run_darts, "baseline", "Weighted sums of all candidates, first order."),
        Arm("drawn by lot", run_by_lot, "baseline", "A random network, trained like the others."),
        Arm("MEMA", _SAMPLED["MEMA"], "paper", "The agents; debiased scores at the end."),
        Arm("printed argmax", _SAMPLED["printed argmax"], "control", "The scores as they stand."),
        Arm(
            "uniform sampling", _SAMPLED["uniform sampling"], "control",
            "No policy: the least mean loss in each place.",
        ),
        Arm(
            "random search", _SAMPLED["random search"], "control",
            "No policy and no credit: the single draw with the least loss.",
        ),
        *(
            Arm(
                f"MEMA, lambda {lam:g}", partial(run_sampler, select=best_score, lam=lam), "paper",
                f"The agents with the resource term, weight {lam:g}.",
            )
            for lam in (0.02, 0.1, 0.5)
        ),
    ),
    cases=(Case(TABLES), Case(NETWORK)),
    metrics=(
        Metric("test accuracy", "%", note="Of the found network, trained from fresh weights."),
        Metric(
            "saved activations", "%", "lower",
            "Most bytes that autograd saves on the edges for one image of a training step, against "
            "the weighted sums of all candidates.",
        ),
        Metric("cost of the found network", better="lower", note="Sum of C, without lambda."),
        *(Metric(_FOUND.format(n), "%", note="Share of the places.") for n in (60, 300, 1500)),
        *(
            Metric(_REGRET.format(n), better="lower", note="Loss above the least possible one.")
            for n in (60, 300, 1500)
        ),
    ),
    claims=(
        Claim(
            arm="MEMA", below="DARTS", metric="saved activations", cases=(NETWORK,),
            paper=(18.3, 100.0),
            source="GPU memory of the neck's search above the detector's: 5152 and 28144 MB",
        ),
        *(
            Claim(
                arm="MEMA", above=other, metric="test accuracy", cases=(NETWORK,),
                source="Implied: the agents find better networks than simpler samplers.",
            )
            for other in ("drawn by lot", "uniform sampling", "random search")
        ),
        *(
            Claim(
                arm="MEMA", above=other, metric=_FOUND.format(300), cases=(TABLES,),
                source="Implied: the learned policy finds the best operations.",
            )
            for other in ("uniform sampling", "random search")
        ),
        Claim(
            arm="MEMA", above="printed argmax", metric=_FOUND.format(60), cases=(TABLES,),
            source="Of the deviation: rarely drawn operations must not win for being unknown.",
        ),
        *(
            Claim(
                arm=f"MEMA, lambda {lam:g}", below="MEMA", metric="cost of the found network",
                cases=(NETWORK,), source="The resource term makes the found network cheaper.",
            )
            for lam in (0.02, 0.1, 0.5)
        ),
    ),
    settings={
        "smoke": {
            **_COMMON, "channels": 2, "images": 128, "test_images": 100, "search_steps": 4,
            "train_steps": 4, "tables": 1,
        },
        "default": {
            **_COMMON, "images": 8000, "test_images": 2000, "search_steps": 150,
            "train_steps": 150, "tables": 40,
        },
        "full": {
            **_COMMON, "channels": 32, "batch": 128, "largest_side": 32, "images": 50_000,
            "test_images": 10_000, "search_steps": 10_000, "train_steps": 10_000, "tables": 400,
        },
    },
    evidence=Evidence(data="mnist"),
    selection=(
        "Nothing was selected: mu = 0.1 and temperature 1 were fixed beforehand, since the paper "
        "states neither; rates, momentum and weight decay of weights and of DARTS' own numbers are "
        "those of DARTS. Weights learn from one half of the training images, scores from the other."
    ),
    notes=(
        (
            "The paper searches detectors on COCO and BDD, which is not tried here. Its searched "
            "detectors are much larger than the baselines (R50 on BDD: 89 against 41 M "
            "parameters), so that its gains in AP are not at equal cost."
        ),
        (
            "Equal numbers of scored architectures for all samplers; DARTS takes as many steps of "
            "its numbers, each of which runs all candidates forwards and backwards."
        ),
    ),
)  # fmt: skip
