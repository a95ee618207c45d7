"""Writing checkpoints where the file system fails."""

import logging

import pytest
import torch

from tinytl.training.checkpoints import write_checkpoint


@pytest.mark.parametrize("error", [OSError(), RuntimeError("disk full\nin detail")])
def test_training_goes_on_where_a_checkpoint_cannot_be_written(tmp_path, monkeypatch, caplog, error):
    """Also where the error has no message."""

    def fail(*_):
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with caplog.at_level(logging.WARNING, "tinytl"):
        assert not write_checkpoint({}, tmp_path / "last.ckpt")
    (line,) = caplog.messages
    assert line.endswith(f"({str(error).splitlines()[0] if str(error) else 'OSError'}); training goes on")
    assert not list(tmp_path.iterdir())
