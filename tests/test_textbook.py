"""The textbook is held to central differences, hand computations and PyTorch."""

import math

import numpy as np
import pytest
import textbook as book

OPTIMIZERS = {
    "sgd": (book.sgd_step, "SGD", dict(lr=0.1)),
    "momentum": (book.sgd_step, "SGD", dict(lr=0.1, momentum=0.9, weight_decay=0.01)),
    "dampening": (book.sgd_step, "SGD", dict(lr=0.1, momentum=0.9, dampening=0.5)),
    "nesterov": (book.sgd_step, "SGD", dict(lr=0.1, momentum=0.9, nesterov=True)),
    "adam": (book.adam_step, "Adam", dict(lr=0.01)),
    "adam decay": (book.adam_step, "Adam", dict(betas=(0.8, 0.9), weight_decay=0.1)),
    "amsgrad": (book.adam_step, "Adam", dict(lr=0.01, amsgrad=True, eps=1e-4)),
    "adamw": (book.adamw_step, "AdamW", dict(lr=0.01)),
    "adamw amsgrad": (
        book.adamw_step,
        "AdamW",
        dict(lr=0.01, weight_decay=0.3, amsgrad=True),
    ),
}
CONVOLUTIONS = {
    "plain": dict(),
    "padded": dict(padding=1),
    "strided": dict(stride=2, padding=(2, 1)),
    "dilated": dict(dilation=(1, 2), stride=(2, 1)),
    "grouped": dict(groups=2, padding=1),
    "everything": dict(stride=(2, 1), padding=(2, 3), dilation=2, groups=2),
}
POOLS = {
    "plain": dict(kernel_size=2),
    "overlapping": dict(kernel_size=3, stride=2, padding=1),
    "uneven": dict(kernel_size=(2, 3), stride=(3, 1), padding=(0, 1)),
}
LOSSES = {
    "plain": dict(),
    "sum": dict(reduction="sum"),
    "ignored": dict(ignore_index=2),
    "smoothed": dict(label_smoothing=0.1),
    "weighted": dict(weight=np.array([0.5, 1.0, 2.0, 3.0])),
    "everything": dict(
        weight=np.array([0.5, 1.0, 2.0, 3.0]), ignore_index=1, label_smoothing=0.2
    ),
}
SMOOTH = ["tanh", "sigmoid", "gelu", "softmax", "log_softmax"]
LABELS = np.array([2, 0, 1, 3, 2, 1])


def cases(table):
    return pytest.mark.parametrize("options", table.values(), ids=table.keys())


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).normal(size=shape)


def check_gradients(function, gradients, *inputs, gy=1.0, step=1e-5, rtol=1e-6):
    """<gx, d> is the slope of <gy, f(x + h d)> at h = 0, for a random direction d."""
    for at, (x, gx) in enumerate(zip(inputs, gradients, strict=True)):
        d = normal(*x.shape, seed=at + 1)
        ends = []
        for h in (step, -step):
            moved = (*inputs[:at], x + h * d, *inputs[at + 1 :])
            ends.append((gy * function(*moved)).sum())
        assert gx.shape == x.shape
        np.testing.assert_allclose((gx * d).sum(), np.subtract(*ends) / 2 / step, rtol)


def check_layer(layer, backward, *inputs):
    gy = normal(*layer(*inputs).shape, seed=9)
    check_gradients(layer, backward(gy, *inputs), *inputs, gy=gy)


def test_a_wrong_gradient_is_noticed():
    x = normal(3, 4)
    with pytest.raises(AssertionError):
        check_gradients(book.tanh, [(1 - book.tanh(x) ** 2) * (1 + 1e-5)], x)


# --- Gradients ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["relu", *SMOOTH])
def test_gradient_of_activation(name):
    forward, backward = getattr(book, name), getattr(book, f"{name}_backward")
    check_layer(forward, lambda gy, x: [backward(gy, x)], normal(3, 5))


