"""minidl: a small deep-learning framework on CuPy and NumPy."""

__version__ = "0.1.0"  # first: the rooms may ask for it

from minidl import autograd, data, distributed, nn, ops, optim, train
from minidl.array.dtypes import (
    bfloat16,
    bool_,
    float16,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    uint8,
)
from minidl.array.random import manual_seed
from minidl.autograd import Tensor, enable_grad, is_grad_enabled, no_grad
from minidl.ops.creation import (
    arange,
    eye,
    from_dlpack,
    full,
    full_like,
    linspace,
    ones,
    ones_like,
    rand,
    rand_like,
    randint,
    randint_like,
    randn,
    randn_like,
    randperm,
    tensor,
    zeros,
    zeros_like,
)
from minidl.ops.diagonal import diagonal, tril, triu
from minidl.ops.einsum import einsum, tensordot
from minidl.ops.index import (
    gather,
    index_select,
    masked_fill,
    scatter,
    scatter_add,
    take_along_dim,
)
from minidl.ops.linear import addmm, baddbmm, bmm, dot, matmul, mm, mv, outer
from minidl.ops.pieces import (
    cat,
    chunk,
    flip,
    narrow,
    repeat,
    roll,
    split,
    stack,
    tile,
    unbind,
)
from minidl.ops.shape import (
    broadcast_to,
    clone,
    contiguous,
    expand,
    flatten,
    movedim,
    permute,
    reshape,
    squeeze,
    t,
    transpose,
    unsqueeze,
    view,
)
