"""One module per paper: the methods of cv-attention, each ending in its CARD."""
