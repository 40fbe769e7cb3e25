"""Data sets, splits, label noise, composed scenes and curation."""
