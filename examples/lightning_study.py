"""A Lightning module as the training code of a paired study: ``cdgrad study lightning.toml``.

It needs ``pip install lightning``.
"""

import logging
import warnings

import lightning
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 10
# The study shows its own progress, and each run would repeat Lightning's greeting.
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")


def run(seed, arm):
    """Train once. The seed decides split, initialization and order, so that arms are paired."""
    torch.manual_seed(seed)
    train, validation, test = split(seed)
    classifier = Classifier(arm, validation)
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(classifier, DataLoader(train, batch_size=32, shuffle=True))
    # Trials of a tuning, and studies with evaluate = "validation", must not read the test images.
    part = test if arm.evaluate == "test" else validation
    return {"error": classifier.error(part), "parameters": sum(p.numel() for p in classifier.parameters())}


class Classifier(lightning.LightningModule):
    """A small network. What concerns the study is `arm.values`, `arm.attach` and `arm.report`."""

    def __init__(self, arm, validation):
        super().__init__()
        self.arm, self.validation = arm, validation
        self.network = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
        )

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.arm.values["lr"], momentum=0.9)
        self.arm.attach(optimizer, self)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS)]

    def training_step(self, batch, _):
        images, labels = batch
        self.loss = nn.functional.cross_entropy(self.network(images), labels)
        return self.loss

    def on_train_epoch_end(self):
        loss = self.loss.item()
        self.arm.report(self.current_epoch + 1, loss=loss, validation_error=self.error(self.validation))

    @torch.no_grad()
    def error(self, part):
        """Wrong answers in percent."""
        images, labels = part.tensors
        training, _ = self.training, self.eval()
        wrong = (self.network(images).argmax(1) != labels).float().mean()
        self.train(training)
        return 100 * wrong.item()


def split(seed):
    """300 digits to train on, 300 to validate, the rest to test, drawn by the seed."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    order = np.random.default_rng(seed).permutation(len(labels))
    parts = np.split(order, [300, 600])
    return [TensorDataset(images[rows], torch.tensor(labels)[rows]) for rows in parts]
