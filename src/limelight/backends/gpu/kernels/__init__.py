"""The kernels. They know intervals of keys and tiles of bits, and no pattern by its name."""
