"""The public functions: what they are called, what they take, and what they answer to mistakes."""

import doctest
import inspect
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from made_faces import face_clip, face_picture, two_faces_picture

import emopipe
from emopipe.emonet.arguments import public
from emopipe.emonet.fields import types_of
from emopipe.jobs.cluster import ClusterOptions
from emopipe.pipeline.faces.selection import Selection
from emopipe.pipeline.settings import Settings

IMAGE = np.zeros((9, 9, 3), np.uint8)
FUNCTIONS = ("analyze", "detect", "load_model", "read_results")


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the examples use: a clip, its results, a picture of two faces."""
    folder = tmp_path_factory.mktemp("media")
    face_clip(folder).rename(folder / "clip.mp4")
    two_faces_picture().save(folder / "group.jpg", quality=95)
    emopipe.analyze(folder / "clip.mp4", out=folder / "results.parquet", fps=5)
    return folder


def test_they_are_listed_and_documented():
    assert set(FUNCTIONS) < set(dir(emopipe))
    assert dir(emopipe) == sorted(dir(emopipe))
    for name in dir(emopipe):
        assert getattr(emopipe, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'analyse'"):
        emopipe.analyse  # noqa: B018


def test_importing_takes_less_than_a_tenth_of_a_second():
    program = "import time; t = time.perf_counter(); import emopipe; print(time.perf_counter() - t)"
    seconds = min(
        float(subprocess.run([sys.executable, "-c", program], capture_output=True).stdout)
        for _ in range(3)
    )
    assert seconds < 0.1


@pytest.mark.parametrize("name", FUNCTIONS)
def test_their_examples_run(name: str, media: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(media)
    [test] = doctest.DocTestFinder(recurse=False).find(
        inspect.unwrap(getattr(emopipe, name)), name, globs={}
    )
    assert test.examples
    said: list[str] = []
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    doctest.DocTestRunner(optionflags=flags).run(test, out=said.append)
    assert not said, "".join(said)


def test_analyze_takes_every_setting_with_its_type_and_default():
    taken = inspect.signature(emopipe.analyze).parameters
    helped = emopipe.analyze.__doc__
    for settings in (Settings, Selection, ClusterOptions):
        for field in fields(settings):
            if field.name == "selection":
                continue
            assert field.name in taken, f"{field.name} is no keyword of analyze"
            assert taken[field.name].default == field.default, field.name
            assert taken[field.name].kind is inspect.Parameter.KEYWORD_ONLY
            assert f"    {field.name}: " in helped
    assert "fps" in types_of(Settings)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"fps": "5"}, "`fps` is a number, not '5'"),
        ({"fps": 0}, "`fps` is more than 0"),
        ({"fpss": 5}, "analyze has no argument `fpss`: did you mean fps?"),
        ({"fsp": 5}, "analyze has no argument `fsp`: did you mean fps?"),
        ({"FPS": 5}, "analyze has no argument `FPS`: did you mean fps?"),
        ({"strid": 2}, "analyze has no argument `strid`: did you mean stride?"),
        ({"stride": np.True_}, "`stride` is a whole number"),
        ({"roi": {0, 1, 2, 3}}, "`roi` is a tuple of 4 numbers, not {0, 1, 2, 3}"),
        ({"roi": "0,0,640,720"}, "`roi` is a tuple of 4 numbers, not '0,0,640,720'"),
        ({"stride": 2.5}, "`stride` is a whole number"),
        ({"threads": True}, "`threads` is a whole number"),
        ({"detector": "yunett"}, "did you mean yunet?"),
        ({"detector_weights": 5}, "`detector_weights` is a path, not 5"),
        ({"classes": "abc"}, "`classes` is a list of texts, not 'abc'"),
        ({"classes": 5}, "`classes` is a list of texts, not 5"),
        ({"out": 5}, "`out` is a path, not 5"),
        ({"out": ""}, "has no name of its own"),
        ({"overwrite": "no"}, "`overwrite` is True or False, not 'no'"),
        ({"min_score": "x"}, "`min_score` is a number, not 'x'"),
        ({"detect_size": 100}, "`detect_size` is 160 or more, not 100"),
        ({"fps": 5, "stride": 2}, "`fps` and `stride` exclude each other"),
        ({"engine": "spark"}, "`engine` is one of auto, local, ray, not 'spark'"),
        ({"engine": "local", "cpus": 2}, "`engine` local works in this process: only Ray takes"),
        ({"cpus": 0}, "`cpus` is 1 or more"),
        ({"progress": "yes"}, "`progress` is True or False or a ProgressCallback, not 'yes'"),
        ({"settings": {"fps": 5}}, "`settings` is a Settings, not {'fps': 5}"),
        ({"out": "results.csv"}, "name a file that ends in .parquet"),
    ],
)
def test_mistakes_of_analyze_are_sentences_that_name_the_argument(wrong, says, media):
    with pytest.raises(emopipe.EmopipeError) as caught:
        emopipe.analyze(media / "clip.mp4", **wrong)
    assert says in str(caught.value)
    assert "--" not in str(caught.value)


@pytest.fixture(autouse=True)
def _no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)


@pytest.mark.parametrize("inputs", [5, None, [5], ["clip.mp4", None]])
def test_inputs_that_are_no_paths_are_a_sentence(inputs):
    with pytest.raises(emopipe.EmopipeError, match="`inputs` is a path or a list of paths"):
        emopipe.analyze(inputs)


def test_a_call_without_inputs_is_a_sentence_and_a_type_error():
    with pytest.raises(emopipe.EmopipeError, match="missing a required argument: 'inputs'"):
        emopipe.analyze()
    with pytest.raises(TypeError, match=r"help\(emopipe.analyze\)"):
        emopipe.analyze()


def test_settings_can_be_given_at_once(media):
    selection = emopipe.Selection(max_faces=1)
    settings = emopipe.Settings(stride=25, landmarks="none", selection=selection)
    results = emopipe.analyze(media / "clip.mp4", settings=settings)
    assert results.rows.frame.tolist() == [0, 25]
    assert results.landmarks is None
    with pytest.raises(emopipe.EmopipeError, match="leave the keywords for them out"):
        emopipe.analyze(media / "clip.mp4", settings=settings, fps=5)


@pytest.mark.parametrize("make", [emopipe.Settings, emopipe.Selection])
def test_misspelt_settings_are_sentences(make):
    with pytest.raises(emopipe.EmopipeError, match="has no argument `fpss`"):
        make(fpss=5)


@pytest.mark.parametrize("make", [emopipe.Settings, emopipe.Selection])
def test_settings_that_are_too_many_or_given_twice_are_sentences(make):
    with pytest.raises(emopipe.EmopipeError, match="too many positional arguments"):
        make(*range(99))
    first = fields(make)[0].name
    with pytest.raises(emopipe.EmopipeError, match=f"multiple values for argument '{first}'"):
        make(1, **{first: 1})


@pytest.mark.parametrize(
    ("make", "given", "plain"),
    [
        (emopipe.Settings, {"stride": np.int64(2)}, 2),
        (emopipe.Settings, {"fps": np.float32(2.5)}, 2.5),
        (emopipe.Settings, {"deinterlace": np.False_}, False),
        (emopipe.Selection, {"max_faces": np.uint8(2)}, 2),
        (emopipe.Selection, {"roi": np.float32([0, 0, 9, 9])}, (0.0, 0.0, 9.0, 9.0)),
    ],
)
def test_numpys_scalars_are_pythons(make, given, plain):
    [name] = given
    value = getattr(make(**given), name)
    assert value == plain and type(value) is type(plain)


def test_numpys_truth_is_pythons(media):
    assert emopipe.read_results(media / "results.parquet", landmarks=np.False_).landmarks is None


def test_inputs_may_come_from_a_generator_and_numbers_from_numpy(media):
    roi = np.array([0, 0, 320, 320])
    results = emopipe.analyze(media.glob("*.mp4"), stride=np.int64(25), roi=roi)
    assert len(results.rows) == 2


class Counter(emopipe.ProgressCallback):
    """Counts frames, and keeps what is said of the engine."""

    def __init__(self) -> None:
        self.frames = 0
        self.messages: list[str] = []

    def on_span(self, video: object, frames: int, faces: int) -> None:
        self.frames += frames

    def on_message(self, text: str) -> None:
        self.messages.append(text)


def test_progress_is_followed_and_the_engine_says_why(media):
    counter = Counter()
    emopipe.analyze(media / "clip.mp4", stride=5, progress=counter)
    assert counter.frames == 10
    [message] = counter.messages
    assert message.startswith("engine local: about 0 s in this process, ")


def test_progress_true_prints_to_standard_error(media, capsys):
    emopipe.analyze(media / "clip.mp4", stride=5, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "1 input, 0:00:02 long: about 10 frames" in err
    assert "engine local" in err


def test_overwrite_starts_anew(media, tmp_path):
    out = tmp_path / "results.parquet"
    emopipe.analyze(media / "clip.mp4", out, stride=10)
    with pytest.raises(emopipe.EmopipeError, match="`overwrite`"):
        emopipe.analyze(media / "clip.mp4", out, stride=25)
    assert len(emopipe.analyze(media / "clip.mp4", out, stride=25, overwrite=True).rows) == 2


def test_results_show_as_a_few_lines(media):
    shown = repr(emopipe.read_results(media / "results.parquet"))
    assert 2 <= len(shown.splitlines()) <= 10
    assert all(len(line) <= 100 for line in shown.splitlines())
    assert "10" in shown and "emonet-lite" in shown


def test_faces_of_an_image_make_crops_of_which_the_model_tells(media):
    image = np.asarray(face_picture())
    faces = emopipe.detect(image)
    assert len(faces) == 1
    assert len(emopipe.detect(media / "group.jpg")) == 2
    x1, y1, x2, y2 = faces.boxes[0].astype(int)
    model = emopipe.load_model("emonet-lite")
    size = model.checkpoint.input_size
    crop = face_picture().crop((x1, y1, x2, y2)).resize((size, size))
    found = model(np.asarray(crop)[None])
    assert model.checkpoint.classes[int(found.probabilities[0].argmax())] == "happy"
    assert found.valence.shape == (1,) and found.landmarks.shape == (1, 68, 2)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: emopipe.load_model("emonet-litee"), "`name` emonet-litee"),
        (lambda: emopipe.load_model(5), "`name` is text or a path"),
        (lambda: emopipe.load_model("emonet-lite", device="gpu"), "`device` gpu is unknown"),
        (lambda: emopipe.load_model(nam="x"), "load_model has no argument `nam`"),
        (lambda: emopipe.load_model("emonet-lite", devise="cpu"), "did you mean device?"),
        (lambda: emopipe.detect(IMAGE, detectr="yunet"), "did you mean detector?"),
        (lambda: emopipe.read_results("absent.parquet", vidoes="a"), "did you mean videos?"),
        (lambda: emopipe.load_model("emonet-lite")([1, 2]), "uint8"),
        (lambda: emopipe.load_model("emonet-lite")(np.zeros((1, 9, 9, 3), np.uint8)), "64"),
        (lambda: emopipe.detect(np.zeros((9, 9))), "uint8"),
        (lambda: emopipe.detect(5), "`image` is text or a path or a ndarray"),
        (lambda: emopipe.detect("absent.jpg"), "absent.jpg"),
        (lambda: emopipe.detect(IMAGE, detector="x"), "`detector`"),
        (lambda: emopipe.detect(IMAGE, detector=["x"]), "`detector` is text"),
        (lambda: emopipe.detect(IMAGE, detector_weights=5), "`detector_weights` is text or a path"),
        (lambda: emopipe.detect(IMAGE, detect_size="640"), "`detect_size` is a whole number"),
        (lambda: emopipe.detect(IMAGE, min_score="x"), "`min_score` is a number"),
        (lambda: emopipe.detect(IMAGE[:0, :0]), "uint8"),
        (lambda: emopipe.load_model("emonet-lite", classes=5), "`classes` is a list of texts"),
        (lambda: emopipe.load_model("emonet-lite", classes="abcdefgh"), "`classes` is a list"),
        (lambda: emopipe.load_model("emonet-lite", classes=["a"] * 8), "`classes`"),
        (lambda: emopipe.load_model("emonet-lite", device=None), "`device` is text"),
        (lambda: emopipe.read_results(5), "`path` is text or a path"),
        (lambda: emopipe.read_results("absent.parquet"), "absent.parquet"),
        (lambda: emopipe.read_results("absent.parquet", column=["x"]), "did you mean columns?"),
    ],
)
def test_mistakes_of_the_others_are_sentences_too(call, says):
    with pytest.raises(emopipe.EmopipeError) as caught:
        call()
    assert says in str(caught.value)


def test_a_call_is_passed_on_as_it_is():
    @public
    def add(a: int, b: int = 2) -> int:
        return a + b

    assert (add(1), add(1, b=3)) == (3, 4)
    began = time.perf_counter()
    for _ in range(1000):
        add(1)
    assert time.perf_counter() - began < 1