def test_gradient_of_gelu_tanh():
    check_layer(
        lambda x: book.gelu(x, "tanh"),
        lambda gy, x: [book.gelu_backward(gy, x, "tanh")],
        normal(3, 5),
    )


def test_gradient_of_softmax_along_another_axis():
    check_layer(
        lambda x: book.softmax(x, 1) + book.log_softmax(x, 0),
        lambda gy, x: [
            book.softmax_backward(gy, x, 1) + book.log_softmax_backward(gy, x, 0)
        ],
        normal(3, 4, 2),
    )


def test_gradient_of_linear():
    w, b = normal(3, 5), normal(3)
    check_layer(book.linear, book.linear_backward, normal(4, 5), w, b)
    check_layer(book.linear, book.linear_backward, normal(2, 4, 5), w, b)


def test_gradient_of_dropout():
    mask = normal(4, 5, seed=3) > 0
    check_layer(
        lambda x: book.dropout(x, mask, 0.3),
        lambda gy, x: [book.dropout_backward(gy, x, mask, 0.3)],
        normal(4, 5),
    )


@cases(CONVOLUTIONS)
def test_gradient_of_conv2d(options):
    check_layer(
        lambda x, w, b: book.conv2d(x, w, b, **options),
        lambda gy, x, w, b: book.conv2d_backward(gy, x, w, b, **options),
        normal(2, 4, 7, 6),
        normal(6, 4 // options.get("groups", 1), 3, 2),
        normal(6),
    )


@cases(POOLS)
@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_gradient_of_pooling(name, options):
    forward, backward = getattr(book, name), getattr(book, f"{name}_backward")
    check_layer(
        lambda x: forward(x, **options),
        lambda gy, x: [backward(gy, x, **options)],
        normal(2, 3, 7, 6),
    )


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 2, 5)])
@pytest.mark.parametrize("training", [True, False])
def test_gradient_of_batch_norm(shape, training):
    mean, var = normal(3, seed=5), normal(3, seed=6) ** 2 + 0.5
    check_layer(
        lambda x, w, b: book.batch_norm(x, mean, var, w, b, training)[0],
        lambda gy, x, w, b: book.batch_norm_backward(gy, x, mean, var, w, b, training),
        normal(*shape),
        normal(3),
        normal(3, seed=7),
    )


@cases(LOSSES)
def test_gradient_of_cross_entropy(options):
    x = normal(6, 4)
    gx = book.cross_entropy_backward(x, LABELS, **options)
    check_gradients(lambda x: book.cross_entropy(x, LABELS, **options), [gx], x)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradient_of_mse_loss(reduction):
    x, target = normal(3, 4), normal(3, 4, seed=1)
    gx = book.mse_loss_backward(x, target, reduction)
    check_gradients(
        lambda x, target: book.mse_loss(x, target, reduction), [gx, -gx], x, target
    )


@pytest.mark.parametrize("net", ["mlp", "cnn"])
def test_gradient_of_a_whole_network(net):
    images = normal(6, 1, 8, 8) if net == "cnn" else normal(6, 64)
    params = getattr(book, f"{net}_parameters")()
    both = getattr(book, f"{net}_loss_and_gradients")
    _, grads = both(params, images, LABELS)
    assert list(grads) == list(params)

    def loss(*arrays):
        return both(dict(zip(params, arrays, strict=True)), images, LABELS)[0]

    check_gradients(loss, grads.values(), *params.values())


# --- Values worked out by hand --------------------------------------------------------


def test_activations_by_hand():
    assert book.relu([-1, 0, 2]).tolist() == [0, 0, 2]
    assert book.sigmoid([0]).tolist() == [0.5]
    assert book.sigmoid([-1000, 1000]).tolist() == [0, 1]
    np.testing.assert_allclose(book.sigmoid([math.log(3)]), [0.75])
    np.testing.assert_allclose(book.softmax([0, math.log(3)]), [0.25, 0.75])
    np.testing.assert_allclose(book.log_softmax([1e4, 1e4]), [-math.log(2)] * 2)
    np.testing.assert_allclose(book.gelu([1.0]), [0.8413447460685429])
    np.testing.assert_allclose(book.gelu([1.0], "tanh"), [0.8411919906082768])
    np.testing.assert_allclose(
        book.normal_cdf(normal(9)), (1 + book.erf(normal(9) / 2**0.5)) / 2
    )


