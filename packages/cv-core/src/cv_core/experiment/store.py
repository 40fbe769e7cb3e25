"""Finished trials on disk: one file each, named by what the trial depends on, written atomically.

A trial's key is the hash of everything its numbers depend on, so a file can be trusted whenever it
is there, whoever wrote it: an interrupted run goes on, and two runs in one folder share their work.
Only finished trials are kept; failures and skips are tried again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cv_core.experiment.results import TrialResult
from cv_core.files import write_atomically


def trial_key(facts: Mapping[str, Any]) -> str:
    """Hash what a trial depends on.

    Args:
        facts: Plain JSON values: slug, case, arm, seed, settings, data checksum, code, versions.
    """
    text = json.dumps(facts, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Store:
    """The folder of a run's finished trials.

    Args:
        folder: The run's folder; made if needed.

    Raises:
        OSError: If the folder cannot be made or written to.
    """

    def __init__(self, folder: Path) -> None:
        self.trials = folder / "trials"
        self.trials.mkdir(parents=True, exist_ok=True)
        write_atomically(self.trials / f".probe-{os.getpid()}", b"").unlink(missing_ok=True)

    def path(self, key: str) -> Path:
        """Return where the trial of this key is or would be."""
        return self.trials / f"{key}.json"

    def read(self, key: str) -> TrialResult | None:
        """Return a finished trial, or ``None`` if it is not there or cannot be read."""
        try:
            result = TrialResult.model_validate_json(self.path(key).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None
        return result if result.key == key else None

    def write(self, result: TrialResult) -> None:
        """Keep a finished trial.

        Raises:
            ValueError: If the trial is not finished.
        """
        if result.status != "done":
            raise ValueError(f"Store: only finished trials are kept; got {result.status!r}.")
        write_atomically(self.path(result.key), result.model_dump_json().encode())

    def count(self, keys: set[str]) -> int:
        """Return how many of these trials are there."""
        return sum(self.path(key).is_file() for key in keys)
