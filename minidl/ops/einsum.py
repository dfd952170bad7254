"""Sums of products over named dimensions, lowered to matrix products."""

from math import prod

from minidl.autograd.tensor import Tensor
from minidl.ops import linear
from minidl.ops.arithmetic import mul
from minidl.ops.diagonal import diagonal
from minidl.ops.reduce import sum
from minidl.ops.shape import normal_dim, permute, reshape

# A label names a dimension: a letter, or, under an ellipsis, -1 for the last, -2, ...


def einsum(equation, *operands) -> Tensor:
    """The sum of the products of the operands' elements, by Einstein's convention.

    `einsum("bij,bjk->bik", a, b)`: a label that the output lacks is summed over, one
    that an operand repeats means its diagonal, `...` stands for all other dimensions,
    which broadcast. Without `->` the output has `...` and the labels that occur once,
    in alphabetical order. Labels may also be given as lists of ints:
    `einsum(a, [0, 1], b, [1, 2], [0, 2])`. Operands are contracted from left to right.
    """
    if isinstance(equation, Tensor):
        equation, operands = from_lists((equation, *operands))
    elif len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = operands[0]
    terms, output = parse(equation, [x.ndim for x in operands])
    factors = [unrepeated(*factor) for factor in zip(operands, terms, strict=True)]
    return evaluate(factors, output)


def evaluate(factors, output: list) -> Tensor:
    """The product of factors (tensor, labels), contracted from left to right."""
    factors = without_broadcasting(factors)
    x, labels = factors[0]
    for position, (y, others) in enumerate(factors[1:], 2):
        later = [label for _, term in factors[position:] for label in term]
        x, labels = contract(x, labels, y, others, output + later)
    x, labels = summed(x, labels, output)
    return permute(x, [labels.index(label) for label in output])


