"""Numerical building blocks: proximal operators, descent, affinity graphs, dependence."""
