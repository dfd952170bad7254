"""Losses, against formulas in NumPy; edges, counts and refusals."""

import numpy as np
import pytest
from gradients import check_gradients
from hypothesis import given
from hypothesis import strategies as st

import minidl as md
import minidl.nn.functional as F

pytestmark = pytest.mark.usefixtures("interpreted")
rng = np.random.default_rng(0)
X, T = rng.standard_normal((4, 5)), rng.standard_normal((4, 5))
P, Q = rng.uniform(0.1, 0.9, (4, 5)), rng.uniform(0.1, 0.9, (4, 5))
S = np.where(rng.random((4, 5)) < 0.5, -1.0, 1.0)
D = np.abs(X - T)


def xlogy(t):
    return np.where(t == 0, 0, t * np.log(np.where(t == 0, 1, t)))


CASES = [  # name, arguments, options, the terms
    ("mse_loss", (X, T), {}, (X - T) ** 2),
    ("l1_loss", (X, T), {}, D),
    ("smooth_l1_loss", (X, T), {}, np.where(D < 1, D * D / 2, D - 0.5)),
    ("smooth_l1_loss", (X, T), {"beta": 0.0}, D),
    ("huber_loss", (X, T), {"delta": 2.0}, np.where(D <= 2, D * D / 2, 2 * D - 2)),
    (
        "binary_cross_entropy",
        (P, Q),
        {},
        -Q * np.log(P) - (1 - Q) * np.log(1 - P),
    ),
    (
        "binary_cross_entropy_with_logits",
        (X, Q),
        {},
        Q * np.logaddexp(0, -X) + (1 - Q) * np.logaddexp(0, X),
    ),
    ("kl_div", (X, Q), {}, xlogy(Q) - Q * X),
    ("kl_div", (X, T), {"log_target": True}, np.exp(T) * (T - X)),
    ("poisson_nll_loss", (X, Q), {}, np.exp(X) - Q * X),
    (
        "poisson_nll_loss",
        (P, 3 + Q),
        {"log_input": False, "full": True},
        P
        - (3 + Q) * np.log(P + 1e-8)
        + (3 + Q) * np.log(3 + Q)
        - (3 + Q)
        + np.log(2 * np.pi * (3 + Q)) / 2,
    ),
    ("gaussian_nll_loss", (X, T, Q), {}, (np.log(Q) + (X - T) ** 2 / Q) / 2),
    (
        "hinge_embedding_loss",
        (X, S),
        {"margin": 0.7},
        np.where(S == 1, X, np.maximum(0, 0.7 - X)),
    ),
    (
        "margin_ranking_loss",
        (X, T, S),
        {"margin": 0.3},
        np.maximum(0, 0.3 - S * (X - T)),
    ),
    (
        "triplet_margin_loss",
        (X, T, P),
        {"margin": 3.0},
        np.maximum(
            0,
            3
            + np.linalg.norm(X - T + 1e-6, axis=-1)
            - np.linalg.norm(X - P + 1e-6, axis=-1),
        ),
    ),
]


@pytest.mark.parametrize(("name", "arguments", "options", "terms"), CASES)
def test_values_and_reductions(name, arguments, options, terms, xp):
    def loss(**more):
        inputs = [md.tensor(xp.asarray(a)) for a in arguments]
        return getattr(F, name)(*inputs, **options, **more)

    np.testing.assert_allclose(loss(reduction="none").numpy(), terms, rtol=1e-9)
    np.testing.assert_allclose(loss(reduction="sum").item(), terms.sum(), rtol=1e-9)
    mean = loss()
    np.testing.assert_allclose(mean.item(), terms.mean(), rtol=1e-9)
    assert mean.count == terms.size
    np.testing.assert_allclose(mean.total.item(), terms.sum(), rtol=1e-9)
    with pytest.raises(ValueError, match="reduction must be"):
        loss(reduction="average")


