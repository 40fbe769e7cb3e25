"""One module per paper: the methods of cv-pruning, each ending in its CARD."""
