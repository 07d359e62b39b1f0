"""What only makes the same numbers faster."""
