"""CSV files are read in whatever form they come, and what is none is named with the way out."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from pathlib import Path

import pytest

from emopipe.emonet.data.csv_files import column_names, open_csv
from emopipe.emonet.errors import EmopipeError

TEXT = "Name, Expression\nMüller,happy\nMeier,sad\n"
ROWS = [["Name", " Expression"], ["Müller", "happy"], ["Meier", "sad"]]


class RefusedError(EmopipeError):
    """What the tests ask for as an error."""


def rows_of(path: Path, preferred: tuple[str, ...] = ()) -> list[list[str]]:
    with open_csv(path, RefusedError, preferred) as opened:
        return list(opened.rows())


def in_zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def in_tar(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member, held in (("a/README", b"read me"), (name, content)):
            info = tarfile.TarInfo(member)
            info.size = len(held)
            archive.addfile(info, io.BytesIO(held))
    return buffer.getvalue()


PLAIN = TEXT.encode()


@pytest.mark.parametrize(
    "content",
    [
        PLAIN,
        PLAIN.replace(b"\n", b"\r\n"),
        PLAIN.replace(b"\n", b"\r"),
        PLAIN.replace(b",", b";"),
        PLAIN.replace(b",", b"\t"),
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        TEXT.encode("utf-16-le"),
        TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        TEXT.encode("latin-1"),
        gzip.compress(PLAIN),
        bz2.compress(PLAIN),
        lzma.compress(PLAIN),
        gzip.compress(TEXT.encode("utf-16")),
        in_zip({"t.csv": PLAIN, "__MACOSX/._t.csv": b"\0\5", "README.md": b"#"}),
        in_zip({"t.csv.gz": gzip.compress(PLAIN)}),
        in_tar("a/t.csv", PLAIN),
        gzip.compress(in_tar("./a/t.csv", PLAIN)),
    ],
)
def test_its_form_follows_from_its_content(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "misnamed.csv"
    path.write_bytes(content)
    assert rows_of(path) == ROWS
    assert column_names(path, RefusedError) == ["name", "expression"]


def test_of_several_files_in_an_archive_the_preferred_one_is_read(tmp_path: Path) -> None:
    path = tmp_path / "archive.zip"
    path.write_bytes(in_zip({"train.csv": b"x", "b/FER2013.csv": PLAIN, "test.csv": b"y"}))
    assert rows_of(path, ("fer2013.csv", "train.csv")) == ROWS
    with pytest.raises(RefusedError, match=r"holds several CSV files \(train\.csv, b/FER2013\.csv"):
        rows_of(path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (in_zip({"a/1.png": b"\x89PNG"}), r"holds no CSV file, but a/1\.png: unpack it"),
        (in_zip({"[Content_Types].xml": b"<", "xl/a.xml": b"<"}), "is an Excel workbook: save"),
        (b"7z\xbc\xaf\x27\x1c\0\4", "is a 7z archive: unpack it"),
        (b"\x28\xb5\x2f\xfd\0", "compressed with Zstandard: unpack it"),
        (b"\x89PNG\r\n\x1a\n\0\0", "is no text file"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41", "is no text file"),
        (gzip.compress(PLAIN * 99)[:-30], "cannot be read as CSV"),
        (gzip.compress(PLAIN)[:12] + b"\xff" * 20, "cannot be read as CSV"),
        (bz2.compress(PLAIN)[:-9], "cannot be read as CSV"),
        (lzma.compress(PLAIN)[:-30], "cannot be read as CSV"),
        (in_zip({"t.csv": PLAIN})[:-30], "cannot be read as CSV"),
        (gzip.compress(in_tar("t.csv", PLAIN)[:600]), "cannot be read as CSV"),
        (TEXT.encode("utf-16")[:-1], "cannot be read as CSV"),
    ],
)
def test_what_cannot_be_read_is_a_sentence_that_names_it(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(RefusedError, match=complaint) as caught:
        rows_of(path)
    assert str(path) in str(caught.value)


def test_an_encrypted_archive_is_a_sentence(tmp_path: Path) -> None:
    content = bytearray(in_zip({"t.csv": PLAIN}))
    for start, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # the headers' flag of encryption
        content[content.index(start) + flags] |= 1
    path = tmp_path / "secret.zip"
    path.write_bytes(content)
    with pytest.raises(RefusedError, match=r"secret\.zip cannot be unpacked .*: unpack it first"):
        rows_of(path)
