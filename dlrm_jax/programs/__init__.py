"""Compiled programs, read: their kernels, scatters, products and large arrays."""
