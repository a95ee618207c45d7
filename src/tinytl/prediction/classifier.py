"""A classifier ready to predict, wherever it comes from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tinytl.data.decoding import open_rgb
from tinytl.prediction.adapter import lean, load_adapter
from tinytl.prediction.adapter_files import is_exported
from tinytl.prediction.description import Description
from tinytl.prediction.exported_files import Logits, open_exported


@dataclass(frozen=True)
class Prediction:
    """The probabilities of one image, (classes,), and the number of its true class where that is known."""

    image: str
    probabilities: Tensor
    label: int | None = None


@dataclass(frozen=True)
class Classifier:
    """A function from images to logits, and what is needed to use it."""

    logits: Logits
    description: Description
    device: torch.device

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Tensor:
        """(batch, 3, R, R) -> (batch, classes): they sum to 1, or are independent for several labels."""
        logits = self.logits(images.to(self.device)).float().cpu()
        return logits.sigmoid() if self.description.task == "multilabel" else logits.softmax(dim=1)

    def predict(
        self, paths: Sequence[Path], labels: Sequence[int] | None, batch_size: int
    ) -> Iterator[Prediction]:
        """Yield the prediction of each image file, decoded as for the test of training. Raises UserError."""
        transform = self.description.transform()
        for begin in range(0, len(paths), batch_size):
            batch = paths[begin : begin + batch_size]
            images = torch.stack([transform(open_rgb(path)) for path in batch])
            for offset, probabilities in enumerate(self.probabilities(images)):
                label = None if labels is None else labels[begin + offset]
                yield Prediction(str(batch[offset]), probabilities, label)


def open_classifier(source: str, device: torch.device) -> Classifier:
    """Open a run, an adapter or an exported file. Raises UserError where that fails.

    An adapter runs on the lean engine with its frozen weights in 8 bits, an exported file on the CPU.
    """
    if is_exported(source):
        logits, description = open_exported(source)
        return Classifier(logits, description, torch.device("cpu"))
    adapter = load_adapter(source)
    return Classifier(lean(adapter, device), adapter.description, device)
