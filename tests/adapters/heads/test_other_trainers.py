"""Trainers of other libraries train an adapted model: only its classifier learns."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.data import create_dataset, create_transform
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import headkit
from headkit.adapters.backbone.preprocessing import preprocessing
from tests.backbones import random_backbone


def _examples(model: nn.Module, shapes: Path) -> tuple[Tensor, Tensor]:
    transform = create_transform(**preprocessing(model), is_training=False)
    data = create_dataset("", root=str(shapes), transform=transform)
    pixels, targets = zip(*data, strict=True)
    return torch.stack(pixels), torch.tensor(targets)


def _check(model: Any, before: dict[str, Tensor], examples: tuple[Tensor, Tensor]) -> None:
    """The backbone is as it was, the classifier has learned, and the head can be moved."""
    after = model.state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}
    assert changed == {"fc.weight", "fc.bias"}
    model.eval()
    pixels, targets = examples
    with torch.no_grad():
        logits = model(pixels)
    assert (logits.argmax(1) == targets).float().mean() > 0.9
    head = headkit.head_of(model, ["bright", "dark", "striped"])
    with torch.no_grad():
        moved = headkit.attach(random_backbone(), head)(pixels)
    assert np.array_equal(moved.numpy(), logits.numpy())


def test_hugging_face_trainer_trains_an_adapted_model(shapes: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class WithLoss(nn.Module):
        """What the Trainer wants of a model: the loss, and the logits."""

        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
            logits = self.model(pixel_values)
            loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
            return {"loss": loss, "logits": logits}

    model = headkit.adapt(random_backbone(), 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pixels, targets = _examples(model, shapes)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=8,
        per_device_train_batch_size=8,
        learning_rate=0.05,
        lr_scheduler_type="constant",
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    rows = [{"pixel_values": x, "labels": y} for x, y in zip(pixels, targets, strict=True)]
    trainer = transformers.Trainer(model=WithLoss(model), args=arguments, train_dataset=rows)
    trainer.train()
    _check(model, before, (pixels, targets))


def test_lightning_trains_an_adapted_model(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lightning: Any = pytest.importorskip("lightning")
    monkeypatch.setattr(os, "environ", dict(os.environ))  # Lightning sets variables

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, _index: int) -> Tensor:
            pixels, targets = batch
            return nn.functional.cross_entropy(self.model(pixels), targets)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            trainable = [p for p in self.parameters() if p.requires_grad]
            return torch.optim.AdamW(trainable, lr=0.05)

    model = headkit.adapt(random_backbone(), 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    examples = _examples(model, shapes)
    trainer = lightning.Trainer(
        max_epochs=8,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(model), DataLoader(TensorDataset(*examples), batch_size=8, shuffle=False))
    _check(model, before, examples)