@pytest.mark.parametrize(("name", "arguments", "options", "terms"), CASES)
def test_gradients_of_two_orders(name, arguments, options, terms):
    fixed = [a.astype(int) if a is S else a for a in arguments]
    check_gradients(lambda *a: getattr(F, name)(*a, **options), *fixed)


def test_the_older_arguments_say_the_reduction():
    x, t = md.tensor(X), md.tensor(T)
    assert F.mse_loss(x, t, reduce=False).shape == X.shape
    total = F.mse_loss(x, t, size_average=False).item()
    assert total == F.mse_loss(x, t, reduction="sum").item()


@pytest.mark.parametrize("name", ["mse", "l1", "smooth_l1", "huber"])
def test_shapes_that_differ_are_said(name):
    loss = getattr(F, f"{name}_loss")
    with pytest.warns(UserWarning, match=rf"{name}_loss: .* \(3, 1\) .* \(3,\)"):
        loss(md.zeros(3, 1), md.zeros(3))


def test_weights():
    w = np.abs(T)
    weighted = F.mse_loss(md.tensor(X), md.tensor(T), weight=md.tensor(w))
    np.testing.assert_allclose(weighted.item(), (w * (X - T) ** 2).sum() / w.sum())
    bce = F.binary_cross_entropy_with_logits
    positive = np.arange(1.0, 6.0)
    terms = bce(
        md.tensor(X),
        md.tensor(Q),
        weight=md.tensor(w),
        pos_weight=md.tensor(positive),
        reduction="none",
    )
    expected = positive * Q * np.logaddexp(0, -X) + (1 - Q) * np.logaddexp(0, X)
    np.testing.assert_allclose(terms.numpy(), w * expected)
    check_gradients(lambda x, t, p: bce(x, t, pos_weight=p), X, Q, positive)


def test_binary_cross_entropy_is_finite_at_0_and_1():
    x = md.tensor([0.0, 1.0, 0.0, 1.0], requires_grad=True)
    t = md.tensor([0.0, 1.0, 1.0, 0.0])
    loss = F.binary_cross_entropy(x, t, reduction="none")
    assert loss.tolist() == [0, 0, 100, 100]
    loss.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), [0, 0, -1e12, 1e12], rtol=1e-6)
    with pytest.raises(RuntimeError, match="between 0 and 1"):
        F.binary_cross_entropy(md.tensor([1.5]), md.tensor([1.0]))


def test_logits_without_overflow():
    x = md.tensor([1000.0, -1000.0])
    loss = F.binary_cross_entropy_with_logits(
        x, md.tensor([0.0, 1.0]), reduction="none"
    )
    assert loss.tolist() == [1000, 1000]


def test_gaussian_variances():
    x, t = md.tensor(X), md.tensor(T)
    for var in (0.5, Q[:, 0], Q[:, :1]):
        v = var if isinstance(var, float) else var.reshape(4, 1)
        var = var if isinstance(var, float) else md.tensor(var)
        expected = ((np.log(v) + (X - T) ** 2 / v) / 2).mean()
        np.testing.assert_allclose(F.gaussian_nll_loss(x, t, var).item(), expected)
    with pytest.raises(ValueError, match="negative"):
        F.gaussian_nll_loss(x, t, md.tensor(-Q))
    small = md.tensor(np.zeros((4, 5)), requires_grad=True)
    F.gaussian_nll_loss(x, t, small).backward()
    assert np.isfinite(small.grad.numpy()).all() and small.grad.numpy().any()


def logs_of(x):
    shifted = x - x.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@given(st.data())
