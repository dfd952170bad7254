"""Deep learning in plain NumPy float64: the book that minidl is checked against.

Nothing here is fast and nothing comes from minidl. Arrays of any type go in, float64
comes out. `f_backward(gy, ...)` takes the gradient of the loss by the output of `f`,
then the arguments of `f`, and returns the gradient by each array among them; whatever
forward computed is computed again, so no function keeps anything. Layouts are
PyTorch's: images are (N, C, H, W), weights of a convolution (K, C / groups, R, S).
"""

import math

import numpy as np


def real(x):
    return np.asarray(x, dtype=np.float64)


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


# --- Linear and activations -----------------------------------------------------------


def linear(x, w, b=None):
    """y = x w^T + b, with x (..., in), w (out, in) and b (out,)."""
    y = real(x) @ real(w).T
    return y if b is None else y + real(b)


def linear_backward(gy, x, w, b=None):
    """gx = gy w, gw = gy^T x, gb = sum of gy over all rows."""
    rows_gy = real(gy).reshape(-1, w.shape[0])
    rows_x = real(x).reshape(-1, w.shape[1])
    gw = rows_gy.T @ rows_x
    return real(gy) @ real(w), gw, None if b is None else rows_gy.sum(axis=0)


def relu(x):
    """y = max(x, 0)."""
    return np.maximum(real(x), 0)


def relu_backward(gy, x):
    """gx = gy where x > 0; the gradient at 0 is taken as 0."""
    return np.where(real(x) > 0, real(gy), 0)


def tanh(x):
    return np.tanh(real(x))


def tanh_backward(gy, x):
    """tanh' = 1 - tanh^2."""
    return real(gy) * (1 - tanh(x) ** 2)


def sigmoid(x):
    """y = 1 / (1 + e^-x), written with e^-|x|, which cannot overflow."""
    x = real(x)
    z = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, z) / (1 + z)


def sigmoid_backward(gy, x):
    """sigmoid'(x) = sigmoid(x) sigmoid(-x)."""
    return real(gy) * sigmoid(x) * sigmoid(-real(x))


def erf(x):
    return np.vectorize(math.erf, otypes=[np.float64])(real(x))


def normal_cdf(x):
    """Phi(x) = (1 + erf(x / sqrt 2)) / 2, as erfc: exact where x is far below 0."""
    return np.vectorize(math.erfc, otypes=[np.float64])(-real(x) / math.sqrt(2)) / 2


GELU_SCALE = math.sqrt(2 / math.pi)


def gelu(x, approximate="none"):
    """y = x Phi(x); "tanh": x / 2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).

    Hendrycks and Gimpel 2016, "Gaussian error linear units".
    """
    x = real(x)
    if approximate == "none":
        return x * normal_cdf(x)
    return x / 2 * (1 + np.tanh(GELU_SCALE * (x + 0.044715 * x**3)))


def gelu_backward(gy, x, approximate="none"):
    """(x Phi)' = Phi + x phi, with phi(x) = e^(-x^2 / 2) / sqrt(2 pi)."""
    x, gy = real(x), real(gy)
    if approximate == "none":
        density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
        return gy * (normal_cdf(x) + x * density)
    t = np.tanh(GELU_SCALE * (x + 0.044715 * x**3))
    inner = GELU_SCALE * (1 + 3 * 0.044715 * x**2)
    return gy * ((1 + t) / 2 + x / 2 * (1 - t**2) * inner)


def softmax(x, axis=-1):
    """y_i = e^(x_i - m) / sum_j e^(x_j - m), with m the largest x."""
    return np.exp(log_softmax(x, axis))


def softmax_backward(gy, x, axis=-1):
    """gx = y (gy - sum(gy y))."""
    y = softmax(x, axis)
    return y * (real(gy) - (real(gy) * y).sum(axis=axis, keepdims=True))


