"""A small GPT learns a poem by heart, letter by letter, and goes on from its title."""

import numpy as np

import minidl as md
from minidl import nn, optim
from minidl.nn import functional as F

# William Blake, "The Tyger", 1794
TEXT = """The Tyger
Tyger Tyger, burning bright,
In the forests of the night;
What immortal hand or eye,
Could frame thy fearful symmetry?
"""
BLOCK, BATCH, STEPS = 32, 16, 250

letters = sorted(set(TEXT))
tokens = np.array([letters.index(c) for c in TEXT])

md.manual_seed(0)
model = nn.GPT(len(letters), BLOCK, n_layer=2, n_head=4, n_embd=64)
optimizer = optim.AdamW(model.parameters(), lr=3e-3)
schedule = optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
rng = np.random.default_rng(0)

for step in range(1, STEPS + 1):
    starts = rng.integers(0, len(tokens) - BLOCK, BATCH)
    windows = tokens[starts[:, None] + np.arange(BLOCK + 1)]
    inputs, targets = md.tensor(windows[:, :-1]), md.tensor(windows[:, 1:])
    optimizer.zero_grad()
    scores = model(inputs)  # (N, T, letters): what comes after each of T letters
    loss = F.cross_entropy(scores.flatten(0, 1), targets.flatten())
    loss.backward()
    optimizer.step()
    schedule.step()
    if step % 50 == 0:
        print(f"step {step:3d}  loss {loss.item():.3f}")

title = "The Tyger\n"
start = md.tensor(tokens[None, : len(title)])
written = model.generate(start, len(TEXT) - len(title), temperature=0.5)
print("".join(letters[i] for i in written.tolist()[0]))
