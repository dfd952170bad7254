"""Tensor: an array, its gradient, and the operation that made it.

The mathematics is not here: `minidl.ops` binds operators and methods to this class,
and `minidl.autograd.differentiate` its `backward`.
"""

import numpy as np

from minidl.array import device as devices
from minidl.array.casting import cast
from minidl.array.dtypes import is_floating_point

ndarray = np.ndarray


class Tensor:
    """A multi-dimensional array that remembers how it was computed.

    `data` is the bare NumPy or CuPy array (in PyTorch it is a Tensor: here it is the
    thing itself, to look at and to write into). `grad` is a Tensor or None. `creator`
    is the operation whose output number `output_index` this is, None for a leaf.
    A loss that is a mean remembers `total`, the sum, and `count`, of how many terms:
    its share of a larger batch depends on them. Both are None for anything else.
    """

    __slots__ = (
        "data",
        "requires_grad",
        "creator",
        "output_index",
        "_grad",
        "total",
        "count",
        "__weakref__",
    )
    __array_priority__ = 1000  # so that `array * tensor` asks Tensor.__rmul__
    __hash__ = object.__hash__

    def __init__(self, data, requires_grad=False, creator=None, output_index=0):
        self.data = data if type(data) is ndarray else as_array(data)
        self.requires_grad = requires_grad
        self.creator = creator
        self.output_index = output_index
        self._grad = None
        self.total = self.count = None

    # What it is -----------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    @property
    def ndim(self) -> int:
        return self.data.ndim

    @property
    def device(self) -> str:
        """`"cpu"` or `"cuda:0"`, `"cuda:1"`, ..."""
        return devices.device_of(self.data)

    @property
    def is_leaf(self) -> bool:
        return self.creator is None

    def dim(self) -> int:
        return self.data.ndim

    def numel(self) -> int:
        """The number of elements."""
        return self.data.size

    def size(self, dim: int | None = None):
        """The shape, or its entry `dim`."""
        return self.data.shape if dim is None else self.data.shape[dim]

    def element_size(self) -> int:
        """Bytes an element."""
        return self.data.itemsize

    def is_floating_point(self) -> bool:
        return is_floating_point(self.data.dtype)

    def __len__(self) -> int:
        if not self.data.ndim:
            raise TypeError("len() of a 0-d tensor")
        return len(self.data)

    def __repr__(self) -> str:
        text = np.array2string(
            devices.to_numpy(self.data), separator=", ", prefix="tensor("
        )
        if not self.data.size and self.shape != (0,):
            text += f", size={self.shape}"
        if self.data.dtype not in (np.float32, np.int64, np.bool_):
            text += f", dtype={self.data.dtype}"
        if self.device != "cpu":
            text += f", device={self.device!r}"
        if self.creator is not None:
            text += f", grad_fn=<{type(self.creator).__name__}>"
        elif self.requires_grad:
            text += ", requires_grad=True"
        return f"tensor({text})"

    def __format__(self, spec: str) -> str:
        if self.data.ndim:
            return object.__format__(self, spec)
        return format(self.item(), spec)

    # The way out ----------------------------------------------------------------

    def numpy(self) -> np.ndarray:
        """The values as a NumPy array, on a CPU without a copy.

        PyTorch refuses this for a tensor that requires a gradient; here the array is
        handed out, and what is done to it is not recorded.
        """
        return devices.to_numpy(self.data)

    def item(self) -> float | int | bool:
        """The only element as a Python number."""
        if self.data.size != 1:
            raise RuntimeError(
                f"a Tensor of shape {self.shape} has {self.data.size} elements and "
                "cannot become one number: item() needs exactly one"
            )
        return self.data.item()

    def tolist(self) -> list:
        return self.data.tolist()

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self.data.dtype.kind not in "iub":
            raise TypeError("only an integer tensor of one element can be an index")
        return int(self.item())

    def __bool__(self) -> bool:
        if self.data.size != 1:
            raise RuntimeError(
                f"the truth of a Tensor of shape {self.shape} is ambiguous: "
                "use any() or all()"
            )
        return bool(self.data.item())

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        array = devices.to_numpy(self.data)
        if dtype is not None and array.dtype != dtype:
            return array.astype(dtype)
        return array.copy() if copy else array

    def __dlpack__(self, **options):
        return self.data.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.data.__dlpack_device__()

    # The gradient ---------------------------------------------------------------

    @property
    def grad(self) -> "Tensor | None":
        """What `backward` has added up here; None before that."""
        return self._grad

    @grad.setter
    def grad(self, value: "Tensor | None") -> None:
        if value is not None:
            self.check_gradient(value)
        self._grad = value

    def check_gradient(self, value) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(
                f"grad must be a Tensor or None, got {type(value).__name__}"
            )
        its, own = [(x.shape, x.dtype, x.device) for x in (value, self)]
        if its != own:
            raise RuntimeError(
                "a grad of shape {} and type {} on {} was given to a Tensor of shape "
                "{} and type {} on {}".format(*its, *own)
            )

    def empty_gradient(self):
        """The array that the first gradient of a step is to be written into, if any."""
        return None

    def begun_gradient(self):
        """The array that holds the gradients so far and can be added to, if any."""
        return None

    def copy_in(self, dtype, made: dict):
        """The array in another number type; a copy made for it is kept in `made`."""
        if (self, dtype) not in made:
            made[self, dtype] = cast(self.data, dtype)
        return made[self, dtype]

    def accumulate(self, gradient: "Tensor", fresh: bool = False) -> None:
        """Add to `grad`; the first one is copied if others may have its array too."""
        if self._grad is not None:
            gradient = self._grad + gradient
        elif gradient.creator is None and not (
            fresh and gradient.data.flags.c_contiguous
        ):
            gradient = Tensor(gradient.data.copy())
        self._grad = gradient

    def requires_grad_(self, requires_grad: bool = True) -> "Tensor":
        """Ask for (or, on a leaf, do without) a gradient; returns the tensor."""
        if requires_grad and not self.is_floating_point():
            raise RuntimeError(
                f"only floating-point tensors have gradients, this one is {self.dtype}"
            )
        if not self.is_leaf and not requires_grad:
            raise RuntimeError(
                "requires_grad can be switched off for leaves only; use detach()"
            )
        self.requires_grad = requires_grad
        return self

    def move(self, array) -> None:
        """Hold another array, of another device or number type; the gradient goes."""
        self._grad = None
        self.data = array

    def detach(self) -> "Tensor":
        """The same array, cut off from the graph."""
        return Tensor(self.data)


def as_array(data):
    """An array as it is; NumPy's arithmetic turns 0-d arrays into scalars."""
    if isinstance(data, np.generic):
        return np.asarray(data)
    if isinstance(data, Tensor) or not hasattr(data, "dtype"):
        raise TypeError(
            f"Tensor(...) wraps an array of NumPy or CuPy, got {type(data).__name__}: "
            "tensor(...) makes one of numbers and lists"
        )
    return data
