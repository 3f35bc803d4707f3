"""Anchor controls, one a file: how the anchor strength moves from step to step."""
