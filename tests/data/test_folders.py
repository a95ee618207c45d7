"""Folders of images are understood, or refused in one line that names the folder in question."""

import os
import re
import shutil
import unicodedata

import pytest
from image_folders import write_classes, write_image, write_split

from tinytl.data import folder, unlabelled
from tinytl.errors import UserError


def load(root):
    return folder.load(root)


def sizes(splits):
    return {name: len(part) for name, part in splits.parts.items()}


def refusal(root, load=load):
    """The one line that refuses a folder, without the temporary folder's path."""
    with pytest.raises(UserError) as error:
        load(root)
    message = str(error.value)
    assert "\n" not in message and len(message) < 500
    return message.replace(str(root.parent), "...")


def said(splits, root):
    return "\n".join(splits.notes).replace(str(root), "ROOT")


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Train", "Test"),
        ("TRAIN", "TEST"),
        ("training", "testing"),
        ("trn", "eval"),
        ("train_set", "test-set"),
        ("Training Data", "Evaluation"),
        ("TrainImages", "TestImages"),
        ("1_train", "2_test"),
    ],
)
def test_parts_by_their_usual_names(tmp_path, train, test):
    splits = load(write_split(tmp_path / "root", train, test))
    assert splits.class_names == ("ant", "bee") and sizes(splits) == {"train": 12, "test": 4}
    assert all(f"/{train}/" in str(path) for path in splits.train.images)
    assert splits.notes == ()


@pytest.mark.parametrize("name", ["val", "valid", "Validation", "VAL", "dev", "validation_set"])
def test_a_validation_folder(tmp_path, name):
    """Beside a test folder it is the validation set; alone it is the test set, and that is said."""
    root = write_split(tmp_path / "root")
    write_classes(root / name, "ant", "bee", images=3)
    splits = load(root)
    assert sizes(splits) == {"train": 12, "test": 4, "val": 6}
    assert splits.val and splits.val.targets == [0, 0, 0, 1, 1, 1]
    shutil.rmtree(root / "test")
    splits = load(root)
    assert sizes(splits) == {"train": 12, "test": 6}
    assert said(splits, root) == f"data.root=ROOT: no test folder: {name} is the test set"


def test_train_alone_holds_a_fixed_fifth_out(tmp_path):
    root = tmp_path / "root"
    write_classes(root / "Training", "ant", "bee", images=10)
    splits = load(root)
    assert sizes(splits) == {"train": 16, "test": 4} and sorted(splits.test.targets) == [0, 0, 1, 1]
    assert "a fixed fifth of every class is held out as the test set" in said(splits, root)
    assert splits.test.images == folder.load(root).test.images


def test_a_class_called_train(tmp_path):
    splits = load(write_classes(tmp_path / "root", "bus", "car", "train", images=5))
    assert splits.class_names == ("bus", "car", "train")


def test_a_class_that_the_test_set_lacks_is_said(tmp_path):
    root = write_split(tmp_path / "root")
    write_classes(root / "train", "cat")
    splits = load(root)
    assert splits.class_names == ("ant", "bee", "cat") and splits.test.targets == [0, 0, 1, 1]
    assert said(splits, root) == "ROOT/test: no images of class cat"


def test_names_of_classes_that_differ_in_case_or_accents_alone(tmp_path):
    root = tmp_path / "root"
    write_classes(root / "train", "Ant", unicodedata.normalize("NFC", "käfer"))
    write_classes(root / "test", "ant", unicodedata.normalize("NFD", "käfer"), images=2)
    splits = load(root)
    assert splits.test.targets == [0, 0, 1, 1]
    assert "ROOT/test/ant is taken as class Ant" in said(splits, root)


def test_classes_that_differ_in_case_stay_apart(tmp_path):
    """As in sets of letters."""
    root = tmp_path / "root"
    for part in ("train", "test"):
        write_classes(root / part, "A", "a", images=2)
    assert load(root).test.targets == [0, 0, 1, 1]
    write_classes(root / "train", "B", "b", images=2)
    shutil.move(root / "train" / "B", root / "train" / "Bb")
    write_classes(root / "test", "B", images=2)  # b of the training set, as nothing else can be meant
    assert load(root).test.targets == [0, 0, 2, 2, 3, 3]


def nested(root):
    write_classes(root / "insects", "ant", "bee")


def two_trains(root):
    write_split(root)
    write_classes(root / "Training", "ant", "bee")


def parts_within_classes(root):
    for name in ("ant", "bee"):
        write_classes(root / name, "train", "test")


def unlabelled_test(root):
    write_classes(root / "train", "ant", "bee")
    write_image(root / "test" / "0.png")


