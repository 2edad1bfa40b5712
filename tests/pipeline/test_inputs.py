"""What the user names → which files, under which names."""

import os
import sys
from pathlib import Path

import pytest

from emopipe.pipeline.inputs import (
    InputError,
    InputFile,
    Skipped,
    find_inputs,
    summed_up,
    with_unique_names,
)


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
    [file] = find_inputs(["videos/day 1/c.webm"]).files
    assert (file.path, file.name) == (Path("videos/day 1/c.webm"), "c.webm")


def test_what_is_named_and_not_looked_at_is_an_input_with_a_problem(tree: Path) -> None:
    inputs = find_inputs(["videos/notes.pdf", "videos"])
    assert inputs.files[0].name == "notes.pdf"
    assert "notes.pdf was skipped: it is not an image of" in str(inputs.files[0].problem)
    assert {file.problem for file in inputs.files[1:]} == {None}
    assert inputs.skipped == ()
    [file] = find_inputs(["empty/readme.md"]).files
    assert ".md is not a type of video or image. Leave it out, or convert" in str(file.problem)


def test_our_own_files_may_be_named_by_a_star_and_are_left_out(tree: Path) -> None:
    (tree / "videos" / "results.parquet.partial").mkdir()
    for name in ("run.json", "attempts", "0123456789abcdef.json"):
        (tree / "videos" / "results.parquet.partial" / name).touch()
    (tree / "results").mkdir()
    (tree / "results" / "b.mp4.parquet").touch()
    assert [file.path.name for file in find_inputs(["videos"]).skipped] == ["notes.pdf"]
    everything = ["videos/results.parquet", "videos/results.parquet.partial", "results", "videos"]
    assert names(*everything) == names("videos")
    assert [file.path.name for file in find_inputs(everything).skipped] == ["notes.pdf"]
    for one in everything[:3]:
        with pytest.raises(InputError, match="Name videos or images"):
            find_inputs([one])


def test_sidecars_are_summed_up_by_kind(tree: Path) -> None:
    for index in range(2000):
        (tree / "videos" / f"{index}.SRT").touch()
        if index < 3:
            (tree / "videos" / f"{index}.docx").touch()
    with_way_out, others = summed_up(find_inputs(["videos"]).skipped)
    assert with_way_out.startswith("1 .pdf file was skipped: it is not an image of pixels")
    assert others == "2,003 files were skipped, no video or image: 2,000 .srt, 3 .docx."


def test_links_and_closed_folders_are_named_one_by_one_until_they_are_many() -> None:
    lines = summed_up([Skipped(Path("x"), f"folder {n} was skipped") for n in range(20)])
    assert lines[:2] == ["folder 0 was skipped", "folder 1 was skipped"]
    assert len(lines) == 6 and "15 more" in lines[-1]


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
    assert [file.name for file in inputs.files] == ["b.mp4", "c.webm", "other/b.mp4"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_a_list_comes_from_any_editor(tree: Path, encoding: str) -> None:
    lines = ["b.mp4", '"day 1/c.webm"', "'../other/b.mp4'", "# geh\u00f6rt dazu"]
    (tree / "videos" / "list.txt").write_bytes("\r\n".join(lines).encode(encoding))
    assert names("videos/list.txt") == ["b.mp4", "c.webm", "other/b.mp4"]


def test_a_line_of_a_list_that_leads_nowhere_refuses_no_other(tree: Path) -> None:
    lines = ["gone/p01.mp4", "https://example.org/clip.mp4?x=1", "day9/*.mp4", "../empty", "b.mp4"]
    (tree / "videos" / "list.txt").write_text("\n".join(lines))
    *lost, good = find_inputs(["videos/list.txt"]).files
    assert (good.name, good.problem) == ("b.mp4", None)
    assert [file.name for file in lost] == ["p01.mp4", *lines[1:3], "empty"]
    for file, says in zip(
        lost, ["does not exist", "Download", "Nothing matches", "holds no"], strict=True
    ):
        assert says in str(file.problem) and "list.txt" in str(file.problem)


def test_a_url_is_refused_with_the_way_out(tree: Path) -> None:
    with pytest.raises(InputError, match=r"https://example.org/clip.mp4 is a URL. Download"):
        find_inputs(["https://example.org/clip.mp4", "videos"])


def test_the_home_folder_is_where_the_user_is_at_home(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tree))
    (tree / "list.txt").write_text("~/other/b.mp4")
    assert names("~/videos/b.mp4", "~/list.txt", "~/videos/day*") == [
        "b.mp4",
        "other/b.mp4",
        "day 1/c.webm",
        "day 1/face.png",
    ]


def test_a_file_named_twice_counts_once(tree: Path) -> None:
    assert names("videos/b.mp4", "videos", str(tree / "videos" / "b.mp4")) == [
        "b.mp4",
        "a.MOV",
        "day 1/c.webm",
        "day 1/face.png",
    ]


def test_what_comes_later_renames_nothing(tree: Path) -> None:
    """A name that is another video's already gets folders in front, as many as it takes."""
    for root in ("x/day", "y/day"):
        (tree / root).mkdir(parents=True)
        (tree / root / "b.mp4").touch()
    arguments = ["videos/b.mp4", "other/b.mp4", "x/day", "y/day"]
    expected = ["b.mp4", "other/b.mp4", "day/b.mp4", "y/day/b.mp4"]
    for n in range(1, 5):
        assert names(*arguments[:n]) == expected[:n]
    (tree / "y" / "day" / "a.mp4").touch()
    assert names(*arguments) == [*expected[:3], "a.mp4", "y/day/b.mp4"]


def test_a_file_keeps_the_name_that_the_output_knows_it_by(tree: Path) -> None:
    files = find_inputs(["other", "videos"]).files
    recorded = {tree / "videos" / "b.mp4": "b.mp4", tree / "videos" / "day 1/face.png": "me.png"}
    assert [file.name for file in with_unique_names(files, recorded)] == [
        "other/b.mp4",
        "a.MOV",
        "b.mp4",
        "day 1/c.webm",
        "me.png",
    ]


def test_a_missing_file_takes_no_name_of_the_output(tree: Path) -> None:
    missing = InputFile(tree / "gone" / "b.mp4", "b.mp4", "It does not exist.")
    recorded = {tree / "videos" / "b.mp4": "b.mp4"}
    assert [file.name for file in with_unique_names([missing], recorded)] == ["gone/b.mp4"]


def test_names_are_relative_however_far_they_reach_up() -> None:
    clashing = [
        InputFile(Path(path), Path(path).name)
        for path in ("/mnt/data/clip.mp4", "/data/clip.mp4", "/clip.mp4")
    ]
    named = [file.name for file in with_unique_names(clashing)]
    assert named == ["clip.mp4", "data/clip.mp4", "clip.mp4 (2)"]


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take UTF-8 names only")
def test_a_name_that_is_no_text_is_written_so_that_it_is(tree: Path) -> None:
    for name in (b"bad\xff.mp4", b"bad\xfe.mp4", b"bad\xff.srt"):
        Path(os.fsdecode(os.fsencode(tree / "other") + b"/" + name)).touch()
    inputs = find_inputs(["other"])
    assert [file.name for file in inputs.files] == ["b.mp4", r"bad\xfe.mp4", r"bad\xff.mp4"]
    assert r"bad\xff.srt was skipped" in inputs.skipped[0].reason
    assert all(file.path.exists() for file in inputs.files)


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
