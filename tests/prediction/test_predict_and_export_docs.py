"""Run every command of docs/predict-and-export.md, and its Python program, on small pictures."""

import re
import shlex
import sys

import pytest
from image_folders import write_classes, write_image
from processes import ROOT
from trained_adapters import CLASSES, write_run

import export
import predict

pytest.importorskip("onnxruntime")
TEXT = (ROOT / "docs" / "predict-and-export.md").read_text()
COMMANDS = re.findall(r"^    python src/(predict|export)\.py (.*)$", TEXT, re.MULTILINE)


def test_every_example_runs(tmp_path, monkeypatch, capsys):
    def stop(seconds):
        raise KeyboardInterrupt

    watch = predict.watch
    monkeypatch.setattr(predict, "watch", lambda folder, every: watch(folder, every, stop))
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "outputs" / "flowers", "bn_frozen", "last")
    for number in range(3):
        write_image(tmp_path / "photos" / f"{number}.png", (40, 50 + number))
    write_classes(tmp_path / "labelled", *CLASSES, images=2)
    (tmp_path / "camera").mkdir()
    for name, arguments in COMMANDS:
        monkeypatch.setattr(sys, "argv", [name, *shlex.split(arguments)])
        try:
            {"predict": predict, "export": export}[name].main()
        except SystemExit as stopped:
            assert stopped.code == 0, arguments
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files >= {
        *("found/photos.json", "found/flowers.csv", "found/flowers.confusion.png"),
        *("outputs/flowers/model.onnx", "outputs/flowers/model.onnx.json", "flowers.pt2"),
    }
    capsys.readouterr()
    (program,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(program, {})
    by_hand = capsys.readouterr().out.strip()
    monkeypatch.setattr(sys, "argv", ["predict.py", "adapter=outputs/flowers", "images=photos/0.png"])
    predict.main()
    assert f"│ {by_hand} " in capsys.readouterr().out
