"""Scenes with exact ground truth: real glyphs and garments pasted on real photographs."""