def loose(root):
    root.mkdir()
    write_image(root / "0.png")


def a_class_of_test_only(root):
    write_split(root)
    write_classes(root / "test", "wasp")


def with_an_empty_class(root):
    write_split(root)
    (root / "train" / "cat").mkdir()
    (root / "train" / "cat" / "list.txt").touch()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "data.root=.../root: no such folder"),
        (lambda root: root.touch(), "data.root=.../root: a file, not a folder"),
        (lambda root: root.mkdir(), "data.root=.../root: empty and no class folders (one per class)"),
        (lambda root: (root / "ant").mkdir(parents=True), "root/ant: a class folder without images (empty)"),
        (with_an_empty_class, "root/train/cat: a class folder without images (1 .txt)"),
        (loose, "data.root=.../root: 1 image and no class folders (one per class)"),
        (nested, "one folder only (insects) holds images; data.root=.../root/insects was probably meant"),
        (lambda root: nested(root / "a" / "b"), "data.root=.../root/a/b/insects was probably meant"),
        (lambda root: write_split(root / "archive"), "data.root=.../root/archive was probably meant"),
        (lambda root: write_classes(root, "ant"), "one class only (ant); at least two are needed"),
        (lambda root: write_classes(root / "train", "ant"), "root/train: one class only (ant)"),
        (lambda root: write_classes(root, "train", "test"), "root/train: 6 images and no class folders"),
        (lambda root: write_classes(root, "Train", "Validation"), "root/Train: 6 images and no class"),
        (lambda root: write_classes(root, "ant", "bee", "test"), "root: test but no train folder"),
        (lambda root: write_classes(root / "val", "ant", "bee"), "root: val but no train folder"),
        (two_trains, "root: Training and train both look like the train set; only one can be"),
        (lambda root: write_split(root, "train", "tets"), "tets beside train is neither"),
        (parts_within_classes, "root/ant: test, train within a class folder"),
        (unlabelled_test, "root/test: 1 image and no class folders with images"),
        (lambda root: write_classes(root / "train" / "in", "ant", "bee"), "root/train: one folder only (in)"),
        (a_class_of_test_only, "root/test: class wasp is not in the training set"),
        (lambda root: write_classes(root, "ant", "bee", images=1), "class ant has one image: too few to"),
    ],
)  # fmt: skip
def test_folders_that_are_refused(tmp_path, make, message):
    make(tmp_path / "root")
    assert message in refusal(tmp_path / "root")


def test_the_folder_of_one_class(tmp_path):
    write_split(tmp_path / "root")
    found = refusal(tmp_path / "root" / "train" / "ant")
    assert re.search(
        "data.root=.../ant: 6 images and no class folders .* data.root=... was perhaps meant", found
    )


def test_the_train_folder_of_a_split(tmp_path):
    splits = load(write_split(tmp_path) / "train")
    assert f"test beside it not used; data.root={tmp_path} uses all" in "\n".join(splits.notes)


def test_parts_of_unknown_names_are_taken_as_classes_and_said(tmp_path):
    splits = load(write_split(tmp_path, "learn", "exam"))
    assert splits.class_names == ("exam", "learn")
    line = "each one class, with the folders in it: exam, learn (ant, bee); are they parts of a split?"
    assert line in splits.notes[-1]


def test_a_class_made_of_folders_is_said(tmp_path):
    """A folder of previews beside the folder that was meant."""
    root = tmp_path / "root"
    write_classes(root / "insects", "ant", "bee")
    write_classes(root, "preview")
    splits = load(root)
    assert splits.class_names == ("insects", "preview")
    assert splits.notes[-1].endswith("each one class, with the folders in it: insects (ant, bee)")


def test_what_is_left_out_is_counted_at_every_level(tmp_path):
    root = write_split(tmp_path / "root")
    expected = load(root)
    for name in ("notes.pdf", "train/notes.PDF", "train/ant/list.csv", "train/ant/README"):
        (root / name).touch()
    for name in ("train/ant/._0.png", "test/.hidden.png", "train/ant/.cache/0.png", ".cache/ant/0.png"):
        write_image(root / name)
    for name in ("__MACOSX/train/ant/0.png", "train/@eaDir/0.png", "train/ant/lost+found/0.png"):
        write_image(root / name)
    for name in ("train/Thumbs.db", "train/ant/desktop.ini", "test/.DS_Store"):
        (root / name).touch()
    for name in ("train/ant/1.heic", "train/bee/2.HEIC"):
        (root / name).touch()
    write_image(root / "train" / "loose.png")
    write_image(root / "extra" / "0.png")
    (root / "train" / "ant" / "album.jpg").mkdir()
    splits = load(root)
    assert splits.train.images == expected.train.images and splits.test.images == expected.test.images
    (line,) = splits.notes
    counts = line.partition("left out: ")[2]
    assert sorted(re.split(r", (?=\d)", counts)) == [
        "1 .csv",
        "1 file without a suffix",
        "2 .heic (images that cannot be read here; JPEG or PNG can)",
        "2 .pdf",
        "2 hidden folders",
        "2 images outside the class folders",
        "2 system files",
        "3 hidden files",
        "3 system folders",
    ]


