"""A run in several processes logs once, has one record, and counts the figures of all processes."""

import json
import re

from fake_data import FAKE
from processes import ROOT


def test_two_processes_on_the_cpu(program, tmp_path, monkeypatch):
    """With W&B as it is by default; each epoch is told once, and the weights of both are the same."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    settings = [*FAKE, "batch_size=2", "epochs=2", "data.val_fraction=0.2", "lr=1e-3", "dropout=0"]
    done = program(*settings, "trainer.devices=2", "trainer.accelerator=cpu", "name=two")
    assert done.returncode == 0, done.stderr
    assert [len(re.findall(rf"^epoch {n}/2 ", done.stderr, re.MULTILINE)) for n in (1, 2)] == [1, 1]
    for label in ("network", "trains", "accuracy", "results"):
        assert len(re.findall(rf"^{label} ", done.stderr, re.MULTILINE)) == 1, label
    two = json.loads((tmp_path / "outputs" / "two" / "results.json").read_text())
    assert two["status"] == "finished" and list(
        (tmp_path / "outputs" / "two" / "wandb").glob("offline-run-*")
    )
    # Two processes with batches of 2 see the same images in a step as one with batches of 4.
    done = program(*settings, "batch_size=4", "wandb=disabled", "name=one")
    assert done.returncode == 0, done.stderr
    one = json.loads((tmp_path / "outputs" / "one" / "results.json").read_text())
    # Every process tests all six images, and each image counts once.
    assert [of["images"] for of in two["classes"].values()] == [2, 2, 2]
    for curve in ("train/loss", "val/loss"):
        for mine, theirs in zip(one["curves"][curve], two["curves"][curve], strict=True):
            assert abs(mine - theirs) < 1e-3 * abs(mine), curve
