"""Parameters, and the flat storage that they are views of."""

from math import prod

from minidl.array.casting import cast
from minidl.array.device import array_module, to_device
from minidl.autograd.tensor import Tensor

ALIGNMENT = 64  # bytes: a cache line, and more than any vector load asks for


class Parameter(Tensor):
    """A leaf Tensor that a Module owns and an optimizer changes.

    In flat storage `data` and `grad` are views: to assign to them is to copy into
    them. `name` is what the module that was last asked for it calls it. `exchanged`,
    on several ranks, knows whether the gradient is that of all of them.
    """

    __slots__ = ("storage", "offset", "gradient_view", "name", "exchanged")

    def __init__(self, data, requires_grad: bool = True):
        self.storage = self.gradient_view = None
        self.offset = 0
        self.name = ""
        self.exchanged = None
        super().__init__(data.data if isinstance(data, Tensor) else data)
        self.requires_grad_(requires_grad)

    @property
    def data(self):
        return _array.__get__(self)

    @data.setter
    def data(self, array):
        if isinstance(array, Tensor):  # as in PyTorch, where data is a Tensor
            array = array.data
        if self.storage is None:
            _array.__set__(self, array)
            return
        if array.shape != self.shape:
            raise ValueError(
                f"parameter {self.name or 'in flat storage'} has shape {self.shape}, "
                f"got an array of shape {array.shape}"
            )
        self.data[...] = to_device(array, self.device)
        if self.storage.low is not None:
            self.storage.view(self.storage.low, self.offset, self.shape)[...] = (
                self.data
            )

    def attach(self, storage: "FlatStorage", offset: int) -> None:
        """Move into flat storage."""
        view = storage.view(storage.data, offset, self.shape)
        view[...] = self.data
        before, self._grad = self._grad, None
        _array.__set__(self, view)
        self.storage, self.offset = storage, offset
        self.gradient_view = storage.view(storage.grad, offset, self.shape)
        self.grad = before

    def __deepcopy__(self, memo) -> "Parameter":
        """A copy without a gradient, outside of flat storage."""
        if id(self) not in memo:
            copy = type(self)(self.data.copy(), self.requires_grad)
            copy.name = self.name
            memo[id(self)] = copy
        return memo[id(self)]

    def move(self, array) -> None:
        """Hold an array of its own, outside of flat storage."""
        self.storage = self.gradient_view = None
        super().move(array)

    @property
    def grad(self) -> Tensor | None:
        return self._grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None:
            self.check_gradient(value)
            if self.gradient_view is not None:
                self.gradient_view[...] = value.data
                value = Tensor(self.gradient_view)
        self._grad = value

    def empty_gradient(self):
        return self.gradient_view if self._grad is None else None

    def begun_gradient(self):
        begun = self._grad is not None and self._grad.creator is None
        return self.gradient_view if begun else None

    def copy_in(self, dtype, made: dict):
        """In flat storage all parameters are cast at once, if not kept in this type."""
        storage = self.storage
        if storage is None:
            return super().copy_in(dtype, made)
        low = storage.low
        if low is None or low.dtype != dtype:
            if (storage, dtype) not in made:
                made[storage, dtype] = cast(storage.data, dtype)
            low = made[storage, dtype]
        return storage.view(low, self.offset, self.shape)

    def accumulate(self, gradient: Tensor, fresh: bool = False) -> None:
        """The first gradient of a step is stored in the view, later ones added."""
        view = self.gradient_view
        if view is None:
            super().accumulate(gradient, fresh)
        elif self._grad is None:
            if gradient.data is not view:
                view[...] = gradient.data
            self._grad = Tensor(
                view,
                gradient.requires_grad,
                gradient.creator,
                gradient.output_index,
            )
        elif gradient.creator is None and self._grad.creator is None:
            if gradient.data is not view:  # it has been added where it was computed
                view += gradient.data
        else:
            total = self._grad + gradient
            self._grad = None
            self.accumulate(total)


_array = Tensor.__dict__["data"]  # the slot behind Parameter.data


class FlatStorage:
    """Two arrays, `data` and `grad`, that hold parameters end to end.

    Each begins at a multiple of 64 bytes; what lies between them is zero and stays
    zero, so that arithmetic on the whole buffer is arithmetic on all parameters.
    It divides into `parts` equal parts that begin so. `sharded` storage belongs to
    several ranks, each of which knows the gradients of its own parts alone.
    """

    sharded = False
    low = None  # the weights in another type, of 16 bits: see `keep_low`

    def __init__(self, parameters: list[Parameter], parts: int = 1):
        first = parameters[0]
        for p in parameters:
            if (p.dtype, p.device) != (first.dtype, first.device):
                raise ValueError(
                    "flat storage holds parameters of one number type and device, got "
                    f"{first.dtype} on {first.device} and {p.dtype} on {p.device}"
                )
        self.parameters = parameters
        self.unit = ALIGNMENT // first.dtype.itemsize
        step = self.unit * parts
        self.size = -(-sum(self.room(p) for p in parameters) // step) * step
        self.data = self.zeros(first)
        self.grad = self.zeros(first)
        offset = 0
        for p in parameters:
            p.attach(self, offset)
            offset = self.end(p)

    def room(self, p: Parameter) -> int:
        """Elements that a parameter takes, what follows it for alignment included."""
        return -(-p.data.size // self.unit) * self.unit

    def end(self, p: Parameter) -> int:
        """Where the next parameter begins."""
        return p.offset + self.room(p)

    def keep_low(self, dtype) -> None:
        """Keep the weights in another type too, in `low`, with the layout of `data`.

        An optimizer writes both in one launch. `load_state_dict` and assignments to a
        parameter's `data` renew it; after changes in place it is to be called again.
        """
        if self.low is None or self.low.dtype != dtype:
            self.low = self.data.astype(dtype)
        else:
            self.renew_low()

    def renew_low(self) -> None:
        """Make `low`, if it is kept, the weights as they are now."""
        if self.low is not None:
            self.low[...] = self.data

    def zeros(self, like: Tensor | None = None):
        """An array of zeros with the layout of the storage."""
        like = self.data if like is None else like.data
        return array_module(like).zeros(self.size, like.dtype)

    @staticmethod
    def view(flat, offset: int, shape: tuple[int, ...]):
        """The part of a flat array that belongs to a parameter."""
        return flat[offset : offset + prod(shape)].reshape(shape)


def flat_storages(parameters: list[Parameter]) -> list[FlatStorage]:
    """The storages of these parameters, in order; those without get one.

    A new storage is made for all parameters of one number type and device, unless
    one holds exactly these already.
    """
    kinds: dict = {}
    for p in parameters:
        kinds.setdefault((p.dtype, p.device), []).append(p)
    storages = []
    for members in kinds.values():
        storage = members[0].storage
        if storage is None or len(storage.parameters) != len(members):
            storage = FlatStorage(members)
        elif any(p is not q for p, q in zip(storage.parameters, members, strict=True)):
            storage = FlatStorage(members)
        elif any(p.storage is not storage for p in members):
            storage = FlatStorage(members)
        storages.append(storage)
    return storages
