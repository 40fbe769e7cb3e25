"""Attribution maps and how faithful they are."""
