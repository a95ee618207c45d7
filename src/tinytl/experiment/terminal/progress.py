"""The progress of a training and its test: a bar on a terminal, a line from time to time elsewhere."""

import sys
import time
from typing import Any

from pytorch_lightning import Callback, Trainer
from rich.progress import BarColumn, Progress, TextColumn

from tinytl.experiment.terminal.console import console
from tinytl.records.durations import time_left

LINE_EVERY_SECONDS = 60.0  # where the lines go to a file


class ShowProgress(Callback):
    """Shows how far a whole training is, not only its epoch, and the time left."""

    def __init__(self) -> None:
        self._bar: Progress | None = None

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Begin to count, from where a resumed run goes on."""
        batches = int(trainer.num_training_batches)
        done = trainer.current_epoch * batches + trainer.fit_loop.epoch_loop.batch_progress.current.ready
        self._begin(trainer, "training", done, (trainer.max_epochs or 1) * batches)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Count a batch."""
        self._count(f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}")

    def on_test_start(self, trainer: Trainer, *_: Any) -> None:
        """Begin to count the batches of the test."""
        self._begin(trainer, "test", 0, int(sum(trainer.num_test_batches)))

    def on_test_batch_end(self, *_: Any) -> None:
        """Count a batch."""
        self._count("test")

    def on_train_end(self, *_: Any) -> None:
        """End the progress of the training."""
        self._end()

    def on_test_end(self, *_: Any) -> None:
        """End the progress of the test."""
        self._end()

    def on_exception(self, *_: Any) -> None:
        """Leave no bar above the error."""
        self._end()

    def _begin(self, trainer: Trainer, doing: str, done: int, total: int) -> None:
        """Start the clock and, on a terminal, the bar; `done` of `total` batches are over already."""
        self._first, self._done, self._total = done, done, total
        self._begun = self._said = time.perf_counter()
        self._shown = trainer.is_global_zero and not console.quiet
        if self._shown and console.is_terminal:
            columns = ("{task.description}", "{task.percentage:3.0f} %", "{task.fields[left]}")
            doing_now, share, left = map(TextColumn, columns)
            self._bar = Progress(doing_now, BarColumn(), share, left, console=console, transient=True)
            self._bar.start()
            self._bar.add_task(doing, completed=done, total=total, left="")

    def _count(self, doing: str) -> None:
        """Count a batch, and show it on the bar or, from time to time, in a line."""
        self._done += 1
        now = time.perf_counter()
        left = (now - self._begun) / (self._done - self._first) * (self._total - self._done)
        if self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0], completed=self._done, description=doing, left=time_left(left)
            )
        elif self._shown and now - self._said > LINE_EVERY_SECONDS:
            self._said = now
            share = 100 * self._done / self._total
            print(f"{share:.0f} % done ({doing}), {time_left(left)}", file=sys.stderr, flush=True)

    def _end(self) -> None:
        """Take the bar away, if there is one."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
