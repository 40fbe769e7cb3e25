"""Sparse coding, dictionary learning and convolutional sparse coding, batched in torch."""
