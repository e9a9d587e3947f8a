"""Defences compared on the same data, from the same natural weights, by the same attacks."""
