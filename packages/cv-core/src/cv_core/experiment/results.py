"""The schema of ``results.json``: every repeat, what was declared, and what it was run with.

The file comes first; tables, verdicts and pages are computed from it and from nothing else. Each
trial stands on a line of its own, so that two runs can be compared with any text tool.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    ValidationError,
)

from cv_core.checks import check_choice
from cv_core.experiment.declaration import Budget, Claim, Experiment, Metric, Role
from cv_core.files import write_atomically

if TYPE_CHECKING:
    import numpy as np

    from cv_core.registry import Reference

SCHEMA_VERSION: Final = 1
CURVE_POINTS = 100
PICTURE_SIDE = 512
SLIM_BYTES = 200_000

Status = Literal["done", "skipped", "failed"]
Item = TypeVar("Item")


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _thinned(points: list[Item], count: int) -> list[Item]:
    """Keep ``count`` points at even distances, the first and the last among them."""
    if len(points) <= count:
        return points
    step = (len(points) - 1) / (count - 1)
    return [points[round(index * step)] for index in range(count)]


Number = Annotated[float | None, AfterValidator(_finite)]
"""A finite number; NaN and the infinities become ``None``, which JSON can hold."""

Curve = Annotated[
    list[tuple[float, Number]], AfterValidator(lambda points: _thinned(points, CURVE_POINTS))
]
"""(step, value) pairs, at most ``CURVE_POINTS`` of them."""


Png = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/]*={0,2}$")]
"""A PNG file in base64."""


class Model(BaseModel):
    """What all parts of the file share: nothing can be changed, and nothing unknown comes in."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TrialResult(Model):
    """One trial: its numbers, or why there are none.

    Args:
        case: The case's name.
        arm: The arm's name.
        seed: The paired seed.
        status: ``done``, ``skipped`` (with ``reason``) or ``failed`` (with ``error``).
        metrics: One number per metric; ``None`` where it was not finite.
        costs: ``parameters``, ``macs``, ``steps``, ``seconds``, ``peak_memory_mib`` and the like.
        curves: (step, value) pairs by name, thinned to at most 100 points.
        pictures: PNG files in base64 by caption; see ``encode_pictures``.
        reason: Why it was skipped.
        error: The traceback of a failure.
        key: Hash of everything that the numbers depend on.
    """

    case: str
    arm: str
    seed: int
    status: Status
    metrics: dict[str, Number] = {}
    costs: dict[str, Number] = {}
    curves: dict[str, Curve] = {}
    pictures: dict[str, Png] = {}
    reason: str = ""
    error: str = ""
    key: str = ""


class Environment(Model):
    """What a run was made with; the machine's name is left out on purpose.

    Args:
        python: Version of Python.
        platform: System and machine type.
        cores: Processor threads.
        torch: Version of torch with its build.
        device_name: Name of the accelerator, or the processor's type.
        versions: Installed versions by distribution.
        commit: Commit of the checkout; ``None`` for an installed wheel.
        dirty: Whether the checkout held uncommitted changes.
    """

    python: str
    platform: str
    cores: int
    torch: str
    device_name: str
    versions: dict[str, str] = {}
    commit: str | None = None
    dirty: bool = False


class DataRecord(Model):
    """Which data the run used.

    Args:
        name: As ``cvlab run --data`` takes it.
        title: For people.
        checksum: SHA-256 of the data.
        licence: Under which it may be used.
    """

    name: str
    title: str = ""
    checksum: str = ""
    licence: str = ""


class ArmRecord(Model):
    """A declared arm without its function."""

    name: str
    role: Role
    note: str = ""


class CaseRecord(Model):
    """A declared case; ``data`` is empty where it uses the run's data, ``arms`` where all run."""

    name: str
    settings: dict[str, JsonValue] = {}
    data: str = ""
    arms: list[str] = []

    def has(self, *arms: str) -> bool:
        """Return whether all these arms run in the case."""
        return not self.arms or set(arms) <= set(self.arms)


class Declared(Model):
    """What the experiment declared before anything was run.

    Args:
        question: What the experiment asks.
        arms: The competitors.
        cases: The cases of this budget.
        metrics: The numbers that the arms return.
        claims: What the paper says, with its own numbers.
        settings: The budget's settings.
        selection: Where the hyper-parameters come from.
        notes: What a reader has to know.
        title: The method's title.
        reference: The paper.
    """

    question: str
    arms: list[ArmRecord]
    cases: list[CaseRecord]
    metrics: list[Metric]
    claims: list[Claim]
    settings: dict[str, JsonValue] = {}
    selection: str = ""
    notes: list[str] = []
    title: str = ""
    reference: str = ""

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        budget: Budget,
        *,
        title: str = "",
        reference: Reference | str | None = None,
    ) -> Declared:
        """Copy a declaration as plain data.

        Args:
            experiment: The declaration.
            budget: Whose settings and cases to copy.
            title: The method's title.
            reference: The paper.
        """
        return cls(
            question=experiment.question,
            arms=[ArmRecord(name=a.name, role=a.role, note=a.note) for a in experiment.arms],
            cases=[
                CaseRecord(
                    name=c.name,
                    settings=_plain(c.settings),
                    data=c.data or "",
                    arms=list(c.arms or ()),
                )
                for c in experiment.cases
                if budget in c.budgets
            ],
            metrics=list(experiment.metrics),
            claims=list(experiment.claims),
            settings=_plain(experiment.settings[budget]),
            selection=experiment.selection,
            notes=list(experiment.notes),
            title=title,
            reference="" if reference is None else str(reference),
        )

    def metric(self, name: str) -> Metric:
        """Return the metric of this name."""
        check_choice("Declared", "metric", name, [metric.name for metric in self.metrics])
        return next(metric for metric in self.metrics if metric.name == name)


