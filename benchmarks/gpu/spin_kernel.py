"""Polls a word of memory until it is set."""

import triton
import triton.language as tl


@triton.jit
def poll(flag):
    seen = tl.load(flag, volatile=True)
    while seen == 0:
        seen = tl.load(flag, volatile=True)
