"""What the int8 grids of tokens (`kernels.grid`) reach, for torch and for compiled code."""

EMPTY, INFINITE = -128, 127  # instead of an exponent: a token of zeros, and one that is not finite
LARGEST = 127  # of an entry
LEAST_POWER, MOST_POWER = -124, 124  # exponents for which the power of two and its inverse are ordinary float32
