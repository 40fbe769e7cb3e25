"""Losses that more than one package uses: modules with functional twins."""
