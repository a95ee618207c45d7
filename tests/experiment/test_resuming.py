"""Stopped runs go on bit for bit as if never stopped, or are refused, and lose nothing that was there."""

import json
import logging
import os
import signal
from pathlib import Path

import pytest
import torch
from fake_data import FAKE
from filelock import FileLock
from safetensors.torch import load_file

from tinytl.errors import UserError
from tinytl.experiment.program import run
from tinytl.training.checkpoints import PREVIOUS, read_checkpoint
from tinytl.training.classifier import ImageClassifier
from tinytl.training.stopping import Stopped

# 12 images in batches of 2: six steps an epoch, each image with its random crops
LONG = [*FAKE, "batch_size=2", "epochs=3", "trainer.limit_train_batches=1.0", "data.val_fraction=0.2"]
LONG += ["checkpoint_every_minutes=1000"]


@pytest.fixture(autouse=True)
def every_line(caplog):
    """What the program says at all is captured."""
    caplog.set_level(logging.INFO, "tinytl")


@pytest.fixture
def stopped_at(configured, monkeypatch):
    """Runs a configuration that is sent a signal in a step of its training."""

    def run_with(step, *overrides, signum=signal.SIGTERM):
        original, calls = ImageClassifier.training_step, []

        def counting(self, *batch):
            calls.append(batch)
            if len(calls) == step:
                os.kill(os.getpid(), signum)
            return original(self, *batch)

        with monkeypatch.context() as patch:
            patch.setattr(ImageClassifier, "training_step", counting)
            with pytest.raises(Stopped) as stop:
                run(configured(*overrides))
        return stop.value

    return run_with


def outcome(folder):
    """What must not differ between a run that was stopped and one that was not."""
    record = json.loads((folder / "results.json").read_text())
    weights = load_file(folder / "adapter" / "adapter_model.safetensors")
    kept = {key: record[key] for key in ("status", "metrics", "classes", "curves", "params", "fingerprint")}
    return kept | {"weights": {name: tensor.numpy().tobytes() for name, tensor in weights.items()}}


STREAM = ["data.stream=true", "epochs=1", "batch_size=1", "data.val_fraction=0"]


@pytest.mark.parametrize(
    ("step", "settings"),
    [
        (3, ["data.workers=0"]),
        (9, ["engine.step_in_backward=true", "data.workers=2"]),
        (6, ["engine=stock", "norm=bn", "warmup=0.3", "data.workers=2"]),  # the last step of an epoch
        (
            17,
            ["engine.micro_batch=1", "classifier=class_means", "class_weights=balanced"],
        ),  # within a step of two micro-batches
        (5, [*STREAM, "data.workers=2"]),
        (7, [*STREAM, "data.drift=true"]),
        (11, ["engine.optimizer_bits=8", "norm=bn_frozen", "method=full"]),
    ],
)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(configured, stopped_at, tmp_path, step, settings):
    if "engine.optimizer_bits=8" in settings:
        pytest.importorskip("bitsandbytes")
    settings = [*LONG, *settings]
    run(configured(*settings, "name=whole"))
    stopped_at(step, *settings, "name=other")
    assert json.loads((tmp_path / "other" / "results.json").read_text())["status"] == "interrupted"
    run(configured(*settings, "name=other", "resume=true"))
    assert outcome(tmp_path / "other") == outcome(tmp_path / "whole")


def test_state_is_saved_every_few_minutes_within_an_epoch(configured, tmp_path, monkeypatch):
    """Killed without a word in step 5 of a stream: at most the time between two savings is lost."""
    settings = [*LONG, "data.stream=true", "epochs=1", "batch_size=1", "data.val_fraction=0"]
    run(configured(*settings, "name=whole"))
    original = ImageClassifier.training_step

    def dying(self, batch, batch_idx):
        if batch_idx == 5:
            raise MemoryError("as a kill would: nothing more is saved")
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(ImageClassifier, "training_step", dying)
        with pytest.raises(MemoryError):
            run(configured(*settings, "name=other", "checkpoint_every_minutes=1e-9"))
    assert read_checkpoint(tmp_path / "other" / "checkpoints" / "last.ckpt")["global_step"] == 5
    run(configured(*settings, "name=other", "resume=true"))
    assert outcome(tmp_path / "other") == outcome(tmp_path / "whole")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_with_its_exit_code_and_a_line(stopped_at, caplog, signum, code):
    stop = stopped_at(2, *LONG, signum=signum)
    assert stop.exit_code == code
    assert caplog.messages[-1].startswith(f"stopped by {signal.Signals(signum).name}; go on with: python")
    assert caplog.messages[-1].endswith("resume=true")


