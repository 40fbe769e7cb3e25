"""What a pruning did: widths, kept channels and cost, before and after."""

from __future__ import annotations

from dataclasses import dataclass

from cv_pruning.pruning.narrowing import Side


@dataclass(frozen=True)
class Change:
    """A number before and after.

    Example:
        >>> Change(200, 50).removed
        0.75
    """

    before: int
    after: int

    @property
    def removed(self) -> float:
        """Share that is gone."""
        return 1.0 - self.after / self.before if self.before else 0.0


@dataclass(frozen=True)
class PruningReport:
    """The account of one call of ``prune``.

    Args:
        widths: Channels of every narrowed layer, by name and side (``"out"``, ``"in"``).
        kept: Output channels that stayed, as numbered before, of every layer whose outputs shrank.
        channels: Channels that could have been removed, and how many of these remain; coupled
            layers count once.
        parameters: Scalars in the parameters.
        macs: Multiply-accumulates of one call on the example inputs.
        bytes: Size of parameters and buffers.
        untouched: Layers whose outputs were left whole, and why.
    """

    widths: dict[str, dict[Side, Change]]
    kept: dict[str, tuple[int, ...]]
    channels: Change
    parameters: Change
    macs: Change
    bytes: Change
    untouched: dict[str, str]

    def __str__(self) -> str:
        rows = [("layer", "outputs", "inputs")]
        rows += [
            (name, _arrow(sides.get("out")), _arrow(sides.get("in")))
            for name, sides in self.widths.items()
        ]
        wide = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, wide, strict=True)).rstrip()
            for row in rows
        ]
        for name in ("channels", "parameters", "macs", "bytes"):
            change: Change = getattr(self, name)
            lines.append(
                f"{name}: {change.before:,} -> {change.after:,} ({change.removed:.1%} removed)"
            )
        lines += [f"untouched: {name} {reason}" for name, reason in self.untouched.items()]
        return "\n".join(lines)


def _arrow(change: Change | None) -> str:
    return "" if change is None else f"{change.before} -> {change.after}"
