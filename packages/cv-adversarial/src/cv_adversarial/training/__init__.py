"""Losses of adversarial training: ``loss, parts = objective(model, x, y)`` in any loop."""
