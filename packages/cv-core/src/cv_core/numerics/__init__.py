"""Numerical building blocks: proximal operators, descent, graphs, dependence, clustering."""
