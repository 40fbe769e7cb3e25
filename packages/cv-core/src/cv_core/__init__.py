"""Shared ground of the cv packages.

Users import the submodules, as in ``from cv_core.metrics.images import ssim``: nothing is
imported here, so that ``import cv_core`` costs nothing.
"""

from importlib.metadata import version

__version__ = version("cv-core")
