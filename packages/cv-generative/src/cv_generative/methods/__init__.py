"""One module per paper: the methods of cv-generative, each ending in its CARD."""
