"""The store needs nothing of a file system but its seam, so an object store can stand there."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from made_spans import a_span, a_video

from emopipe.emonet.labels import EMOTIONS_8
from emopipe.pipeline import storage as storage_module
from emopipe.pipeline.storage import FileInfo, LocalStorage, LockedError
from emopipe.pipeline.table import output, results, store
from emopipe.pipeline.table.results import read_results
from emopipe.pipeline.table.schema import span_rows
from emopipe.pipeline.table.store import open_store, part_key

BUCKET = Path("/bucket")
FRAMES = 10


class ObjectStorage:
    """Objects by name, in memory: a folder is what their names begin with."""

    def __init__(self) -> None:
        self.objects: dict[Path, bytes] = {}

    def stat(self, path: Path) -> FileInfo | None:
        if path in self.objects:
            return FileInfo(True, False, len(self.objects[path]), 0.0)
        return FileInfo(False, True, 0, 0.0) if self.children(path) else None

    def children(self, folder: Path) -> list[Path]:
        depth = len(folder.parts) + 1
        return list({Path(*p.parts[:depth]) for p in self.objects if folder in p.parents})

    def walk(self, folder: Path) -> Iterator[Path]:
        return (path for path in self.objects if folder in path.parents)

    def open(self, path: Path) -> BinaryIO:
        return io.BytesIO(self.objects[path])

    def read(self, path: Path) -> bytes:
        return self.objects[path]

    @contextmanager
    def write(self, path: Path, durable: bool = True) -> Iterator[BinaryIO]:
        class Upload(io.BytesIO):
            def close(self) -> None:
                """Its writer may close it; the upload ends with the block."""

        upload = Upload()
        yield upload
        self.objects[path] = upload.getvalue()

    def make_folder(self, folder: Path) -> None:
        """Folders need no making."""

    def move(self, source: Path, target: Path) -> None:
        self.objects[target] = self.objects.pop(source)

    def remove(self, path: Path) -> None:
        self.objects.pop(path, None)

    def remove_tree(self, folder: Path) -> None:
        for path in list(self.walk(folder)):
            del self.objects[path]

    @contextmanager
    def lock(self, path: Path) -> Iterator[None]:
        yield


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> ObjectStorage:
    objects = ObjectStorage()

    def storage_for(path: Path) -> LocalStorage | ObjectStorage:
        return objects if BUCKET in path.parents else storage_module.storage_for(path)

    for module in (output, results, store):
        monkeypatch.setattr(module, "storage_for", storage_for)
    return objects


@pytest.mark.parametrize("name", ["results.parquet", "results"])
def test_an_output_may_lie_in_an_object_store(
    bucket: ObjectStorage, tmp_path: Path, name: str
) -> None:
    out = BUCKET / name
    for names in (["b.mp4"], ["a/a.mp4", "b.mp4"]):
        with open_store(out, {"settings": {}}, EMOTIONS_8) as opened:
            for video in [a_video(tmp_path, one, FRAMES) for one in names]:
                if opened.record(video.name, video.path) is None:
                    span, predictions = a_span([1] * FRAMES, video.name, stride=1)
                    rows = span_rows(span, predictions, predictions.landmarks, opened.schema)
                    opened.write(part_key(video), 0, rows)
                    assert opened.spans(part_key(video)) == {0}
                    assert opened.commit(video, np.arange(FRAMES)).status == "ok"
            assert len(opened.finish()) == len(names)
    assert sorted(read_results(out).rows.video) == ["a/a.mp4"] * FRAMES + ["b.mp4"] * FRAMES
    assert not [path for path in bucket.objects if ".partial" in str(path)]


def test_a_file_appears_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    storage, path = LocalStorage(), tmp_path / "file"
    with pytest.raises(KeyboardInterrupt), storage.write(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with storage.write(path) as file:
        file.write(b"whole")
        assert storage.stat(path) is None
    assert storage.read(path) == b"whole"
    assert storage.stat(path).size == 5


def test_a_lock_is_held_once(tmp_path: Path) -> None:
    storage, path = LocalStorage(), tmp_path / "lock"
    with storage.lock(path), pytest.raises(LockedError), storage.lock(path):
        pass
    with storage.lock(path):
        pass


def test_what_is_not_there_is_none_and_removing_it_is_no_error(tmp_path: Path) -> None:
    storage = LocalStorage()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert storage.stat(tmp_path / "link") is None
    assert storage.stat(tmp_path / "nowhere") is None
    assert storage.children(tmp_path / "nowhere") == []
    storage.remove(tmp_path / "nowhere")
    storage.remove_tree(tmp_path / "nowhere")
