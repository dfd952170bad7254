"""Functions of elements against NumPy in float64, and their gradients."""

import operator
from math import erf

import numpy as np
import pytest
from gradients import check_gradients
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import minidl as md

ANY, POSITIVE = (-3.0, 3.0), (0.2, 3.0)
UNARY = {  # name: (the function in NumPy, where it is smooth)
    "abs": (np.abs, ANY),
    "neg": (np.negative, ANY),
    "exp": (np.exp, ANY),
    "log": (np.log, POSITIVE),
    "log1p": (np.log1p, POSITIVE),
    "expm1": (np.expm1, ANY),
    "sqrt": (np.sqrt, POSITIVE),
    "rsqrt": (lambda x: x**-0.5, POSITIVE),
    "square": (np.square, ANY),
    "reciprocal": (lambda x: 1 / x, POSITIVE),
    "sign": (np.sign, ANY),
    "sin": (np.sin, ANY),
    "cos": (np.cos, ANY),
    "tan": (np.tan, (-1.2, 1.2)),
    "tanh": (np.tanh, ANY),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), ANY),
    "erf": (np.vectorize(erf, otypes=[float]), ANY),
    "floor": (np.floor, ANY),
    "ceil": (np.ceil, ANY),
    "round": (np.round, ANY),
    "trunc": (np.trunc, ANY),
}
BINARY = {  # name: (the function in NumPy, where both arguments may be)
    "add": (np.add, ANY),
    "sub": (np.subtract, ANY),
    "mul": (np.multiply, ANY),
    "div": (np.divide, POSITIVE),
    "pow": (np.power, POSITIVE),
    "maximum": (np.maximum, ANY),
    "minimum": (np.minimum, ANY),
    "atan2": (np.arctan2, ANY),
    "fmod": (np.fmod, POSITIVE),
    "remainder": (np.remainder, POSITIVE),
}
OPERATORS = {
    operator.add: np.add,
    operator.sub: np.subtract,
    operator.mul: np.multiply,
    operator.truediv: np.divide,
    operator.floordiv: np.floor_divide,
    operator.mod: np.remainder,
    operator.pow: np.power,
    operator.lt: np.less,
    operator.le: np.less_equal,
    operator.gt: np.greater,
    operator.ge: np.greater_equal,
    operator.eq: np.equal,
    operator.ne: np.not_equal,
}


def drawn(bounds, *shape, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(*bounds, shape)


def close(result: md.Tensor, expected, tolerance: float = 2e-6) -> None:
    assert result.shape == np.shape(expected)
    np.testing.assert_allclose(result.numpy(), expected, tolerance, tolerance)


@pytest.mark.parametrize("name", UNARY)
def test_function_of_one_agrees_with_numpy(xp, name):
    function, bounds = UNARY[name]
    for shape in ((), (0, 3), (4, 5)):
        x = drawn(bounds, *shape).astype(np.float32)
        result = getattr(md, name)(md.Tensor(xp.asarray(x)))
        assert result.dtype == np.float32
        close(result, function(x.astype(np.float64)))
        close(getattr(md.tensor(x), name)(), function(x.astype(np.float64)))


@pytest.mark.parametrize("name", UNARY)
def test_gradients_of_a_function_of_one(name):
    check_gradients(getattr(md, name), drawn(UNARY[name][1], 3, 4))


@given(arrays.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3))
def test_functions_of_two_broadcast_as_in_numpy(shapes):
    for name, (function, bounds) in BINARY.items():
        a, b = (drawn(bounds, *s, seed=i) for i, s in enumerate(shapes.input_shapes))
        x, y = md.tensor(a, requires_grad=True), md.tensor(b, requires_grad=True)
        result = getattr(md, name)(x, y)
        close(result, function(a, b))
        result.sum().backward()
        assert (x.grad.shape, y.grad.shape) == (a.shape, b.shape)


