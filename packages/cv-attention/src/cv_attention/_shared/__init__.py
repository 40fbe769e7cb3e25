"""Parts that several methods of this package use; nothing here is promised to users."""
