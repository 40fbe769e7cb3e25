"""Known methods that the papers of this package compare with."""
