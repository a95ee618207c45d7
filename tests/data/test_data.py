"""Test sources, splits, transforms and batches, on small data in the layout of each data set."""

import csv
import json
import logging
from pathlib import Path
from urllib.error import URLError

import fake_data
import numpy
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from processes import ROOT
from scipy.io import savemat

from tinytl.data import celeba, cifar, cub200, digits, folder, generated, torchvision_sets
from tinytl.data.datamodule import ImageDataModule
from tinytl.data.images import Images
from tinytl.data.splits import Splits
from tinytl.data.transforms import test_transform as evaluation_transform
from tinytl.data.transforms import train_transform
from tinytl.errors import UserError


def write_image(path, value=128, size=(20, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def class_folders(root, names, images=10):
    for number, name in enumerate(names):
        for index in range(images):
            write_image(root / name / f"{index}.png", value=number)


def datamodule(splits, **overrides):
    options = {"resolution": 32, "batch_size": 4, "mean": [0.5] * 3, "std": [0.5] * 3, "seed": 0}
    return ImageDataModule(splits=splits, **{**options, **overrides})


def test_digits():
    splits = digits.load(Path("nowhere"))
    assert (len(splits.train), len(splits.test)) == (1438, 359)
    assert numpy.bincount(splits.test.targets).min() >= 34  # a fifth of each class
    image, label = splits.train[0]
    assert image.mode == "RGB" and image.size == (8, 8) and label in range(10)
    same = digits.load(Path("elsewhere"))
    assert splits.test.targets == same.test.targets


def test_generated_images_are_drawn_on_demand_and_the_same_each_time():
    splits = generated.load(Path("nowhere"))
    assert (len(splits.train), len(splits.test), len(splits.class_names)) == (20_000, 1_000, 100)
    assert numpy.bincount(splits.train.targets).tolist() == [200] * 100
    again = generated.load(Path("elsewhere"))
    for position in range(0, 20_000, 1_999):  # from every family
        (image, label), (same, _) = splits.train[position], again.train[position]
        pixels = numpy.asarray(image)
        assert image.mode == "RGB" and image.size == (112, 112) and label == position // 200
        assert (pixels == numpy.asarray(same)).all()
        assert (pixels != numpy.asarray(splits.train[position + 1][0])).mean() > 0.5
        assert pixels.std(axis=(0, 1)).max() > 5  # there is something to see


def test_a_drifting_stream_sees_each_image_once_and_few_classes_at_a_time():
    labels = [number % 10 for number in range(1000)]
    images = Images([Image.new("RGB", (8, 8))] * 1000, labels)
    splits = Splits(images, images, tuple("0123456789"), train_labels=labels)

    def order(seed):
        data = datamodule(splits, batch_size=1, stream=True, drift=True, seed=seed)
        return list(data.train_dataloader().sampler)  # type: ignore[attr-defined]

    stream = order(0)
    assert sorted(stream) == list(range(1000)) and stream == order(0) != order(1)
    windows = [{labels[i] for i in stream[begin : begin + 50]} for begin in range(0, 1000, 50)]
    assert max(map(len, windows)) <= 5  # of 10; in random order 50 images show nearly all
    assert not windows[0] & windows[-1]


def test_a_stream_is_seen_without_random_transforms():
    splits = digits.load(Path("nowhere"))
    data = datamodule(splits, batch_size=1, stream=True)
    plain = evaluation_transform(32, [0.5] * 3, [0.5] * 3)
    assert torch.equal(data.train_set[7][0], plain(splits.train[7][0]))


def test_labels_that_are_no_classes_cannot_drift():
    images = Images([Image.new("RGB", (8, 8))] * 8, [torch.ones(3)] * 8)
    splits = Splits(images, images, ("a", "b", "c"))
    with pytest.raises(UserError, match=r"data\.drift=true: the images have no single class"):
        datamodule(splits, batch_size=1, stream=True, drift=True)


def test_folder_with_train_and_test(tmp_path):
    class_folders(tmp_path / "train", ["ants", "bees"])
    class_folders(tmp_path / "test", ["ants", "bees"], images=3)
    splits = folder.load(tmp_path)
    assert splits.class_names == ("ants", "bees")
    assert (len(splits.train), len(splits.test)) == (20, 6)
    assert [splits.test[i][1] for i in range(6)] == [0, 0, 0, 1, 1, 1]
    assert splits.test[5][0].getpixel((0, 0)) == (1, 1, 1)


def test_folder_holds_a_fifth_of_each_class_out(tmp_path):
    class_folders(tmp_path, ["ants", "bees", "wasps"])
    splits = folder.load(tmp_path)
    assert sorted(splits.test.targets) == [0, 0, 1, 1, 2, 2]
    assert not set(splits.train.images) & set(splits.test.images)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("content", [b"not an image", None])
def test_a_corrupt_image_is_named(tmp_path, workers, content):
    class_folders(tmp_path, ["ants", "bees"])
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(content or path.read_bytes()[:-40])
    batches = iter(datamodule(folder.load(tmp_path), workers=workers).test_dataloader())
    with pytest.raises(UserError, match=r"ants/\d\.png: not a readable image"):
        next(batches)


def cub_layout(root):
    base = root / "CUB_200_2011"
    lines = {"images.txt": [], "image_class_labels.txt": [], "train_test_split.txt": []}
    for number in range(1, 7):
        name = f"00{1 + number % 2}.Bird/{number}.jpg"
        write_image(base / "images" / name)
        lines["images.txt"].append(f"{number} {name}")
        lines["image_class_labels.txt"].append(f"{number} {1 + number % 2}")
        lines["train_test_split.txt"].append(f"{number} {int(number <= 4)}")
    lines["classes.txt"] = ["1 001.Bird", "2 002.Bird"]
    for name, content in lines.items():
        (base / name).write_text("\n".join(content) + "\n")


def test_cub200(tmp_path):
    cub_layout(tmp_path)
    splits = cub200.load(tmp_path)
    assert (len(splits.train), len(splits.test)) == (4, 2)
    assert splits.train_labels == [1, 0, 1, 0]
    assert splits.train[0][0].size == (20, 16)


def test_cub200_says_what_to_put_where(tmp_path):
    with pytest.raises(
        UserError, match=r"CUB_200_2011/images.txt is not there; unpack CUB_200_2011.tgz .* into"
    ):
        cub200.load(tmp_path)


def test_pets(tmp_path):
    base = tmp_path / "oxford-iiit-pet"
    for name in ("Abyssinian_1", "beagle_2", "beagle_3"):
        write_image(base / "images" / f"{name}.jpg")
    (base / "annotations").mkdir()
    (base / "annotations" / "trainval.txt").write_text("Abyssinian_1 1 1 1\nbeagle_2 2 2 1\n")
    (base / "annotations" / "test.txt").write_text("beagle_3 2 2 1\n")
    splits = torchvision_sets.pets(tmp_path)
    assert splits.train_labels == [0, 1] and splits.test[0][1] == 1
    assert splits.class_names == ("Abyssinian", "Beagle")


def test_food101(tmp_path):
    base = tmp_path / "food-101"
    for name in ("pie/1", "pie/2", "soup/3"):
        write_image(base / "images" / f"{name}.jpg")
    (base / "meta").mkdir()
    (base / "meta" / "train.json").write_text(json.dumps({"pie": ["pie/1"], "soup": ["soup/3"]}))
    (base / "meta" / "test.json").write_text(json.dumps({"pie": ["pie/2"], "soup": []}))
    splits = torchvision_sets.food101(tmp_path)
    assert splits.train_labels == [0, 1] and len(splits.test) == 1


def test_aircraft(tmp_path):
    base = tmp_path / "fgvc-aircraft-2013b" / "data"
    for name in ("1", "2", "3"):
        write_image(base / "images" / f"{name}.jpg")
    (base / "variants.txt").write_text("707-320\nDR-400\n")
    (base / "images_variant_trainval.txt").write_text("1 707-320\n2 DR-400\n")
    (base / "images_variant_test.txt").write_text("3 DR-400\n")
    splits = torchvision_sets.aircraft(tmp_path)
    assert splits.train_labels == [0, 1] and splits.test[0][1] == 1


def test_flowers102_trains_on_train_and_val(tmp_path, monkeypatch):
    base = tmp_path / "flowers-102"
    for number in range(1, 7):
        write_image(base / "jpg" / f"image_{number:05d}.jpg")
    savemat(base / "setid.mat", {"trnid": [1, 2], "valid": [3, 4], "tstid": [5, 6]})
    savemat(base / "imagelabels.mat", {"labels": [1, 2, 3, 4, 5, 6]})
    monkeypatch.setattr("torchvision.datasets.flowers102.check_integrity", lambda *_: True)
    splits = torchvision_sets.flowers102(tmp_path)
    assert splits.train_labels == [0, 1, 2, 3]
    assert splits.test.targets == [4, 5]


DOWNLOADS = [
    (torchvision_sets.flowers102, "flowers-102/jpg"),
    (torchvision_sets.food101, "food-101/images"),
    (torchvision_sets.pets, "oxford-iiit-pet/images"),
    (torchvision_sets.aircraft, "fgvc-aircraft-2013b/data/images"),
    (cifar.load_cifar10, "cifar-10-batches-py"),
    (cifar.load_cifar100, "cifar-100-python"),
    (celeba.load, "celeba/img_align_celeba"),
]


@pytest.mark.parametrize(("load", "files"), DOWNLOADS)
def test_a_failed_download_says_what_to_put_where(tmp_path, monkeypatch, load, files):
    def dead(*_, **__):
        raise URLError("dead address")

    for name in ("urllib.request.urlopen", "torchvision.datasets.utils.download_file_from_google_drive"):
        monkeypatch.setattr(name, dead)
    monkeypatch.setattr("torchvision.datasets.celeba.download_file_from_google_drive", dead)
    with pytest.raises(UserError, match=f"put into .*{files}"):
        load(tmp_path)


def test_cars_cannot_be_downloaded(tmp_path):
    with pytest.raises(UserError, match=r"data=cars .* stanford_cars/cars_train"):
        torchvision_sets.cars(tmp_path)


def test_the_papers_recipes():
    with open(ROOT / "tests" / "golden" / "recipes.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    for row in rows:
        data = OmegaConf.load(ROOT / "conf" / "data" / f"{row['dataset']}.yaml")
        assert data.num_classes == int(row["classes"])
        assert data.lr == float(row["lr_batch8"])
        assert data.lr_batch1 == (float(row["lr_batch1"]) if row["lr_batch1"] else None)
        assert data.label_smoothing == float(row["label_smoothing"])
        jitter = "none" if data.color_jitter is None else "/".join(f"{j:g}" for j in data.color_jitter)
        assert jitter == row["color_jitter"]
        assert (data.resolution, data.epochs, data.crop_scale_min, data.val_fraction) == (224, 50, 0.22, 0.0)


def test_evaluation_transform_is_resize_and_centre_crop():
    """48 px: short side to ceil(48 / 0.875) = 55, then the centre; a grey image stays grey."""
    image = Image.new("RGB", (110, 220), (128, 128, 128))
    image.paste((255, 0, 0), (0, 0, 110, 20))  # beyond the centre
    pixels = evaluation_transform(48, [0.5, 0.4, 0.3], [0.2, 0.2, 0.1])(image)
    expected = (torch.full((3,), 128 / 255) - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.2, 0.2, 0.1])
    torch.testing.assert_close(pixels, expected[:, None, None].expand(3, 48, 48))


def test_training_transform_crops_at_least_its_scale():
    """Crops of the whole image show the marked corner; crops of 22 % mostly do not."""
    image = Image.new("RGB", (100, 100))
    image.paste((255, 255, 255), (0, 0, 10, 10))
    torch.manual_seed(0)
    whole = train_transform(32, [0.0] * 3, [1.0] * 3, crop_scale_min=1.0, flip=False)
    random = train_transform(32, [0.0] * 3, [1.0] * 3)
    assert all(whole(image).amax() > 0.5 for _ in range(5))
    shown = sum((random(image).amax() > 0.5).item() for _ in range(60))
    assert 0 < shown < 50


def test_validation_set_is_stratified_seeded_and_apart(tmp_path):
    class_folders(tmp_path / "train", ["ants", "bees"], images=20)
    class_folders(tmp_path / "test", ["ants", "bees"], images=2)
    splits = folder.load(tmp_path)
    data, same, other = (datamodule(splits, val_fraction=0.2, seed=s) for s in (1, 1, 2))
    assert sorted(splits.train.targets[i] for i in data.val_set.positions) == [0] * 4 + [1] * 4
    assert sorted([*data.train_set.positions, *data.val_set.positions]) == list(range(40))
    assert data.val_set.positions == same.val_set.positions != other.val_set.positions
    assert datamodule(splits).val_dataloader() == []


def test_batches(tmp_path):
    class_folders(tmp_path, ["ants", "bees"], images=10)
    splits = folder.load(tmp_path)
    data = datamodule(splits, batch_size=5)
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (5, 3, 32, 32) and labels.shape == (5,)
    assert len(data.train_dataloader()) == 3  # of 16 images: the last one is left out
    assert len(datamodule(splits, batch_size=256).train_dataloader()) == 1  # fewer images than a batch
    orders = [[y.tolist() for _, y in datamodule(splits, seed=s).train_dataloader()] for s in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_multilabel_targets_stay_vectors():
    images = [Image.new("RGB", (8, 8))] * 4
    targets = list(torch.eye(4))
    splits = Splits(Images(images, targets), Images(images, targets), tuple("abcd"))
    _, batch = next(iter(datamodule(splits, val_fraction=0.25, batch_size=2).train_dataloader()))
    assert batch.shape == (2, 4) and batch.dtype == torch.float32


def test_downloading_is_announced(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: (_ for _ in ()).throw(URLError("no")))
    with caplog.at_level(logging.WARNING), pytest.raises(UserError):
        cifar.load_cifar10(tmp_path)
    assert "data=cifar10 is not in" in caplog.text


def test_random_crops_depend_on_seed_epoch_and_image_alone():
    """So that an interrupted run, or one with other workers, sees the images that another run sees."""
    common = {"splits": fake_data.load_multiclass(""), "resolution": 32, "batch_size": 4}
    common |= {"mean": (0, 0, 0), "std": (1, 1, 1)}

    def epoch(number, seed=0, workers=0, state=0):
        loader = ImageDataModule(**common, workers=workers, seed=seed).train_dataloader()
        loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
        torch.manual_seed(state)
        images = torch.cat([images for images, _ in loader])
        assert torch.equal(torch.get_rng_state(), torch.manual_seed(state).get_state())  # dropout's
        return images

    first = epoch(1)
    assert torch.equal(first, epoch(1, state=5)) and torch.equal(first, epoch(1, workers=2))
    assert not torch.equal(first, epoch(2)) and not torch.equal(first, epoch(1, seed=1))
    crops = [ImageDataModule(**common, seed=seed).train_set[0][0] for seed in (0, 1)]
    assert not torch.equal(*crops)  # of the same image in the same epoch


def test_processes_share_an_epoch(monkeypatch):
    """Each of two takes its half of what one would see; batches stay whole."""
    common = {"splits": fake_data.load_multiclass(""), "resolution": 32, "batch_size": 4}
    common |= {"mean": (0, 0, 0), "std": (1, 1, 1)}
    alone = list(ImageDataModule(**common).train_dataloader().sampler)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        loader = ImageDataModule(**common).train_dataloader()
        parts.append(list(loader.sampler))
        assert len(loader) == 2 and all(len(labels) == 4 for _, labels in loader)
    assert [key for pair in zip(*parts, strict=True) for key in pair] == alone
