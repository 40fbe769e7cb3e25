"""One module per paper whose parts live in cv-core, each ending in its CARD."""
