"""The texts of the starter preferences."""
