"""A run's estimate is near what it then does."""

import pytest

from emopipe.pipeline.estimate import estimate
from emopipe.pipeline.inputs import find_inputs
from emopipe.pipeline.settings import Settings


@pytest.mark.parametrize(
    ("settings", "frames", "seconds"),
    [
        (Settings(), 472 + 169 + 95 + 72, 19.7 + 6.4 + 4.0 + 2.4),
        (Settings(stride=4), (472 + 169 + 95 + 72) / 4, 32.5),
        (Settings(fps=5), 5 * 32.5, 32.5),
        (Settings(start=1, end=2), 24 + 26 + 24 + 30, 4),
        (Settings(start=10), 472 - 240, 9.7),
    ],
)
def test_clips_are_estimated_from_their_headers(clips, settings, frames, seconds):
    ahead = estimate(list(find_inputs([str(clips)]).files), settings)
    assert ahead.inputs == 4
    assert ahead.frames == pytest.approx(frames, rel=0.05)
    assert ahead.seconds == pytest.approx(seconds, rel=0.05)
    assert ahead.bytes > 0


def test_what_has_no_header_is_counted(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    ahead = estimate(list(find_inputs([str(tmp_path)]).files), Settings())
    assert (ahead.unreadable, ahead.frames) == (1, 0)
    assert "1 of them unreadable" in str(ahead)
