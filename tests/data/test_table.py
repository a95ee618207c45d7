"""A table of images: one class or several labels, every separator; each fault is a line with its row."""

from pathlib import Path
from typing import Any

import pytest
import torch
from image_folders import write_image

from tinytl.data.loading import load_data
from tinytl.data.table import load
from tinytl.errors import UserError


def write_table(folder: Path, text: str | bytes, images: int = 10) -> Path:
    """A CSV file beside images 0.png, 1.png, ..."""
    for number in range(images):
        write_image(folder / f"{number}.png")
    path = folder / "table.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def rows(*labels: str) -> str:
    return "".join(f"{number}.png,{label}\n" for number, label in enumerate(labels))


def listed(images) -> dict[str, Any]:
    """Targets by file name."""
    names = [path.name for path in images.images]
    return dict(zip(names, images.targets, strict=True))


def test_one_class_per_image(tmp_path):
    """Numbers are sorted by value; what spreadsheets would read as absent is a class like any other."""
    text = "path,label,split\n0.png,10,train\n1.png,9,train\n2.png,NA,training\n3.png,9,test\n4.png,NA,val\n"
    splits = load(write_table(tmp_path, text))
    assert splits.class_names == ("9", "10", "NA") and splits.task == "multiclass"
    assert listed(splits.train) == {"0.png": 1, "1.png": 0, "2.png": 2} and splits.train_labels == [1, 0, 2]
    assert listed(splits.test) == {"3.png": 0}
    assert splits.val is not None and listed(splits.val) == {"4.png": 2}


def test_several_labels_per_image(tmp_path):
    text = "path;split;furry;can fly\n0.png;train;1;0\n1.png;train;true;0.0\n\n2.png;val;0;1\n"
    splits = load(write_table(tmp_path, text))
    assert splits.class_names == ("furry", "can fly") and splits.task == "multilabel"
    assert torch.equal(torch.stack(list(splits.train.targets)), torch.tensor([[1.0, 0], [1, 0]]))
    assert listed(splits.test)["2.png"].tolist() == [0, 1] and splits.val is None
    assert "those of val are the test set" in splits.notes[0]
    assert splits.notes[1] == "no training image has can fly"


def test_a_fifth_of_each_class_is_held_out(tmp_path):
    splits = load(write_table(tmp_path, "path,label\n" + rows(*"aaaaabbbbb")))
    assert sorted(splits.test.targets) == [0, 1] and sorted(splits.train.targets) == 4 * [0] + 4 * [1]
    assert load(tmp_path / "table.csv").test.images == splits.test.images
    labels = load(write_table(tmp_path, "path,x,y\n" + rows(*["0,1"] * 10)))
    assert (len(labels.train), len(labels.test)) == (8, 2)


PLAIN = 'path,label,taken by\n0.png,bär,"Ann, Bob"\n1.png,cat,\n2.png,bär,x\n3.png,cat,\n'


@pytest.mark.parametrize(
    "content",
    [
        PLAIN.encode(),
        PLAIN.encode("utf-8-sig"),
        PLAIN.encode("utf-16"),
        PLAIN.replace("\n", "\r\n").encode(),
        PLAIN.replace(",", ";").replace("Ann;", "Ann,").encode(),
        PLAIN.replace(",", "\t").encode(),
        PLAIN.replace(",", " , ", 2).replace("bär", '"bär"').encode(),
        (PLAIN + "\n,,\n./1.png,cat,\n").encode(),
    ],
    ids=["plain", "byte order mark", "utf-16", "crlf", "semicolons", "tabs", "spaces", "empty and repeated"],
)
def test_every_dialect_reads_the_same(tmp_path, content):
    splits = load(write_table(tmp_path, content))
    assert splits.class_names == ("bär", "cat")
    assert {**listed(splits.train), **listed(splits.test)} == {"0.png": 0, "1.png": 1, "2.png": 0, "3.png": 1}
    assert any("not used: taken by" in note for note in splits.notes)


FAULTS = [
    ("", "row 1: no column path, but "),
    ("file,label\n0.png,a\n", "row 1: no column path, but file,label"),
    ("path\n0.png\n", "no other column; needed is label, or two or more columns of 0 and 1"),
    ("path,split,furry\n0.png,train,1\n", "only column furry; needed is label"),
    ("path,label\n", "lists no images"),
    ("path,label,label\n0.png,a,b\n", "row 1: two columns label"),
    ("path,label,\n0.png,a,b\n", "row 1: a column without a name"),
    ("path,label\n0.png,a\n,b\n", "row 3: the path is empty"),
    ("path,label\n0.png,a\n\n1.png\n", "row 4: the label is empty"),
    ("path,label\n0.png,a\n1.png,b,c\n", "row 3: more cells than the header names (2)"),
    ("path,label\n0.png,a,,\n", "not a table (Error tokenizing data. C error: Expected 3 fields in line 2"),
    ('path,label\n0.png,"a\n', "not a table (Error tokenizing data. C error: EOF inside string"),
    ("path,label\n0.png,a\nnowhere/1.png,b\n11.png,b\n", "row 3: nowhere/1.png: no such file (2 of 3 are"),
    ("path,label\n0.png,a\n1.png,b\n./0.png,b\n", "row 4: ./0.png has the label 'b' and, in row 2, 'a'"),
    ("path,label,split\n0.png,a,train\n0.png,a,test\n", "row 3: 0.png has the split 'test' and, in row 2,"),
    ("path,furry,flies\n0.png,1,0\n1.png,0,2\n", "row 3: '2' in column flies is neither 0 nor 1, and there"),
    ("path,furry,flies\n0.png,1,\n", "row 2: '' in column flies is neither 0 nor 1"),
    ("path,label,split\n0.png,a,train\n1.png,b,perhaps\n", "row 3: the split 'perhaps' is none of train"),
    ("path,label,split\n0.png,a,test\n", "no row is of the split train"),
    ("path,label,split\n0.png,a,train\n1.png,b,train\n2.png,c,test\n", "row 4: class c is not in the train"),
    ("path,label\n0.png,a\n1.png,a\n2.png,b\n", "class b has one image: too few to hold out 20%"),
    ("path,label\n0.png,b\xe4r\n".encode("latin-1"), "row 2: not UTF-8; save the table as UTF-8"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), FAULTS, ids=[message[:30] for _, message in FAULTS])
def test_a_fault_is_one_line_with_its_row(tmp_path, text, message):
    path = write_table(tmp_path, text)
    with pytest.raises(UserError) as error:
        load(path)
    assert str(error.value).startswith(f"data.csv={path}: ") and message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "reason"), [("none.csv", "No such file"), (".", "Is a directory")])
def test_a_file_that_is_no_table(tmp_path, name, reason):
    with pytest.raises(UserError, match=rf"^data\.csv=.*: cannot be read \({reason}"):
        load(tmp_path / name)


def test_labels_are_part_of_the_hash(tmp_path):
    """The order of the columns, and a single label, change what is trained."""

    def digest(name, text):
        (tmp_path / name).write_text(text)
        return load_data("tinytl.data.table.load", str(tmp_path / name), False).digest

    write_table(tmp_path, "")
    first = digest("a.csv", "path,x,y\n" + rows(*["0,1"] * 10))
    assert digest("b.csv", "path,x,y\n" + rows(*["0,1"] * 10)) == first
    assert digest("c.csv", "path,x,y\n" + rows(*["0,1"] * 9, "1,1")) != first
