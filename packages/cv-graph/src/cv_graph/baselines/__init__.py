"""Known methods that the papers of cv-graph compare with."""
