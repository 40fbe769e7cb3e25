"""One module per paper: the methods of cv-adversarial, each ending in its CARD."""
