"""The command ``cvlab``: starts fast, because nothing heavy is imported before it is needed."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and leave with its exit code: 0 done, 1 failed, 2 bad use."""
    try:
        from cv_core.cli.app import run_app
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        sys.stderr.write('cvlab: the command line is an extra: pip install "cv-core[lab]"\n')
        sys.exit(2)
    sys.exit(run_app(sys.argv[1:]))
