"""minidl: a small deep-learning framework on CuPy and NumPy."""

__version__ = "0.1.0"  # first: the rooms may ask for it

from minidl import autograd, data, distributed, nn, ops, optim, train
from minidl.array.determinism import (
    are_deterministic_algorithms_enabled,
    use_deterministic_algorithms,
)
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
from minidl.array.precision import (
    get_float32_matmul_precision,
    set_float32_matmul_precision,
)
from minidl.array.random import manual_seed
from minidl.autograd import Tensor, enable_grad, is_grad_enabled, no_grad
from minidl.ops.activation import relu, sigmoid, tanh
from minidl.ops.arithmetic import (
    add,
    addcdiv,
    addcmul,
    div,
    fmod,
    lerp,
    mul,
    pow,
    remainder,
    sub,
)
from minidl.ops.autocast import autocast
from minidl.ops.comparison import (
    all,
    any,
    bitwise_and,
    bitwise_not,
    bitwise_or,
    bitwise_xor,
    eq,
    ge,
    gt,
    isfinite,
    isinf,
    isnan,
    le,
    logical_and,
    logical_not,
    logical_or,
    logical_xor,
    lt,
    ne,
)
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
from minidl.ops.elementwise import (
    abs,
    atan2,
    ceil,
    clamp,
    cos,
    erf,
    exp,
    expm1,
    floor,
    log,
    log1p,
    maximum,
    minimum,
    neg,
    reciprocal,
    round,
    rsqrt,
    sign,
    sin,
    sqrt,
    square,
    tan,
    trunc,
    where,
)
from minidl.ops.index import (
    gather,
    index_select,
    masked_fill,
    scatter,
    scatter_add,
    take_along_dim,
)
from minidl.ops.linear import addmm, baddbmm, bmm, dot, matmul, mm, mv, outer
from minidl.ops.magnitude import norm
from minidl.ops.order import (
    amax,
    amin,
    argmax,
    argmin,
    argsort,
    max,
    min,
    sort,
    topk,
)
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
from minidl.ops.reduce import cumsum, logsumexp, mean, prod, std, sum, var
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
from minidl.ops.softmax import log_softmax, softmax

# an optimizer that works on a communicator: of two rooms that never meet
distributed.ShardedAdam = optim.ShardedAdam
