"""What a run says of its classes, and when it ends by itself."""

import csv
import json
import logging
import math

import pytest
from fake_data import FAKE
from image_folders import write_image
from tiny_network import TINY

from tinytl.experiment.program import run
from tinytl.training.classifier import ImageClassifier


def test_the_record_has_every_class(ran, tmp_path, caplog):
    """The figures of the classes add up to those of all images; an output without a class is one, too."""
    caplog.set_level(logging.INFO, "tinytl")
    results = ran(*FAKE, "data.num_classes=4", "data.val_fraction=0.2", "trainer.limit_test_batches=1.0")
    classes, metrics = results["classes"], results["metrics"]
    assert {name: figures["images"] for name, figures in classes.items()} == {
        **dict.fromkeys("abc", 2), "output 3": 0,
    }  # fmt: skip
    recalls = [classes[name]["recall"] for name in "abc"]
    assert classes["output 3"]["recall"] is None
    for key in ("test/top1", "test/balanced_accuracy"):  # classes of two images each
        assert metrics[key] == pytest.approx(sum(recalls) / 3, abs=1e-6)
    assert 0 <= metrics["val/balanced_accuracy"] <= 1
    assert results["curves"]["val/balanced_accuracy"] == pytest.approx(
        [metrics["val/balanced_accuracy"]], abs=1e-6
    )
    with (tmp_path / "run" / "confusion.csv").open(newline="") as file:
        rows = {name: list(map(int, counts)) for name, *counts in list(csv.reader(file))[1:]}
    assert [rows[name][i] / 2 for i, name in enumerate("abc")] == recalls
    assert (tmp_path / "run" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert "lowest recall: " in caplog.text and results["stopped_early_after_epoch"] is None


def test_a_picture_that_fails_costs_no_results(ran, monkeypatch, caplog):
    def failing(*_):
        raise RuntimeError("no fonts")

    monkeypatch.setattr("tinytl.experiment.record.predictions.draw_confusion", failing)
    assert ran(*FAKE)["status"] == "finished"
    assert "confusion.png could not be written (RuntimeError: no fonts)" in caplog.text


def test_a_table_of_labels(ran, tmp_path):
    """The task is the table's; rare labels count in the loss, and the best weights are found by them."""
    rows = [f"{number}.png,{number % 2},{int(number % 5 == 0)}" for number in range(20)]
    for number in range(20):
        write_image(tmp_path / f"{number}.png", (40, 40))
    (tmp_path / "table.csv").write_text("\n".join(["path,odd,fifth", *rows]))
    small = ["resolution=32", "data.workers=0", "epochs=2", "data.val_fraction=0.25", *TINY]
    results = ran("data=table", f"data.csv={tmp_path}/table.csv", "class_weights=balanced", *small)
    assert results["config"]["data"]["task"] == "multilabel" and results["asked"]["data.task"] == "auto"
    assert results["data"]["images"] == {"train": 16, "test": 4}
    classes, metrics = results["classes"], results["metrics"]
    precisions = [of["average_precision"] for of in classes.values() if of["images"]]
    assert list(classes) == ["odd", "fifth"]
    assert metrics["test/mean_average_precision"] == pytest.approx(
        sum(precisions) / len(precisions), abs=1e-6
    )
    assert {"test/mean_accuracy", "val/mean_accuracy"} <= set(metrics)
    curve = results["curves"]["val/mean_average_precision"]
    assert metrics["val/mean_average_precision"] == pytest.approx(max(curve), abs=1e-6)
    assert not (tmp_path / "run" / "confusion.csv").exists()


# Validation by epoch: the third of the first five is best, because its loss is lower than the second's.
TOP1 = (0.5, 0.75, 0.75, 0.6, 0.75, 0.9, 0.9, 0.9)
LOSS = (1.0, 0.9, 0.8, 0.7, 0.85, 0.1, 0.1, 0.1)
PATIENT = [*FAKE, "patience=2", "epochs=8", "data.val_fraction=0.2", "lr=1e-3", "batch_size=2"]


@pytest.fixture
def scripted(monkeypatch):
    """Lets every epoch have the validation of TOP1 and LOSS; the learning rates of all steps."""
    rates = []
    step = ImageClassifier.optimizer_step

    def validated(self):
        self.log("val/top1", TOP1[self.current_epoch])
        self.log("val/loss", LOSS[self.current_epoch])

    def noting(self, epoch, batch_idx, optimizer, *rest, **more):
        rates.append(optimizer.param_groups[0]["lr"])
        return step(self, epoch, batch_idx, optimizer, *rest, **more)

    monkeypatch.setattr(ImageClassifier, "validation_step", lambda *_: None)
    monkeypatch.setattr(ImageClassifier, "on_validation_epoch_end", validated)
    monkeypatch.setattr(ImageClassifier, "optimizer_step", noting)
    return rates


def record_of(folder):
    record = json.loads((folder / "results.json").read_text())
    return {key: record[key] for key in ("status", "stopped_early_after_epoch", "metrics", "curves")}


def test_training_ends_when_validation_does_not_improve(configured, tmp_path, scripted):
    """Two epochs after the best one, on the schedule of all epochs; a later, better one is not waited for."""
    run(configured(*PATIENT))
    record = record_of(tmp_path / "run")
    assert (record["status"], record["stopped_early_after_epoch"]) == ("finished", 5)
    assert record["curves"]["epoch"] == [1, 2, 3, 4, 5] and record["metrics"]["val/loss"] == 0.8
    cosine = [0.5e-3 * (1 + math.cos(math.pi * step / 16)) for step in range(10)]
    assert scripted == pytest.approx(cosine, rel=1e-5)


@pytest.mark.parametrize("epoch", [1, 4])
def test_a_resumed_run_ends_at_the_same_epoch(configured, tmp_path, scripted, monkeypatch, epoch):
    """Interrupted in an epoch before the end, and in the test, when training had ended."""
    run(configured(*PATIENT, "name=whole"))
    part, step = ("training_step", 2 * epoch - 1) if epoch < 4 else ("test_step", 0)
    original, calls = getattr(ImageClassifier, part), []

    def failing(self, *batch):
        calls.append(batch)
        if len(calls) > step:
            raise OSError("a bad disk")
        return original(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(ImageClassifier, part, failing)
        with pytest.raises(OSError, match="a bad disk"):
            run(configured(*PATIENT, "name=other"))
    scripted.clear()
    run(configured(*PATIENT, "name=other", "resume=true"))
    assert record_of(tmp_path / "other") == record_of(tmp_path / "whole")
    assert len(scripted) == (0 if epoch == 4 else 10)


def test_patience_that_is_not_needed(configured, tmp_path, scripted):
    run(configured(*PATIENT, "epochs=5"))  # the last epoch is no early one
    assert record_of(tmp_path / "run")["stopped_early_after_epoch"] is None