def test_cross_entropy(data):
    shape = data.draw(st.sampled_from([(3, 4), (2, 5, 3), (2, 3, 2, 2)]))
    smoothing = data.draw(st.sampled_from([0.0, 0.2]))
    weighted = data.draw(st.booleans())
    ignore = data.draw(st.sampled_from([-100, 1]))
    seed = np.random.default_rng(data.draw(st.integers(0, 99)))
    x = seed.standard_normal(shape)
    classes = shape[1]
    labels = seed.integers(0, classes, (shape[0], *shape[2:]))
    w = seed.uniform(0.5, 2, classes) if weighted else np.ones(classes)
    logs = np.moveaxis(logs_of(x), 1, -1)
    chosen = np.take_along_axis(logs, labels[..., None], -1)[..., 0]
    kept = labels != ignore
    terms = -(1 - smoothing) * w[labels] * chosen
    terms = (terms - smoothing / classes * (logs * w).sum(-1)) * kept
    count = (w[labels] * kept).sum()
    options = {
        "weight": md.tensor(w) if weighted else None,
        "ignore_index": ignore,
        "label_smoothing": smoothing,
    }
    for reduction, expected in {
        "none": terms,
        "sum": terms.sum(),
        "mean": terms.sum() / count if count else np.nan,
    }.items():
        loss = F.cross_entropy(
            md.tensor(x), md.tensor(labels), reduction=reduction, **options
        )
        np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-9, atol=1e-12)
    assert loss.count == pytest.approx(count)
    if not smoothing:
        loss = F.nll_loss(
            md.tensor(logs_of(x)), md.tensor(labels), options["weight"], None, ignore
        )
        np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduction": "sum"},
        {"reduction": "none"},
        {"ignore_index": 1},
        {"label_smoothing": 0.3},
        {"weight": [0.5, 2.0, 1.0], "label_smoothing": 0.1},
    ],
)
def test_gradients_of_cross_entropy(options):
    options = dict(options)
    if "weight" in options:
        options["weight"] = md.tensor(np.array(options["weight"]))
    labels = np.array([[0, 2], [1, 1], [2, 0], [1, 2]])
    x = rng.standard_normal((4, 3, 2))
    check_gradients(lambda t: F.cross_entropy(t, md.tensor(labels), **options), x)
    check_gradients(
        lambda t: F.cross_entropy(t, md.tensor(labels[:, 0]), **options), x[:, :, 0]
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_probabilities_as_targets(smoothing):
    x, t = rng.standard_normal((4, 3, 2)), rng.uniform(size=(4, 3, 2))
    w = np.array([0.5, 2.0, 1.0])
    soft = t * (1 - smoothing) + smoothing / 3
    expected = -(soft * w[:, None] * logs_of(x)).sum(axis=1)
    loss = F.cross_entropy(
        md.tensor(x), md.tensor(t), md.tensor(w), label_smoothing=smoothing
    )
    np.testing.assert_allclose(loss.item(), expected.mean())
    assert loss.count == 8
    check_gradients(
        lambda a, b, c: F.cross_entropy(a, b, c, label_smoothing=smoothing), x, t, w
    )


def test_one_sample_without_a_batch():
    x = rng.standard_normal(4)
    expected = -logs_of(x[None])[0, 2]
    for reduction in ("none", "mean", "sum"):
        loss = F.cross_entropy(md.tensor(x), md.tensor(2), reduction=reduction)
        assert loss.shape == ()
        np.testing.assert_allclose(loss.item(), expected)


def test_a_mean_of_nothing_is_nan():
    x = md.tensor(rng.standard_normal((2, 3)), requires_grad=True)
    loss = F.cross_entropy(x, md.tensor([-100, -100]))
    assert np.isnan(loss.item()) and loss.count == 0 and loss.total.item() == 0
    empty = F.mse_loss(md.tensor(np.zeros((0, 3))), md.tensor(np.zeros((0, 3))))
    assert np.isnan(empty.item()) and empty.count == 0


@pytest.mark.parametrize(
    ("target", "error", "sentence"),
    [
        (np.array([0, 3]), IndexError, "label 3 is out of range: expected 0 to 2"),
        (np.array([0, -1]), IndexError, "label -1 is out of range"),
        (np.array([0.0, 1.0]), RuntimeError, "labels must be integers, got float64"),
        (np.array([0, 1, 2]), ValueError, r"do not fit scores of shape \(2, 3\)"),
    ],
)
def test_labels_that_do_not_fit(target, error, sentence):
    for function in (F.cross_entropy, F.nll_loss):
        with pytest.raises(error, match=sentence):
            function(md.tensor(rng.standard_normal((2, 3))), md.tensor(target))


def test_labels_and_scores_may_be_arrays_and_lists():
    x, labels = rng.standard_normal((3, 4)), [2, 0, 3]
    for function in (F.cross_entropy, F.nll_loss):
        expected = function(md.tensor(x), md.tensor(labels)).item()
        for target in (labels, np.array(labels, np.uint8)):
            assert function(md.tensor(x), target).item() == expected
            assert function(x, target).item() == expected
        with pytest.raises(TypeError, match="expected a Tensor or numbers, got str"):
            function(md.tensor(x), "203")


def test_scores_that_are_whole_numbers():
    for function in (F.cross_entropy, F.nll_loss):
        with pytest.raises(RuntimeError, match="floating-point numbers, got int64"):
            function(md.tensor([[1, 2]]), md.tensor([0]))


def test_weights_and_settings_that_do_not_fit():
    x, t = md.tensor(rng.standard_normal((2, 3))), md.tensor([0, 1])
    with pytest.raises(RuntimeError, match="each of the 3 classes"):
        F.cross_entropy(x, t, md.tensor([1.0, 2.0]))
    with pytest.raises(RuntimeError, match="label_smoothing is a share"):
        F.cross_entropy(x, t, label_smoothing=1.5)
    with pytest.raises(RuntimeError, match="delta must be positive"):
        F.huber_loss(x, x, delta=0)
    with pytest.raises(ValueError, match="must have the shape of the input"):
        F.binary_cross_entropy_with_logits(x, t)


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0, 3.0, -1.0])
def test_normalize(p):
    x = rng.uniform(0.5, 2, (3, 4)) * S[:3, :4]
    length = (np.abs(x) ** p).sum(axis=1, keepdims=True) ** (1 / p)
    np.testing.assert_allclose(F.normalize(md.tensor(x), p).numpy(), x / length)
    check_gradients(lambda t: F.normalize(t, p), x)


