"""GPT: what it computes, what it cannot see, that it learns, and what it writes."""

import numpy as np
import pytest

import minidl as md
import minidl.nn.functional as F
from minidl import nn, optim

TEXT = "she sells sea shells on the sea shore; "
LETTERS = sorted(set(TEXT))


def encoded(text, xp=np):
    return md.Tensor(xp.asarray([[LETTERS.index(c) for c in text]]))


def decoded(tokens):
    return "".join(LETTERS[i] for i in tokens.numpy()[0])


def small(**options):
    md.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16}
    return nn.GPT(11, 8, **sizes | options)


def tokens(*shape, seed=0, xp=np):
    return md.Tensor(xp.asarray(np.random.default_rng(seed).integers(0, 11, shape)))


def place(model, xp):
    return model if xp is np else model.to("cuda:0")


@pytest.mark.parametrize("bias", [True, False])
def test_parameters(bias):
    v, t, layers, e = 11, 8, 2, 16
    block = 12 * e * e + 2 * e + bias * (2 * e + 9 * e)
    expected = v * e + t * e + layers * block + e + bias * e
    assert sum(p.numel() for p in small(bias=bias).parameters()) == expected


def test_names():
    names = [name for name in small(n_layer=1).state_dict() if "blocks" in name]
    layers = "norm1 attention.qkv attention.out norm2 mlp.into mlp.out".split()
    assert names == [f"blocks.0.{x}.{y}" for x in layers for y in ("weight", "bias")]


def test_initial_weights():
    model = nn.GPT(256, 64, n_layer=8, n_head=4, n_embd=64)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert not p.numpy().any()
        elif "norm" in name:
            assert (p.numpy() == 1).all()
        else:
            expected = 0.005 if "out" in name else 0.02  # sqrt(2 * 8) = 4
            np.testing.assert_allclose(p.numpy().std(), expected, rtol=0.1)
    logits = model(tokens(4, 64)).flatten(0, 1)
    loss = F.cross_entropy(logits, tokens(4, 64, seed=1).flatten())
    assert abs(loss.item() - np.log(256)) < 0.1


def test_no_position_sees_a_later_one(xp):
    model = place(small(), xp)
    x = tokens(3, 8, xp=xp)
    before = model(x).numpy()
    for t in range(8):
        changed = md.tensor(x)
        changed.data[:, t] = (changed.data[:, t] + 1) % 11
        after = model(changed).numpy()
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert (after[:, t:] != before[:, t:]).any(axis=(0, 2)).all()


def test_learns_a_text_by_heart():
    md.manual_seed(0)
    model = nn.GPT(len(LETTERS), len(TEXT), n_layer=2, n_head=2, n_embd=32)
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    tokens = encoded(TEXT + TEXT[0])
    x, y = tokens[:, :-1], tokens[:, 1:].flatten()
    for _ in range(100):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x).flatten(0, 1), y)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02
    start = encoded("she ")
    written = decoded(model.generate(start, len(TEXT) - 4, temperature=0))
    assert written == TEXT
    assert decoded(model.generate(start, len(TEXT) - 4, temperature=0.1)) == TEXT


def test_generates_beyond_the_block_size(xp):
    model = place(small(dropout=0.5), xp)
    start = tokens(2, 3, xp=xp)
    found = model.generate(start, 12, temperature=0)
    assert found.shape == (2, 15) and found.dtype == start.dtype
    assert not found.requires_grad and model.training and model.blocks[0].training
    model.eval()
    x = start
    for _ in range(12):
        x = md.cat([x, model(x[:, -8:])[:, -1:].argmax(-1)], 1)
    np.testing.assert_array_equal(found.numpy(), x.numpy())


