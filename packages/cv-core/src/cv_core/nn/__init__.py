"""Layers and the surgery of foreign networks: hooks, blocks, attention kernels."""
