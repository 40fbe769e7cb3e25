"""Metrics under named conventions, and counters of cost."""
