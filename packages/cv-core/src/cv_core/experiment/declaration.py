"""What an experiment declares: a question, arms, cases, seeds, metrics and the paper's claims.

A declaration holds no result and starts nothing; importing it costs nothing but the standard
library. A trial is one (case, arm, seed). All arms of one (case, seed) see the same data, the same
noise and the same initial weights, because every draw comes from a stream named after the seed and
not after the arm (see ``cv_core.random``): differences between arms are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args

from cv_core.checks import check_choice, check_integer

if TYPE_CHECKING:
    from cv_core.experiment.trial import Trial

Budget = Literal["smoke", "default", "full"]
"""smoke: at most 15 s on one core. default: at most 5 minutes on two. full: a GPU."""

Role = Literal["baseline", "paper", "control"]

_EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Arm:
    """One competitor: a plain function of a trial that returns named numbers.

    Args:
        name: Short name, as in the table's rows.
        run: Trains and judges; returns one number per declared metric. It may leave a metric out
            (the table shows a gap), but must not return one that is not declared.
        role: ``baseline`` (what the paper compares with), ``paper`` (its method) or ``control``
            (what else could explain a gain).
        note: What this arm is, in a sentence, for the report.
    """

    name: str
    run: Callable[[Trial], Mapping[str, float]]
    role: Role
    note: str = ""


@dataclass(frozen=True)
class Case:
    """One situation in which all arms are compared, such as a kind of label noise.

    Args:
        name: Short name, as in the table's groups.
        settings: Laid over the budget's settings.
        data: A data set of its own. By default a case uses the run's data; a case with data of its
            own is left out when the user brings theirs (``folder:`` and the like).
        budgets: The budgets in which the case runs.
        arms: The arms that run in it, by name; all by default.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    data: str | None = None
    budgets: tuple[Budget, ...] = ("smoke", "default", "full")
    arms: tuple[str, ...] | None = None

    def has(self, *arms: str) -> bool:
        """Return whether all these arms run in the case."""
        return self.arms is None or set(arms) <= set(self.arms)


@dataclass(frozen=True)
class Metric:
    """A number that every arm returns.

    Args:
        name: As the arms return it and as the table shows it.
        unit: Such as ``"%"`` or ``"s"``; empty for a share or a score.
        better: Which direction is better; ``"neither"`` for a diagnostic.
        note: How it is measured, in a sentence.
    """

    name: str
    unit: str = ""
    better: Literal["higher", "lower", "neither"] = "higher"
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the paper says of one arm against another, judged for every case.

    Args:
        arm: The arm of which something is said.
        above: The arm whose metric it should exceed. Exactly one of ``above`` and ``below``.
        below: The arm whose metric it should fall short of.
        metric: The metric of ``arm``.
        other_metric: The metric of the other arm, where it is not the same: one arm's two metrics
            can be compared by naming the arm twice.
        cases: The cases in which the claim is judged; all by default.
        paper: The paper's own two numbers (this arm, the other arm), where it prints them.
        source: Where the paper says so: table, row, setting.
    """

    arm: str
    metric: str
    above: str | None = None
    below: str | None = None
    other_metric: str | None = None
    cases: tuple[str, ...] | None = None
    paper: tuple[float, float] | None = None
    source: str = ""

    @property
    def other(self) -> str:
        """The arm compared with."""
        return self.above if self.above is not None else str(self.below)

    @property
    def compared_metric(self) -> str:
        """The metric of the arm compared with."""
        return self.metric if self.other_metric is None else self.other_metric

    @property
    def sign(self) -> int:
        """+1 if the claim is that the difference is positive, else -1."""
        return 1 if self.above is not None else -1

    def __str__(self) -> str:
        direction = "above" if self.sign > 0 else "below"
        if self.other_metric is None:
            return f"{self.arm} {direction} {self.other} in {self.metric}"
        return f"{self.metric} ({self.arm}) {direction} {self.other_metric} ({self.other})"


@dataclass(frozen=True)
class Evidence:
    """The run whose report is committed: on the real data that suits the claim best."""

    data: str
    budget: Budget = "default"
    seeds: int = 5


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A question and everything needed to answer it.

    Args:
        slug: The method's slug.
        question: What the experiment asks, as a question.
        data: The data set of each budget, by the names of ``cvlab data list``; ``smoke`` and
            ``default`` need no file and no network.
        arms: The competitors; one of role ``paper``, at least one ``baseline``.
        claims: What the paper says.
        metrics: The numbers that the arms return.
        settings: Settings of each budget (epochs, sizes, ...): the same for all arms.
        cases: The situations compared; one unnamed case by default.
        seeds: How many paired seeds the default run takes.
        evidence: The run whose report is committed.
        selection: Where the hyper-parameters come from.
        notes: What a reader of the report has to know.
    """

    slug: str
    question: str
    data: Mapping[Budget, str]
    arms: Sequence[Arm]
    claims: Sequence[Claim]
    metrics: Sequence[Metric]
    settings: Mapping[Budget, Mapping[str, Any]]
    evidence: Evidence
    selection: str
    cases: Sequence[Case] = (Case(""),)
    seeds: int = 5
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        owner = f"Experiment {self.slug}"
        check_integer(owner, "seeds", self.seeds, low=2)
        for name, group in (("arms", self.arms), ("cases", self.cases), ("metrics", self.metrics)):
            names = [item.name for item in group]
            if len(names) != len(set(names)):
                raise ValueError(f"{owner}: {name} must have different names; got {names}.")
        roles = [arm.role for arm in self.arms]
        if roles.count("paper") < 1 or roles.count("baseline") < 1:
            raise ValueError(f"{owner}: arms must hold the paper's method and a baseline.")
        for budget in get_args(Budget):
            if budget not in self.data or budget not in self.settings:
                raise ValueError(f"{owner}: data and settings must name the budget {budget!r}.")
        for case in self.cases:
            for name in case.arms or ():
                check_choice(
                    owner, f"arms of case {case.name!r}", name, [a.name for a in self.arms]
                )
        for claim in self.claims:
            self._check_claim(owner, claim)

    def _check_claim(self, owner: str, claim: Claim) -> None:
        if (claim.above is None) == (claim.below is None):
            raise ValueError(f"{owner}: a claim needs exactly one of above and below; got {claim}.")
        arms = [arm.name for arm in self.arms]
        check_choice(owner, "claim.arm", claim.arm, arms)
        check_choice(owner, "claim.above or claim.below", claim.other, arms)
        metrics = [metric.name for metric in self.metrics]
        check_choice(owner, "claim.metric", claim.metric, metrics)
        check_choice(owner, "claim.other_metric", claim.compared_metric, metrics)
        if (claim.arm, claim.metric) == (claim.other, claim.compared_metric):
            raise ValueError(f"{owner}: a claim compares a number with itself: {claim}.")
        for case in claim.cases or ():
            check_choice(owner, "claim.cases", case, [item.name for item in self.cases])
            if not self.case(case).has(claim.arm, claim.other):
                raise ValueError(f"{owner}: an arm of this claim is not in case {case!r}: {claim}.")

    def arm(self, name: str) -> Arm:
        """Return the arm of this name."""
        check_choice(f"Experiment {self.slug}", "arm", name, [arm.name for arm in self.arms])
        return next(arm for arm in self.arms if arm.name == name)

    def case(self, name: str) -> Case:
        """Return the case of this name."""
        check_choice(f"Experiment {self.slug}", "case", name, [case.name for case in self.cases])
        return next(case for case in self.cases if case.name == name)
