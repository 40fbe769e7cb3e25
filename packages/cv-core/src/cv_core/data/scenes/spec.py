"""What a scene may look like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from cv_core.checks import check_choice, check_integer, check_range

Appearance = Literal["ink", "garment"]
"""ink: the glyph's intensity is the opacity of a flat colour (digits, letters). garment: its filled
silhouette is opaque and its intensity shades the colour (Fashion-MNIST items)."""

PALETTE: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {
        "red": (0.86, 0.12, 0.12),
        "green": (0.10, 0.62, 0.22),
        "blue": (0.13, 0.28, 0.88),
        "yellow": (0.97, 0.85, 0.12),
        "cyan": (0.20, 0.82, 0.90),
        "magenta": (0.86, 0.20, 0.75),
        "orange": (0.97, 0.55, 0.10),
        "white": (1.0, 1.0, 1.0),
        "black": (0.04, 0.04, 0.04),
    }
)
"""The colours that a scene names in its attributes, as RGB in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class SceneSpec:
    """What a scene may look like; every draw of a scene stays within it.

    Args:
        height: Rows of the scene.
        width: Columns of the scene.
        objects: Least and largest number of objects. An object for which no place is found in
            ``attempts`` draws is left out, so that crowded scenes may hold fewer.
        scale: Least and largest longer side of an object, as a share of the scene's shorter side.
        max_overlap: Largest share of an object's own mask that objects above it may hide, in
            [0, 1]; 0 keeps objects apart.
        colours: Names from ``PALETTE`` to choose from; a scene repeats one only if it has to.
        contrast: Distance in RGB (0 to 1.73) that an object's colour keeps from four fifths of the
            background pixels in its rectangle; if no colour does, the farthest one is taken.
        appearance: How a glyph's intensity is painted.
        names: Name of every class for captions; by default the label itself.
        attempts: How many places are drawn for one object.
    """

    height: int = 64
    width: int = 64
    objects: tuple[int, int] = (1, 3)
    scale: tuple[float, float] = (0.25, 0.5)
    max_overlap: float = 0.2
    colours: tuple[str, ...] = tuple(PALETTE)
    contrast: float = 0.4
    appearance: Appearance = "ink"
    names: tuple[str, ...] = ()
    attempts: int = 30

    def __post_init__(self) -> None:
        owner = "SceneSpec"
        check_integer(owner, "height", self.height, low=8)
        check_integer(owner, "width", self.width, low=8)
        check_integer(owner, "objects[0]", self.objects[0], low=0)
        check_integer(owner, "objects[1]", self.objects[1], low=self.objects[0])
        check_range(owner, "scale[0]", self.scale[0], low=0.0, low_open=True)
        check_range(owner, "scale[1]", self.scale[1], low=self.scale[0], high=1.0)
        check_range(owner, "max_overlap", self.max_overlap, low=0.0, high=1.0)
        check_range(owner, "contrast", self.contrast, low=0.0)
        check_choice(owner, "appearance", self.appearance, get_args(Appearance))
        check_integer(owner, "attempts", self.attempts, low=1)
        if not self.colours:
            raise ValueError("SceneSpec: colours must name at least one colour; got none.")
        for colour in self.colours:
            check_choice(owner, "colours", colour, PALETTE)

    def sides(self) -> tuple[int, int]:
        """Return the least and the largest longer side of an object in pixels (at least 3)."""
        short = min(self.height, self.width)
        low = max(3, round(self.scale[0] * short))
        return low, max(low, round(self.scale[1] * short))

    def name_of(self, label: int) -> str:
        """Return the name of a class.

        Raises:
            ValueError: If names are given and the label has none.
        """
        if not self.names:
            return str(label)
        check_integer("SceneSpec", "label", label, low=0, high=len(self.names) - 1)
        return self.names[label]
