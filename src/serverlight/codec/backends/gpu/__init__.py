"""Kernels of profile ``serverlight``, on a graphics processor, through Triton; ``kernels.py`` is the backend."""
