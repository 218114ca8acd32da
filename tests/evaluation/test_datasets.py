"""Tests of serverlight.evaluation.datasets."""

from __future__ import annotations

import json
import pathlib
import zipfile

import numpy as np
import pytest

from serverlight.errors import ConfigError
from serverlight.evaluation import ImageSet, load_images
from serverlight.models.images import encode_jpeg, encode_png

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 10, 3), np.uint8)
LABELS = np.array([4, 0, 9])


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Three images with labels.json, as an ImageNet sample has it."""
    for i, image in enumerate(IMAGES):
        (tmp_path / f"{i}.png").write_bytes(encode_png(image))
    entries = [[f"{i}.png", int(label), "a remark"] for i, label in enumerate(LABELS)]
    (tmp_path / "labels.json").write_text(json.dumps(entries))
    return tmp_path


def write_npz(path: pathlib.Path, **arrays: object) -> str:
    np.savez(path / "set.npz", **arrays)
    return str(path / "set.npz")


def test_npz(tmp_path: pathlib.Path) -> None:
    """Arrays `images` and `labels`; any integer type of labels."""
    loaded = load_images(write_npz(tmp_path, images=IMAGES, labels=LABELS.astype(np.uint8)))
    np.testing.assert_array_equal(loaded.images, IMAGES)
    np.testing.assert_array_equal(loaded.labels, LABELS)
    assert loaded.labels.dtype == np.int64
    assert len(loaded) == 3


def test_demo_digits() -> None:
    """The shipped test digits by default, the calibration digits on request."""
    assert len(load_images("demo-vision")) == 450
    assert len(load_images("demo-vision:calibration")) == 200
    with pytest.raises(ConfigError, match=r"split.*'train'"):
        load_images("demo-vision:train")


def test_folder_and_zip(folder: pathlib.Path) -> None:
    """A folder and its zip file give the same images in the order of labels.json."""
    with zipfile.ZipFile(folder / "set.zip", "w") as archive:
        for path in folder.glob("*.[pj]*"):
            archive.write(path, path.name)
    for spec in (folder, folder / "set.zip"):
        loaded = load_images(str(spec))
        np.testing.assert_array_equal(loaded.images, IMAGES)
        np.testing.assert_array_equal(loaded.labels, LABELS)
    assert load_images(str(folder), channels=1).images.shape == (3, 8, 10, 1)


@pytest.fixture
def classes(tmp_path: pathlib.Path) -> pathlib.Path:
    """Two folders of a class each, as ImageNet has them, with files that do not count beside them."""
    for name, images in {"n01": IMAGES[:2], "n02": IMAGES[2:]}.items():
        (tmp_path / "val" / name).mkdir(parents=True)
        for i, image in enumerate(images):
            (tmp_path / "val" / name / f"{i}.PNG").write_bytes(encode_png(image))
    (tmp_path / "val" / "n01" / "notes.txt").write_text("no image")
    (tmp_path / "val" / "n01" / "._0.png").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "0.png").write_text("no image")
    return tmp_path


def zipped(folder: pathlib.Path) -> str:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder).as_posix())
    return str(path)


def test_folders_of_classes(classes: pathlib.Path) -> None:
    """Without labels.json folders are classes in the order of names, and the first images are of all classes."""
    for spec in (str(classes), zipped(classes), str(classes / "val")):
        loaded = load_images(spec)
        np.testing.assert_array_equal(loaded.images, IMAGES[[0, 2, 1]])
        assert loaded.labels.tolist() == [0, 1, 0]
        assert loaded.num_classes == 2
        assert load_images(spec, limit=2).labels.tolist() == [0, 1]


def test_folders_with_given_classes(classes: pathlib.Path) -> None:
    """An object in labels.json gives folders their class indices, by path or by name; a folder without one is named."""
    labels = classes / "labels.json"
    for text in ('{"n01": 7, "n02": 3}', '{"val/n01": 7, "val/n02": 3, "val/n03": 1}'):
        labels.write_text(text)
        loaded = load_images(str(classes))
        assert loaded.labels.tolist() == [7, 3, 7]
        assert loaded.num_classes is None
    labels.write_text('{"n01": 7}')
    with pytest.raises(ConfigError, match=r"no class index for the folder 'val/n02'"):
        load_images(str(classes))


def test_images_are_cut_to_size(classes: pathlib.Path) -> None:
    """Images of any size come out as the model takes them; those of the right size are left alone."""
    (classes / "val" / "n01" / "1.PNG").write_bytes(encode_png(np.full((40, 30, 3), 90, np.uint8)))
    loaded = load_images(str(classes), size=(8, 10))
    np.testing.assert_array_equal(loaded.images[:2], IMAGES[[0, 2]])
    assert (loaded.images[2] == 90).all()


def test_first() -> None:
    """A smaller set for a quick look; never an empty one."""
    full = ImageSet(images=IMAGES, labels=LABELS)
    assert len(full.first(2)) == 2
    assert len(full.first(9)) == 3
    with pytest.raises(ConfigError, match="count"):
        full.first(0)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"labels": LABELS}, "images: missing from set.npz; it has labels"),
        ({"images": IMAGES}, "labels: missing"),
        ({"images": IMAGES.astype(np.float32), "labels": LABELS}, "images: must be uint8.*got float32.*store 8-bit"),
        ({"images": IMAGES[0], "labels": LABELS}, "images: must be uint8.*3 dimensions"),
        ({"images": IMAGES, "labels": LABELS[:2]}, "labels: must be int64 of shape.*one label per image"),
        ({"images": IMAGES, "labels": LABELS / 2}, "labels: must be whole numbers.*class indices"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "images: are none"),
        ({"images": np.array([None]), "labels": LABELS}, "data: .*cannot be read"),
    ],
    ids=["no images", "no labels", "dtype", "rank", "length", "fraction", "empty", "objects"],
)
def test_npz_that_does_not_serve(tmp_path: pathlib.Path, arrays: dict, message: str) -> None:
    """Each error names the field and the remedy; pickled arrays are never opened."""
    with pytest.raises(ConfigError, match=message):
        load_images(write_npz(tmp_path, **arrays))


@pytest.mark.parametrize("suffix", [".npz", ".zip"])
@pytest.mark.parametrize("content", [b"", b"junk" * 50, b"PK\x03\x04" + bytes(40)], ids=["empty", "junk", "cut off"])
def test_damaged_archives(tmp_path: pathlib.Path, suffix: str, content: bytes) -> None:
    """A damaged file is one clear error."""
    path = tmp_path / f"set{suffix}"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"data: .*cannot be read"):
        load_images(str(path))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, r"no labels\.json that lists the images, and no folders"),
        ("{", r"labels\.json is not JSON"),
        ('{"a": 1}', "no folders of them"),
        ("1", "must be a list"),
        ('[["0.png"]]', "has the entry .*make it"),
        ('[["0.png", true]]', "has the entry .*make it"),
        ("[]", "lists no image"),
        ('[["9.png", 1]]', "9.png is in labels.json but not there"),
        ('[["labels.json", 1]]', "neither PNG nor JPEG"),
        ('[["0.png", 1], ["odd.png", 2]]', r"images: differ in size: odd\.png"),
    ],
)
def test_folder_that_does_not_serve(folder: pathlib.Path, labels: str | None, message: str) -> None:
    """Missing, damaged or wrong labels and images each get their message."""
    (folder / "odd.png").write_bytes(encode_png(IMAGES[0, :5]))
    (folder / "labels.json").unlink()
    if labels is not None:
        (folder / "labels.json").write_text(labels)
    with pytest.raises(ConfigError, match=message):
        load_images(str(folder))


def test_damaged_image_is_named(folder: pathlib.Path) -> None:
    """The message says which file."""
    (folder / "1.png").write_bytes(encode_jpeg(IMAGES[1], 80)[:100])
    with pytest.raises(ConfigError, match=r"images: 1\.png: .*damaged"):
        load_images(str(folder))


@pytest.mark.parametrize("name", ["nowhere", "set.csv"])
def test_what_is_no_image_set(tmp_path: pathlib.Path, name: str) -> None:
    """A path that is not there, and a file of another kind."""
    (tmp_path / "set.csv").write_text("1,2")
    with pytest.raises(ConfigError, match=r"data: (no file or folder|.* neither \.npz nor)"):
        load_images(str(tmp_path / name))


def test_shared_image_sets(shared_data: pathlib.Path) -> None:
    """The CIFAR images and the ImageNet sample beside the checkout load as they are."""
    cifar = load_images(str(shared_data / "vision_cifar10" / "cifar10_test_first1000.npz"))
    assert cifar.images.shape == (1000, 32, 32, 3)
    sample = load_images(str(shared_data / "vision_imagenet" / "imagenet_sample_dev700_224_q92.zip"))
    assert sample.images.shape == (700, 224, 224, 3)
    assert len(set(sample.labels.tolist())) == 700
