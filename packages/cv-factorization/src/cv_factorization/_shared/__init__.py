"""Parts that two methods of cv-factorization use."""
