"""The verdicts of a run as one SVG file, for a README: readable on its own, light and dark."""

from __future__ import annotations

from importlib.resources import files

from cv_core.experiment.compare import verdicts
from cv_core.experiment.results import Results
from cv_core.report.figures import forest


def render_picture(results: Results) -> str:
    """Draw the paired differences of every claim as a file of their own.

    Args:
        results: A run's results.

    Returns:
        An SVG document with the page's colours inside, or an empty string if no claim was tested.
    """
    drawn = forest(results, verdicts(results))
    if not drawn:
        return ""
    style = files("cv_core.report").joinpath("templates/style.css").read_text(encoding="utf-8")
    colours, _, _ = style.partition("* {")  # the variables, which come first in the sheet
    opening, _, rest = drawn.partition(">")
    _, _, width, height = opening.partition('viewBox="')[2].partition('"')[0].split()
    return (
        f'{opening} xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">'
        f"<style>{colours}text {{ font-family: var(--font); }}</style>"
        f'<rect width="100%" height="100%" fill="var(--page)"/>{rest}\n'
    )
