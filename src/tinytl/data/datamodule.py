"""Load batches from splits, in orders that a resumed run repeats."""

import os
import signal
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from tinytl.data.images import Transformed
from tinytl.data.splits import Splits, held_out
from tinytl.data.transforms import test_transform, train_transform
from tinytl.errors import UserError
from tinytl.system.child_process import end_with_parent

DRIFT_SPREAD = 0.25  # share of the stream over which the images of a class are spread


class EpochShuffle(Sampler[int]):
    """A new order for each epoch, which depends on seed and epoch alone, so that a resumed run repeats it.

    It yields the first `count` of `size` images in that order, as keys of `Transformed`. Each of several
    processes gets its part of them.
    """

    def __init__(self, size: int, count: int, seed: int, epoch: int = 0) -> None:
        self.size, self.count, self.seed, self.epoch = size, count, seed, epoch
        self.rank, self.processes = _process()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before each one."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count // self.processes

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.size, generator=generator)[: len(self) * self.processes]
        return iter((self.epoch * self.size + order[self.rank :: self.processes]).tolist())


class Drift(Sampler[int]):
    """Yields each image once, while classes come and go: at any time about a quarter of them is seen.

    The order of the classes, and of the images, depends on `seed`.
    """

    def __init__(self, labels: Sequence[int], seed: int) -> None:
        self.labels, self.seed = torch.as_tensor(labels), seed

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        classes = int(self.labels.max()) + 1
        # (N,): when the image's class begins, in 0 ... 1
        turn = torch.randperm(classes, generator=generator)[self.labels] / classes
        arrival = turn + DRIFT_SPREAD * torch.rand(len(turn), generator=generator)
        return iter(arrival.argsort().tolist())


class Resumed(Sampler[int]):
    """Another sampler's order; the first pass leaves out the images seen before an interruption.

    Its length stays that of a whole pass, because Lightning's count includes the batches that were seen.
    """

    def __init__(self, order: EpochShuffle | Drift, seen: int) -> None:
        self.order, self.seen = order, seen

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before each one."""
        if isinstance(self.order, EpochShuffle):
            self.order.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        seen, self.seen = self.seen, 0
        return islice(self.order, seen, None)


def _process() -> tuple[int, int]:
    """(rank, number of processes) of a distributed run."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _label(splits: Splits, position: int) -> int:
    """The class of a training image. Raises UserError where images have no single class."""
    if splits.train_labels is None:
        raise UserError("data.drift=true: the images have no single class to come and go")
    return splits.train_labels[position]


class ImageDataModule(LightningDataModule):
    """Training, validation and test batches of images (B, 3, R, R) and targets.

    The validation set is the data's own, or else `val_fraction` of every class of the training set, held out
    by `seed`; it gets the test transforms. The last, smaller training batch is dropped unless it is the only
    one. Batches are loaded as micro-batches of `micro_batch` images, also for evaluation, which then needs no
    more memory than training.

    With `stream` the training images have no random transforms. With `drift` their classes come and go
    (`Drift`), which raises UserError where the data have no class numbers.
    """

    def __init__(
        self,
        *,
        splits: Splits,
        resolution: int,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        crop_scale_min: float = 0.22,
        flip: bool = True,
        color_jitter: Sequence[float] | None = None,
        micro_batch: int | None = None,
        val_fraction: float = 0.0,
        stream: bool = False,
        drift: bool = False,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.workers, self.seed = workers, seed
        train: Sequence[int] = range(len(splits.train))
        val: Sequence[int] = ()
        if val_fraction > 0 and splits.val is None:
            train, val = held_out(len(train), val_fraction, splits.train_labels, seed, splits.class_names)
        augment = train_transform(resolution, mean, std, crop_scale_min, flip, color_jitter)
        self.batch_size = min(batch_size, len(train))  # images per training step
        self.micro_batch = min(micro_batch or batch_size, batch_size)  # images loaded at a time
        plain = test_transform(resolution, mean, std)
        self.train_set = Transformed(splits.train, train, plain if stream else augment, seed)
        self.drifting = [_label(splits, i) for i in train] if drift else None
        self.plain_train_set = Transformed(splits.train, train, plain)
        self.val_set = Transformed(splits.train, val, plain)
        if splits.val is not None:
            self.val_set = Transformed(splits.val, range(len(splits.val)), plain)
        self.test_set = Transformed(splits.test, range(len(splits.test)), plain)
        self._place = {"epoch": 0, "batches": 0}  # where training begins: epoch, micro-batches of it seen

    @property
    def train_targets(self) -> list[Any]:
        """The targets of the images that are trained on, without those held out."""
        return [self.train_set.dataset.targets[position] for position in self.train_set.positions]

    def example_images(self, count: int) -> Tensor:
        """Return up to `count` transformed training images, chosen by `seed`: (N, 3, R, R)."""
        order = torch.randperm(len(self.train_set), generator=torch.Generator().manual_seed(self.seed))
        return torch.stack([self.train_set[position][0] for position in order[:count].tolist()])

    def train_dataloader(self) -> DataLoader:
        """Load whole batches in the epoch's order, or a drifting stream, from where training begins."""
        if self.drifting:
            order: EpochShuffle | Drift = Drift(self.drifting, self.seed)
        else:
            step_images = self.batch_size * _process()[1]  # what all processes together see in a step
            count = len(self.train_set) // step_images * step_images or len(self.train_set)
            order = EpochShuffle(len(self.train_set), count, self.seed, self._place["epoch"])
        seen = self._place["batches"] * self.micro_batch
        return self._loader(self.train_set, sampler=Resumed(order, seen))

    def state_dict(self) -> dict[str, int]:
        """The epoch to go on with, and how many of its micro-batches were seen."""
        trainer: Any = self.trainer
        seen = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        if seen >= trainer.num_training_batches:
            return {"epoch": trainer.current_epoch + 1, "batches": 0}
        return {"epoch": trainer.current_epoch, "batches": seen}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let training begin where a checkpoint was saved."""
        self._place = state_dict

    def images_once_dataloader(self) -> DataLoader:
        """Load every training image in every process, in random order, without random transforms."""
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(self.plain_train_set), generator=generator).tolist()
        return self._loader(self.plain_train_set, sampler=order)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Load the validation set; [] if there is none."""
        return self._loader(self.val_set) if len(self.val_set) else []

    def test_dataloader(self) -> DataLoader:
        """Load the test set in order."""
        return self._loader(self.test_set)

    def _loader(self, dataset: Transformed, **options: Any) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=self.micro_batch,
            num_workers=self.workers,
            worker_init_fn=_apart_from_the_terminal if self.workers else None,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # not the global one, which is seeded per epoch for dropout
            **options,
        )


def _apart_from_the_terminal(worker: int) -> None:
    """Let Ctrl-C reach only the main process, which ends its workers after it has saved its state."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    end_with_parent()
