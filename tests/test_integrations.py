"""The documented examples for trainers that own the loop: Lightning and the Hugging Face Trainer."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from maestro_edge.ordered import cut, order, ordered_layers
from maestro_edge.training import Ordering, Target, evaluate, recalibrate
from tests.conftest import TinyNet, tiny_data

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs, of every kind


def test_lightning(tmp_path: Path) -> None:
    """Manual optimization: Ordering's backward and update stand where Lightning's would."""
    import lightning

    class Ordered(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = order(model)
            self.automatic_optimization = False

        def configure_optimizers(self) -> torch.optim.Optimizer:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
            self.ordering = Ordering(
                self.model,
                optimizer,
                target=Target(macs=200_000),
                steps=self.trainer.estimated_stepping_batches,
                example=(torch.zeros(1, 1, 8, 8),),
            )
            return optimizer

        def training_step(self, batch: tuple[Tensor, Tensor]) -> None:
            x, y = batch
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.ordering.backward(
                lambda: self.model(x), lambda logits: F.cross_entropy(logits, y), backward=self.manual_backward
            )
            self.clip_gradients(optimizer, gradient_clip_val=1.0)
            optimizer.step()
            self.ordering.update()

    data = tiny_data()
    assert isinstance(data.inputs, Tensor)
    torch.manual_seed(0)
    module = Ordered(TinyNet())
    loader = DataLoader(TensorDataset(data.prepare(data.inputs), data.targets), batch_size=16, shuffle=True)
    trainer = lightning.Trainer(
        max_epochs=10,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )

    trainer.fit(module, loader)

    layer = ordered_layers(module.model)["conv2"]
    small = recalibrate(cut(module.model, {"conv2": layer.rank}), [data.prepare(data.inputs)])
    assert abs(module.ordering.size / 200_000 - 1) < 0.05
    assert evaluate(small, data.inputs, data.targets, data.prepare).top1 > 0.9


class Sentences(Dataset[dict[str, Tensor]]):
    """Eight tokens each; the class is the first token's parity."""

    def __init__(self, count: int) -> None:
        self.tokens = torch.randint(2, 50, (count, 8), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index, 0] % 2}


def test_hugging_face_trainer(tmp_path: Path) -> None:
    """compute_loss gives the loss of all passes; a callback calls update() after each optimizer step."""
    with warnings.catch_warnings(action="ignore"):
        from transformers import (
            BertConfig,
            BertForSequenceClassification,
            Trainer,
            TrainerCallback,
            TrainingArguments,
        )

    class Update(TrainerCallback):  # type: ignore[misc]
        def on_optimizer_step(self, *_: Any, **__: Any) -> None:
            trainer.ordering.update()

    class OrderedTrainer(Trainer):  # type: ignore[misc]
        def create_optimizer(self, *args: Any) -> torch.optim.Optimizer:
            optimizer: torch.optim.Optimizer = super().create_optimizer(*args)
            self.ordering = Ordering(self.model, optimizer)
            return optimizer

        def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], **_: Any) -> Tensor:
            labels = inputs.pop("labels")
            return self.ordering.loss(
                lambda: model(**inputs).logits, lambda logits: F.cross_entropy(logits, labels)
            )

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128
    )
    model = order(BertForSequenceClassification(config))
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=60,
        per_device_train_batch_size=32,
        learning_rate=3e-3,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_steps=10,
        disable_tqdm=True,
    )
    trainer = OrderedTrainer(model=model, args=arguments, train_dataset=Sentences(512), callbacks=[Update()])

    trainer.train()

    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert trainer.ordering.step == 60
    assert len(ordered_layers(model)) > 4
    assert losses[-1] < 0.7 * losses[0]
