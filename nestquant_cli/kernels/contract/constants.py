"""Numbers that all implementations of an operation share."""

OVERLOADED = 255  # instead of the number of a multiplier: the block fit none and was shrunk towards zero
CLIP_STEPS = 32  # an overloaded block shrinks by 1/32 of its way to zero at a time

# The K-best searches over rows.
PANEL = 64  # columns that are searched between two products with the whole feedback matrix
MOST_PATHS = 64  # K; a tile of the CPU's kernels has this many lanes, and all paths of a row share a tile
FEW_MULTIPLIERS = 3  # up to which a path also branches to the nearest point of the other coset of D8
NEAREST_LEVELS = 2  # levels that a path of the search of lattices branches to

# The int8 grids of tokens.
EMPTY, INFINITE = -128, 127  # instead of an exponent: a token of zeros, and one that is not finite
LARGEST = 127  # of an entry
LEAST_POWER, MOST_POWER = -124, 124  # exponents for which the power of two and its inverse are ordinary float32

# Tokens of 16 bits.
LARGEST_INT16 = 127 * 257  # of an entry: with two digits of -128 … 127 to the base 256
LEAST_SIZE = 2.0**-100  # tokens without a larger entry count as zeros: the inverse of their scale is no float32
MOST_ENTRIES = 1 << 16  # of a row; sums of products of bytes stay within int32
