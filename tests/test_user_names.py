"""A user's own files may be called as they like: none takes the place of ours or of a library."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from made_faces import FRAMES, face_clip

import emopipe
from emopipe.pipeline.media.decoder import Decoder

PROJECT = Path(__file__).parent.parent
COMMAND = Path(sys.executable).with_name("emopipe")
OURS = ("pipeline.py", "emonet.py", "jobs/__init__.py", "pretrained/__init__.py")
LIBRARIES = ("av.py", "cv2.py", "numpy/__init__.py", "pyarrow.py", "torch/__init__.py")
"""What the command and Ray's workers import."""

SCRIPT = """
import emopipe

results = emopipe.analyze("clip.mp4", stride=25, engine=ENGINE)
print(len(results.rows), results.videos.status.tolist())
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A working folder with a clip."""
    folder = tmp_path / "here"
    folder.mkdir()
    (tmp_path / "clips").mkdir()
    shutil.copy(face_clip(tmp_path / "clips"), folder / "clip.mp4")
    return folder


def test_any_name_that_a_file_may_have(here: Path) -> None:
    """What libav, PyAV or the table would take for something else."""
    names = ["12:30:45.mp4", "file:x.mp4", "http:x.mp4", "%03d.mp4", "#1 'a'.mp4", "*.mp4"]
    raw = [name.encode() for name in names] + ([] if sys.platform == "darwin" else [b"bad\xff.mp4"])
    for name in raw:
        shutil.copy(here / "clip.mp4", os.fsdecode(os.fsencode(here) + b"/" + name))
    (here / "clip.mp4").unlink()
    Path(os.fsdecode(os.fsencode(here) + b"/no video\xff.mp4")).write_text("text")
    results = emopipe.analyze(here, here / "results", stride=25, engine="local", landmarks="none")
    videos = results.videos.set_index("video")
    assert videos.error[r"no video\xff.mp4"].startswith(rf"{here}/no video\xff.mp4 is not a video")
    assert results.rows.groupby("video", observed=True).size().to_dict() == {
        name.decode(errors="backslashreplace"): 2 for name in raw
    }
    with Decoder() as decoder:
        assert decoder.probe(here / names[0], names[0], "decord").frames == FRAMES


def trap(folder: Path, names: tuple[str, ...]) -> None:
    """Files that end whatever imports them, and leave a trace."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        note = f"open({str(folder / 'imported')!r}, 'a').write({name!r})"
        path.write_text(f"{note}\nraise SystemExit")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    ran = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_in_the_working_folder_of_the_command(here: Path, engine: str) -> None:
    trap(here, (*OURS, *LIBRARIES))
    said = run(COMMAND, "analyze", "clip.mp4", "--stride", "25", "--engine", engine, cwd=here)
    assert "1 ok, 0 partial, 0 failed: 2 frames, 2 faces" in said
    assert not (here / "imported").exists()


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_beside_a_script_and_on_pythonpath(here: Path, engine: str, tmp_path: Path) -> None:
    trap(here, OURS)
    trap(tmp_path / "more", OURS)
    (here / "script.py").write_text(SCRIPT.replace("ENGINE", repr(engine)))
    said = run(sys.executable, "script.py", cwd=here, PYTHONPATH=str(tmp_path / "more"))
    assert said.splitlines()[-1] == "2 ['ok']"
    assert not (here / "imported").exists()
    assert not (tmp_path / "more" / "imported").exists()


def test_the_wheel_holds_emopipe_and_nothing_else_of_ours(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for part in ("emopipe", "emonet", "pipeline", "jobs", "pretrained"):
        shutil.copytree(PROJECT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / file, source)
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    run(*pip, "--wheel-dir", tmp_path, source, cwd=tmp_path)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"emopipe"}
    packed = {name for name in names if name.startswith("emopipe/")}
    here = {
        f"emopipe/{file.relative_to(PROJECT)}".replace("emopipe/emopipe/", "emopipe/")
        for part in ("emopipe", "emonet", "pipeline", "jobs", "pretrained")
        for file in (PROJECT / part).rglob("*")
        if file.suffix in (".py", ".md", ".safetensors", ".typed") or file.name == "LICENSE"
    }
    assert packed == here