def test_last_is_the_last_epoch_and_best_the_best(ran, tmp_path):
    """A learning rate of nearly nothing: all epochs are equally good, and Lightning would keep the first."""
    ran(*LONG, "lr=1e-12")
    folder = tmp_path / "run" / "checkpoints"
    assert read_checkpoint(folder / "last.ckpt")["epoch"] == 2
    assert read_checkpoint(folder / "previous.ckpt")["epoch"] == 1
    assert "optimizer_states" not in read_checkpoint(folder / "best.ckpt")


def test_of_equally_good_epochs_the_one_of_lower_loss_is_tested(ran, tmp_path, monkeypatch):
    """val/* in the results are those of the tested weights, and these are on the disk."""
    accuracies = iter([0.5, 0.75, 0.75, 0.25])
    losses = iter([1.0, 0.9, 0.8, 0.7])
    evaluate = ImageClassifier.on_validation_epoch_end

    def scripted(self):
        self.log("val/top1", next(accuracies))
        self.log("val/loss", next(losses))
        evaluate(self)

    def silent(self, batch, batch_idx):
        return None

    with monkeypatch.context() as patch:
        patch.setattr(ImageClassifier, "on_validation_epoch_end", scripted)
        patch.setattr(ImageClassifier, "validation_step", silent)
        results = ran(*LONG, "epochs=4", "lr=1e-3")
    assert results["metrics"]["val/top1"] == 0.75 and results["metrics"]["val/loss"] == 0.8
    best = read_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert best["epoch"] == 2
    tested = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    for name, tensor in tested.items():
        assert torch.equal(tensor, best["state_dict"][f"network.{name}"])


