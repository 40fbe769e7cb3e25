"""From a declaration and a user's wishes to the list of trials, checked before any work is done."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from cv_core.checks import check_choice, check_integer
from cv_core.data import sources
from cv_core.experiment.declaration import Budget, Case, Experiment
from cv_core.experiment.environment import (
    arm_fingerprint,
    code_fingerprint,
    device_name,
    versions,
)
from cv_core.experiment.store import trial_key
from cv_core.experiment.trial import Settings, merge_settings

Backend = Literal["loky", "dask", "ray"]
Device = Literal["cpu", "cuda"]
Strategy = Literal["auto", "ddp", "fsdp"]


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the user asks for; ``None`` leaves the choice to the declaration.

    Args:
        budget: ``smoke``, ``default`` or ``full``.
        data: A data set's name or ``folder:``, ``npz:``, ``coco:``, ``voc:`` with a path.
        seeds: How many paired seeds.
        device: ``cpu``, ``cuda`` or ``auto``.
        jobs: How many trials at once; one for each core by default, one on a GPU.
        backend: What runs several trials at once.
        devices: How many devices (or processes, on the CPU) train one trial together.
        strategy: How they do: ``auto``, ``ddp`` or ``fsdp``.
        out: The folder under which the run's own folder is made.
        arms: Only these arms.
        overrides: ``NAME=VALUE`` over the budget's settings.
        fresh: Ignore finished trials.
    """

    budget: str = "default"
    data: str | None = None
    seeds: int | None = None
    device: str = "auto"
    jobs: int | None = None
    backend: str = "loky"
    devices: int = 1
    strategy: str = "auto"
    out: Path = Path("runs")
    arms: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    fresh: bool = False


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """One (case, arm, seed): everything a worker needs besides the experiment itself."""

    case: str
    arm: str
    seed: int
    budget: Budget
    source: str
    settings: Settings
    device: Device
    devices: int
    strategy: Strategy
    key: str
    unavailable: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will do."""

    experiment: Experiment
    package: str
    budget: Budget
    source: str
    settings: Settings
    seeds: tuple[int, ...]
    device: str
    jobs: int
    backend: Backend
    folder: Path
    trials: tuple[TrialSpec, ...]
    fresh: bool
    command: str


def make_plan(experiment: Experiment, package: str, wishes: Wishes) -> Plan:
    """Check every wish against the declaration and this machine, and list the trials.

    Nothing is written and no data is read besides what identifies it.

    Raises:
        ValueError: For a wrong budget, data set, number, device, backend or arm, with the choices.
        ImportError: For several devices without lightning-fabric.
        FileNotFoundError: For a data set that is not on this machine.
    """
    owner = f"cvlab run {experiment.slug}"
    check_choice(owner, "--budget", wishes.budget, get_args(Budget))
    check_choice(owner, "--backend", wishes.backend, get_args(Backend))
    check_choice(owner, "--strategy", wishes.strategy, get_args(Strategy))
    check_integer(owner, "--devices", wishes.devices, low=1, high=4096)
    budget: Budget = next(name for name in get_args(Budget) if name == wishes.budget)
    backend: Backend = next(name for name in get_args(Backend) if name == wishes.backend)
    seeds = experiment.seeds if wishes.seeds is None else wishes.seeds
    check_integer(owner, "--seeds", seeds, low=1, high=1000)
    device = choose_device(owner, wishes.device)
    _check_devices(owner, device, wishes)
    source = _source(owner, experiment, budget, wishes.data)
    settings = _override(owner, experiment.settings[budget], wishes.overrides)
    arms = _arms(owner, experiment, wishes.arms)
    common = {"budget": budget, "device": device, "devices": wishes.devices,
              "strategy": wishes.strategy}  # fmt: skip
    trials = [
        _trial(experiment, package, case, settings, source, common, arm=arm, seed=seed)
        for case in _cases(experiment, budget, own_data=sources.is_user_source(source))
        for seed in range(seeds)
        for arm in arms
        if case.has(arm)
    ]
    if not trials:
        raise ValueError(
            f"{owner}: --arm must be in a case of the budget {budget}; got {', '.join(arms)}."
        )
    return Plan(
        experiment=experiment,
        package=package,
        budget=budget,
        source=source,
        settings=settings,
        seeds=tuple(range(seeds)),
        device=device,
        jobs=_jobs(owner, wishes, device),
        backend=backend,
        folder=wishes.out / _folder_name(experiment.slug, budget, source),
        trials=tuple(trials),
        fresh=wishes.fresh,
        command=_command(experiment, wishes, seeds),
    )


def _trial(
    experiment: Experiment,
    package: str,
    case: Case,
    settings: Settings,
    source: str,
    common: Mapping[str, Any],
    *,
    arm: str,
    seed: int,
) -> TrialSpec:
    """Describe one trial and hash everything that its numbers depend on."""
    unavailable = _why_unavailable(case.data) if case.data else ""
    case_source = case.data or source
    facts: dict[str, Any] = {
        **common,
        "case": case.name,
        "arm": arm,
        "seed": seed,
        "settings": merge_settings(settings, case.settings),
        "source": case_source,
    }
    key = trial_key(
        {
            **facts,
            "slug": experiment.slug,
            "code": code_fingerprint(package),
            "arm's own code": arm_fingerprint(experiment.arm(arm).run, package),
            "device name": device_name(common["device"]),
            "versions": versions(package),
            "checksum": "" if unavailable else sources.checksum(case_source),
        }
    )
    return TrialSpec(**facts, key=key, unavailable=unavailable)


def choose_device(owner: str, wish: str) -> Device:
    """Return ``cpu`` or ``cuda`` for a wish, refusing a GPU that is not there.

    Raises:
        ValueError: For an unknown device, or ``cuda`` without a usable GPU.
    """
    check_choice(owner, "--device", wish, ("auto", "cpu", "cuda"))
    if wish == "cpu":
        return "cpu"
    import torch

    available = torch.cuda.is_available()
    if wish == "cuda" and not available:
        raise ValueError(f"{owner}: --device cuda: torch sees no GPU here; use --device cpu.")
    return "cuda" if available else "cpu"


def _arms(owner: str, experiment: Experiment, wish: tuple[str, ...]) -> list[str]:
    names = [arm.name for arm in experiment.arms]
    for name in wish:
        check_choice(owner, "--arm", name, names)
    return [name for name in names if not wish or name in wish]


def _check_devices(owner: str, device: Device, wishes: Wishes) -> None:
    if wishes.devices > 1:
        from cv_core.engine.fabric import make_fabric

        strategy = next(name for name in get_args(Strategy) if name == wishes.strategy)
        make_fabric(device, devices=wishes.devices, strategy=strategy)  # refuses what cannot be
    elif wishes.strategy != "auto":
        raise ValueError(
            f"{owner}: --strategy {wishes.strategy} needs --devices of at least 2; got 1."
        )


def _jobs(owner: str, wishes: Wishes, device: Device) -> int:
    if wishes.jobs is not None:
        check_integer(owner, "--jobs", wishes.jobs, low=1, high=4096)
        return wishes.jobs
    return 1 if device == "cuda" else max(1, (os.cpu_count() or 1) // wishes.devices)


def _source(owner: str, experiment: Experiment, budget: Budget, wish: str | None) -> str:
    source = wish if wish is not None else experiment.data[budget]
    sources.resolve(source)  # refuses an unknown or missing data set, with the choices
    # what an experiment takes in one budget it can take in any
    kinds = list(dict.fromkeys(sources.kind_of(name) for name in experiment.data.values()))
    kind = sources.kind_of(source)
    if kind not in kinds:
        fitting = [item.name for item in sources.names() if item.kind in kinds]
        raise ValueError(
            f"{owner}: --data must be of kind {' or '.join(kinds)} ({', '.join(fitting)}, or your "
            f"own); {source} is of kind {kind}."
        )
    return source


def _cases(experiment: Experiment, budget: Budget, *, own_data: bool) -> Sequence[Case]:
    return [
        case
        for case in experiment.cases
        if budget in case.budgets and not (own_data and case.data is not None)
    ]


def _why_unavailable(source: str) -> str:
    try:
        sources.resolve(source)
    except FileNotFoundError:  # its message names a folder of this machine: not for a report
        return f"the data set {source} is not on this machine (see CV_DATA and `cvlab data list`)."
    return ""


def _folder_name(slug: str, budget: str, source: str) -> str:
    data = "".join(sign if sign.isalnum() or sign in "-." else "-" for sign in source).strip("-.")
    return f"{slug}-{budget}-{data[-60:]}"


def _override(owner: str, settings: Mapping[str, Any], wishes: Sequence[str]) -> Settings:
    """Lay ``NAME=VALUE`` over the settings, in the type that the declaration has."""
    merged = Settings(settings)
    for wish in wishes:
        name, equals, text = wish.partition("=")
        if not equals:
            raise ValueError(f"{owner}: --set must be NAME=VALUE; got {wish!r}.")
        check_choice(owner, "--set NAME", name, settings)
        merged[name] = _convert(owner, name, text, settings[name])
    return merged


def _convert(owner: str, name: str, text: str, like: Any) -> Any:
    if isinstance(like, str):
        return text
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if isinstance(like, float) and type(value) is int:
        value = float(value)
    if isinstance(like, tuple) and isinstance(value, list):
        value = tuple(value)
    if type(value) is not type(like):
        kind = type(like).__name__
        raise ValueError(f"{owner}: --set {name} must be of type {kind}; got {text!r}.")
    return value


def _command(experiment: Experiment, wishes: Wishes, seeds: int) -> str:
    words = ["cvlab", "run", experiment.slug, "--budget", wishes.budget, "--seeds", str(seeds)]
    if wishes.data is not None:
        words += ["--data", wishes.data]
    for arm in wishes.arms:
        words += ["--arm", arm]
    for override in wishes.overrides:
        words += ["--set", override]
    if wishes.devices > 1 or wishes.strategy != "auto":
        words += ["--devices", str(wishes.devices), "--strategy", wishes.strategy]
    return shlex.join(words)
