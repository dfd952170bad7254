"""A CNN learns to read handwritten digits: the same under `mpirun -n 2 python`."""

import numpy as np

import minidl as md
from minidl import data, distributed, nn, optim
from minidl.nn import functional as F

EPOCHS, BATCH_SIZE = 10, 32  # of all ranks together
ranks = distributed.init()

train, test = data.load("digits")  # 1,437 and 360 images of 8 x 8
scaling = data.Standardize().fit(train.images)  # on the training set alone
mine = distributed.DistributedSampler(train)
train_loader = data.DataLoader(train, BATCH_SIZE, sampler=mine, transform=scaling)
mine = distributed.DistributedSampler(test, shuffle=False)
test_loader = data.DataLoader(test, BATCH_SIZE, sampler=mine, transform=scaling)

md.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1),  # (N, 1, 8, 8) -> (N, 16, 8, 8)
    nn.ReLU(),
    nn.Conv2d(16, 32, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),  # (N, 32, 4, 4)
    nn.Flatten(),
    nn.Linear(32 * 4 * 4, 10),
)
optimizer = optim.Adam(model.parameters(), lr=2e-3)
parallel = distributed.DataParallel(model)

for epoch in range(1, EPOCHS + 1):
    model.train()
    for images, labels in train_loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        parallel.backward(loss)
        optimizer.step()

    model.eval()
    sums = np.zeros(2)  # of the loss, of right answers
    with md.no_grad():
        for images, labels in test_loader:
            scores = model(images)
            loss = F.cross_entropy(scores, labels, reduction="sum")
            sums += loss.item(), (scores.argmax(1) == labels).sum().item()
    ranks.all_reduce(sums)
    loss, accuracy = sums / len(test)
    if ranks.rank == 0:
        print(f"epoch {epoch:2d}  test loss {loss:.4f}  test accuracy {accuracy:.2%}")
