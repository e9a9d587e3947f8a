"""How robust a classifier is, and whether the number can be trusted."""
