"""Compiled loops of profile ``serverlight``, on a processor, through Numba; ``kernels.py`` is the backend."""
