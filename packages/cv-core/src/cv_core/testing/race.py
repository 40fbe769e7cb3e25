"""A race between our function and its peers: one process, same threads, interleaved calls.

Every contender is warmed up, then all are called in turn (A B C A B C ...), so that what else the
machine does strikes all alike. A peer's ratio is the median over the rounds of its time divided by
ours in the same round, with a bootstrap interval; its bar is the ratio we set out to reach.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

THREADS = int(os.environ.get("CV_BENCH_THREADS", "2"))


@dataclass(frozen=True)
class Peer:
    """A contender.

    Args:
        run: Computes the same as ours.
        version: The version of the library it comes from.
        bar: The ratio that we set out to reach.
        repeats: Rounds in which it runs, fewer than ours for a peer that takes many seconds.
        note: For the table.
    """

    run: Callable[[], object]
    version: str
    bar: float
    repeats: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Score:
    """A peer's result: its median time, and the ratio with its bounds."""

    version: str
    median_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    bar: float
    repeats: int
    note: str


@dataclass(frozen=True)
class Race:
    """One row of the table; ``ratio`` above 1 means that ours is faster."""

    name: str
    operation: str
    input: str
    threads: int
    repeats: int
    ours_ms: float
    peers: dict[str, Score]


def race(
    name: str,
    operation: str,
    given: str,
    *,
    ours: Callable[[], object],
    peers: Mapping[str, Peer],
    repeats: int = 15,
) -> Race:
    """Time everyone and print the row. The caller has already compared the outputs.

    Args:
        name: Stem of the file of results.
        operation: What is raced, for the table.
        given: On what input.
        ours: Our function.
        peers: The others by name.
        repeats: Rounds.

    Returns:
        The row.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        with threadpool_limits(THREADS):  # NumPy's and SciPy's libraries as well
            times = _run(ours, peers, repeats)
    finally:
        torch.set_num_threads(before)
    scores = {key: _score(peer, times[key], times[""]) for key, peer in peers.items()}
    result = Race(name, operation, given, THREADS, repeats, _median(times[""]), scores)
    sys.stdout.write(_text(result))
    return result


def _run(
    ours: Callable[[], object], peers: Mapping[str, Peer], repeats: int
) -> dict[str, list[float]]:
    for run in (ours, *(peer.run for peer in peers.values() if peer.repeats is None)):
        _ms(run)  # a slow peer has been warmed up by the comparison of outputs
    times: dict[str, list[float]] = {"": [], **{peer: [] for peer in peers}}
    for turn in range(repeats):
        times[""].append(_ms(ours))
        for key, peer in peers.items():
            if turn < (peer.repeats or repeats):
                times[key].append(_ms(peer.run))
    return times


def write(result: Race, script: str) -> None:
    """Write a race's numbers to ``results/<name>.json`` beside the script that ran it.

    Args:
        result: From ``race``.
        script: The script's own ``__file__``.
    """
    folder = Path(script).parent / "results"
    folder.mkdir(exist_ok=True)
    text = json.dumps(asdict(result), indent=2) + "\n"
    (folder / f"{result.name}.json").write_text(text, encoding="utf-8")


def _ms(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1000.0


def _median(times: list[float]) -> float:
    return round(float(np.median(times)), 3)


def _score(peer: Peer, theirs: list[float], ours: list[float]) -> Score:
    ratios = np.array(theirs) / np.array(ours[: len(theirs)])
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return Score(
        version=peer.version,
        median_ms=_median(theirs),
        ratio=_round(np.median(ratios)),
        ratio_low=_round(low),
        ratio_high=_round(high),
        bar=peer.bar,
        repeats=len(theirs),
        note=peer.note,
    )


def _round(value: float) -> float:
    return round(float(value), 2)


def _text(result: Race) -> str:
    lines = [f"{result.operation} ({result.input}): ours {result.ours_ms:.2f} ms"]
    for key, score in result.peers.items():
        verdict = "reached" if score.ratio >= score.bar else "LOST"
        lines.append(
            f"  {key} {score.version}: {score.median_ms:.2f} ms, {score.ratio:.2f}x "
            f"[{score.ratio_low:.2f}, {score.ratio_high:.2f}], bar {score.bar:g}x {verdict}"
        )
    return "\n".join(lines) + "\n"
