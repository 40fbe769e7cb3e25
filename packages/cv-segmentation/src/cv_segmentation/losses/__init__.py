"""Losses of segmentation: modules and functions for images and volumes, in three modes."""
