"""A matplotlib figure as SVG that may stand inside a page, next to others of its kind."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from cv_core.report.style import colour, name_colours

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_SIZE = 9.5
_FONT = (f"font-size: {_SIZE}px", "font-family: var(--font)")
"""What a text inherits from the figure unless it says otherwise."""


def to_svg(
    draw: Callable[[Figure], None], *, name: str, size: tuple[float, float], label: str
) -> str:
    """Draw a figure and return it as an ``<svg>`` element.

    Args:
        draw: Fills the empty figure.
        name: Unique in the page; makes the ids inside unique, and the same in every run.
        size: Width and height in inches.
        label: What the figure shows, for those who do not see it.

    Returns:
        The element, without any address in it: text is text, colours are the page's variables.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    prefix = hashlib.sha256(name.encode()).hexdigest()[:8]
    stream = io.StringIO()
    with mpl.rc_context(_look(prefix)), warnings.catch_warnings():
        # the reader's browser has the letters that matplotlib's own font lacks
        warnings.filterwarnings("ignore", message=".*missing from font.*")
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return _inline(stream.getvalue(), prefix, label)


def _look(prefix: str) -> dict[Any, Any]:
    ink, muted = colour("ink"), colour("muted")
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": prefix,
        "text.parse_math": False,  # a name may hold a dollar sign
        "axes.unicode_minus": True,
        "font.size": _SIZE,
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": muted,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlecolor": ink,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.linewidth": 0.8,
        "grid.color": colour("grid"),
        "grid.linewidth": 0.8,
        "xtick.color": muted,
        "ytick.color": ink,
        "xtick.labelcolor": ink,
        "legend.fontsize": _SIZE,
        "figure.constrained_layout.wspace": 0.05,
        "figure.constrained_layout.hspace": 0.06,
    }


def _inline(text: str, prefix: str, label: str) -> str:
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "", text)  # which no XML may hold
    root = ET.fromstring(text)  # noqa: S314 - matplotlib wrote it a moment ago
    for part in (f"{_SVG}metadata", f"{_SVG}defs[{_SVG}style]"):  # addresses; rules for the page
        for element in root.findall(part):
            root.remove(element)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        element.attrib = {
            key.replace(_LINK, "href"): _attribute(key, value, prefix)
            for key, value in element.attrib.items()
        }
    _compact(root)
    width = float(root.attrib["width"].removesuffix("pt")) * 4 / 3
    viewbox = root.attrib["viewBox"]
    root.attrib = {
        "class": "figure",
        "viewBox": viewbox,
        "role": "img",
        "aria-label": label,
        "style": f"max-width: {width:.0f}px; {'; '.join(_FONT)}",
    }
    return ET.tostring(root, encoding="unicode")


def _compact(root: ET.Element) -> None:
    """Leave out what no reader sees: unused names, bare groups, needless turns and digits."""
    values = [value for element in root.iter() for value in element.attrib.values()]
    used = set(re.findall(r"#([\w-]+)", " ".join(values)))
    for element in root.iter():
        given = element.attrib
        if given.get("id") not in used:
            given.pop("id", None)
        if given.get("transform", "").startswith("rotate(-0 "):
            del given["transform"]
        for key in given.keys() & {"d", "x", "y", "transform"}:
            given[key] = " ".join(re.sub(r"\d+\.\d{3,}", _rounded, given[key]).split())
        if element.tag != "text" and not (element.text or "").strip():
            element.text = None
        if not (element.tail or "").strip():
            element.tail = None
    _ungroup(root)
    _share_style(root)


def _ungroup(element: ET.Element) -> None:
    kept: list[ET.Element] = []
    for child in element:
        _ungroup(child)
        bare = child.tag == "g" and not child.attrib
        kept += list(child) if bare else [child]
    element[:] = kept


def _share_style(root: ET.Element) -> None:
    """State once what parts have in common: a group's style, and the figure's usual font."""
    for element in root.iter():
        styles = {child.get("style") for child in element}
        if element.tag == "g" and "style" not in element.attrib and len(styles) == 1:
            (style,) = styles
            if style is not None:
                element.set("style", style)
                for child in element:
                    del child.attrib["style"]
        if element.tag == "text" and "style" in element.attrib:
            own = [part for part in element.attrib["style"].split("; ") if part not in _FONT]
            element.set("style", "; ".join(own))


def _rounded(number: re.Match[str]) -> str:
    return f"{float(number[0]):.2f}"


def _attribute(key: str, value: str, prefix: str) -> str:
    if key == "id":
        return f"{prefix}-{value}"
    if key == _LINK:
        return value.replace("#", f"#{prefix}-")
    value = re.sub(r"url\(#", f"url(#{prefix}-", value)
    if key == "style":  # the page's own font, not a list of those matplotlib would have taken
        value = re.sub(r"(font: [^;]*?px) [^;]*", r"\1 var(--font)", value)
        value = re.sub(r"font-family: [^;]*", "font-family: var(--font)", value)
    return name_colours(value)
