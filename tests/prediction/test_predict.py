"""Predictions are those of the plain network in float64, in every form, and mistakes are one line each."""

import csv
import io
import json
import sys

import numpy
import pytest
import torch
from image_folders import write_classes, write_image
from PIL import Image
from trained_adapters import CLASSES, MEAN, STD, write_run

import predict
from tinytl.memory.meter import LiveMemory
from tinytl.prediction.adapter import lean, load_adapter
from tinytl.prediction.watch import Arrivals

CPU = torch.device("cpu")


@pytest.fixture
def program(monkeypatch, capsys, caplog):
    """Runs the program in this process; returns its exit code, stdout, and stderr with the log."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["predict.py", *map(str, arguments)])
        code = 0
        caplog.clear()
        try:
            predict.main()
        except SystemExit as stopped:
            code = stopped.code
        printed = capsys.readouterr()
        log = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        return code, printed.out, printed.err + "".join(f"{line}\n" for line in log)

    return run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "flowers"
    write_run(folder)
    return folder


def expected(network, paths, resolution=32):
    """Logits by hand: Pillow resizes and crops, float64 computes."""
    images = []
    for path in paths:
        image = Image.open(path).convert("RGB")
        scale = -(-resolution * 8 // 7) / min(image.size)  # the shorter side, before the crop to 7/8
        image = image.resize([int(side * scale) for side in image.size], Image.Resampling.BILINEAR)
        left, top = (round((side - resolution) / 2) for side in image.size)
        pixels = numpy.asarray(image.crop((left, top, left + resolution, top + resolution))) / 255
        images.append(((pixels - MEAN) / STD).transpose(2, 0, 1))
    with torch.no_grad():
        return network.double()(torch.from_numpy(numpy.stack(images)))


@pytest.mark.parametrize(
    ("norm", "method", "quantize"),
    [("gn", "tinytl", "int8"), ("bn_frozen", "bias", "kmeans"), ("bn", "full", "off")],
)
def test_probabilities(tmp_path, program, norm, method, quantize):
    network = write_run(tmp_path / "run", norm, method, quantize)
    paths = [write_image(tmp_path / "pictures" / f"{i}.png", (50 + i, 40)) for i in range(3)]
    code, out, _ = program(f"adapter={tmp_path}/run", f"images={tmp_path}/pictures", "format=json", "top=4",
                           "batch_size=2")  # fmt: skip
    assert code == 0
    rows = json.loads(out)["images"]
    assert [row["image"] for row in rows] == list(map(str, paths))
    for row, by_hand in zip(rows, expected(network, paths).softmax(dim=1), strict=True):
        assert [row["probabilities"][name] for name in CLASSES] == pytest.approx(by_hand.tolist(), abs=2e-5)
        assert row["class"] == CLASSES[int(by_hand.argmax())] == next(iter(row["probabilities"]))


def test_a_turned_photograph_is_seen_upright(tmp_path, program, run_folder):
    upright = Image.open(write_image(tmp_path / "[1] a: b #2.png", (60, 40)))
    exif = Image.Exif()
    exif[274] = 6  # must be turned by 90 degrees to the right to be upright
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "b.png", exif=exif)
    _, out, _ = program(f"adapter={run_folder}", f"images={tmp_path}", "format=json")
    first, second = (row["probabilities"] for row in json.loads(out)["images"])
    assert first == second
    _, out, _ = program(f"adapter={run_folder}", f"images={tmp_path}/[1] a: b #2.png", "format=json")
    assert json.loads(out)["images"][0]["probabilities"] == pytest.approx(first, abs=1e-5)


def test_class_folders_are_evaluated(tmp_path, program, run_folder):
    write_classes(tmp_path / "pictures", "ant", "bee", "dog", images=5)
    arguments = [f"adapter={run_folder}", f"images={tmp_path}/pictures"]
    output = tmp_path / "found" / "flowers.json"
    code, out, _ = program(*arguments, f"output={output}")
    assert code == 0
    content = json.loads(output.read_text())
    pairs = [(row["true_class"], row["class"]) for row in content["images"]]
    recall = {name: [true == found for true, found in pairs if true == name] for name in CLASSES}
    shares = {name: sum(right) / len(right) for name, right in recall.items() if right}
    evaluation = content["evaluation"]
    assert len(pairs) == 15 and evaluation["classes"]["cat"] == {"images": 0, "recall": None}
    assert {name: evaluation["classes"][name]["recall"] for name in shares} == pytest.approx(shares, abs=1e-6)
    assert evaluation["balanced_accuracy"] == pytest.approx(sum(shares.values()) / 3, abs=1e-6)
    assert f"{evaluation['accuracy']:.4f}" in out and "cat" in out
    counts = list(csv.reader((output.parent / "flowers.confusion.csv").read_text().splitlines()))
    assert counts[0][1:] == [*CLASSES] and sum(int(n) for row in counts[1:] for n in row[1:]) == 15
    assert int(counts[1][2]) == pairs.count(("ant", "bee"))
    assert Image.open(output.parent / "flowers.confusion.png").size[0] > 200
    _, out, err = program(*arguments, "format=csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(row["true_class"], row["class_1"]) for row in rows] == pairs and "accuracy" in err
    assert all(float(row["probability_1"]) >= float(row["probability_2"]) for row in rows)
    _, out, _ = program(*arguments, "evaluate=false", "format=csv")
    assert "true_class" not in out.splitlines()[0]


def test_several_labels_an_image(tmp_path, program):
    network = write_run(tmp_path / "run", task="multilabel")
    path = write_image(tmp_path / "pictures" / "ant" / "0.png", (40, 40))
    _, out, _ = program(f"adapter={tmp_path}/run", f"images={tmp_path}/pictures", "format=csv")
    (row,) = csv.DictReader(io.StringIO(out))
    by_hand = expected(network, [path]).sigmoid()[0].tolist()
    assert list(row) == ["image", *CLASSES]
    assert [float(row[name]) for name in CLASSES] == pytest.approx(by_hand, abs=2e-5)
    _, out, _ = program(f"adapter={tmp_path}/run", f"images={path}")
    assert all((f"{name} " in out) == (float(row[name]) >= 0.5) for name in CLASSES)


def test_it_takes_little_memory(tmp_path):
    """Frozen weights in 8 bits, and no more than a few maps at a time."""
    network = write_run(tmp_path / "run", "bn_frozen", "bias", model="mobilenetv2_100", resolution=96)
    images = torch.randn(4, 3, 96, 96)
    classifiers = {"stock": network, "lean": lean(load_adapter(str(tmp_path / "run")), CPU)}
    peaks, logits = {}, {}
    for name, classifier in classifiers.items():
        with torch.inference_mode(), LiveMemory(classifier, None, images) as live:
            logits[name] = classifier(images)
        peaks[name] = live.report().peak_mb
    assert torch.allclose(logits["lean"], logits["stock"], atol=1e-4 * float(logits["stock"].abs().max()))
    assert peaks["lean"] < 0.5 * peaks["stock"], peaks


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("images={pictures}", "adapter=... must be given; --help lists all options"),
        ("adapter={run}", "images=... must be given"),
        ("adapter={folder}/flower images={pictures}", "did you mean {folder}/flowers?"),
        ("adapter={pictures} images={pictures}", "neither a finished run nor an adapter is in this folder"),
        ("adapter={unfinished} images={pictures}", "not finished (interrupted); resume=true"),
        ("adapter={begun} images={pictures}", "a run that has not finished (no results.json)"),
        ("adapter={whole} images={pictures}", "not an adapter: whole.safetensors has no record of a run"),
        ("adapter={folder}/a.onnx images={pictures}", "a.onnx: no such file"),
        ("adapter={broken}.onnx images={pictures}", "not a readable ONNX file"),
        ("adapter={broken}.pt2 images={pictures}", "not a readable .pt2 file"),
        ("adapter={broken}.pte images={pictures}", "broken.pte.json, which names its classes"),
        ("adapter={run} images={folder}/none", "none: no such file or folder"),
        ("adapter={run} images={empty}", "no image in it (1 .txt)"),
        ("adapter={run} images={empty}/notes.txt", "its content is of no known image format"),
        ("adapter={run} images={mixed}", "1 of 2 images cannot be read"),
        ("adapter={run} images={allbroken} skip_broken=true", "no image in it can be read"),
        ("adapter={run} images={others}", "does not know 2 classes (eel, fox); it knows 4 classes (ant"),
        ("adapter={run} images={split}", "not classes; images={split}/test was probably meant"),
        ("adapter={run} images={pictures} evaluate=true", "has images outside of class folders"),
        ("adapter={run} images={pictures} format=xml", "format=xml: unknown; one of table, csv, json"),
        ("adapter={run} images={pictures} top=0", "top=0"),
        ("adapter={run} images={pictures} device=tpu", "device=tpu"),
        ("adapter={run} images={pictures} watch=true output=a.csv", "no output= or evaluate= goes with it"),
        ("adapter={run} images={pictures}/0.png watch=true", "is not a folder"),
        ("adapter={run} image={pictures}", "did you mean images?"),
    ],
)  # fmt: skip
def test_mistakes_in_one_line(tmp_path, program, run_folder, arguments, line):
    folder = tmp_path / "all"
    places = {name: folder / name for name in ("pictures", "empty", "mixed", "allbroken", "others", "split")}
    write_image(folder / "pictures" / "0.png")
    (folder / "empty").mkdir()
    (folder / "empty" / "notes.txt").write_text("no picture")
    write_image(folder / "mixed" / "0.png")
    for place in ("mixed", "allbroken"):
        (folder / place).mkdir(exist_ok=True)
        (folder / place / "1.jpg").write_bytes(b"\xff\xd8 cut off")
    write_classes(folder / "others", "ant", "eel", "fox", images=1)
    write_classes(folder / "split" / "test", "ant", images=1)
    write_classes(folder / "split" / "train", "ant", images=1)
    for suffix in (".onnx", ".pt2", ".pte"):
        (folder / f"broken{suffix}").write_bytes(b"broken")
    (folder / "flowers").mkdir()
    write_run(folder / "unfinished", status="interrupted")
    (folder / "begun" / "checkpoints").mkdir(parents=True)
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(1)}, folder / "whole.safetensors")
    others = {name: folder / name for name in ("unfinished", "begun", "broken")}
    names = {**places, **others, "folder": folder, "run": run_folder, "whole": folder / "whole.safetensors"}
    code, out, err = program(*arguments.format(**names).split())
    assert code == 1 and not out
    assert err.startswith("error: ") and len(err.splitlines()) == 1, err
    assert line.format(**names) in err


def test_broken_images_are_named_and_skipped(tmp_path, program, run_folder):
    write_image(tmp_path / "0.png")
    (tmp_path / "1.jpg").write_bytes(b"\xff\xd8 cut off")
    code, out, err = program(f"adapter={run_folder}", f"images={tmp_path}", "skip_broken=true", "format=csv")
    assert code == 0 and len(out.splitlines()) == 2
    assert err.startswith("left out: 1 of 2 images cannot be read") and "1.jpg" in err


def test_each_arrival_is_seen_once_and_when_it_is_whole(tmp_path):
    write_image(tmp_path / "old.png")
    arrivals = Arrivals(tmp_path)
    whole = write_image(tmp_path / "elsewhere.bin.png", (40, 30)).read_bytes()
    assert arrivals.look() == []  # seen for the first time: it may be growing
    assert arrivals.look() == [tmp_path / "elsewhere.bin.png"]
    growing = tmp_path / "camera" / "new.png"
    growing.parent.mkdir()
    for part in (whole[:100], whole[:2000], whole):
        growing.write_bytes(part)
        assert arrivals.look() == []
    assert arrivals.look() == [growing]
    assert arrivals.look() == []
    write_image(growing, (20, 20))  # overwritten: a new picture
    assert [arrivals.look(), arrivals.look(), arrivals.look()] == [[], [growing], []]


@pytest.mark.parametrize("kind", ["json", "csv", "table"])
def test_watching_a_folder_until_it_is_stopped(tmp_path, program, run_folder, monkeypatch, kind):
    steps = iter(
        [
            lambda: write_image(tmp_path / "b.png"),
            lambda: None,
            lambda: (tmp_path / "c.png").write_bytes(b"cut off"),
            lambda: write_image(tmp_path / "d.png"),
            lambda: None,
        ]
    )

    def sleep(seconds):
        assert seconds == 0.5
        step = next(steps, None)
        if step is None:
            raise KeyboardInterrupt
        step()

    watch = predict.watch
    monkeypatch.setattr(predict, "watch", lambda folder, every: watch(folder, every, sleep))
    write_image(tmp_path / "a.png")
    code, out, err = program(f"adapter={run_folder}", f"images={tmp_path}", "watch=true", "every=0.5",
                             f"format={kind}")  # fmt: skip
    assert code == 0 and "c.png: not a readable image" in err and len(err.splitlines()) == 1
    lines = out.splitlines()[kind == "csv" :]
    assert [f"{name}.png" in line for name, line in zip("bd", lines, strict=True)] == [True, True]
    if kind == "json":
        assert set(json.loads(lines[0])["probabilities"]) <= set(CLASSES)
