"""Results as data, and the pages drawn from them."""