def test_float32_in_float64_out():
    x = normal(1, 2, 4, 4).astype(np.float32)
    w = normal(2, 2, 3, 3).astype(np.float32)
    y = book.conv2d(x, w)
    gx, gw, gb = book.conv2d_backward(y.astype(np.float32), x, w, w[:, 0, 0, 0])
    for array in (book.gelu(x), y, gx, gw, gb):
        assert array.dtype == np.float64
    p, state = book.adam_step(x, x, {})
    assert p.dtype == state["m"].dtype == np.float64


def test_conv2d_by_hand():
    x = np.arange(9).reshape(1, 1, 3, 3)
    w = np.array([[[[1, 2], [3, 4]]]])
    y = [[27, 37], [57, 67]]  # 0*1 + 1*2 + 3*3 + 4*4 = 27
    assert book.conv2d(x, w)[0, 0].tolist() == y
    assert book.conv2d(x, w, [1])[0, 0].tolist() == (np.array(y) + 1).tolist()
    # 3*1 + 4*2 = 11 at the top edge, 2*3 + 4*6 = 30 at the left one
    assert book.conv2d(x, w, stride=2, padding=1)[0, 0].tolist() == [[0, 11], [30, 67]]


@cases(CONVOLUTIONS)
def test_conv2d_is_its_formula(options):
    groups = options.get("groups", 1)
    (S, T), (P, Q), (D, E) = (
        book.pair(options.get(name, default))
        for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
    )
    x, w = normal(1, 4, 7, 6), normal(6, 4 // groups, 3, 2)
    y = book.conv2d(x, w, **options)
    for _, k, i, j in np.ndindex(y.shape):
        total = 0.0
        for c, r, s in np.ndindex(w.shape[1:]):
            row, column = i * S + r * D - P, j * T + s * E - Q
            if 0 <= row < 7 and 0 <= column < 6:
                channel = c + k // (6 // groups) * (4 // groups)
                total += w[k, c, r, s] * x[0, channel, row, column]
        assert y[0, k, i, j] == pytest.approx(total, rel=1e-12, abs=1e-12)


def test_pooling_by_hand():
    x = np.array([[[[1, 2, 0], [3, 3, 5], [4, -1, 5]]]])
    assert book.max_pool2d(x, 2, 1)[0, 0].tolist() == [[3, 5], [4, 5]]
    assert book.avg_pool2d(x, 2, 1)[0, 0].tolist() == [[2.25, 2.5], [2.25, 3]]
    assert book.max_pool2d(-x, 2, 2, 1)[0, 0].tolist() == [[-1, 0], [-3, 1]]
    assert book.avg_pool2d(x, 2, 2, 1)[0, 0].tolist() == [[0.25, 0.5], [1.75, 3]]
    gx = book.max_pool2d_backward(np.ones((1, 1, 2, 2)), x, 2, 1)
    assert gx[0, 0].tolist() == [[0, 0, 0], [1, 0, 2], [1, 0, 0]]  # the first 3, 5 win


def test_batch_norm_by_hand():
    x = np.array([[1.0], [3.0]])  # mean 2, biased var 1, unbiased 2
    w, b, mean, var = (np.array([v]) for v in (2.0, 0.5, 1.0, 1.0))
    y, new_mean, new_var = book.batch_norm(x, mean, var, w, b, True, eps=0)
    assert y.tolist() == [[-1.5], [2.5]]
    np.testing.assert_allclose([new_mean, new_var], [[1.1], [1.1]])
    y, new_mean, new_var = book.batch_norm(x, mean, var, w, b, False, eps=0)
    assert (y.tolist(), new_mean, new_var) == ([[0.5], [4.5]], mean, var)


def test_losses_by_hand():
    # probabilities 1/4, 3/4 with label 1, and 1/2, 1/2 with label 0
    x, labels = np.array([[0.0, math.log(3)], [0.0, 0.0]]), np.array([1, 0])
    first, second = math.log(4 / 3), math.log(2)
    for options, value in (
        (dict(), (first + second) / 2),
        (dict(reduction="sum"), first + second),
        (dict(ignore_index=0), first),
        (dict(weight=[3, 1]), (first + 3 * second) / 4),
        (dict(label_smoothing=0.5), (0.75 * first + 0.25 * math.log(4) + second) / 2),
        (
            dict(label_smoothing=0.5, weight=[3, 1]),
            (0.75 * first + 3 * 0.25 * math.log(4) + (3 * 0.75 + 0.25) * second) / 4,
        ),
    ):
        assert book.cross_entropy(x, labels, **options) == pytest.approx(value)
    assert book.mse_loss([1, 2], [3, 1]) == 2.5
    assert book.mse_loss([1, 2], [3, 1], "sum") == 5


def two_steps(rule, first=0.5, second=-0.25, **options):
    p, state = rule(1.0, first, {}, **options)
    return float(p), float(rule(p, second, state, **options)[0])


def test_two_steps_of_sgd_by_hand():
    sgd = book.sgd_step
    assert two_steps(sgd, lr=0.1) == pytest.approx((0.95, 0.975))
    # u = 0.5, then 0.9 * 0.5 - 0.25 = 0.2
    assert two_steps(sgd, lr=0.1, momentum=0.9) == pytest.approx((0.95, 0.93))
    # u = 0.5, then 0.9 * 0.5 - 0.5 * 0.25 = 0.325
    damped = two_steps(sgd, lr=0.1, momentum=0.9, dampening=0.5)
    assert damped == pytest.approx((0.95, 0.9175))
    # steps by 0.5 + 0.9 * 0.5 = 0.95, then -0.25 + 0.9 * 0.2 = -0.07
    nesterov = two_steps(sgd, lr=0.1, momentum=0.9, nesterov=True)
    assert nesterov == pytest.approx((0.905, 0.912))
    # g = 0.5 + 0.2 * 1 = 0.7, then -0.25 + 0.2 * 0.93 = -0.064
    assert two_steps(sgd, lr=0.1, weight_decay=0.2) == pytest.approx((0.93, 0.9364))


def test_two_steps_of_adam_by_hand():
    # m = 0.05, v = 0.00025: the corrected ones are 0.5 and 0.25; then
    # m = 0.045 - 0.025 = 0.02, v = 0.00024975 + 0.0000625 = 0.00031225
    step = 0.1 * (0.02 / 0.19) / math.sqrt(0.00031225 / 0.001999)
    plain = two_steps(book.adam_step, lr=0.1, eps=0)
    assert plain == pytest.approx((0.9, 0.9 - step), rel=1e-12)
    # sqrt of the corrected v is 0.5, and 0.5 + eps = 1 halves the first step
    assert two_steps(book.adam_step, lr=0.1, eps=0.5)[0] == pytest.approx(0.95)
    # the same with g = 0.3 + 0.2 * 1 = 0.5
    decayed = two_steps(book.adam_step, 0.3, lr=0.1, eps=0.5, weight_decay=0.2)
    assert decayed[0] == pytest.approx(0.95)
    # decay of 0.1 * 0.2 = 2 % before each step
    decayed = two_steps(book.adamw_step, lr=0.1, eps=0, weight_decay=0.2)
    assert decayed == pytest.approx((0.88, 0.88 * 0.98 - step), rel=1e-12)


def test_two_steps_of_amsgrad_by_hand():
    # b2 = 0.5: v = 0.125, then 0.0625 + 0 < 0.125, which AMSGrad keeps
    options = dict(lr=0.1, betas=(0.9, 0.5), eps=0, second=0.0)
    m = 0.9 * 0.05 / 0.19
    plain = two_steps(book.adam_step, **options)
    assert plain[1] == pytest.approx(0.9 - 0.1 * m / math.sqrt(0.0625 / 0.75))
    kept = two_steps(book.adam_step, **options, amsgrad=True)
    assert kept[1] == pytest.approx(0.9 - 0.1 * m / math.sqrt(0.125 / 0.75))


def test_initial_bounds_by_hand():
    assert book.fans((8, 4, 3, 3)) == (36, 72)
    assert book.he_bound((10, 6)) == pytest.approx(1)
    assert book.he_bound((10, 36), a=math.sqrt(5)) == pytest.approx(1 / 6)
    assert book.xavier_bound((10, 14), gain=2) == pytest.approx(1)
    # the standard deviation of a uniform in +-b is b / sqrt(3)
    shape = (8, 4, 3, 3)
    assert book.he_std(shape) == pytest.approx(book.he_bound(shape) / math.sqrt(3))
    assert book.xavier_std(shape) == pytest.approx(book.xavier_bound(shape) / 3**0.5)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_published_words(counter, key, words):
    counter, key, words = (
        tuple(int(word, 16) for word in text.split()) for text in (counter, key, words)
    )
    assert book.philox4x32(counter, key) == words


# --- Training -------------------------------------------------------------------------


def batches(count=5, size=7):
    images = normal(count, size, 1, 8, 8)
    labels = np.random.default_rng(1).integers(0, 10, (count, size))
    return list(zip(images, labels, strict=True))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 9])
