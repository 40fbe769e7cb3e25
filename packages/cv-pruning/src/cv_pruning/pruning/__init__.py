"""Structural pruning: whole channels leave a network, and their parameters and work with them."""