@pytest.mark.parametrize("name", BINARY)
def test_gradients_of_a_function_of_two(name):
    bounds = BINARY[name][1]
    a, b = drawn(bounds, 3, 4, seed=1), drawn(bounds, 2, 1, 4, seed=2)
    check_gradients(getattr(md, name), a, b)
    if name in ("maximum", "minimum", "atan2"):
        return
    check_gradients(lambda x: getattr(md, name)(x, 1.7), a)
    check_gradients(lambda x: getattr(md, name)(1.7, x), b)


@pytest.mark.parametrize("apply", OPERATORS, ids=lambda f: f.__name__)
def test_operators_and_their_reflections(xp, apply):
    a, b = drawn(POSITIVE, 4).astype("f4"), drawn(POSITIVE, 4, seed=1).astype("f4")
    x, y = md.Tensor(xp.asarray(a)), md.Tensor(xp.asarray(b))
    function = OPERATORS[apply]
    for result, expected in (
        (apply(x, y), function(a, b)),
        (apply(x, 1.5), function(a, np.float32(1.5))),
        (apply(1.5, x), function(np.float32(1.5), a)),
    ):
        assert result.dtype == expected.dtype
        close(result, expected)


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=5), st.integers(-9, 9))
def test_division_of_integers(values, divisor):
    x = md.tensor(values)
    if not divisor:
        for divide in (operator.floordiv, operator.mod):
            with pytest.raises(RuntimeError, match="divided by zero"):
                divide(x, divisor)
        return
    assert (x // divisor).tolist() == [v // divisor for v in values]
    assert (x % divisor).tolist() == [v % divisor for v in values]
    truncated = [int(v / divisor) for v in values]
    assert md.div(x, divisor, rounding_mode="trunc").tolist() == truncated
    rest = [v - divisor * q for v, q in zip(values, truncated, strict=True)]
    assert md.fmod(x, divisor).tolist() == rest
    assert (x / divisor).dtype == np.float32


def test_numbers_beside_a_tensor(xp):
    x = md.Tensor(xp.asarray([1, -2, 3]))
    mask = x > 0
    for y, expected in (
        (md.sub(x, 1, alpha=2), [-1, -4, 1]),
        (md.add(mask, True, alpha=2), [3, 2, 3]),
        (md.where(mask, 1, 2), [1, 2, 1]),
        (md.where(mask, 1, 2.5), [1, 2.5, 1]),
        (x**3, [1, -8, 27]),
    ):
        assert type(y.data) is type(x.data)
        assert y.tolist() == expected
    with pytest.raises(RuntimeError, match="negative powers"):
        x**-1
    for wrong in (None, "a", 1j):
        with pytest.raises(TypeError, match="expected a Tensor or numbers"):
            x + wrong


def test_integers_have_no_negative_powers():
    for wrong in (lambda x: x**x, lambda x: 2**x, lambda x: x ** np.int64(-2)):
        with pytest.raises(RuntimeError, match="negative powers"):
            wrong(md.tensor([1, -1]))
    assert (md.tensor([4, 2]) ** -1.0).tolist() == [0.25, 0.5]
    assert (md.tensor([2.0]) ** md.tensor([-1])).tolist() == [0.5]


def test_logic_of_integers_and_bools():
    a, b = np.array([0, 1, 6]), np.array([1, 3, 3])
    x, y = md.tensor(a), md.tensor(b)
    assert ((x & y) | (x ^ 5)).tolist() == ((a & b) | (a ^ 5)).tolist()
    assert (~x).tolist() == (~a).tolist()
    assert (~(x > 0)).tolist() == (a <= 0).tolist()
    assert (3 & x).tolist() == (3 & a).tolist()
    for name in ("logical_and", "logical_or", "logical_xor"):
        assert getattr(md, name)(x, y).tolist() == getattr(np, name)(a, b).tolist()
    assert md.logical_not(x).tolist() == [True, False, False]
    with pytest.raises(RuntimeError, match="integers or bools"):
        md.tensor([1.0]) & 1
    with pytest.raises(RuntimeError, match="no difference"):
        (x > 0) - (y > 0)
    with pytest.raises(RuntimeError, match="no negative"):
        operator.neg(x > 0)


def test_special_numbers():
    x = md.tensor([np.nan, np.inf, -np.inf, 0.0, -2.0])
    assert md.isnan(x).tolist() == [True, False, False, False, False]
    assert md.isinf(x).tolist() == [False, True, True, False, False]
    assert md.isfinite(x).tolist() == [False, False, False, True, True]
    assert md.sign(x).tolist() == [0, 1, -1, 0, -1]
    close(md.clamp(x, -1, 1), [np.nan, 1, -1, 0, -1])
    close(md.maximum(x, md.tensor(0.0)), [np.nan, np.inf, 0, 0, 0])


def test_integers_become_floating_point_where_the_function_is_real():
    x = md.tensor([1, 2])
    assert md.exp(x).dtype == (x / 2).dtype == (x * 0.5).dtype == np.float32
    assert md.abs(x).dtype == (x * 2).dtype == md.floor(x).dtype == np.int64
    assert md.square(x > 1).dtype == np.int64
    assert (md.tensor(1.0, dtype=md.float64) + md.tensor([1.0])).dtype == np.float32


def test_comparison_with_what_is_no_number():
    x = md.tensor([1.0])
    assert (x == None) is False  # noqa: E711 - the comparison is what is tested
    assert x != "text"
    with pytest.raises(TypeError):
        operator.lt(x, "text")


@pytest.mark.parametrize("compare", [operator.eq, operator.lt, md.logical_and])
def test_comparison_of_shapes_that_do_not_broadcast(compare):
    with pytest.raises(RuntimeError, match=r"^shapes \(3,\) and \(4,\) do not broad"):
        compare(md.zeros(3), md.zeros(4))


def test_rounding_to_decimals():
    x = np.array([0.5, 1.5, 2.5, -0.125, 1234.567])
    for decimals in (0, 2, -2):
        close(md.round(md.tensor(x), decimals=decimals), np.round(x, decimals))
    with pytest.raises(RuntimeError, match="floating point"):
        md.round(md.tensor([1]), decimals=1)


def test_gradients_of_powers_at_zero():
    """Of b a^(b - 1) at b = 0, and of a^b log(a) at a = 0 and b >= 0: as in PyTorch."""
    a = md.tensor([0.0, 0.0, 0.0, 2.0], requires_grad=True)
    b = md.tensor([0.0, 1.0, 2.0, 0.0], requires_grad=True)
    md.pow(a, b).sum().backward()
    close(a.grad, [0, 1, 0, 0])
    close(b.grad, [0, 0, 0, np.log(2)])
    for exponent, slope in ((0, 0), (1, 1), (2, 0), (3, 0)):
        zero = md.tensor(0.0, requires_grad=True)
        (zero**exponent).backward()
        assert zero.grad.item() == slope
    check_gradients(lambda a: a**2, drawn(ANY, 3))
    check_gradients(lambda a: a**3, drawn(ANY, 3))


def test_equals_share_the_gradient_of_maximum():
    a = md.tensor([1.0, 2.0, 3.0], requires_grad=True)
    b = md.tensor([1.0, 3.0, 2.0], requires_grad=True)
    md.maximum(a, b).sum().backward()
    close(a.grad, [0.5, 0, 1])
    close(b.grad, [0.5, 1, 0])


def test_clamp():
    x = np.array([-2.0, -1.0, 0.3, 1.0, 2.0])
    for low, high in ((-1, 1), (None, 0.5), (0.5, None), (1, -1)):
        expected = np.clip(x, low, high)
        close(md.clamp(md.tensor(x), low, high), expected)
        close(md.tensor(x).clamp(min=low, max=high), expected)
    y = md.tensor(x, requires_grad=True)
    md.clamp(y, -1, 1).sum().backward()
    close(y.grad, [0, 1, 1, 1, 0])  # whole at the bounds
    low, high = drawn((-1, -0.5), 5), drawn((0.5, 1), 5)
    check_gradients(md.clamp, drawn(ANY, 4, 5), low, high)
    with pytest.raises(RuntimeError, match="min or max"):
        md.clamp(y)


def test_where():
    condition = md.tensor([True, False, True])
    a, b = drawn(ANY, 3), drawn(ANY, 2, 3)
    close(md.where(condition, md.tensor(a), md.tensor(b)), np.where([1, 0, 1], a, b))
    assert md.where(condition, 1, 0.5).dtype == np.float32
    assert md.where(condition)[0].tolist() == [0, 2]
    check_gradients(lambda a, b: md.where(condition, a, b), a, b)
    with pytest.raises(RuntimeError, match="must be bool"):
        md.where(md.tensor([1.0]), 1.0, 0.0)


def test_functions_of_three():
    a, b, c = (drawn(POSITIVE, 3, seed=seed) for seed in range(3))
    x, y, z = md.tensor(a), md.tensor(b), md.tensor(c)
    close(md.addcmul(x, y, z, value=2), a + 2 * b * c)
    close(md.addcdiv(x, y, z, value=0.5), a + 0.5 * b / c)
    close(md.lerp(x, y, 0.25), a + 0.25 * (b - a))
    close(md.lerp(x, y, z), a + c * (b - a))
    assert md.lerp(x, y, 1.0).tolist() == b.tolist()  # exactly
    close(md.add(x, y, alpha=3), a + 3 * b)
    close(md.sub(x, y, alpha=3), a - 3 * b)
    for function in (md.addcmul, md.addcdiv, md.lerp):
        check_gradients(function, a, b, c)
    check_gradients(lambda a, b: md.lerp(a, b, 0.7), a, b)
    with pytest.raises(RuntimeError, match="alpha must be an integer"):
        md.add(md.tensor([1]), md.tensor([1]), alpha=0.5)
    with pytest.raises(RuntimeError, match="floating point"):
        md.addcdiv(md.tensor([1]), md.tensor([1]), md.tensor([1]))


def test_nothing_is_kept_that_backward_does_not_need():
    x, y = md.tensor([1.0], requires_grad=True), md.tensor([2.0])
    for function in (md.add, md.sub, md.remainder, md.fmod):
        assert all(kept is None for kept in function(x, y).creator.saved)
    assert (x * y).creator.saved[0] is None and md.exp(x).creator.saved[0] is None


def test_plus_equals_makes_a_new_tensor():
    x = before = md.tensor([1.0], requires_grad=True)
    x += 1
    assert x is not before and before.tolist() == [1.0]
    x.backward()
    assert before.grad.tolist() == [1.0]


def test_numpy_arrays_beside_tensors():
    array, x = np.array([1.0, 2.0], np.float32), md.tensor([3.0, 4.0])
    for result in (array * x, x * array):
        assert isinstance(result, md.Tensor) and result.tolist() == [3.0, 8.0]
    for number in (np.float32(2), np.float64(2), np.int64(2)):
        for result in (number * x, x * number):
            assert isinstance(result, md.Tensor) and result.dtype == np.float32


@pytest.mark.slow
def test_result_types_are_pytorchs():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    names = "bool uint8 int8 int16 int32 int64 float16 float32 float64".split()
    from minidl.array.dtypes import bfloat16, result_type

    if bfloat16 is not None:
        names.append("bfloat16")

    def operands():
        for name in names:
            theirs = getattr(torch, name)
            ours = np.dtype(bfloat16 if name == "bfloat16" else name)
            for shape in ((1,), ()):
                yield np.zeros(shape, ours), torch.zeros(shape, dtype=theirs)
        for number in (True, 2, 0.5):
            yield number, number

    for a, theirs_a in operands():
        for b, theirs_b in operands():
            if isinstance(a, (bool, int, float)) and isinstance(b, (bool, int, float)):
                continue
            expected = str(torch.result_type(theirs_a, theirs_b))[6:]
            assert str(result_type(a, b)) == expected, (a, b)
            result = md.add(*[x if np.isscalar(x) else md.Tensor(x) for x in (a, b)])
            assert str(result.dtype) == expected, (a, b)


def test_shapes_that_do_not_broadcast_are_named():
    for function in (md.add, md.maximum, md.atan2):
        with pytest.raises(RuntimeError, match=r"shapes \(2, 2\) and \(3,\) do not"):
            function(md.ones(2, 2), md.ones(3))
