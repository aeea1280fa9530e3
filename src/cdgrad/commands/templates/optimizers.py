"""The training code of NAME.toml: a function of a seed and an arm that returns its error in percent."""

import torch
from sklearn.datasets import load_digits
from torch import nn


def run(seed, arm):
    """Train once, and return {"error": percent}; the seed decides everything random."""
    torch.manual_seed(seed)
    digits = load_digits()  # replace by your own data
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    train, validation, test = torch.randperm(len(images)).split([300, 300, len(images) - 600])

    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    kind = getattr(torch.optim, arm.values["optimizer"])  # or your own classes, by name
    optimizer = kind(model.parameters(), lr=arm.values["lr"])
    arm.attach(optimizer, model)

    def error(rows):
        with torch.no_grad():
            return 100 * (model(images[rows]).argmax(1) != labels[rows]).float().mean().item()

    for epoch in range(1, 6):
        for rows in train[torch.randperm(len(train))].split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
        arm.report(epoch, validation_error=error(validation))
    return {"error": error(test if arm.evaluate == "test" else validation)}