def test_images_in_folders_of_a_class_and_in_a_folder_named_like_an_image(tmp_path):
    root = write_split(tmp_path / "root")
    deep = write_image(root / "train" / "ant" / "album.jpg" / "deep" / "0.PNG")
    assert deep in load(root).train.images


def test_links_to_files_folders_classes_and_parts_are_followed(tmp_path):
    root, elsewhere = tmp_path / "root", write_split(tmp_path / "elsewhere")
    (root / "train").mkdir(parents=True)
    (root / "test").symlink_to(elsewhere / "test")
    (root / "val").symlink_to("test")
    (root / "train" / "ant").symlink_to(elsewhere / "train" / "ant")
    (root / "train" / "bee").mkdir()
    (root / "train" / "bee" / "more").symlink_to(elsewhere / "train" / "bee")
    (root / "train" / "bee" / "one.png").symlink_to(elsewhere / "train" / "bee" / "0.png")
    splits = load(root)
    assert sizes(splits) == {"train": 13, "test": 4, "val": 4} and splits.notes == ()


def test_links_that_lead_back_are_cut_and_named(tmp_path):
    root = write_split(tmp_path / "root")
    (root / "train" / "ant" / "up").symlink_to("..")
    (root / "train" / "bee" / "self").symlink_to(".")
    (root / "train" / "bee" / "nowhere.txt").symlink_to("nowhere")
    splits = load(root)
    assert sizes(splits) == {"train": 12, "test": 4}
    assert "2 links back to folders that hold them (train/ant/up, train/bee/self)" in splits.notes[0]
    assert "1 broken link (train/bee/nowhere.txt)" in splits.notes[0]


def test_links_among_many_folders_do_not_multiply(tmp_path):
    root = write_split(tmp_path / "root")
    names = [f"{number:02}" for number in range(40)]
    for name in names:
        (root / "train" / "ant" / name).mkdir()
        for other in names:
            (root / "train" / "ant" / name / other).symlink_to(f"../{other}")
    assert sizes(load(root)) == {"train": 12, "test": 4}


def test_a_class_that_is_a_broken_link_is_refused(tmp_path):
    root = write_split(tmp_path / "root")
    (root / "train" / "cat").symlink_to(tmp_path / "unmounted")
    assert "root/train/cat: a link to a folder that is not there" in refusal(root)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_are_never_opened(tmp_path):
    root = write_split(tmp_path / "root")
    os.mkfifo(root / "train" / "ant" / "pipe.png")
    assert "1 pipe, socket or device" in load(root).notes[0]


def test_names_that_are_no_utf_8(tmp_path):
    root = tmp_path / "root"
    try:
        for part in ("train", "test"):
            write_classes(root / part, "ant", "k\udce4fer", images=2)
    except (OSError, UnicodeError):
        pytest.skip("this file system knows no such names")
    splits = load(root)
    assert splits.class_names == ("ant", r"k\udce4fer") and sizes(splits) == {"train": 4, "test": 4}
    assert splits.train[3][0].mode == "RGB"
    shutil.rmtree(root / "train" / "ant")
    assert refusal(root).encode("utf-8")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(tmp_path):
    root = write_split(tmp_path / "root")
    (root / "train" / "ant").chmod(0)
    try:
        assert "root/train/ant: cannot be read (Permission denied)" in refusal(root)
    finally:
        (root / "train" / "ant").chmod(0o700)


def test_unlabelled_images_are_found_with_the_same_care(tmp_path):
    root = tmp_path / "root"
    write_classes(root, "a", "b/c", images=6)
    write_classes(root / "a", ".hidden", "__MACOSX")
    (root / "a" / "up").symlink_to(root)
    (root / "notes.pdf").touch()
    splits = unlabelled.load(root)
    assert len(splits.train) + len(splits.test) == 12
    (line,) = splits.notes
    assert "1 hidden folder, 1 system folder, 1 link back" in line and "1 .pdf" in line
    shutil.rmtree(root / "b")
    found = refusal(root, load=lambda root: unlabelled.load(root))
    assert "6 images below it; at least ten are needed (left out:" in found
