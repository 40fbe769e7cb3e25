"""Losses of logits and labels for training under noisy labels."""
