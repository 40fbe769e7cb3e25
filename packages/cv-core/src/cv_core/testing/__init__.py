"""The common checks that every card is tested with; shipped, for packages outside this one too."""
