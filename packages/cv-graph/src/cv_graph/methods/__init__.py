"""One module per paper: the methods of cv-graph, each ending in its CARD."""
