"""What ``insert_attention`` puts into a network and ``remove_attention`` takes out again."""

from cv_core.nn.surgery import Followed


class Attended(Followed):
    """A layer and the attention applied to its output."""