def parse(equation: str, ndims: list[int]) -> tuple[list[list], list]:
    """The labels of each operand's dimensions, and of the output's."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    texts = left.split(",")
    if len(texts) != len(ndims):
        raise RuntimeError(
            f"einsum: {equation!r} is for {len(texts)} operands, got {len(ndims)}"
        )
    terms = [labels_of(text, n) for text, n in zip(texts, ndims, strict=True)]
    found = [label for term in terms for label in term]
    under_ellipsis = sorted({label for label in found if isinstance(label, int)})
    if arrow:
        head, dots, tail = right.partition("...")
        output = [*head, *(under_ellipsis if dots else ()), *tail]
    else:
        once = sorted(x for x in found if isinstance(x, str) and found.count(x) == 1)
        output = under_ellipsis + once
    for label in output:
        if label not in found or output.count(label) > 1:
            raise RuntimeError(
                f"einsum: the output of {equation!r} must have labels of the operands, "
                f"each once, and has {label!r}"
            )
    return terms, output


def labels_of(text: str, ndim: int) -> list:
    head, dots, tail = text.partition("...")
    rest = ndim - len(head) - len(tail)
    if rest < 0 or (rest and not dots) or not (head + tail + "a").isalpha():
        raise RuntimeError(f"einsum: {text!r} does not name {ndim} dimensions")
    return [*head, *range(-rest, 0), *tail]


def from_lists(arguments) -> tuple[str, tuple]:
    """The form with lists of ints, as an equation and its operands."""

    def text(labels) -> str:
        return "".join(
            "..." if n is Ellipsis else chr(n + (65 if n < 26 else 71)) for n in labels
        )

    pairs = len(arguments) // 2 * 2
    equation = ",".join(text(labels) for labels in arguments[1:pairs:2])
    if len(arguments) > pairs:
        equation += "->" + text(arguments[-1])
    return equation, arguments[:pairs:2]


def unrepeated(x: Tensor, labels: list) -> tuple[Tensor, list]:
    """The diagonal where a label repeats."""
    for label in dict.fromkeys(labels):
        while labels.count(label) > 1:
            i = labels.index(label)
            j = labels.index(label, i + 1)
            if x.shape[i] != x.shape[j]:
                raise RuntimeError(
                    f"einsum: {label!r} repeats with sizes {x.shape[i]}, {x.shape[j]}"
                )
            x = diagonal(x, 0, i, j)
            labels = [n for d, n in enumerate(labels) if d not in (i, j)] + [label]
    return x, labels


def without_broadcasting(factors) -> list:
    """Dimensions of size 1 dropped where another operand has more elements."""
    sizes: dict = {}
    for x, labels in factors:
        for label, n in zip(labels, x.shape, strict=True):
            if sizes.setdefault(label, n) == 1:
                sizes[label] = n
            if n not in (1, sizes[label]):
                raise RuntimeError(
                    f"a dimension has size {sizes[label]} in one operand and {n} in "
                    f"another; its label is {label!r}"
                )
    result = []
    for x, labels in factors:
        kept = [n == sizes[k] for k, n in zip(labels, x.shape, strict=True)]
        if not all(kept):
            shape = [n for n, keep in zip(x.shape, kept, strict=True) if keep]
            labels = [k for k, keep in zip(labels, kept, strict=True) if keep]
            x = reshape(x, shape)
        result.append((x, labels))
    return result


def summed(x: Tensor, labels: list, keep: list) -> tuple[Tensor, list]:
    """The sum over all dimensions whose label is not in keep."""
    gone = tuple(d for d, label in enumerate(labels) if label not in keep)
    return (sum(x, gone) if gone else x), [n for n in labels if n in keep]


def contract(a, in_a: list, b, in_b: list, keep: list) -> tuple[Tensor, list]:
    """The product of two factors, summed over what is no longer needed."""
    a, in_a = summed(a, in_a, keep + in_b)
    b, in_b = summed(b, in_b, keep + in_a)
    both = [n for n in in_a if n in in_b]
    stack, inner = [n for n in both if n in keep], [n for n in both if n not in keep]
    rows, columns = (
        [n for n in in_a if n not in both],
        [n for n in in_b if n not in both],
    )
    size = dict(zip(in_a + in_b, a.shape + b.shape, strict=True))
    a = permute(a, [in_a.index(n) for n in stack + rows + inner])
    b = permute(b, [in_b.index(n) for n in stack + inner + columns])
    labels = stack + rows + columns
    of = [[size[n] for n in part] for part in (stack, rows, inner, columns)]
    if not inner:  # a product of elements
        a = reshape(a, of[0] + of[1] + [1] * len(columns))
        return mul(a, reshape(b, of[0] + [1] * len(rows) + of[3])), labels
    if stack and not rows and not columns:  # stacks of numbers
        return summed(mul(a, b), stack + inner, stack)
    s, n, k, m = (prod(part) for part in of)
    s = [s] if stack else []
    y = linear.matmul(reshape(a, [*s, n, k]), reshape(b, [*s, k, m]))
    return reshape(y, of[0] + of[1] + of[3]), labels


def tensordot(a: Tensor, b: Tensor, dims=2) -> Tensor:
    """The sum over pairs of dimensions: `dims` last ones of a with the first of b, or
    those in two lists; the other dimensions of a, then those of b, remain."""
    if isinstance(dims, int):
        if not 0 <= dims <= min(a.ndim, b.ndim):
            raise RuntimeError(
                f"tensordot: {dims} dimensions of shapes {a.shape} and {b.shape}"
            )
        dims = range(a.ndim - dims, a.ndim), range(dims)
    pairs = [[d] if isinstance(d, int) else list(d) for d in dims]
    if len(pairs[0]) != len(pairs[1]):
        raise RuntimeError(f"tensordot needs two lists of one length, got {dims}")
    in_a = list(range(a.ndim))
    in_b = list(range(a.ndim, a.ndim + b.ndim))
    for i, j in zip(*pairs, strict=True):
        in_b[normal_dim(j, b.ndim)] = normal_dim(i, a.ndim)
    output = [n for n in in_a + in_b if (n in in_a) != (n in in_b)]
    return evaluate([(a, in_a), (b, in_b)], output)
