"""Effects of a treatment from observational data: what the estimators share, and their scores."""
