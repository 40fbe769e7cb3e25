"""Parts that several modules of this package use; nothing here is promised to users."""
