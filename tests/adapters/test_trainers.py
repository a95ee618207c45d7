"""An adapted network in people's own loops and trainers: the same steps as in stock PyTorch."""

import copy
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import tiny_network  # noqa: F401  (registers tinytl_tiny)
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

import tinytl
from tinytl.weights.own_checkpoints import trainable_state

# isort: split
import pytorch_lightning as lightning
import timm
from pytorch_lightning.callbacks import StochasticWeightAveraging
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3

IMAGES = torch.randn(8, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 3
SETTINGS: dict[str, Any] = {"method": "tinytl", "trained_blocks": 2}


class Pictures(Dataset):
    """Eight images as transformers' Trainer takes them."""

    def __len__(self) -> int:
        return len(IMAGES)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"images": IMAGES[index], "labels": LABELS[index]}


def stock_and_lean() -> list[Any]:
    """The same adapted network on stock PyTorch and on the lean engine, in float64."""
    networks = []
    for lean in (False, True):
        torch.manual_seed(0)
        network = timm.create_model("tinytl_tiny", num_classes=3).double()
        networks.append(tinytl.adapt(network, tinytl.Config(**SETTINGS, lean=lean), images=IMAGES))
    return networks


def trained(network) -> list[nn.Parameter]:
    return [p for p in network.parameters() if p.requires_grad]


def step(network, images=IMAGES, labels=LABELS):
    F.cross_entropy(network(images), labels).backward()


def plain_loop(network):
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    for _ in range(2):
        network.train()
        for part in (slice(0, 4), slice(4, 8)):
            step(network, IMAGES[part], LABELS[part])
        nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        network.eval()
    return network


class Module(lightning.LightningModule):
    """A module of the user's own, which knows nothing of tinytl."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        return F.cross_entropy(self.network(batch["images"]), batch["labels"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def lightning_fit(network, module=Module, **flags):
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **flags,
    )  # fmt: skip
    trainer.fit(module(network), DataLoader(Pictures(), batch_size=2))  # type: ignore[arg-type]
    return network


def lightning_flags(network):
    return lightning_fit(network, max_epochs=2, gradient_clip_val=0.5, accumulate_grad_batches=2)


class AverageOfFrozenStatistics(StochasticWeightAveraging):
    """Leaves BatchNorm alone, as it does in the lean network; in the stock one it would forget statistics."""

    @staticmethod
    def pl_module_contains_batch_norm(_: Any) -> bool:
        return False


def lightning_averages(network):
    kind = StochasticWeightAveraging if network.tinytl.config.lean else AverageOfFrozenStatistics
    return lightning_fit(network, max_epochs=3, callbacks=[kind(swa_lrs=0.05, swa_epoch_start=1)])


def transformers_trainer(network):
    transformers = pytest.importorskip("transformers")

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: Any, labels: Any) -> dict[str, Any]:
            logits = self.network(images)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    with TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder, per_device_train_batch_size=4, num_train_epochs=2, learning_rate=0.01,
            max_grad_norm=0.5, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True,
            logging_strategy="no",
        )  # fmt: skip
        transformers.Trainer(Wrapped(), arguments, train_dataset=Pictures()).train()
    return network


def accelerate_loop(network):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    optimizer = torch.optim.Adam(trained(network), lr=0.01)
    model, optimizer, loader = accelerator.prepare(network, optimizer, DataLoader(Pictures(), batch_size=2))
    model.train()
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(F.cross_entropy(model(batch["images"]), batch["labels"]))
            accelerator.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
    assert accelerator.unwrap_model(model) is network
    return network


def timm_idioms(network):
    """Layer-wise learning rates, a moving average of the weights; the average is what is returned."""
    optimizer = create_optimizer_v2(network, opt="adamw", lr=0.01, weight_decay=0.05, layer_decay=0.7)
    average = ModelEmaV3(network, decay=0.5)
    for number in range(3):
        network.train()
        step(network)
        optimizer.step()
        optimizer.zero_grad()
        average.update(network, number)
    average.module.eval()(IMAGES)
    return average.module


LOOPS = [
    plain_loop, lightning_flags, lightning_averages, transformers_trainer, accelerate_loop, timm_idioms,
]  # fmt: skip


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_every_trainer_takes_the_same_steps_as_in_stock_pytorch(loop):
    stock, lean = stock_and_lean()
    before = copy.deepcopy(trainable_state(lean, "bn_frozen"))
    stock, lean = loop(stock), loop(lean)
    expected, found = (trainable_state(network, "bn_frozen") for network in (stock, lean))
    assert not torch.equal(found["classifier.weight"], before["classifier.weight"])
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-8, atol=1e-9, msg=name)
    frozen = [b for name, b in lean.named_buffers() if name.endswith("running_mean")]
    assert all(torch.equal(a, b) for a, b in zip(frozen, _means(stock), strict=True))


def _means(network):
    return [b for name, b in network.named_buffers() if name.endswith("running_mean")]


def spending() -> Any:
    torch.manual_seed(0)
    network = timm.create_model("tinytl_tiny", num_classes=3).double()
    plan = tinytl.EnginePlan(step_in_backward=True)
    return tinytl.adapt(network, tinytl.Config(method="bias", plan=plan))


class Spending(Module):
    def configure_optimizers(self) -> Any:
        return tinytl.adam(self.network, 0.01)


def test_steps_in_the_backward_pass_are_adam_s_in_a_trainer_and_refuse_its_flags():
    network = lightning_fit(spending(), Spending, max_epochs=1)
    expected = spending()
    optimizer = torch.optim.Adam(trained(expected), lr=0.01)
    for part in range(0, 8, 2):
        step(expected, IMAGES[part : part + 2], LABELS[part : part + 2])
        optimizer.step()
        optimizer.zero_grad()
    for a, b in zip(trained(network), trained(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
    for flags, message in (
        ({"gradient_clip_val": 0.5}, "none is left to be clipped"),
        ({"accumulate_grad_batches": 2}, "a second backward pass"),
    ):
        with pytest.raises(tinytl.UserError, match=message):
            lightning_fit(spending(), Spending, max_epochs=1, **flags)
