"""Colours by meaning: figures name them, the page's style sheet gives them values, light and dark.

Matplotlib wants numbers where the page wants names, so that a figure follows the reader's colour
scheme. A figure is therefore drawn with one code per name, and the codes are replaced in the SVG.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cv_core.experiment.results import Results

_NAMES = (
    "ink", "muted", "grid", "band", "paper-mark",
    "supported", "contradicted", "inconclusive", "untested",
    "arm-paper", "arm-base", *(f"arm-{index}" for index in range(1, 7)),
)  # fmt: skip
_CODES = {name: f"#fe00{index:02x}" for index, name in enumerate(_NAMES)}
_VARIABLES = {code: f"var(--{name})" for name, code in _CODES.items()}
_LINES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
_OTHERS = 6


def colour(name: str) -> str:
    """Return the code that stands for a colour in a figure."""
    return _CODES[name]


def name_colours(style: str) -> str:
    """Replace the codes in a piece of SVG by the style sheet's names."""
    return re.sub(r"#fe00[0-9a-f]{2}", lambda match: _VARIABLES[match[0]], style)


@dataclass(frozen=True)
class ArmStyle:
    """How an arm is drawn: colour, line and marker, so that none has to be told by colour alone."""

    colour_name: str
    line: str
    marker: str

    @property
    def colour(self) -> str:
        """The code that stands for the colour in a figure."""
        return colour(self.colour_name)


def arm_styles(results: Results) -> dict[str, ArmStyle]:
    """Choose every declared arm's style: the paper's arm stands out, the first baseline is grey."""
    styles: dict[str, ArmStyle] = {}
    others = 0
    taken: set[str] = set()
    for index, arm in enumerate(results.declared.arms):
        special = {"paper": "arm-paper", "baseline": "arm-base"}.get(arm.role, "")
        if special and special not in taken:
            name = special
            taken.add(special)
        else:
            name = f"arm-{others % _OTHERS + 1}"
            others += 1
        line = "-" if name == "arm-paper" else _LINES[index % len(_LINES)]
        styles[arm.name] = ArmStyle(name, line, _MARKERS[index % len(_MARKERS)])
    return styles
