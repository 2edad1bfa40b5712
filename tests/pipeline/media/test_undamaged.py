"""Frames of damaged videos: what is delivered is right, what is not is told."""

from contextlib import closing
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType
from made_clips import HEIGHT, WIDTH, ffmpeg, make_clip, shown_frames, waves, zero_packets
from numpy.typing import NDArray

from emopipe.pipeline.media.index import probe
from emopipe.pipeline.media.readers import open_reader
from emopipe.pipeline.media.video import Video

FRAMES, GROUP = 40, 10

X264 = ["-c:v", "libx264", "-g", f"{GROUP}", "-bf", "2", "-pix_fmt", "yuv420p"]
X264 += ["-x264-params", "b-adapt=0:b-pyramid=none:scenecut=0"]
X265 = ["-c:v", "libx265", "-pix_fmt", "yuv420p", "-x265-params"]
X265 += [f"log-level=none:keyint={GROUP}:min-keyint={GROUP}:bframes=2:b-adapt=0:scenecut=0"]
GROUPS = ["-g", f"{GROUP}", "-bf", "2", "-q:v", "3", "-sc_threshold", "1000000000"]

ENCODERS = {
    "h264.mp4": X264,
    "h264.avi": X264,
    "h264.flv": X264,
    "hevc.mp4": X265,
    "mpeg2.ts": ["-c:v", "mpeg2video", *GROUPS],
    "mpeg4.avi": ["-c:v", "mpeg4", *GROUPS],
    "mpeg4.mp4": ["-c:v", "mpeg4", *GROUPS],
    "vp8.webm": ["-c:v", "libvpx", "-g", f"{GROUP}"],
}

CELL, CELL_HEADER = 188, 32
"""Bytes of a packet of MPEG-TS, and of its header and its longest stuffing here."""

VISIBLE_LEVELS = 8.0
"""A picture with a block of 16×16 whose mean difference is more than this, in grey levels of 255,
is wrong."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("undamaged")


def clip_of(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.exists():
        ffmpeg(*waves(WIDTH, HEIGHT, FRAMES), *ENCODERS[name], path)
    return path


def packet_of(path: Path, kind: PictureType) -> tuple[int, av.Packet]:
    """The second group's first packet of that kind: its frame's index, and the packet."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.copy_opaque = True
        packets, kinds, shown = [], {}, []
        for packet in container.demux(stream):
            if packet.size:
                packet.opaque = packet.pos, packet.size
                packets.append(packet)
            for frame in packet.decode():
                kinds[frame.opaque] = PictureType(frame.pict_type)
                shown.append(frame.opaque)
    second = [n for n, packet in enumerate(packets) if packet.is_keyframe][1]
    chosen = next(one for one in packets[second:] if kinds[one.pos, one.size] == kind)
    return shown.index((chosen.pos, chosen.size)), chosen