@pytest.mark.parametrize("top_k", [None, 3, 100])
def test_draws_by_their_probabilities(xp, top_k):
    scores = np.random.default_rng(1).standard_normal(6)
    p = np.exp(scores / 0.7)
    if top_k == 3:
        p[np.argsort(p)[:3]] = 0
    md.manual_seed(0)
    rows = md.Tensor(xp.asarray(np.tile(scores.astype("f4"), (20000, 1))))
    found = nn.gpt.drawn(rows, 0.7, top_k).numpy()
    assert found.shape == (20000, 1)
    counts = np.bincount(found[:, 0], minlength=6)
    np.testing.assert_allclose(counts / 20000, p / p.sum(), atol=0.015)
    assert not counts[p == 0].any()


def test_same_seed_same_text():
    model = small()
    texts = []
    for seed in (1, 1, 2):
        md.manual_seed(seed)
        texts.append(model.generate(tokens(2, 1), 20).tolist())
    assert texts[0] == texts[1] != texts[2]


def test_what_it_refuses():
    with pytest.raises(ValueError, match="n_head=3 must divide n_embd=16"):
        small(n_head=3)
    with pytest.raises(ValueError, match="9 tokens are more than block_size=8"):
        small()(tokens(1, 9))


@pytest.mark.slow  # PyTorch
@pytest.mark.parametrize("bias", [True, False])
def test_agrees_with_pytorch(bias):
    torch = pytest.importorskip("torch")
    ours = small(bias=bias).to(dtype=np.float64)
    for seed, p in enumerate(ours.parameters()):
        p.data = p.data + 0.1 * np.random.default_rng(seed).standard_normal(p.shape)
    theirs, head = their_gpt(torch, ours, bias)
    x, y = tokens(3, 8), tokens(3, 8, seed=1)
    logits = ours(x)
    h = head["wte"](torch.tensor(x.numpy())) + head["wpe"].weight
    mask = torch.nn.Transformer.generate_square_subsequent_mask(8, dtype=h.dtype)
    expected = theirs(h, mask=mask, is_causal=True) @ head["wte"].weight.T
    np.testing.assert_allclose(logits.numpy(), expected.detach().numpy(), atol=1e-12)
    F.cross_entropy(logits.flatten(0, 1), y.flatten()).backward()
    torch.nn.functional.cross_entropy(
        expected.flatten(0, 1), torch.tensor(y.numpy()).flatten()
    ).backward()
    wanted = dict(zip(names(ours), parameters(theirs, head), strict=True))
    for name, p in ours.named_parameters():
        np.testing.assert_allclose(
            p.grad.numpy(), wanted[name].grad.numpy(), atol=1e-12, err_msg=name
        )


def their_gpt(torch, ours, bias):
    """PyTorch's own encoder, pre-norm, with the weights of our model."""
    layer = torch.nn.TransformerEncoderLayer(
        *(16, 2, 64, 0.0, torch.nn.functional.gelu),
        batch_first=True,
        norm_first=True,
        bias=bias,
    )
    norm = torch.nn.LayerNorm(16, bias=bias)
    model = torch.nn.TransformerEncoder(layer, 2, norm, enable_nested_tensor=False)
    head = {"wte": torch.nn.Embedding(11, 16), "wpe": torch.nn.Embedding(8, 16)}
    model, _ = model.double(), [e.double() for e in head.values()]
    state = ours.state_dict()
    for name, p in zip(names(ours), parameters(model, head), strict=True):
        p.data.copy_(torch.tensor(state[name].numpy()))
    return model, head


def parameters(theirs, head):
    return [head["wte"].weight, head["wpe"].weight, *theirs.parameters()]


def names(ours):
    """Our names in the order of PyTorch's encoder."""
    order = "attention.qkv attention.out mlp.into mlp.out norm1 norm2".split()
    known = [name for name, _ in ours.named_parameters()]
    blocks = [f"blocks.{i}.{x}.{y}" for i in (0, 1) for x in order for y in WB]
    found = ["tokens.weight", "positions.weight", *blocks, *(f"norm.{y}" for y in WB)]
    return [name for name in found if name in known]


WB = ("weight", "bias")