def test_shares_of_a_batch_add_up_to_the_batch(ranks):
    params, (images, labels) = book.cnn_parameters(), batches()[0]
    loss, grads = book.cnn_loss_and_gradients(params, images, labels)
    shared = book.data_parallel(book.cnn_loss_and_gradients, ranks)
    shared_loss, shared_grads = shared(params, images, labels)
    assert shared_loss == pytest.approx(loss, rel=1e-12)
    for name in params:
        np.testing.assert_allclose(shared_grads[name], grads[name], 1e-9, 1e-14)


def test_ranks_do_not_change_the_training():
    params = book.cnn_parameters()
    alone, losses = book.cnn_train(params, batches())
    shared, shared_losses = book.cnn_train(params, batches(), ranks=3)
    np.testing.assert_allclose(shared_losses, losses, 1e-9)
    for name in params:
        np.testing.assert_allclose(shared[name], alone[name], 1e-7, 1e-9)


def test_training_keeps_the_state_of_the_optimizer():
    gradients = [(np.array([0.5]), None), (np.array([-0.25]), None)]
    params, losses = book.train(
        lambda params, g, _: (float(params["p"][0]), {"p": g}),
        {"p": [1.0]},
        gradients,
        lr=0.1,
    )
    assert (losses[0], losses[1], params["p"][0]) == pytest.approx(
        (1, *two_steps(book.adam_step, lr=0.1)), rel=1e-12
    )