def test_lengths_of_zero():
    x = md.tensor(np.zeros((2, 3)), requires_grad=True)
    F.normalize(x).sum().backward()
    assert np.isfinite(x.grad.numpy()).all()
    assert F.cosine_similarity(x, x).tolist() == [0, 0]


def test_cosine_similarity():
    a, b = rng.standard_normal((3, 1, 4)), rng.standard_normal((2, 4))
    expected = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    np.testing.assert_allclose(
        F.cosine_similarity(md.tensor(a), md.tensor(b), -1).numpy(), expected
    )
    check_gradients(lambda x, y: F.cosine_similarity(x, y, dim=-1), a, b)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradients_of_gradients_of_cross_entropy(xp, reduction):
    """Of sum(gx^2), gx = scale (p - target): 2 scale^2 J (p - target)."""
    x, labels = rng.standard_normal((4, 5)), [1, 2, 3, 4]
    scores = md.Tensor(xp.asarray(x), requires_grad=True)
    loss = F.cross_entropy(scores, md.Tensor(xp.asarray(labels)), reduction=reduction)
    (gx,) = md.autograd.grad(loss.sum(), scores, create_graph=True)
    (gx * gx).sum().backward()
    p = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    d = p - np.eye(5)[labels]
    expected = 2 * (p * d - p * (p * d).sum(1, keepdims=True))
    expected *= 1 / 16 if reduction == "mean" else 1
    np.testing.assert_allclose(scores.grad.numpy(), expected, 1e-9, 1e-12)
