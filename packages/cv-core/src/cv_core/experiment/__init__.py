"""Declared experiments: arms, cases and claims; a runner that resumes; verdicts with intervals."""