def test_training_learns_and_leaves_its_arguments_alone():
    params = book.cnn_parameters()
    before = {name: p.copy() for name, p in params.items()}
    _, losses = book.cnn_train(params, batches()[:1] * 40, lr=0.01)
    assert losses[-1] < 0.1 < 1 < losses[0]
    assert all((params[name] == before[name]).all() for name in params)


# --- PyTorch, where it is installed ---------------------------------------------------


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def check_with_torch(torch, ours, backward, theirs, *inputs):
    """The same output, and the same gradient by every input."""
    leaves = [torch.tensor(x, requires_grad=True) for x in inputs]
    y = theirs(*leaves)
    gy = normal(*y.shape, seed=8)
    y.backward(torch.tensor(gy))
    np.testing.assert_allclose(ours(*inputs), y.detach().numpy(), 1e-11, 1e-12)
    for gx, leaf in zip(backward(gy, *inputs), leaves, strict=True):
        np.testing.assert_allclose(gx, leaf.grad.numpy(), 1e-11, 1e-12)


@pytest.mark.parametrize("name", ["relu", *SMOOTH])
def test_activation_as_in_torch(torch, name):
    forward, backward = getattr(book, name), getattr(book, f"{name}_backward")
    theirs = getattr(torch.nn.functional, name)
    options = dict(dim=-1) if "softmax" in name else {}
    check_with_torch(
        torch,
        forward,
        lambda gy, x: [backward(gy, x)],
        lambda x: theirs(x, **options),
        3 * normal(5, 7),
    )


