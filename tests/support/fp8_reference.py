"""FP8 in float64, from the definition of its formats: what the tests compare with."""

import numpy as np
import torch

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def decoded(code: int, exponent_bits: int, mantissa_bits: int) -> float:
    """The number that a positive code stands for: sign, exponent, mantissa of the OFP8 formats."""
    bias = 2 ** (exponent_bits - 1) - 1
    exponent, mantissa = code >> mantissa_bits, code % 2**mantissa_bits
    if exponent == 0:
        return mantissa * 2.0 ** (1 - bias - mantissa_bits)
    return (1 + mantissa / 2**mantissa_bits) * 2.0 ** (exponent - bias)


# E4M3 has no infinity and one NaN, 0x7f; E5M2 is IEEE-like: infinity 0x7c, NaN above.
TABLES = {
    E4M3: np.array([decoded(code, 4, 3) for code in range(0x7F)]),
    E5M2: np.array([decoded(code, 5, 2) for code in range(0x7C)]),
}


def nearest_codes(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """In float64: the code whose number is nearest, of two the even one; too large: the largest."""
    table = TABLES[dtype]
    size = np.abs(values.astype(np.float64))
    upper = np.clip(np.searchsorted(table, size), 1, len(table) - 1)
    lower = upper - 1
    to_lower, to_upper = size - table[lower], table[upper] - size
    even = np.where(lower % 2 == 0, lower, upper)
    code = np.where(to_lower < to_upper, lower, np.where(to_upper < to_lower, upper, even))
    code = np.where(np.isnan(values), 0x7F, code).astype(np.uint8)
    return code | (np.signbit(values).astype(np.uint8) << 7)


def rounded_blocks(
    matrix: np.ndarray, rows: int, columns: int, dtype: torch.dtype, final_scale
) -> np.ndarray:
    """Each block rounded by itself, block after block, with `final_scale` of largest / amax."""
    table = TABLES[dtype]
    result = np.empty_like(matrix, dtype=np.float64)
    for r in range(0, matrix.shape[0], rows):
        for c in range(0, matrix.shape[1], columns):
            block = matrix[r : r + rows, c : c + columns].astype(np.float64)
            scale = final_scale(table[-1] / np.abs(block).max())
            codes = nearest_codes(block * scale, dtype)
            values = table[codes & 0x7F] * np.where(codes & 0x80, -1.0, 1.0)
            result[r : r + rows, c : c + columns] = values / scale
    return result


def floor_power(x):
    return 2.0 ** np.floor(np.log2(x))
