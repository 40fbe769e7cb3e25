"""Known methods that the papers of cv-factorization compare with."""
