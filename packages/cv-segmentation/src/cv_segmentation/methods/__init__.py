"""One module per paper: the methods of cv-segmentation, each ending in its CARD."""
