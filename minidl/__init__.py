"""minidl: a small deep-learning framework on CuPy and NumPy."""

__version__ = "0.1.0"  # first: the rooms may ask for it

from minidl import autograd, data, distributed, nn, ops, optim, train
from minidl.array.dtypes import (
    bfloat16,
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
from minidl.ops.activation import sigmoid, tanh
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
from minidl.ops.creation import tensor
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
from minidl.ops.reduce import cumsum, logsumexp, mean, prod, std, sum, var
