"""minidl: a small deep-learning framework on CuPy and NumPy."""

__version__ = "0.1.0"
