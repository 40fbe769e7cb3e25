"""Images as signals: kernels, patches, colour, saliency."""