@pytest.mark.parametrize(
    "damage", [lambda content: b"", lambda c: c[: len(c) // 2], lambda c: c[:-3000] + bytes(8) + c[-2992:]]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    configured, stopped_at, tmp_path, caplog, damage
):
    run(configured(*LONG, "name=whole"))
    stopped_at(14, *LONG, "name=other")
    last = tmp_path / "other" / "checkpoints" / "last.ckpt"
    last.write_bytes(damage(last.read_bytes()))
    run(configured(*LONG, "name=other", "resume=true"))
    assert any("last.ckpt" in line and "the checkpoint before it" in line for line in caplog.messages)
    assert outcome(tmp_path / "other") == outcome(tmp_path / "whole")


OTHER = [
    (["lr=0.5"], "lr=0.5, before"),
    (["norm=bn", "method=last"], "norm.name=bn, before gn"),
    (["batch_size=4"], "batch_size=4, before 2"),
    (["engine=stock"], "engine.name=stock, before lean"),
    (["data.val_fraction=0.4"], "data.val_fraction=0.4, before 0.2"),
    (["epochs=2"], "epochs=2, before 3"),
    (["class_weights=balanced"], "class_weights=balanced, before null"),
    (["patience=2"], "patience=2, before null"),
    (["data.num_classes=4"], "data.num_classes=4, before 3"),
    (["model.name=mobilenetv2_100"], "model.name=mobilenetv2_100"),
]


def test_other_settings_are_not_resumed(configured, stopped_at, tmp_path):
    stopped_at(4, *LONG)
    before = (tmp_path / "run" / "results.json").read_bytes()
    for now, named in OTHER:
        with pytest.raises(UserError, match="trained with other settings") as error:
            run(configured(*LONG, *now, "resume=true"))
        assert named in str(error.value) and "overwrite=true" in str(error.value)
        assert (tmp_path / "run" / "results.json").read_bytes() == before


def test_more_epochs_follow_the_longer_schedule(configured, tmp_path, caplog, monkeypatch):
    """The learning rate after three of five epochs is that of a cosine over five, and ends at zero."""
    run(configured(*LONG, "lr=1e-3"))
    rates = []
    original = ImageClassifier.optimizer_step

    def noting(self, epoch, batch_idx, optimizer, *rest, **more):
        rates.append(optimizer.param_groups[0]["lr"])
        return original(self, epoch, batch_idx, optimizer, *rest, **more)

    monkeypatch.setattr(ImageClassifier, "optimizer_step", noting)
    run(configured(*LONG, "lr=1e-3", "epochs=5", "resume=true"))
    assert any("schedule of 5 epochs" in line for line in caplog.messages)
    cosine = [0.5e-3 * (1 + torch.cos(torch.tensor(torch.pi * step / 30)).item()) for step in range(18, 30)]
    assert rates == pytest.approx(cosine, rel=1e-5)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["curves"]["epoch"] == [1, 2, 3, 4, 5]


def test_a_finished_run_is_not_lost(configured, tmp_path, caplog):
    run(configured(*LONG))
    path = tmp_path / "run" / "results.json"
    finished = path.read_bytes()
    run(configured(*LONG, "resume=true"))  # nothing is left to do
    assert path.read_bytes() == finished and "finished before" in caplog.text
    with pytest.raises(UserError, match=r"finished run with other settings \(lr=0.5, before .*another name="):
        run(configured(*LONG, "lr=0.5"))
    for name in ("last.ckpt", "previous.ckpt"):
        (tmp_path / "run" / "checkpoints" / name).write_bytes(b"half")
    with pytest.raises(UserError, match="no whole checkpoint is left"):
        run(configured(*LONG, "epochs=5", "resume=true"))
    assert path.read_bytes() == finished
    run(configured(*LONG, "lr=0.5", "overwrite=true"))
    assert json.loads(path.read_text())["config"]["lr"] == 0.5


def test_a_resumed_run_that_fails_leaves_finished_results(configured, tmp_path, monkeypatch):
    run(configured(*LONG))
    finished = (tmp_path / "run" / "results.json").read_bytes()
    monkeypatch.setattr(
        ImageClassifier, "training_step", lambda *_: (_ for _ in ()).throw(OSError("a bad disk"))
    )
    with pytest.raises(OSError, match="a bad disk"):
        run(configured(*LONG, "epochs=5", "resume=true"))
    assert (tmp_path / "run" / "results.json").read_bytes() == finished


def test_an_unfinished_run_is_not_begun_anew_by_accident(configured, stopped_at):
    stopped_at(4, *LONG)
    with pytest.raises(UserError, match="resume=true goes on with it, overwrite=true begins anew"):
        run(configured(*LONG))


def test_nothing_to_resume_begins(configured, tmp_path, caplog):
    run(configured(*LONG, "resume=true"))
    assert "holds nothing to go on from; the run begins" in caplog.text
    assert json.loads((tmp_path / "run" / "results.json").read_text())["status"] == "finished"


def test_a_failed_test_does_not_cost_the_training(configured, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(ImageClassifier, "test_step", lambda *_: (_ for _ in ()).throw(OSError("unreadable")))
        with pytest.raises(OSError):
            run(configured(*LONG))
    trained = []
    monkeypatch.setattr(ImageClassifier, "training_step", lambda *_: trained.append(1))
    run(configured(*LONG, "resume=true"))
    record = json.loads((tmp_path / "run" / "results.json").read_text())
    assert record["status"] == "finished" and not trained and "test/top1" in record["metrics"]


def test_one_folder_has_one_run(configured, tmp_path):
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(UserError, match="in use by another run"):
        run(configured(*LONG))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"status": "finished"}', b'{"a": 1}'])
def test_damaged_results_are_named_and_taken_as_absent(configured, tmp_path, caplog, content):
    path = tmp_path / "run" / "results.json"
    path.parent.mkdir()
    path.write_bytes(content)
    run(configured(*FAKE))
    assert f"{path} is not the record of a run" in caplog.text
    assert json.loads(path.read_text())["status"] == "finished"
    assert (path.parent / "results.json.unreadable").read_bytes() == content


def test_training_goes_on_where_checkpoints_cannot_be_written(configured, tmp_path, caplog, monkeypatch):
    """A full disk: the best weights stay in memory, are tested, and what could not be written is said."""
    run(configured(*LONG, "name=whole"))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tinytl.training.checkpoints.write_whole", full)
    run(configured(*LONG, "name=other"))
    assert "last.ckpt could not be written" in caplog.text and "training goes on" in caplog.text
    assert outcome(tmp_path / "other") == outcome(tmp_path / "whole")


def test_results_that_their_folder_does_not_take_are_kept_elsewhere(configured, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "refuge"))
    writes = []

    def full_in_the_end(path, record):
        writes.append(path)
        if record["status"] == "finished" and "refuge" not in str(path):
            raise OSError(28, "No space left on device")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record))

    monkeypatch.setattr("tinytl.experiment.record.outcome.write_json", full_in_the_end)
    with pytest.raises(UserError, match=r"results.json could not be written \(No space left.*it is kept as"):
        run(configured(*FAKE))
    assert json.loads(writes[-1].read_text())["status"] == "finished"


