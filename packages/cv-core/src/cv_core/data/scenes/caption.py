"""Sentences that agree with the geometry of a scene."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from cv_core.data.scenes.scene import Attributes


def describe(attributes: Sequence[Attributes], boxes: Float[np.ndarray, "k 4"]) -> str:
    """Say what is where, from left to right.

    Args:
        attributes: Words for each object.
        boxes: Their boxes, xyxy.

    Returns:
        Such as ``"a small red 7 left of a large blue 3"``; each object is related to the next one.

    >>> words = [Attributes("3", "blue", "large"), Attributes("7", "red", "small")]
    >>> describe(words, np.array([[40.0, 8, 60, 30], [2, 12, 12, 24]]))
    'a small red 7 left of a large blue 3'
    """
    if not attributes:
        return "an empty scene"
    centres = np.stack((boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3]), axis=1) / 2.0
    order = np.argsort(centres[:, 0], kind="stable")
    text = f"a {attributes[order[0]]}"
    for here, there in pairwise(order):
        text += f" {relation(centres[here], centres[there])} a {attributes[there]}"
    return text


def relation(here: Float[np.ndarray, " 2"], there: Float[np.ndarray, " 2"]) -> str:
    """Say where one centre (x, y) lies as seen from another, along the axis of larger distance."""
    right, down = there[0] - here[0], there[1] - here[1]
    if abs(right) >= abs(down):
        return "left of" if right >= 0 else "right of"
    return "above" if down > 0 else "below"
