"""Profile ``serverlight`` in NumPy: the definition of what all backends compute; ``kernels.py`` is the backend."""
