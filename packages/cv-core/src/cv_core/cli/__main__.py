"""``python -m cv_core.cli`` is ``cvlab``."""

from cv_core.cli import main

if __name__ == "__main__":
    main()
