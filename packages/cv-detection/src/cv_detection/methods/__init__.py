"""One module per paper: the methods of cv-detection, each ending in its CARD."""
