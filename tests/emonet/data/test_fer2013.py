"""FER2013 is read in all its forms, and what cannot be read is named."""

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from made_fer2013 import csv_text, images_and_labels, write_csv, write_votes
from PIL import Image

from emopipe.emonet.data import fer2013
from emopipe.emonet.data.fer2013 import DataError
from emopipe.emonet.labels import EMOTIONS_8, FER2013_7

VOTES = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EMOPIPE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("fer2013.csv", "emotion,pixels,Usage"),
        ("icml_face_data.csv", "emotion, Usage, pixels"),
        ("fer2013.csv.gz", "emotion,pixels,Usage"),
    ],
)
def test_every_form_of_the_file_gives_the_same_images_and_labels(tmp_path, name, header):
    faces = fer2013.read(write_csv(tmp_path / name, 12, header=header))
    images, labels = images_and_labels(12)
    assert (faces.images == images).all()
    assert (faces.labels == labels).all()
    assert faces.usage.tolist() == [0, 0, 0, 0, 1, 2] * 2
    assert faces.classes == FER2013_7


def in_zip(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def in_tar_gz(path: Path, name: str, text: str) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text.encode()))
    return path


def test_archives_and_other_encodings_are_read_as_they_come(tmp_path):
    text = csv_text(12)
    misnamed, wide, excel = (tmp_path / f"{n}.csv" for n in ("fer2013", "wide", "excel"))
    misnamed.write_bytes(gzip.compress(text.encode()))
    wide.write_bytes(text.encode("utf-16"))
    excel.write_bytes(text.replace(",", ";").replace("\n", "\r\n").encode("utf-8-sig"))
    forms = [
        in_zip(tmp_path / "archive.zip", {"fer2013/fer2013.csv": text, "test.csv": "pixels\n"}),
        in_tar_gz(tmp_path / "fer2013.tar.gz", "fer2013/fer2013.csv", text),
        *(misnamed, wide, excel),
    ]
    images, _ = images_and_labels(12)
    for path in forms:
        assert (fer2013.read(path).images == images).all(), path


def test_labels_and_votes_may_come_in_one_archive(tmp_path):
    votes = write_votes(tmp_path / "votes.csv", 12).read_text()
    both = {"fer2013new.csv": votes, "fer2013.csv": csv_text(12)}
    path = in_zip(tmp_path / "both.zip", both)
    assert fer2013.read(path, ferplus=path).classes == EMOTIONS_8


def test_an_archive_of_pictures_is_to_be_unpacked(tmp_path):
    path = in_zip(tmp_path / "archive.zip", {"train/angry/1.jpg": "", "train/angry/2.jpg": ""})
    with pytest.raises(DataError, match=r"archive\.zip holds no CSV file.*: unpack it"):
        fer2013.read(path)


def test_what_systems_leave_in_a_folder_is_no_image(tmp_path):
    images, _ = images_and_labels(2)
    own = ("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini")
    for folder, names in {
        "happy": ("0.png", *own),
        "sad": ("1.png", *own),
        "__MACOSX/happy": own,
        "happy/.ipynb_checkpoints": ("0-checkpoint.png",),
    }.items():
        (tmp_path / "data" / folder).mkdir(parents=True)
        for name in names:
            (tmp_path / "data" / folder / name).write_bytes(b"\0\5\x16\7")
    for folder, name, image in (("happy", "0.png", images[0]), ("sad", "1.png", images[1])):
        Image.fromarray(image).save(tmp_path / "data" / folder / name)
    faces = fer2013.read(tmp_path / "data")
    assert (faces.images == images).all()
    assert faces.skipped == ()


