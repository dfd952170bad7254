"""Max pooling in passes over whole arrays: one axis after the other.

The maximum of a window is that of its rows' maxima. From the last axis to the first,
each pass leaves less for the next one to read, and notes which tap has won; the notes
that a window's winner has collected say where it was. The first of equals wins, and
NaN before all.
"""

import numpy

from minidl.array.device import array_module


def max_pool(x, y, indices, kernel, stride, padding, dilation) -> None:
    """y = the maxima of x (N, C, *size), indices = where in the plane they were."""
    xp, best, notes, step, corners = array_module(x), x, [], 1, 0
    steps = []  # between two taps along each axis, in positions of the plane
    for axis in reversed(range(len(kernel))):
        window = [n[axis] for n in (kernel, stride, padding, dilation)]
        out = y.shape[2 + axis]
        best, notes = _along(2 + axis, best, notes, out, *window)
        starts = (xp.arange(out, dtype="i4") * stride[axis] - padding[axis]) * step
        corners = starts.reshape(-1, *[1] * (len(kernel) - 1 - axis)) + corners
        steps.append(step * dilation[axis])
        step *= x.shape[2 + axis]
    y[...] = best
    offset, most = 0, sum(s * (k - 1) for s, k in zip(steps, kernel[::-1], strict=True))
    for note, step in zip(notes, steps, strict=True):
        place = note.astype("u2" if most < 1 << 16 else "i4")
        place *= place.dtype.type(step)
        place += offset
        offset = place
    xp.add(offset, corners, out=indices, casting="unsafe")


def _along(axis, x, notes, out, kernel, stride, padding, dilation):
    """(maxima along one axis, notes of the winners and, last, their taps along it)."""
    xp, before = array_module(x), (slice(None),) * axis
    reach = (out - 1) * stride + 1  # of one tap over all windows
    missing = max(0, reach + dilation * (kernel - 1) - padding - x.shape[axis])
    if padding or missing:
        x = _padded(x, axis, padding, missing, _lowest(x.dtype))
        notes = [_padded(note, axis, padding, missing, 0) for note in notes]
    small = "u1" if kernel <= 256 else "i4"
    first = (*before, slice(0, reach, stride))
    best, won, number = x[first], [note[first] for note in notes], None
    for tap in range(1, kernel):
        read = (*before, slice(tap * dilation, tap * dilation + reach, stride))
        value = x[read]
        better = value > best
        better |= value != value
        best = xp.maximum(best, value)
        chosen = better.astype(small)
        bits = 0 - chosen  # all ones where it is true
        pairs = zip(won, notes, strict=True)
        won = [_changed(note, noted[read], bits) for note, noted in pairs]
        # taps grow, so that the largest which was better is the last
        chosen *= chosen.dtype.type(tap)
        number = chosen if number is None else xp.maximum(number, chosen)
    if number is None:
        number = xp.zeros_like(best, small)
    if padding:  # where all is as low as can be, the first tap inside has won
        inside = (padding - xp.arange(out) * stride + dilation - 1) // dilation
        inside = xp.clip(inside, 0, kernel - 1).astype(small)
        xp.maximum(number, inside.reshape(-1, *[1] * (x.ndim - axis - 1)), out=number)
    return best, [*won, number]


def _changed(note, other, bits):
    """The other note where the bits are ones."""
    change = note ^ other
    change &= bits.astype(note.dtype, copy=False)
    change ^= note
    return change


def _padded(x, axis, before, after, value):
    """x with more of `value` at both ends of an axis, its memory in the same order."""
    shape = (*x.shape[:axis], before + x.shape[axis] + after, *x.shape[axis + 1 :])
    made = array_module(x).empty_like(x, shape=shape)
    made[...] = value
    made[(*(slice(None),) * axis, slice(before, before + x.shape[axis]))] = x
    return made


def _lowest(dtype):
    return -numpy.inf if dtype.kind not in "iu" else numpy.iinfo(dtype).min
