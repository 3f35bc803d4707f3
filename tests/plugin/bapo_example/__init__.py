"""What somebody else adds to bapo."""