class Results(Model):
    """Everything that ``results.json`` holds.

    Args:
        schema_version: Version of this schema.
        slug: The method's slug.
        package: Distribution of the experiment.
        budget: ``smoke``, ``default`` or ``full``.
        data: The run's data set.
        seeds: The paired seeds.
        device: ``cpu`` or ``cuda``.
        command: Repeats the run.
        declared: What the experiment declared.
        trials: One row per (case, arm, seed).
        environment: What the run was made with.
        started: When, in ISO 8601.
        seconds: Wall time of the run; less than the trials' sum where some came from disk.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    slug: str
    package: str
    budget: Budget
    data: DataRecord
    seeds: list[int]
    device: str
    command: str
    declared: Declared
    trials: list[TrialResult]
    environment: Environment
    started: str = ""
    seconds: float = Field(default=0.0, ge=0.0)

    @property
    def cases(self) -> list[str]:
        """The names of the cases that have trials, as declared."""
        present = {trial.case for trial in self.trials}
        return [case.name for case in self.declared.cases if case.name in present]

    @property
    def arms(self) -> list[str]:
        """The names of the arms that have trials, as declared."""
        present = {trial.arm for trial in self.trials}
        return [arm.name for arm in self.declared.arms if arm.name in present]

    def of(self, case: str, arm: str) -> list[TrialResult]:
        """Return the trials of a case and an arm, by seed."""
        found = [trial for trial in self.trials if trial.case == case and trial.arm == arm]
        return sorted(found, key=lambda trial: trial.seed)


def read(path: Path | str) -> Results:
    """Read a ``results.json``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is cut off, not a results file, or from a newer version.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{path} is not complete JSON ({error}): was it cut off? Run the experiment again."
        ) from None
    version = content.get("schema_version") if isinstance(content, dict) else None
    if not isinstance(version, int):
        raise ValueError(f"{path} is not a results.json of cvlab: it has no schema_version.")
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema {version}; this cv-core reads up to {SCHEMA_VERSION}: update it."
        )
    try:
        return Results.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(
            f"{path} is not a results.json of schema {SCHEMA_VERSION}: {place}: {first['msg']} "
            f"({error.error_count()} such places)."
        ) from None


def write(path: Path | str, results: Results) -> None:
    """Write a ``results.json``: whole or not at all, the same bytes for the same results.

    Raises:
        OSError: If the folder cannot be written to or the disk is full.
    """
    write_atomically(Path(path), dumps(results).encode())


def dumps(results: Results) -> str:
    """Return the text of a ``results.json``: one line per field and one per trial.

    What a trial does not have, such as curves or a reason, its line leaves out.
    """
    lean = (trial.model_dump(mode="json", exclude_defaults=True) for trial in results.trials)
    trials = ",\n".join(map(_compact, lean))
    fields = results.model_copy(update={"trials": []}).model_dump(mode="json")
    texts = {name: _json(value) for name, value in fields.items()}
    texts["trials"] = f"[\n{trials}\n]" if trials else "[]"
    lines = (f"{_json(name)}: {text}" for name, text in texts.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def slim(results: Results, limit: int = SLIM_BYTES) -> Results:
    """Drop the pictures, and thin and round the curves until the file is small enough to commit.

    Every metric stays as it is; costs keep six digits. The keys go too: they find a trial in the
    run's own folder, which is not committed. The curves go altogether where nothing else helps.

    Args:
        results: A run's results.
        limit: Largest size of the file in bytes.
    """
    for points in (50, 20, 10, 0):
        trials = [_slim_trial(trial, points) for trial in results.trials]
        small = results.model_copy(update={"trials": trials})
        if len(dumps(small).encode()) <= limit:
            break
    return small


def _slim_trial(trial: TrialResult, points: int) -> TrialResult:
    curves = {name: _rounded(_thinned(curve, points)) for name, curve in trial.curves.items()}
    costs = {name: None if v is None else float(f"{v:.6g}") for name, v in trial.costs.items()}
    return trial.model_copy(
        update={"pictures": {}, "curves": curves if points else {}, "costs": costs, "key": ""}
    )


def _rounded(points: list[tuple[float, Any]]) -> list[tuple[float, Any]]:
    return [
        (float(f"{step:.6g}"), None if value is None else float(f"{value:.5g}"))
        for step, value in points
    ]


def encode_pictures(pictures: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Turn pictures into PNG files in base64, at most 512 pixels a side.

    Args:
        pictures: uint8 arrays (H, W) or (H, W, 3) by caption.
    """
    return {name: _encode(array) for name, array in pictures.items()}


def _encode(array: np.ndarray) -> str:
    from PIL import Image

    image = Image.fromarray(array)
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))  # never enlarges
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Turn settings into what JSON can hold: tuples become lists, other objects their text."""
    return json.loads(json.dumps(dict(settings), default=str))
