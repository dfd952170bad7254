"""A CNN learns to read handwritten digits: the classic recipe, on one process."""

import numpy as np

import minidl as md
from minidl import data, nn, optim
from minidl.nn import functional as F

EPOCHS, BATCH_SIZE = 10, 32

train, test = data.load("digits")  # 1,437 and 360 images of 8 x 8
scaling = data.Standardize().fit(train.images)  # on the training set alone
train_loader = data.DataLoader(train, BATCH_SIZE, shuffle=True, transform=scaling)
test_loader = data.DataLoader(test, BATCH_SIZE, transform=scaling)

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

for epoch in range(1, EPOCHS + 1):
    model.train()
    for images, labels in train_loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    model.eval()
    sums = np.zeros(2)  # of the loss, of right answers
    with md.no_grad():
        for images, labels in test_loader:
            scores = model(images)
            loss = F.cross_entropy(scores, labels, reduction="sum")
            sums += loss.item(), (scores.argmax(1) == labels).sum().item()
    loss, accuracy = sums / len(test)
    print(f"epoch {epoch:2d}  test loss {loss:.4f}  test accuracy {accuracy:.2%}")
