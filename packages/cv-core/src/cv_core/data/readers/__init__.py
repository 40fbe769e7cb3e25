"""Readers of the data sets that are known by name, and the catalogue that lists them."""
