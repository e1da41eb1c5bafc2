"""What numba's kernels share: bfloat16 as its bits, and an exponential that vectorises.

2^x is 2^round(x) by its exponent bits times a polynomial of the rest (Cephes' exp2f), 1e-7 relative.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# all but the two that would let the compiler drop NaN and infinities
FAST = {"reassoc", "contract", "nsz", "arcp", "afn"}
f4, i4, u2, u4 = np.float32, np.int32, np.uint16, np.uint32
LOG2_E = f4(1.4426950408889634)
C0, C1, C2 = f4(1.535336188319500e-4), f4(1.339887440266574e-3), f4(9.618437357674640e-3)
C3, C4, C5 = f4(5.550332471162809e-2), f4(2.402264791363012e-1), f4(6.931472028550421e-1)
LOWEST, HIGHEST = f4(-126.0), f4(126.0)
TOO_LARGE = f4(1e37)  # a sum in which some e^x may have been cut at 2^126


@njit(inline="always", fastmath=FAST)
def exp_cut(x: np.float32) -> np.float32:
    """e^x, cut at 2^126, 2^-126 for what is smaller, NaN for NaN."""
    t = x * LOG2_E
    t = LOWEST if t < LOWEST else t
    t = HIGHEST if t > HIGHEST else t
    whole = np.rint(t)
    rest = t - whole
    p = C0 * rest + C1
    p = p * rest + C2
    p = p * rest + C3
    p = p * rest + C4
    p = p * rest + C5
    p = p * rest + f4(1.0)
    bits = i4((i4(whole) + i4(127)) << i4(23))
    return p * bits.view(f4)


@njit(inline="always")
def widened(bits: np.uint16) -> np.float32:
    """The bfloat16 number with these bits."""
    return u4(u4(bits) << u4(16)).view(f4)


@njit(inline="always")
def rounded(x: np.float32) -> np.uint16:
    """The bits of the nearest bfloat16 number, of two equally near ones the even one."""
    bits = f4(x).view(u4)
    return u2((bits + u4(0x7FFF) + ((bits >> u4(16)) & u4(1))) >> u4(16))
