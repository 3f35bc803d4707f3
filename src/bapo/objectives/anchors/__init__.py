"""Anchors, one a file: what a base response costs when it has become less likely. (K,) losses in nats, no reduction.

At equality the hinge and its gradient are zero, so that nothing pulls at step 0.
"""
