"""The methods and operators of the stand-in's array, by NumPy's of the same names."""

import cupy
import numpy
from stand_in_array import (
    _view,
    module,
    ndarray,
    operation,
)
from stand_in_signatures import short_types, signature_of


def _method(name):
    """A method of CuPy's array, by NumPy's of the same name."""
    signature = signature_of(getattr(cupy.ndarray, name))
    ours = getattr(numpy.ndarray, name)
    in_place = name in ("fill", "sort", "partition", "put")

    def method(self, *args, **kwargs):
        if signature is not None:
            signature.bind(self, *args, **kwargs)
        out = kwargs.pop("out", None)
        if name == "astype":
            kwargs = {key: x for key, x in kwargs.items() if x is not None}
            if not kwargs.get("copy", True) and self.dtype == numpy.dtype(args[0]):
                return self
        if in_place:
            run = lambda array, *a, out, **k: ours(out, *a, **k)  # noqa: E731
            operation(name, run, (self, *args), kwargs, self)
            return None
        return operation(name, short_types(name, ours), (self, *args), kwargs, out)

    return method


METHODS = """all any argmax argmin argpartition argsort astype clip conj conjugate copy
cumprod cumsum diagonal dot fill flatten max mean min nonzero partition prod put ravel
repeat reshape round searchsorted sort squeeze std sum swapaxes take trace transpose
var view""".split()
for _name in METHODS:
    setattr(ndarray, _name, _method(_name))
for _name in "dtype shape strides ndim size itemsize nbytes".split():
    setattr(ndarray, _name, property(lambda self, n=_name: getattr(self._array, n)))
for _name in ("T", "mT", "real"):
    setattr(
        ndarray,
        _name,
        property(lambda self, n=_name: _view(self, getattr(self._array, n))),
    )
for _name in "item tolist tobytes __bool__ __int__ __float__ __complex__".split():
    setattr(
        ndarray,
        _name,
        lambda self, *args, n=_name: getattr(self._to_host(n.strip("_")), n)(*args),
    )
for _name in ("__repr__", "__str__", "__format__"):
    setattr(
        ndarray, _name, lambda self, *a, n=_name: getattr(self._to_host("print"), n)(*a)
    )


def _operators() -> None:
    """x + y and its like by the ufuncs of the module."""
    names = {
        **{n: n for n in "add subtract multiply power remainder matmul".split()},
        "true_divide": "truediv",
        "floor_divide": "floordiv",
        **{f"bitwise_{n}": n for n in ("and", "or", "xor")},
        "left_shift": "lshift",
        "right_shift": "rshift",
    }
    short = {"subtract": "sub", "multiply": "mul", "power": "pow", "remainder": "mod"}
    for function, name in names.items():
        name = short.get(function, name)

        def both(self, other, function=function):
            return getattr(module(), function)(self, other)

        def turned(self, other, function=function):
            return getattr(module(), function)(other, self)

        def in_place(self, other, function=function):
            return getattr(module(), function)(self, other, out=self)

        setattr(ndarray, f"__{name}__", both)
        setattr(ndarray, f"__r{name}__", turned)
        if name != "matmul":
            setattr(ndarray, f"__i{name}__", in_place)
    signs = {"lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal"}
    for name, function in {**signs, "eq": "equal", "ne": "not_equal"}.items():
        setattr(
            ndarray,
            f"__{name}__",
            lambda self, other, f=function: getattr(module(), f)(self, other),
        )
    for name in ("negative", "positive", "absolute", "invert"):
        special = {"negative": "neg", "positive": "pos", "absolute": "abs"}
        setattr(
            ndarray,
            f"__{special.get(name, name)}__",
            lambda self, f=name: getattr(module(), f)(self),
        )


_operators()
_missing = [
    name
    for name in vars(ndarray)
    if not name.startswith("_") and not hasattr(cupy.ndarray, name)
]
assert not _missing, f"CuPy's array has no {_missing}"
