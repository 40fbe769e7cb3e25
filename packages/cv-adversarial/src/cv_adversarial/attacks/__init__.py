"""Attacks: one call, one record of a run, pixels in [0, 1], and a model that stays as it was."""
