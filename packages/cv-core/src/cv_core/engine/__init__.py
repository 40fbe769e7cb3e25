"""Training and evaluation: a task, a loop, checkpoints."""
