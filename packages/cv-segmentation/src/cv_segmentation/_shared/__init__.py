"""Parts that several methods of this package use."""
