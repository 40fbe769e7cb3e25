"""Hypergraphs and graphs from and to other libraries, one module each."""
