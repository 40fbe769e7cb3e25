"""One module per paper: the methods of cv-factorization, each ending in its CARD."""
