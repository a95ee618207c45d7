"""The LightningModule that trains and tests a network."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor
from torchmetrics import MeanMetric, Metric, MetricCollection

from tinytl.data.splits import Task
from tinytl.errors import UserError
from tinytl.evaluation.metrics import class_metrics, label_metrics
from tinytl.methods import set_train_mode
from tinytl.networks.norms import NormName
from tinytl.training.losses import evaluation_loss, training_loss
from tinytl.training.schedule import cosine_after_warm_up, parameter_groups
from tinytl.weights.own_checkpoints import trainable_state
from tinytl.weights.weight_files import OWN


class ImageClassifier(LightningModule):
    """Trains what `tinytl.methods.freeze` left trainable, with Adam and a cosine schedule per step to zero.

    `lr` first rises, over a share `warmup` of the steps. `classifier_lr` is that of the classifier (None:
    `lr`). A step's loss is the mean over `batch_size` images, whatever the number of micro-batches (the
    Trainer's `accumulate_grad_batches`).

    `class_weights` weigh the images in the loss of training (`tinytl.training.class_weights`; None: all
    alike). The losses of validation and test are not weighted, so that runs compare.

    Metrics are fractions: `top1`, `top5` and `balanced_accuracy`, or for a multilabel task the means over the
    labels, `mean_accuracy` and `mean_average_precision`. With `stream`, every image is predicted before it
    is trained on (prequential evaluation, Gama et al., 2013): `stream/top1`. After a test, `tested()` returns
    all predictions.

    `optimizer` is called with parameters, lr and weight_decay. `record` goes into every checkpoint
    (`tinytl.weights.own_checkpoints.own_record`).
    """

    # Checkpoints hold only the trainable parameters; the rest comes from the starting weights.
    strict_loading = False  # type: ignore[assignment]

    def __init__(
        self, network: Any, norm: NormName, *, num_classes: int, task: Task, lr: float,
        batch_size: int, label_smoothing: float, weight_decay: float = 0.0, seed: int = 0,
        warmup: float = 0.0, classifier_lr: float | None = None, stream: bool = False,
        class_weights: Tensor | None = None,
        optimizer: Callable[..., Any] = torch.optim.Adam, record: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.network = network
        self.task: Task = task
        self.norm: NormName = norm
        self.lr, self.label_smoothing, self.weight_decay = lr, label_smoothing, weight_decay
        self.batch_size, self.optimizer = batch_size, optimizer
        self.record, self.seed = record or {}, seed
        self.warmup, self.classifier_lr = warmup, classifier_lr
        metrics = label_metrics(num_classes) if task == "multilabel" else class_metrics(num_classes)
        self.train_loss = MeanMetric()
        self.val_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")
        self.stream_metrics = _of_a_stream(metrics) if stream else None
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", class_weights, persistent=False)
        self._tested: list[tuple[Tensor, Tensor]] = []

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, R, R) -> logits (B, num_classes), before softmax or sigmoid."""
        return self.network(images)

    def train(self, mode: bool = True) -> "ImageClassifier":
        """Set the training mode; frozen layers keep behaving as frozen."""
        super().train(mode)
        if mode:
            set_train_mode(self.network, self.norm)
        return self

    def epoch_metrics(self) -> Mapping[str, Metric]:
        """The metrics that add up over an epoch of training."""
        stream = {} if self.stream_metrics is None else dict(self.stream_metrics.items())
        return {"train/loss": self.train_loss, **stream}

    def on_train_start(self) -> None:
        """Set the modes, and follow the new schedule if a resumed run trains for more epochs than before."""
        self.train()
        schedule: Any = self.lr_schedulers()
        for group, highest, factor in zip(
            schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
        ):
            group["lr"] = highest * factor(schedule.last_epoch)

    def on_train_epoch_start(self) -> None:
        """Seed dropout and augmentation by seed and epoch alone, so that a resumed run does not differ."""
        self.train()  # Lightning leaves the mode as it finds it
        torch.manual_seed(self.seed + self.current_epoch)

    def training_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss as a mean over images, with label smoothing and the weights of classes or labels."""
        return training_loss(logits, targets, self.task, self.label_smoothing, self.class_weights)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return a micro-batch's loss, weighted by its share of the batch.

        Raises UserError where the loss is not finite.
        """
        images, targets = batch
        if self.stream_metrics:
            self._predict_first(images, targets, self.stream_metrics)
        loss = self.training_loss(self(images), targets)
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss became {loss.item()} at step {self.global_step} (epoch {self.current_epoch}); "
                f"a smaller lr than {self.lr} may help"
            )
        self.train_loss.update(loss.detach(), len(images))
        self.log("train/loss_step", loss, prog_bar=True, on_step=True, on_epoch=False)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, batch_size=len(images))
        # Lightning divides each loss by the number of micro-batches, which may differ in size.
        return loss * (len(images) * self.trainer.accumulate_grad_batches / self.batch_size)

    @torch.no_grad()
    def _predict_first(self, images: Tensor, targets: Tensor, metrics: MetricCollection) -> None:
        """Count how well a stream's images are predicted before they are trained on."""
        self.eval()
        metrics.update(self._scores(self(images)), targets.long())
        self.train()
        self.log_dict(metrics, on_step=False, on_epoch=True, batch_size=len(images))  # type: ignore[arg-type]

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log loss and metrics of images (B, 3, R, R) and targets under `val/`."""
        self._evaluate(batch, "val", self.val_metrics)

    def on_test_start(self) -> None:
        """Forget the predictions of an earlier test."""
        self._tested = []

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the same under `test/`, and keep the predictions."""
        scores = self._evaluate(batch, "test", self.test_metrics)
        predicted = scores if self.task == "multilabel" else scores.argmax(dim=1)
        self._tested.append((predicted.cpu(), batch[1].cpu()))

    def tested(self) -> tuple[Tensor, Tensor]:
        """The predictions of the last test and the targets: class numbers, each of shape (images,).

        For a multilabel task they are probabilities, and zeros and ones, each of shape (images, labels).
        """
        predicted, targets = zip(*self._tested, strict=True)
        return torch.cat(predicted), torch.cat(targets)

    def _evaluate(self, batch: tuple[Tensor, Tensor], split: str, metrics: MetricCollection) -> Tensor:
        """Log loss and metrics of a batch under `split/`; return what the metrics took."""
        images, targets = batch
        logits = self(images)
        scores = self._scores(logits)
        metrics.update(scores, targets.long())
        loss = evaluation_loss(logits, targets, self.task)
        self.log(f"{split}/loss", loss, batch_size=len(images), sync_dist=True)
        self.log_dict(metrics, prog_bar=True, batch_size=len(images))  # type: ignore[arg-type]
        return scores

    def _scores(self, logits: Tensor) -> Tensor:
        """What metrics take: logits, or the probabilities of labels.

        torchmetrics would take the logits of labels for probabilities wherever a batch's all lie in 0 ... 1.
        """
        return logits.sigmoid() if self.task == "multilabel" else logits

    def configure_optimizers(self) -> Any:
        """Return the optimizer, with the classifier's own rate if it has one, and the schedule."""
        groups = parameter_groups(self.network, self.classifier_lr)
        optimizer = self.optimizer(groups, lr=self.lr, weight_decay=self.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        rising = round(self.warmup * steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: cosine_after_warm_up(step, steps, rising)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Step, and free the gradients at once: none is held through the next forward pass."""
        super().optimizer_step(epoch, batch_idx, optimizer, *args, **kwargs)
        optimizer.zero_grad()

    def state_dict(self, *args: Any, prefix: str = "", **options: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """What training may change, for checkpoints: frozen weights are not expanded for them."""
        state = trainable_state(self.network, self.norm)
        return {f"{prefix}network.{name}": tensor for name, tensor in state.items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the weights that train, and the record of what the network is made from, into a checkpoint."""
        checkpoint["state_dict"] = self.state_dict()
        checkpoint[OWN] = self.record


def _of_a_stream(metrics: MetricCollection) -> MetricCollection:
    """The metrics whose states are single tensors, which a checkpoint within an epoch can hold."""
    kept = {name: metric for name, metric in metrics.items() if name in ("top1", "top5", "mean_accuracy")}
    return MetricCollection(kept, compute_groups=False).clone(prefix="stream/")  # type: ignore[arg-type]
