"""What two methods of this package use."""
