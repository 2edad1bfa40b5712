"""What the user names → which files, under which names."""

import os
import sys
from pathlib import Path

import pytest

from emopipe.pipeline.inputs import InputError, _Found, _with_unique_names, find_inputs


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with some of everything; the current folder is the one above."""
    for name in (
        "videos/b.mp4",
        "videos/a.MOV",
        "videos/day 1/c.webm",
        "videos/day 1/face.png",
        "videos/notes.pdf",
        "videos/.hidden.mp4",
        "videos/.cache/d.mp4",
        "videos/results.parquet",
        "other/b.mp4",
        "empty/readme.md",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*arguments: str) -> list[str]:
    return [file.name for file in find_inputs(arguments).files]


def test_a_folder_is_searched_to_the_bottom(tree: Path) -> None:
    assert names("videos") == ["a.MOV", "b.mp4", "day 1/c.webm", "day 1/face.png"]
    assert names(str(tree / "videos")) == names("videos")


def test_other_files_are_named_but_hidden_ones_and_our_results_are_not(tree: Path) -> None:
    skipped = find_inputs(["videos"]).skipped
    assert [file.path.name for file in skipped] == ["notes.pdf"]
    assert "notes.pdf was skipped" in skipped[0].reason


def test_a_named_file_goes_by_its_own_name(tree: Path) -> None:
    inputs = find_inputs(["videos/day 1/c.webm", "videos/notes.pdf"])
    assert [(file.path, file.name) for file in inputs.files] == [
        (Path("videos/day 1/c.webm"), "c.webm")
    ]
    assert [file.path for file in inputs.skipped] == [Path("videos/notes.pdf")]


def test_patterns_the_shell_left_alone(tree: Path) -> None:
    assert names("videos/*.mp4") == ["b.mp4"]
    assert names("videos/**/*.webm") == ["day 1/c.webm"]
    assert names(f"{tree}/*/b.mp4") == ["other/b.mp4", "videos/b.mp4"]
    assert names("videos/day*") == ["day 1/c.webm", "day 1/face.png"]


def test_a_file_whose_name_looks_like_a_pattern(tree: Path) -> None:
    (tree / "take [1].mp4").touch()
    assert names("take [1].mp4") == ["take [1].mp4"]


def test_a_list_names_paths_relative_to_itself(tree: Path) -> None:
    (tree / "videos" / "list.txt").write_text(
        "# a comment\n\nb.mp4\n  day 1/c.webm  \r\n../other\n", encoding="utf-8-sig"
    )
    inputs = find_inputs(["videos/list.txt"])
    assert [file.path.name for file in inputs.files] == ["b.mp4", "c.webm", "b.mp4"]
    assert [file.name for file in inputs.files] == ["videos/b.mp4", "c.webm", "other/b.mp4"]


def test_a_file_named_twice_counts_once(tree: Path) -> None:
    assert names("videos/b.mp4", "videos", str(tree / "videos" / "b.mp4")) == [
        "b.mp4",
        "a.MOV",
        "day 1/c.webm",
        "day 1/face.png",
    ]


def test_names_that_clash_take_in_their_roots(tree: Path) -> None:
    assert names("videos/b.mp4", "other/b.mp4") == ["videos/b.mp4", "other/b.mp4"]
    for root in ("x/day", "y/day"):
        (tree / root).mkdir(parents=True)
        (tree / root / "b.mp4").touch()
    assert names("x/day", "y/day", "videos/a.MOV") == ["x/day/b.mp4", "y/day/b.mp4", "a.MOV"]


def test_names_are_relative_however_far_they_reach_up() -> None:
    clashing = {
        Path(root): _Found(Path(root, "clip.mp4"), Path(root)) for root in ("/data", "/mnt/data")
    }
    named = [file.name for file in _with_unique_names(clashing)]
    assert named == ["data/clip.mp4", "mnt/data/clip.mp4"]


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take UTF-8 names only")
def test_a_name_that_is_no_text_is_an_error(tree: Path) -> None:
    Path(os.fsdecode(os.fsencode(tree / "videos") + b"/bad\xff.mp4")).touch()
    with pytest.raises(InputError, match=r"bad\\xff\.mp4' is not UTF-8"):
        find_inputs(["videos"])


def test_names_stay_unique_when_a_longer_one_meets_another(tree: Path) -> None:
    (tree / "more" / "videos").mkdir(parents=True)
    (tree / "more" / "videos" / "b.mp4").touch()
    found = names("videos/b.mp4", "other/b.mp4", "more")
    assert len(set(found)) == 3


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("nowhere.mp4", "nowhere.mp4 does not exist"),
        ("empty", "empty holds no video"),
        ("videos/*.avi", r"Nothing matches videos/\*\.avi"),
        ("videos/**.mp4", r"videos/\*\*\.mp4 cannot be searched"),
    ],
)
def test_what_is_not_there_is_an_error(tree: Path, argument: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        find_inputs(["videos", argument])


def test_a_list_may_name_a_user_that_does_not_exist(tree: Path) -> None:
    (tree / "list.txt").write_text("~nobody-of-that-name/b.mp4\n")
    with pytest.raises(InputError, match="does not exist"):
        find_inputs(["list.txt"])


def test_an_empty_list_is_an_error(tree: Path) -> None:
    (tree / "list.txt").write_text("# nothing yet\n")
    with pytest.raises(InputError, match="lists no paths"):
        find_inputs(["list.txt"])


def test_a_list_that_is_no_text_is_an_error(tree: Path) -> None:
    (tree / "list.txt").write_bytes(os.urandom(64) + b"\xff")
    with pytest.raises(InputError, match="not UTF-8"):
        find_inputs(["list.txt"])


def test_folders_that_are_not_searched_are_named(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "videos" / "linked").symlink_to(tree / "other")
    shut = tree / "videos" / "day 1"
    # Permissions do not stop root, who may run this.
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != shut and allowed(path, mode))
    skipped = {file.path.name: file.reason for file in find_inputs([tree / "videos"]).skipped}
    assert skipped.keys() == {"day 1", "linked", "notes.pdf"}
    assert "link to a folder" in skipped["linked"]
    assert "may not be opened" in skipped["day 1"]
    with pytest.raises(InputError, match="may not be opened"):
        find_inputs([shut])


def test_a_folder_of_links_to_folders_says_what_to_do(tree: Path) -> None:
    (tree / "links").mkdir()
    (tree / "links" / "day").symlink_to(tree / "videos")
    with pytest.raises(InputError, match="Name it as an input of its own"):
        find_inputs(["links"])
    assert names("links/day") == names("videos")


def test_the_current_folder(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree / "videos")
    assert names(".") == ["a.MOV", "b.mp4", "day 1/c.webm", "day 1/face.png"]
    assert names("*.mp4") == ["b.mp4"]
