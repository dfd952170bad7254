"""How CuPy's functions are called, and in what type they sum."""

import inspect
import re

import numpy

SUMS = ("sum", "mean", "prod", "var", "std", "cumsum", "cumprod")
CHOICES = ("where", "tril", "triu")


def signature_of(function) -> inspect.Signature | None:
    """Of a Python function, or of Cython's as its documentation says it."""
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        found = re.match(r"[\w.]+\((.*?)\)", function.__doc__ or "")
    if found is None:
        return None
    arguments = re.sub(r"(\b[A-Z_a-z]\w* )(?=\w+\s*[,=)])", "", found[1])
    try:
        return inspect.signature(eval(f"lambda {arguments}: 0"))
    except (SyntaxError, NameError):
        return None


def short_types(name, function):
    """CuPy sums 16 bits in 32, and chooses among no bfloat16."""

    def run(array, *args, **kwargs):
        dtype = kwargs.get("dtype")
        if array.dtype.itemsize != 2 or array.dtype.kind in "iu" or dtype is not None:
            return function(array, *args, **kwargs)
        out = kwargs.pop("out", None)
        result = function(array.astype("f4"), *args, **kwargs).astype(array.dtype)
        if out is not None:
            out[...] = result
        return result if out is None else out

    def choose(*args, **kwargs):
        result = function(*args, **kwargs)
        narrow = isinstance(result, numpy.ndarray) and result.dtype.char == "E"
        return result.astype("f4") if narrow else result

    return {**dict.fromkeys(SUMS, run), **dict.fromkeys(CHOICES, choose)}.get(
        name, function
    )