@cases(CONVOLUTIONS)
def test_conv2d_as_in_torch(torch, options):
    check_with_torch(
        torch,
        lambda x, w, b: book.conv2d(x, w, b, **options),
        lambda gy, x, w, b: book.conv2d_backward(gy, x, w, b, **options),
        lambda x, w, b: torch.conv2d(x, w, b, **options),
        normal(2, 4, 7, 6),
        normal(6, 4 // options.get("groups", 1), 3, 2),
        normal(6),
    )


@cases(POOLS)
@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d"])
def test_pooling_as_in_torch(torch, name, options):
    forward, backward = getattr(book, name), getattr(book, f"{name}_backward")
    check_with_torch(
        torch,
        lambda x: forward(x, **options),
        lambda gy, x: [backward(gy, x, **options)],
        lambda x: getattr(torch.nn.functional, name)(x, **options),
        np.round(normal(2, 3, 7, 6)),  # with ties
    )


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_as_in_torch(torch, training):
    mean, var = normal(3, seed=5), normal(3, seed=6) ** 2 + 0.5
    running = torch.tensor(mean), torch.tensor(var)
    x, w, b = normal(4, 3, 2, 5), normal(3), normal(3, seed=7)
    check_with_torch(
        torch,
        lambda x, w, b: book.batch_norm(x, mean, var, w, b, training)[0],
        lambda gy, x, w, b: book.batch_norm_backward(gy, x, mean, var, w, b, training),
        lambda x, w, b: torch.nn.functional.batch_norm(x, *running, w, b, training),
        x,
        w,
        b,
    )
    for ours, theirs in zip(
        book.batch_norm(x, mean, var, w, b, training)[1:], running, strict=True
    ):
        np.testing.assert_allclose(ours, theirs.numpy(), 1e-12)


@cases(LOSSES)
def test_cross_entropy_as_in_torch(torch, options):
    theirs = {k: torch.tensor(v) if k == "weight" else v for k, v in options.items()}
    check_with_torch(
        torch,
        lambda x: book.cross_entropy(x, LABELS, **options),
        lambda gy, x: [gy * book.cross_entropy_backward(x, LABELS, **options)],
        lambda x: torch.nn.functional.cross_entropy(x, torch.tensor(LABELS), **theirs),
        normal(6, 4),
    )


@cases(OPTIMIZERS)
def test_twenty_steps_as_in_torch(torch, options):
    rule, name, arguments = options
    p, gradients = normal(5), normal(20, 5, seed=4) * 3
    leaf = torch.tensor(p, requires_grad=True)
    optimizer = getattr(torch.optim, name)([leaf], **arguments)
    state = {}
    for g in gradients:
        p, state = rule(p, g, state, **arguments)
        leaf.grad = torch.tensor(g)
        optimizer.step()
        np.testing.assert_allclose(p, leaf.detach().numpy(), 1e-11, 1e-13)


def test_cnn_training_as_in_torch(torch):
    nn = torch.nn
    first = (nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    second = (nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    model = nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(32, 10)).double()
    params = book.cnn_parameters()
    model.load_state_dict({name: torch.tensor(p) for name, p in params.items()})
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    theirs = []
    for images, labels in batches():
        scores = model(torch.tensor(images))
        loss = nn.functional.cross_entropy(scores, torch.tensor(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        theirs.append(loss.item())
    params, losses = book.cnn_train(params, batches(), lr=1e-2)
    np.testing.assert_allclose(losses, theirs, 1e-9)
    for name, p in model.state_dict().items():
        np.testing.assert_allclose(params[name], p.numpy(), 1e-8, 1e-10)
