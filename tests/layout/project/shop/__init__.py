"""A small shop: people, and what they order."""
