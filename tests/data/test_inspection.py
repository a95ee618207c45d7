"""Data are inspected before work begins: every file is opened once, and oddities are reported in one line."""

import logging
import os
import shutil
import sqlite3
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import fake_data
import numpy
import pytest
import torch
from image_folders import write_classes, write_image, write_split
from PIL import Image

from tinytl.data import file_check, folder, generated
from tinytl.data.check_cache import Checked
from tinytl.data.images import Images
from tinytl.data.inspection import inspect
from tinytl.data.loading import load_data
from tinytl.data.splits import Splits
from tinytl.errors import UserError


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    """The user's cache folder, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tinytl"


@pytest.fixture
def read_files(monkeypatch):
    """The names of the files that were read, not found in the cache, and whether they were decoded."""
    read = []
    read_file = file_check._read_file

    def noting(decode_until, path):
        outcome = read_file(decode_until, path)
        read.append((Path(path).name, isinstance(outcome, Checked) and outcome.decoded))
        return outcome

    monkeypatch.setattr(file_check, "_read_file", noting)
    return read


def inspected(root, **options):
    return inspect(folder.load(root), **options)


def in_memory(count, labels, seed=0):
    rng = numpy.random.default_rng(seed)
    pictures = [Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=numpy.uint8)) for _ in range(count)]
    return Images(pictures, labels)


def break_files(root):
    """Seven files that cannot be read."""
    (root / "train" / "ant" / "0.png").write_bytes(b"")
    path = root / "test" / "bee" / "0.png"
    path.write_bytes(path.read_bytes()[:-30])
    (root / "train" / "bee" / "gone.png").symlink_to("nowhere.png")
    (root / "train" / "bee" / "loop.png").symlink_to("loop.png")
    for number in range(3):
        (root / "train" / "bee" / f"page{number}.jpg").write_text("<html>404</html>")


def test_all_unreadable_files_are_counted_and_the_first_named_with_reasons(tmp_path):
    root = write_split(tmp_path / "root")
    break_files(root)
    with pytest.raises(UserError) as error:
        inspected(root)
    message = str(error.value)
    assert message.startswith("7 of 21 images cannot be read: ") and "\n" not in message
    for part in (
        "gone.png (a link to nowhere.png, which is not there)",
        "loop.png (a link that leads to itself)",
        "train/ant/0.png (its content is of no known image format)",
        "page0.jpg (its content is of no known image format)",
        ", and 2 more; data.skip_broken=true leaves them out",
    ):
        assert part in message


def test_skip_broken_leaves_them_out_and_counts_them(tmp_path):
    root = write_split(tmp_path / "root")
    clean = inspected(root)
    (root / "train" / "bee" / "gone.png").symlink_to("nowhere.png")
    (root / "test" / "ant" / "bad.png").write_text("no image")
    found = inspected(root, skip_broken=True)
    assert found.left_out == {"train": 1, "test": 1} and clean.left_out == {"train": 0, "test": 0}
    assert found.splits.train.images == clean.splits.train.images
    assert found.splits.train_labels == found.splits.train.targets == [0] * 6 + [1] * 6
    assert found.splits.test.targets == [0, 0, 1, 1]
    assert found.digest == clean.digest
    assert "data.skip_broken=true: unreadable images are left out: 1 of train, 1 of test" in found.warnings


def test_skip_broken_keeps_the_class_of_the_images():
    splits = fake_data.load_interrupted("")
    splits.train.images = ["nowhere.png", *splits.train.images[1:]]
    found = inspect(splits, skip_broken=True).splits
    assert isinstance(found.train, fake_data.Interrupting) and len(found.train) == 15


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("train/ant", "no training image of class ant can be read"),
        ("test", "no image of the test set can be"),
    ],
)
def test_skip_broken_does_not_empty_a_class_or_a_part(tmp_path, part, message):
    root = write_split(tmp_path / "root")
    for path in (root / part).rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=f"data.skip_broken=true: {message}"):
        inspected(root, skip_broken=True)


def test_files_are_read_once(tmp_path, read_files):
    root = write_split(tmp_path / "root")
    first = inspected(root)
    assert len(read_files) == 16 and all(decoded for _, decoded in read_files)
    read_files.clear()
    assert inspected(root).digest == first.digest and read_files == []
    shutil.copytree(root, tmp_path / "copy")
    assert inspected(tmp_path / "copy").digest == first.digest  # contents count, not places
    assert len(read_files) == 16


def test_a_file_of_the_same_size_and_time_but_other_content_is_noticed(tmp_path, read_files):
    root = write_split(tmp_path / "root")
    path = root / "test" / "ant" / "0.png"
    Image.new("L", (4, 4), 100).save(path)
    before, times = inspected(root).digest, path.stat()
    Image.new("L", (4, 4), 101).save(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size and path.stat().st_mtime_ns == times.st_mtime_ns
    read_files.clear()
    assert inspected(root).digest != before
    assert read_files == [("0.png", True)]


def test_a_file_that_broke_after_it_was_checked_is_noticed(tmp_path):
    root = write_split(tmp_path / "root")
    inspected(root)
    path = root / "test" / "ant" / "0.png"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=r"1 of 16 images cannot be read: .*ant/0\.png"):
        inspected(root)


def test_many_images_are_opened_only_and_that_is_said(tmp_path, monkeypatch, read_files):
    """Where decoding all would take too long; a few are decoded each time, and the rest not read again."""
    monkeypatch.setattr(file_check, "DECODING_SECONDS", -1)
    monkeypatch.setattr(file_check, "SAMPLE", 4)
    monkeypatch.setattr(file_check, "WARM_UP", 2)
    root = write_split(tmp_path / "root")
    first = inspected(root)
    assert sum(decoded for _, decoded in read_files) == 4 and len(read_files) == 16
    assert first.warnings == (
        "12 of 16 image files were opened but not decoded, as that would take more than a minute",
    )
    (root / "train" / "ant" / "0.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"ant/0\.png"):
        inspected(root)


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + bytes(200)])
def test_a_damaged_cache_is_made_anew(tmp_path, cache_folder, read_files, content):
    root = write_split(tmp_path / "root")
    digest = inspected(root).digest
    (cache_file,) = cache_folder.iterdir()
    cache_file.write_bytes(content)
    read_files.clear()
    assert inspected(root).digest == digest and len(read_files) == 16
    read_files.clear()
    assert inspected(root).digest == digest and read_files == []


def test_a_cache_of_another_version_is_made_anew(tmp_path, cache_folder, read_files):
    root = write_split(tmp_path / "root")
    cache_folder.mkdir(parents=True)
    with sqlite3.connect(cache_folder / "checked_images.sqlite") as connection:
        connection.execute("create table files (path text)")
        connection.execute("pragma user_version = 999")
    connection.close()
    for reads in (16, 0):
        read_files.clear()
        inspected(root)
        assert len(read_files) == reads


def test_without_a_cache_folder_nothing_is_kept(tmp_path, monkeypatch, read_files):
    root = write_split(tmp_path / "root")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        read_files.clear()
        inspected(root)
        assert len(read_files) == 16


def _inspect_all(roots, digests):
    digests.put([inspected(root).digest for root in roots])


def test_two_processes_at_once_share_the_cache(tmp_path, cache_folder):
    roots = [write_split(tmp_path / name) for name in "abcd"]
    context = get_context("fork")
    digests = context.Queue()
    workers = [context.Process(target=_inspect_all, args=(order, digests)) for order in (roots, roots[::-1])]
    for worker in workers:
        worker.start()
    one, two = (digests.get(timeout=1500) for _ in workers)
    for worker in workers:
        worker.join(200)
    assert one == two[::-1]
    with sqlite3.connect(cache_folder / "checked_images.sqlite") as connection:
        assert connection.execute("select count(*) from files").fetchone() == (64,)
    connection.close()


def test_copies_in_train_and_test_are_said(tmp_path):
    root = write_split(tmp_path / "root")
    assert inspected(root).warnings == ()
    shutil.copy(root / "train" / "ant" / "0.png", root / "test" / "ant" / "copy.png")
    (line,) = inspected(root).warnings
    train, test = root / "train" / "ant" / "0.png", root / "test" / "ant" / "copy.png"
    assert line == f"1 test image is a copy of train images, for example {test} of {train}"
    shutil.copytree(root / "test", root / "val")
    assert [line.partition(" of ")[0] for line in inspected(root).warnings] == [
        "1 test image is a copy",
        "1 val image is a copy",
        "5 test images are copies",
    ]
    shutil.rmtree(root / "val")
    shutil.rmtree(root / "test" / "ant")
    write_image(root / "test" / "ant" / "0.png")
    shutil.copy(root / "train" / "ant" / "0.png", root / "train" / "bee" / "copy.png")
    (line,) = inspected(root).warnings
    assert line.startswith("1 training image is a copy of images of another class, for example ")


def test_copies_in_memory_are_said():
    train, test = in_memory(10, [0, 1] * 5), in_memory(4, [0, 1] * 2, seed=1)
    test.images = [*test.images, train.images[3]]
    test.targets = [0, 1, 0, 1, 1]
    found = inspect(Splits(train, test, ("a", "b"), train_labels=train.targets))
    assert found.warnings == ("1 test image is a copy of train images, for example image 4 of image 3",)


def test_small_classes_and_great_imbalance_are_said(tmp_path):
    root = tmp_path / "root"
    write_classes(root / "train", "ant", images=2)
    write_classes(root / "train", "bee", images=4)
    write_classes(root / "train", "cat", images=21)
    write_classes(root / "test", "ant", "bee", "cat", images=1)
    assert inspected(root).warnings == (
        "2 classes have fewer than 5 training images: ant (2), bee (4)",
        "great imbalance: class cat has 21 training images, class ant has 2",
    )
    (root / "train" / "cat" / "0.png").unlink()  # ten times as many
    assert len(inspected(root).warnings) == 1


BASE = Splits(in_memory(6, [0, 1] * 3), in_memory(4, [0, 1] * 2, 1), ("a", "b"), train_labels=[0, 1] * 3)
VECTORS = Splits(in_memory(2, list(torch.eye(2))), in_memory(2, list(torch.eye(2)), 1), ("a", "b"))


@pytest.mark.parametrize(
    ("splits", "other"),
    [
        (BASE, replace(BASE, class_names=("a", "c"))),
        (BASE, replace(BASE, train=Images(BASE.train.images[::-1], BASE.train.targets))),
        (BASE, replace(BASE, train=in_memory(6, [0, 1] * 3, seed=2))),
        (BASE, replace(BASE, test=in_memory(4, [0, 1] * 2, seed=2))),
        (BASE, replace(BASE, test=Images(BASE.test.images, [0, 1, 0, 0]))),
        (BASE, replace(BASE, val=BASE.test)),
        (BASE, replace(BASE, test=Images(BASE.test.images[:3], BASE.test.targets[:3]))),
        (VECTORS, replace(VECTORS, test=Images(VECTORS.test.images, [torch.eye(2)[1], torch.eye(2)[1]]))),
        (VECTORS, replace(VECTORS, train=Images(VECTORS.train.images, [torch.eye(2)[1], torch.eye(2)[0]]))),
    ],
)  # fmt: skip
def test_the_digest_covers_classes_targets_order_and_contents(splits, other):
    assert inspect(splits).digest == inspect(replace(splits)).digest != inspect(other).digest


def test_images_that_are_drawn_count_by_what_is_to_be_drawn():
    splits = generated.load(Path())
    found = inspect(splits)
    assert found.warnings == () and found.digest == inspect(generated.load(Path())).digest
    fewer = Images(splits.train.images[:-1], splits.train.targets[:-1])
    assert inspect(replace(splits, train=fewer, train_labels=fewer.targets)).digest != found.digest


def test_an_image_in_memory_that_cannot_be_read_is_named():
    nan = Image.fromarray(numpy.full((4, 4), numpy.nan, dtype=numpy.float32))
    test = Images([*BASE.test.images, nan], [0, 1, 0, 1, 0])
    with pytest.raises(UserError, match=r"image 4 of test: not a readable image \(NaN"):
        inspect(replace(BASE, test=test))


def test_the_program_reads_and_checks_the_data_once_and_says_what_is_odd(tmp_path, caplog, read_files):
    root = write_split(tmp_path / "root")
    (root / "notes.pdf").touch()
    loader = "tinytl.data.folder.load"
    with caplog.at_level(logging.WARNING, "tinytl"):
        data = load_data(loader, str(root), False)
        assert load_data(loader, str(root), False) is data
    assert caplog.text.count("left out: 1 .pdf") == 1 and len(read_files) == 16


def test_a_loader_that_returns_no_splits_is_named():
    with pytest.raises(UserError, match=r"data\.loader=fake_data\.load_nothing: returned"):
        load_data("fake_data.load_nothing", "x", False)