def test_a_folder_that_becomes_read_only_costs_neither_training_nor_results(
    configured, tmp_path, caplog, monkeypatch
):
    """Not even the checkpoint before the last can be removed to make room."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "refuge"))
    original = Path.unlink, Path.replace
    saved = []

    def writable(path):
        if (tmp_path / "run") in path.parents and saved:
            raise OSError(30, "Read-only file system")

    def unlink(path, missing_ok=False):
        writable(path)
        original[0](path, missing_ok=missing_ok)

    def replace(path, target):
        writable(path)
        original[1](path, target)
        if Path(target).name == PREVIOUS:
            saved.append(target)

    monkeypatch.setattr(Path, "unlink", unlink)
    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(UserError, match=r"results.json could not be written \(Read-only file system\)"):
        run(configured(*LONG))
    assert saved and "last.ckpt could not be written" in caplog.text
    (kept,) = (tmp_path / "refuge" / "tinytl-results").glob("*results.json")
    assert json.loads(kept.read_text())["status"] == "finished"


@pytest.mark.parametrize("place", ["file", "proc", "long"])
def test_an_output_folder_that_cannot_be_written_is_refused_before_work(configured, tmp_path, place):
    (tmp_path / "file").write_text("")
    output = {"file": tmp_path / "file", "proc": "/proc/nowhere", "long": tmp_path / ("a" * 300)}[place]
    with pytest.raises(UserError, match=r"output_dir.* (cannot be written|is too long)"):
        run(configured(*FAKE, f"output_dir={output}"))


def test_what_a_library_raises_when_it_is_stopped_is_no_failure(configured, tmp_path, monkeypatch):
    """Lightning's teardown raises errors of its own where a signal comes before its loops are set up."""

    def stopped(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)

    def failing(*_, **__):
        raise RuntimeError("Please call `iter(combined_loader)` first.")

    monkeypatch.setattr("pytorch_lightning.loops.evaluation_loop._EvaluationLoop.setup_data", stopped)
    monkeypatch.setattr("pytorch_lightning.loops.evaluation_loop._EvaluationLoop.teardown", failing)
    with pytest.raises(Stopped):
        run(configured(*LONG, "data.val_fraction=0"))
    assert json.loads((tmp_path / "run" / "results.json").read_text())["status"] == "interrupted"


def test_wandb_that_refuses_costs_no_finished_run(configured, tmp_path, monkeypatch):
    import wandb
    import wandb.errors

    def no_key(**_):
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.\nMore.")

    run(configured(*FAKE))
    finished = (tmp_path / "run" / "results.json").read_bytes()
    monkeypatch.setattr(wandb, "init", no_key)
    monkeypatch.setenv("WANDB_API_KEY", "one that the server does not know")
    with pytest.raises(UserError, match=r"wandb\.mode=online: No API key configured"):
        run(configured(*FAKE, "wandb.mode=online", "overwrite=true"))
    assert (tmp_path / "run" / "results.json").read_bytes() == finished
