"""Segmentation of objects in clips: recurrent decoders, attention and losses between objects."""
