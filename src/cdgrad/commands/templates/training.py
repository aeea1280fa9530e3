"""The training code of NAME.toml: a function of a seed and an arm that returns its error in percent."""

import torch
from sklearn.datasets import load_digits
from torch import nn


def run(seed, arm):
    """Train once, and return {"error": percent}; the seed decides everything random."""
    torch.manual_seed(seed)
    digits = load_digits()  # replace by your own data
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    train, validation, test = torch.randperm(len(images)).split([300, 300, len(images) - 600])

    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=arm.values["lr"], momentum=0.9)
    arm.attach(optimizer, model)  # the arm's metric; nothing in the baseline

    def error(rows):
        model.eval()
        with torch.no_grad():
            wrong = (model(images[rows]).argmax(1) != labels[rows]).float().mean()
        model.train()
        return 100 * wrong.item()

    for epoch in range(1, 6):
        for rows in train[torch.randperm(len(train))].split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
        arm.report(epoch, validation_error=error(validation))
    return {"error": error(test if arm.evaluate == "test" else validation)}
