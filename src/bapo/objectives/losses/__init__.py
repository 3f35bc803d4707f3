"""Pair losses, one equation a file: (B,) pairs in, (B,) losses out, no reduction.

Margin is the chosen minus the rejected log-ratio, in nats summed over tokens. beta is positive.
"""