def log_softmax(x, axis=-1):
    """y_i = x_i - m - log sum_j e^(x_j - m), with m the largest x."""
    x = real(x)
    shifted = x - x.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def log_softmax_backward(gy, x, axis=-1):
    """gx = gy - softmax(x) sum(gy)."""
    return real(gy) - softmax(x, axis) * real(gy).sum(axis=axis, keepdims=True)


def dropout(x, mask, p=0.5):
    """y = x mask / (1 - p), with mask 1 where an element is kept; eval mode: y = x."""
    return real(x) * mask / (1 - p)


def dropout_backward(gy, x, mask, p=0.5):
    return real(gy) * mask / (1 - p)


# --- Convolution and pooling ----------------------------------------------------------


def pad(x, padding, value=0.0):
    (ph, pw) = pair(padding)
    return np.pad(real(x), ((0, 0), (0, 0), (ph, ph), (pw, pw)), constant_values=value)


def crop(x, padding):
    """Undo `pad`."""
    (ph, pw), (height, width) = pair(padding), x.shape[2:]
    return x[:, :, ph : height - ph, pw : width - pw]


def output_size(padded, kernel, stride, dilation=1):
    """floor((padded - dilation (kernel - 1) - 1) / stride) + 1, on each axis."""
    sizes = zip(padded, pair(kernel), pair(stride), pair(dilation), strict=True)
    return tuple((n - d * (k - 1) - 1) // s + 1 for n, k, s, d in sizes)


def met_by_offset(r, s, out, stride, dilation):
    """Where kernel offset (r, s) lies in the padded image, for all outputs at once."""
    (oh, ow), (sh, sw), (dh, dw) = out, pair(stride), pair(dilation)
    rows = slice(r * dh, r * dh + sh * (oh - 1) + 1, sh)
    columns = slice(s * dw, s * dw + sw * (ow - 1) + 1, sw)
    return ..., rows, columns


def grouped(x, groups, axis):
    """Split an axis of channels in two: (groups, channels of a group); a view."""
    channels = x.shape[axis] // groups
    return x.reshape(*x.shape[:axis], groups, channels, *x.shape[axis + 1 :])


def conv2d(x, w, b=None, stride=1, padding=0, dilation=1, groups=1):
    """y[n, k, i, j] = b[k] + sum_crs w[k, c, r, s] x[n, c, iS + rD - P, jS + sD - P].

    With S, P, D for stride, padding, dilation; output channels of a group see the
    input channels of that group alone (Krizhevsky et al. 2012).
    """
    w, x = real(w), pad(x, padding)
    out = output_size(x.shape[2:], w.shape[2:], stride, dilation)
    y = np.zeros((len(x), len(w), *out))
    wg, xg, yg = grouped(w, groups, 0), grouped(x, groups, 1), grouped(y, groups, 1)
    for r, s in np.ndindex(w.shape[2:]):
        met = met_by_offset(r, s, out, stride, dilation)
        yg += np.einsum("gkc,ngchw->ngkhw", wg[..., r, s], xg[met])
    return y if b is None else y + real(b)[:, None, None]


def conv2d_backward(gy, x, w, b=None, stride=1, padding=0, dilation=1, groups=1):
    """gw gathers gy x over all outputs; gx scatters gy w back to where x was read."""
    gy, w, x = real(gy), real(w), pad(x, padding)
    gx, gw, out = np.zeros_like(x), np.zeros_like(w), gy.shape[2:]
    wg, gwg, xg = grouped(w, groups, 0), grouped(gw, groups, 0), grouped(x, groups, 1)
    gyg, gxg = grouped(gy, groups, 1), grouped(gx, groups, 1)
    for r, s in np.ndindex(w.shape[2:]):
        met = met_by_offset(r, s, out, stride, dilation)
        gwg[..., r, s] = np.einsum("ngkhw,ngchw->gkc", gyg, xg[met])
        gxg[met] += np.einsum("gkc,ngkhw->ngchw", wg[..., r, s], gyg)
    return crop(gx, padding), gw, None if b is None else gy.sum(axis=(0, 2, 3))


def pool_windows(padded, kernel_size, stride):
    """The size of the output, and (i, j, rows, columns) of each output's window."""
    (kh, kw), (sh, sw) = pair(kernel_size), pair(stride or kernel_size)
    out = output_size(padded.shape[2:], (kh, kw), (sh, sw))
    return out, [
        (i, j, slice(i * sh, i * sh + kh), slice(j * sw, j * sw + kw))
        for i, j in np.ndindex(out)
    ]


def max_pool2d(x, kernel_size, stride=None, padding=0):
    """The largest x of each window; padding is -infinity."""
    x = pad(x, padding, -np.inf)
    out, windows = pool_windows(x, kernel_size, stride)
    y = np.empty((*x.shape[:2], *out))
    for i, j, rows, columns in windows:
        y[:, :, i, j] = x[:, :, rows, columns].max(axis=(2, 3))
    return y


def max_pool2d_backward(gy, x, kernel_size, stride=None, padding=0):
    """The first largest x of each window, in rows, gets the gradient of the output."""
    gy, x = real(gy), pad(x, padding, -np.inf)
    (kh, kw), (images, channels) = pair(kernel_size), x.shape[:2]
    gx, (n, c) = np.zeros_like(x), np.ogrid[:images, :channels]
    for i, j, rows, columns in pool_windows(x, kernel_size, stride)[1]:
        window = x[:, :, rows, columns].reshape(images, channels, kh * kw)
        r, s = np.divmod(window.argmax(axis=2), kw)
        gx[n, c, rows.start + r, columns.start + s] += gy[:, :, i, j]
    return crop(gx, padding)


def avg_pool2d(x, kernel_size, stride=None, padding=0):
    """The mean of each window; padding is zeros, and they count (PyTorch's default)."""
    x = pad(x, padding)
    out, windows = pool_windows(x, kernel_size, stride)
    y = np.empty((*x.shape[:2], *out))
    for i, j, rows, columns in windows:
        y[:, :, i, j] = x[:, :, rows, columns].mean(axis=(2, 3))
    return y


def avg_pool2d_backward(gy, x, kernel_size, stride=None, padding=0):
    """Every x of a window gets an equal share of the gradient of the output."""
    gx, (kh, kw) = np.zeros_like(pad(x, padding)), pair(kernel_size)
    for i, j, rows, columns in pool_windows(gx, kernel_size, stride)[1]:
        gx[:, :, rows, columns] += real(gy)[:, :, i : i + 1, j : j + 1] / (kh * kw)
    return crop(gx, padding)


# --- Batch norm (Ioffe and Szegedy 2015) ----------------------------------------------


def per_channel(v, x):
    """v (C,) in a shape that broadcasts against x (N, C, ...)."""
    return real(v).reshape(1, -1, *[1] * (x.ndim - 2))


def all_but_channels(x):
    return tuple(axis for axis in range(x.ndim) if axis != 1)


def batch_norm(x, running_mean, running_var, w, b, training, momentum=0.1, eps=1e-5):
    """y = w (x - mean) / sqrt(var + eps) + b; returns (y, running mean, running var).

    Training takes both from the batch, with the biased var (divided by n), and moves
    the running ones by `momentum` towards the mean and the unbiased var (by n - 1);
    otherwise the running ones are used. Algorithm 1, section 3.1.
    """
    x, mean, var = real(x), real(running_mean), real(running_var)
    if training:
        axes, n = all_but_channels(x), x.size // x.shape[1]
        mean, var = x.mean(axis=axes), x.var(axis=axes)
        running_mean = (1 - momentum) * real(running_mean) + momentum * mean
        running_var = (1 - momentum) * real(running_var) + momentum * var * n / (n - 1)
    normal = (x - per_channel(mean, x)) / np.sqrt(per_channel(var, x) + eps)
    y = per_channel(w, x) * normal + per_channel(b, x)
    return y, real(running_mean), real(running_var)


def batch_norm_backward(gy, x, running_mean, running_var, w, b, training, eps=1e-5):
    """Returns (gx, gw, gb); in training mean and var depend on x, so with z normal(x):

    gx = w / sqrt(var + eps) (gy - mean(gy) - z mean(gy z)).
    """
    gy, x, mean, var = real(gy), real(x), real(running_mean), real(running_var)
    axes = all_but_channels(x)
    if training:
        mean, var = x.mean(axis=axes), x.var(axis=axes)
    deviation = np.sqrt(per_channel(var, x) + eps)
    z = (x - per_channel(mean, x)) / deviation
    gw, gb = (gy * z).sum(axis=axes), gy.sum(axis=axes)
    gx = gy
    if training:
        n = x.size // x.shape[1]
        gx = gy - per_channel(gb / n, x) - z * per_channel(gw / n, x)
    return per_channel(w, x) / deviation * gx, gw, gb


# --- Losses ---------------------------------------------------------------------------


def cross_entropy_targets(x, labels, weight, ignore_index, label_smoothing):
    """What each log-probability is worth, (N, C), and the count that a mean divides by.

    q[n, c] = weight[c] ((1 - s) [c = label n] + s / C), 0 in the rows of ignored
    labels; count = sum of weight[label] over the others (Szegedy et al. 2016).
    """
    classes = x.shape[1]
    weight = np.ones(classes) if weight is None else real(weight)
    q, count = np.zeros(x.shape), 0.0
    for n, label in enumerate(labels):
        if label != ignore_index:
            q[n] = label_smoothing / classes
            q[n, label] += 1 - label_smoothing
            q[n] *= weight
            count += weight[label]
    return q, count


def cross_entropy(
    x, labels, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """-sum q log_softmax(x), divided by the count for "mean"; x (N, C), labels (N,)."""
    q, count = cross_entropy_targets(x, labels, weight, ignore_index, label_smoothing)
    total = -(q * log_softmax(x, axis=1)).sum()
    return total / count if reduction == "mean" else total


def cross_entropy_backward(
    x, labels, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0
):
    """gx = softmax(x) sum_c q - q, plainly softmax(x) - onehot(label)."""
    q, count = cross_entropy_targets(x, labels, weight, ignore_index, label_smoothing)
    gx = softmax(x, axis=1) * q.sum(axis=1, keepdims=True) - q
    return gx / count if reduction == "mean" else gx


def mse_loss(x, target, reduction="mean"):
    """sum (x - target)^2, divided by the number of elements for "mean"."""
    squares = (real(x) - real(target)) ** 2
    return squares.mean() if reduction == "mean" else squares.sum()


def mse_loss_backward(x, target, reduction="mean"):
    """gx = 2 (x - target), divided as the loss is; the target's gradient is -gx."""
    gx = 2 * (real(x) - real(target))
    return gx / gx.size if reduction == "mean" else gx


# --- Optimizers: (p, g, state, ...) -> (new p, new state); the first state is {} ------


def sgd_step(
    p, g, state, lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False
):
    """u = momentum u + (1 - dampening) g, starting as u = g; p = p - lr u.

    Nesterov steps by g + momentum u. This is PyTorch's form, in which lr multiplies the
    velocity; Sutskever et al. 2013 have it inside.
    """
    p, g = real(p), real(g) + weight_decay * real(p)
    if momentum == 0:
        return p - lr * g, {}
    u = momentum * state["u"] + (1 - dampening) * g if state else g
    return p - lr * (g + momentum * u if nesterov else u), {"u": u}


def adam_step(
    p, g, state, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False
):
    """Kingma and Ba 2015, algorithm 1; weight decay is added to the gradient.

    m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,
    p = p - lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps).
    AMSGrad (Reddi et al. 2018) puts the largest v so far in place of v; as in PyTorch,
    the largest is taken before the correction by 1 - b2^t.
    """
    (b1, b2), p, g = betas, real(p), real(g) + weight_decay * real(p)
    t = state.get("t", 0) + 1
    m = b1 * state.get("m", 0.0) + (1 - b1) * g
    v = b2 * state.get("v", 0.0) + (1 - b2) * g**2
    largest = np.maximum(state.get("largest", 0.0), v)
    corrected_m = m / (1 - b1**t)
    corrected_v = (largest if amsgrad else v) / (1 - b2**t)
    p = p - lr * corrected_m / (np.sqrt(corrected_v) + eps)
    return p, {"t": t, "m": m, "v": v, "largest": largest}


def adamw_step(
    p, g, state, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, amsgrad=False
):
    """p = (1 - lr weight_decay) p, then plain Adam (Loshchilov & Hutter 2019)."""
    p = (1 - lr * weight_decay) * real(p)
    return adam_step(p, g, state, lr, betas, eps, 0.0, amsgrad)


# --- Initial weights ------------------------------------------------------------------


def fans(shape):
    """(fan in, fan out) of a weight (out, in, *kernel)."""
    kernel = math.prod(shape[2:])
    return shape[1] * kernel, shape[0] * kernel


def he_bound(shape, a=0.0):
    """Uniform in +-sqrt(6 / ((1 + a^2) fan in)), with a the slope below 0.

    He et al. 2015, "Delving deep into rectifiers".
    """
    return math.sqrt(6 / ((1 + a**2) * fans(shape)[0]))


def he_std(shape, a=0.0):
    return math.sqrt(2 / ((1 + a**2) * fans(shape)[0]))


def xavier_bound(shape, gain=1.0):
    """Uniform in +-gain sqrt(6 / (fan in + fan out)) (Glorot and Bengio 2010)."""
    return gain * math.sqrt(6 / sum(fans(shape)))


def xavier_std(shape, gain=1.0):
    return gain * math.sqrt(2 / sum(fans(shape)))


def random_parameters(shapes, seed):
    """He weights for every shape with two or more axes, small biases for the others."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.uniform(-1, 1, shape) * (he_bound(shape) if len(shape) > 1 else 0.1)
        for name, shape in shapes.items()
    }


# --- Two networks, and a training step written out ------------------------------------


def mlp_parameters(sizes=(64, 16, 10), seed=0):
    """Linear, ReLU, Linear, by the names of PyTorch's Sequential."""
    inputs, hidden, classes = sizes
    shapes = {
        "0.weight": (hidden, inputs),
        "0.bias": (hidden,),
        "2.weight": (classes, hidden),
        "2.bias": (classes,),
    }
    return random_parameters(shapes, seed)


def mlp_forward(params, x):
    """Returns the scores (N, classes) and the input of every layer."""
    hidden = linear(x, params["0.weight"], params["0.bias"])
    active = relu(hidden)
    scores = linear(active, params["2.weight"], params["2.bias"])
    return scores, (x, hidden, active)


def mlp_loss_and_gradients(params, x, labels, reduction="mean"):
    """The cross entropy, and its gradient by every parameter, under the same names."""
    scores, (x, hidden, active) = mlp_forward(params, x)
    loss = cross_entropy(scores, labels, reduction=reduction)
    g, grads = cross_entropy_backward(scores, labels, reduction=reduction), {}
    g, grads["2.weight"], grads["2.bias"] = linear_backward(
        g, active, params["2.weight"], params["2.bias"]
    )
    g = relu_backward(g, hidden)
    g, grads["0.weight"], grads["0.bias"] = linear_backward(
        g, x, params["0.weight"], params["0.bias"]
    )
    return loss, {name: grads[name] for name in params}


def cnn_parameters(image_size=8, channels=(1, 4, 8), classes=10, seed=0):
    """Conv 3x3, ReLU, MaxPool 2, Conv 3x3, ReLU, MaxPool 2, Flatten, Linear."""
    (colours, first, second), side = channels, image_size // 4
    shapes = {
        "0.weight": (first, colours, 3, 3),
        "0.bias": (first,),
        "3.weight": (second, first, 3, 3),
        "3.bias": (second,),
        "7.weight": (classes, second * side * side),
        "7.bias": (classes,),
    }
    return random_parameters(shapes, seed)


def cnn_forward(params, images):
    """Returns the scores (N, classes) and the input of every layer."""
    conv0 = conv2d(images, params["0.weight"], params["0.bias"], padding=1)
    relu1 = relu(conv0)
    pool2 = max_pool2d(relu1, 2)
    conv3 = conv2d(pool2, params["3.weight"], params["3.bias"], padding=1)
    relu4 = relu(conv3)
    pool5 = max_pool2d(relu4, 2)
    flat6 = pool5.reshape(len(images), params["7.weight"].shape[1])
    scores = linear(flat6, params["7.weight"], params["7.bias"])
    return scores, (images, conv0, relu1, pool2, conv3, relu4, pool5, flat6)


def cnn_loss_and_gradients(params, images, labels, reduction="mean"):
    """The cross entropy, and its gradient by every parameter, under the same names."""
    scores, inputs = cnn_forward(params, images)
    images, conv0, relu1, pool2, conv3, relu4, pool5, flat6 = inputs
    loss = cross_entropy(scores, labels, reduction=reduction)
    g, grads = cross_entropy_backward(scores, labels, reduction=reduction), {}
    g, grads["7.weight"], grads["7.bias"] = linear_backward(
        g, flat6, params["7.weight"], params["7.bias"]
    )
    g = max_pool2d_backward(g.reshape(pool5.shape), relu4, 2)
    g = relu_backward(g, conv3)
    g, grads["3.weight"], grads["3.bias"] = conv2d_backward(
        g, pool2, params["3.weight"], params["3.bias"], padding=1
    )
    g = max_pool2d_backward(g, relu1, 2)
    g = relu_backward(g, conv0)
    g, grads["0.weight"], grads["0.bias"] = conv2d_backward(
        g, images, params["0.weight"], params["0.bias"], padding=1
    )
    return loss, {name: grads[name] for name in params}


def train(loss_and_gradients, params, batches, lr, rule=adam_step, **options):
    """One step of `rule` a batch (x, labels); returns the parameters and the losses."""
    params = {name: real(p) for name, p in params.items()}
    states, losses = {name: {} for name in params}, []
    for x, labels in batches:
        loss, grads = loss_and_gradients(params, x, labels)
        losses.append(loss)
        for name, p in params.items():
            step = rule(p, grads[name], states[name], lr=lr, **options)
            params[name], states[name] = step
    return params, losses


def data_parallel(loss_and_gradients, ranks):
    """The same loss and gradients, computed on shares of the batch and added up.

    With L_r the sum of the losses of the n_r samples of rank r: the global loss is
    sum_r L_r / sum_r n_r, and so is its gradient. Shares may be uneven or empty.
    """

    def whole(params, x, labels):
        total, sums = 0.0, {name: np.zeros(p.shape) for name, p in params.items()}
        for share in np.array_split(np.arange(len(labels)), ranks):
            loss, grads = loss_and_gradients(
                params, x[share], labels[share], reduction="sum"
            )
            total += loss
            for name in sums:  # the all-reduce
                sums[name] += grads[name]
        count = len(labels)
        return total / count, {name: g / count for name, g in sums.items()}

    return whole


def cnn_train(params, batches, lr=1e-3, rule=adam_step, ranks=1, **options):
    """Train the CNN on (images, labels) batches, each shared among `ranks`."""
    gradients = cnn_loss_and_gradients
    if ranks > 1:
        gradients = data_parallel(gradients, ranks)
    return train(gradients, params, batches, lr, rule, **options)


# --- Random numbers -------------------------------------------------------------------


def philox4x32(counter, key, rounds=10):
    """Four random 32-bit words from a counter (four words) and a key (two words).

    Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3: a
    round multiplies two words, keeps low halves, and mixes high halves with the rest.
    """
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(rounds):
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3
