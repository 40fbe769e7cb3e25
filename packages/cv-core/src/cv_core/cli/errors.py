"""What the commands refuse."""


class BadUse(Exception):  # noqa: N818 - it is the user's to mend, not an error of the program
    """Told to the user in one line, with exit code 2; nothing was done."""
