"""What makes single layers and passes faster or smaller, with the numbers that they had, and the switch for it.

One file a kernel, which says what it fits, proves itself by a probe and is undone; strands are in `bapo.likelihood`,
whose rows they cut. This module has their names alone and imports no torch.
"""

from bapo.kernels.choice import KERNELS, Kernels, chosen, help_text

__all__ = ["KERNELS", "Kernels", "chosen", "help_text"]