def test_a_folder_is_matched_by_the_names_of_its_folders(tmp_path):
    images, labels = images_and_labels(14)
    names = ("Angry", "disgust", "fearful", "happiness", "Sad", "surprise", "neutral")
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        part = "train" if i < 7 else "test"
        file = tmp_path / "data" / part / names[label] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).resize((96, 96), Image.Resampling.NEAREST).save(file)
    faces = fer2013.read(tmp_path / "data")
    assert faces.classes == FER2013_7
    for part, usage in ((slice(0, 7), 0), (slice(7, 14), 2)):
        mine = faces.images[faces.usage == usage].astype(int)
        by_label = np.argsort(faces.labels[faces.usage == usage])
        assert np.abs(mine[by_label] - images[part]).mean() < 15

    with pytest.raises(DataError, match="a folder has another order"):
        fer2013.read(tmp_path / "data", ferplus=tmp_path / "fer2013new.csv")
    (tmp_path / "data" / "train" / "Sad" / "missing.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"missing\.png: .*No such file"):
        fer2013.read(tmp_path / "data")
    assert len(fer2013.read(tmp_path / "data", skip_bad=True)) == 14

    (tmp_path / "data" / "train" / "bored").mkdir()
    (tmp_path / "data" / "train" / "bored" / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match="no expressions \\(bored\\)"):
        fer2013.read(tmp_path / "data")


@pytest.mark.parametrize(
    ("column", "value", "complaint"),
    [
        (0, "7", "emotion is '7', not 0 to 6"),
        (1, "1 2 3", "3 pixels instead of 2304"),
        (1, " ".join(["256"] * 2304), "a pixel is '256', not 0 to 255"),
        (2, "Testing", "Usage is 'Testing'"),
    ],
)
def test_bad_rows_are_named_with_their_line_or_left_out(tmp_path, column, value, complaint):
    lines = csv_text(8).splitlines()
    cells = lines[5].split(",")
    cells[column] = value
    lines[5] = ",".join(cells)
    path = tmp_path / "fer2013.csv"
    path.write_text("\n".join(lines))
    for _ in range(2):  # the second time from the cache
        with pytest.raises(DataError, match=f"line 6: {complaint}.*`skip_bad`"):
            fer2013.read(path)
        faces = fer2013.read(path, skip_bad=True)
        assert faces.rows.tolist() == [0, 1, 2, 3, 5, 6, 7]
        assert len(faces.skipped) == 1


def test_a_file_that_is_not_fer2013_is_refused_with_a_reason(tmp_path):
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="no column emotion and no column pixels: it has a, b"):
        fer2013.read(other)
    cut_off = tmp_path / "fer2013.csv.gz"
    cut_off.write_bytes(write_csv(tmp_path / "whole.csv.gz", 20).read_bytes()[:-50])
    with pytest.raises(DataError, match="cannot be read as CSV"):
        fer2013.read(cut_off)
    with pytest.raises(DataError, match="no such file"):
        fer2013.read(tmp_path / "missing.csv")


def test_the_second_reading_comes_from_the_cache_and_a_damaged_cache_does_not_matter(
    tmp_path, monkeypatch
):
    path = write_csv(tmp_path / "fer2013.csv", 12)
    first = fer2013.read(path)
    (cached,) = (tmp_path / "cache").rglob("*.npz")
    with monkeypatch.context() as patch:
        patch.setattr(fer2013, "_read_csv", lambda _: pytest.fail("read the CSV again"))
        again = fer2013.read(path)
    assert (again.images == first.images).all()
    assert again.sha256 == first.sha256

    cached.write_bytes(cached.read_bytes()[:200])
    assert (fer2013.read(path).images == first.images).all()


def test_votes_become_distributions_and_non_faces_are_dropped(tmp_path):
    path = write_csv(tmp_path / "fer2013.csv", 3, usages=(0,))
    votes = tmp_path / "fer2013new.csv"
    rows = ["fer0.png,6,0,0,2,0,0,0,2,0,0", ",0,0,0,0,0,0,0,0,0,10", "fer2.png,1,0,0,0,0,0,4,0,5,0"]
    votes.write_text("\n".join([VOTES, *(f"Training,{row}" for row in rows)]))
    faces = fer2013.read(path, ferplus=votes)
    assert faces.classes == EMOTIONS_8
    assert faces.rows.tolist() == [0]
    expected = dict.fromkeys(EMOTIONS_8, 0.0) | {"neutral": 0.6, "sad": 0.2, "contempt": 0.2}
    np.testing.assert_allclose(faces.targets[0], list(expected.values()))

    votes.write_text("\n".join([VOTES, *(f"PublicTest,{row}" for row in rows)]))
    with pytest.raises(DataError, match="does not go with"):
        fer2013.read(path, ferplus=votes)

    rows[1] = rows[1].replace("10", "many")
    votes.write_text("\n".join([VOTES, *(f"Training,{row}" for row in rows)]))
    with pytest.raises(DataError, match=r"line 3 holds a vote that is no number: .*`skip_bad`"):
        fer2013.read(path, ferplus=votes)
    faces = fer2013.read(path, ferplus=votes, skip_bad=True)
    assert faces.rows.tolist() == [0]
    assert faces.skipped == ("fer2013new.csv: line 3 holds a vote that is no number",)


def test_network_input_is_the_whole_image_enlarged():
    images, _ = images_and_labels(3)
    made = fer2013.network_input(images, 96).numpy()
    assert made.shape == (3, 3, 96, 96)
    assert made.min() >= 0
    assert made.max() <= 1
    means = made.mean(axis=1).reshape(3, 48, 2, 48, 2).mean(axis=(2, 4))
    assert np.abs(means * 255 - images).mean() < 6