def overwrite(path: Path, packet: av.Packet, to: Path) -> None:
    """Copy a file with two thirds of a packet set to ones, past MPEG-TS' own headers."""
    content = bytearray(path.read_bytes())
    assert packet.pos is not None
    for offset in range(packet.size // 3, packet.size):
        if path.suffix != ".ts" or (packet.pos + offset) % CELL >= CELL_HEADER:
            content[packet.pos + offset] = 0xFF
    to.write_bytes(content)


def read(video: Video, threads: int = 1) -> dict[int, NDArray[np.uint8]]:
    """The frames that come, by index."""
    indices = range(video.first, video.first + video.frames)
    with closing(open_reader(video, threads)) as reader:
        found = {index: reader.frame(index) for index in indices}
    return {index: frame for index, frame in found.items() if frame is not None}


def wrong(found: dict[int, NDArray[np.uint8]], clip: Path) -> list[int]:
    """Indices of the frames that visibly differ from those of the undamaged clip."""
    shown = shown_frames(clip, HEIGHT, WIDTH)
    return [index for index, frame in found.items() if _worst(frame, shown[index]) > VISIBLE_LEVELS]


def _worst(frame: NDArray[np.uint8], shown: NDArray[np.uint8]) -> float:
    difference = np.abs(frame.astype(np.int16) - shown)
    blocks = difference.reshape(HEIGHT // 16, 16, WIDTH // 16, 16, 3)
    return float(blocks.mean(axis=(1, 3)).max())


def missing(video: Video, found: dict[int, NDArray[np.uint8]]) -> set[int]:
    return set(range(video.first, video.first + video.frames)) - set(found)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", [PictureType.I, PictureType.P])
@pytest.mark.parametrize("name", ["h264.mp4", "h264.avi", "mpeg2.ts", "mpeg4.avi"])
def test_damage_voids_what_refers_to_it(
    folder: Path, tmp_path: Path, name: str, kind: PictureType, threads: int
) -> None:
    clip = clip_of(folder, name)
    damaged, packet = packet_of(clip, kind)
    overwrite(clip, packet, tmp_path / name)
    video = probe(tmp_path / name, name)
    found = read(video, threads)
    assert not wrong(found, clip)
    # Up to the next group, with the frames of either group that are shown before its key frame.
    assert set(range(damaged, 20)) <= missing(video, found) <= set(range(damaged - 2, 22))


@pytest.mark.parametrize("name", ["h264.mp4", "mpeg2.ts", "mpeg4.mp4"])
def test_damage_to_what_nothing_refers_to_voids_itself_only(
    folder: Path, tmp_path: Path, name: str
) -> None:
    clip = clip_of(folder, name)
    damaged, packet = packet_of(clip, PictureType.B)
    overwrite(clip, packet, tmp_path / name)
    video = probe(tmp_path / name, name)
    found = read(video)
    assert not wrong(found, clip)
    assert missing(video, found) == {damaged}


@pytest.mark.parametrize("name", ["h264.mp4", "hevc.mp4"])
@pytest.mark.parametrize("kind", [PictureType.I, PictureType.P])
def test_a_packet_of_zeros_voids_what_refers_to_it(
    folder: Path, tmp_path: Path, name: str, kind: PictureType
) -> None:
    clip = clip_of(folder, name)
    damaged, packet = packet_of(clip, kind)
    (tmp_path / name).write_bytes(clip.read_bytes())
    with av.open(str(clip)) as container:
        places = [one.pos for one in container.demux(video=0) if one.size]
    order = places.index(packet.pos)
    zero_packets(tmp_path / name, slice(order, order + 1))
    video = probe(tmp_path / name, name)
    found = read(video)
    assert not wrong(found, clip)
    assert damaged in missing(video, found)
    assert missing(video, found) <= set(range(damaged - 2, 22))


@pytest.mark.parametrize("name", ["h264.mp4", "mpeg2.ts"])
def test_a_slice_of_a_damaged_video_misses_what_the_whole_does(
    folder: Path, tmp_path: Path, name: str
) -> None:
    clip = clip_of(folder, name)
    overwrite(clip, packet_of(clip, PictureType.P)[1], tmp_path / name)
    video = probe(tmp_path / name, name)
    whole = read(video)
    for first in range(0, video.frames, 7):
        part = video.slice(np.arange(first, min(first + 7, video.frames)))
        expected = missing(video, whole) & set(range(part.first, part.first + part.frames))
        assert missing(part, read(part)) == expected


@pytest.mark.parametrize("name", [*ENCODERS, "vp9.webm", "mjpeg.avi", "av1.mp4"])
def test_nothing_is_missing_where_nothing_is_damaged(folder: Path, name: str) -> None:
    clip = clip_of(folder, name) if name in ENCODERS else make_clip(folder, name)
    video = probe(clip, name)
    for threads in (1, 2):
        found = read(video, threads)
        assert not missing(video, found)
        assert not wrong(found, clip)


def test_a_file_whose_tags_are_not_utf8_is_read(folder: Path, tmp_path: Path) -> None:
    clip = clip_of(folder, "h264.mp4")
    tagged = tmp_path / "tagged.mp4"
    ffmpeg("-i", clip, "-c", "copy", "-metadata", "title=MMMM", tagged)
    tagged.write_bytes(tagged.read_bytes().replace(b"MMMM", b"\xe9\xe8\xff\xfe"))
    assert len(read(probe(tagged, "tagged.mp4"))) == FRAMES


def test_a_real_clip_with_a_damaged_key_frame(shared: Path) -> None:
    video = probe(shared / "data" / "field" / "18-damaged_key.mp4", "18-damaged_key.mp4")
    assert missing(video, read(video)) == set(range(12, 24))


@pytest.mark.parametrize("name", ["vp8.webm", "h264.flv"])
def test_frames_that_a_damaged_container_lost_are_told(
    folder: Path, tmp_path: Path, name: str
) -> None:
    clip = clip_of(folder, name)
    with av.open(str(clip)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    content = bytearray(clip.read_bytes())
    del content[places[24] + 40 : places[26] + 40]  # from the middle of a frame
    (tmp_path / name).write_bytes(content)
    video = probe(tmp_path / name, name)
    found = read(video)
    np.testing.assert_allclose(video.times, probe(clip, name).times, atol=2e-3)
    assert set(range(24, 27)) <= missing(video, found) <= set(range(22, 40))
    assert not wrong(found, clip)
