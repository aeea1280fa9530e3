"""Two optimizers of one's own on a small language model, compared by perplexity: perplexity.toml.

The model predicts the next character from the last eight, on the texts of Python's own help.
"""

import math
from pydoc_data.topics import topics

import torch
from torch import nn

CONTEXT, LENGTH, EPOCHS, BATCH = 8, 60_000, 6, 128


class Momentum(torch.optim.Optimizer):
    """Steps along the mean of past gradients, each divided by its own norm."""

    def __init__(self, parameters, lr, beta=0.9):
        super().__init__(parameters, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.mul_(group["beta"]).add_(p.grad / (p.grad.norm() + 1e-12), alpha=1 - group["beta"])
                p.sub_(mean, alpha=group["lr"])


class Sign(torch.optim.Optimizer):
    """Steps by the sign of the mean of past gradients: each number moves by the learning rate."""

    def __init__(self, parameters, lr, beta=0.9):
        super().__init__(parameters, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.mul_(group["beta"]).add_(p.grad, alpha=1 - group["beta"])
                p.sub_(mean.sign(), alpha=group["lr"])


def windows():
    """The number of letters, and every eight characters with the next one, by split of the text."""
    text = "".join(topics[name] for name in sorted(topics))[:LENGTH]
    letters = {letter: k for k, letter in enumerate(sorted({*text}))}
    codes = torch.tensor([letters[letter] for letter in text])
    pieces = codes.unfold(0, CONTEXT + 1, 1)
    train, validation, test = pieces.split([len(pieces) - 10_000, 5_000, 5_000])
    return len(letters), {"train": train, "validation": validation, "test": test}


def run(seed, arm):
    """Train once; the perplexity of the split that is evaluated, and the mean loss beside it."""
    torch.manual_seed(seed)
    letters, split = windows()
    model = nn.Sequential(
        nn.Embedding(letters, 16),
        nn.Flatten(),
        nn.Linear(16 * CONTEXT, 64),
        nn.Tanh(),
        nn.Linear(64, letters),
    )
    kind = {"momentum": Momentum, "sign": Sign}[arm.values["optimizer"]]
    optimizer = kind(model.parameters(), lr=arm.values["lr"])

    def loss(rows):
        return nn.functional.cross_entropy(model(rows[:, :-1]), rows[:, -1])

    def evaluate(name):
        with torch.no_grad():
            return loss(split[name]).item()

    for epoch in range(1, EPOCHS + 1):
        for rows in split["train"][torch.randperm(len(split["train"]))[:20_000]].split(BATCH):
            optimizer.zero_grad()
            loss(rows).backward()
            optimizer.step()
        for group in optimizer.param_groups:
            group["lr"] = arm.values["lr"] * (1 - epoch / EPOCHS)
        arm.report(epoch, validation_perplexity=math.exp(evaluate("validation")))
    final = evaluate(arm.evaluate)
    return {
        "perplexity": math.exp(final),
        "loss": final,
        "weights": sum(p.numel() for p in model.parameters()),
    }
