"""OCR accuracy: what a caption asks for, how near a reading is, and the real reader on motion_shapes words."""

import dataclasses
import importlib.util

import numpy as np
import pytest

from imagen_video_jax.data.motion_shapes import make_scene
from imagen_video_jax.data.motion_shapes_scene import WORD_MOTION, WORD_SHAPE, WORDS
from imagen_video_jax.errors import UserError
from imagen_video_jax.evaluation import ocr, scenes
from imagen_video_jax.evaluation.metrics import Options, VideoSet, measure
from imagen_video_jax.evaluation.networks import Weights, open_extractor

needs_reader = pytest.mark.skipif(
    importlib.util.find_spec("rapidocr_onnxruntime") is None,
    reason="needs the judge extra: pip install onnxruntime rapidocr-onnxruntime",
)


def test_the_text_of_a_video_is_its_label_or_what_its_caption_quotes():
    assert ocr.wanted_text('the word "NO" appears', {"word": "YES"}) == "YES"
    assert ocr.wanted_text('a sign that says "Open late" above a “Bar”', {}) == "Open late Bar"
    assert ocr.wanted_text("a red circle moves left", {"word": ""}) == ""
    assert ocr.wanted_text('a 3" nail', {}) == ""


def test_a_reading_is_right_whatever_its_case_lines_and_neighbours_but_not_as_a_part_of_a_word():
    assert ocr.similarity(["", "the OPEN\nlate! bar"], "open late") == 1
    assert ocr.similarity(["OPENLATE"], "Open late") == 1
    assert ocr.similarity(["SNOW"], "NO") == 0.5
    assert ocr.similarity(["HELL0"], "HELLO") == pytest.approx(0.8)
    assert ocr.similarity(["", "  "], "GO") == 0
    assert ocr.similarity(["don't stop"], "Don’t") == 1


def videos(readings, **facts) -> VideoSet:
    return VideoSet({"ocr": [np.array([[""], [text]]) for text in readings]}, **facts)


def test_videos_that_ask_for_no_text_do_not_count_and_real_ones_are_read_too():
    captions = ['the word "GO"', "a red circle", 'the word "SUN"']
    made = videos(["GO", "CAT", "SUM"], captions=captions, labels=[{}] * 3)
    real = videos(["YES"], captions=["a word"], labels=[{"word": "YES"}])
    options = Options()
    found = measure("ocr", real, made, options)
    assert (found["ocr"], found["ocr_real"]) == (0.5, 1.0)
    assert found["ocr_letters"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["ocr_interval"][0] < 0.5 < found["ocr_interval"][1]
    assert options.notes == ["ocr: 2 of 3 videos are to show a text"]
    with pytest.raises(UserError, match="ocr needs generated videos whose captions ask for a text in double quotes"):
        measure("ocr", real, videos([""], captions=["a cat"], labels=[{}]), options)


def test_without_the_wheel_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(ocr.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"rapidocr-onnxruntime: pip install 'imagen_video_jax\[judge\]'"):
        open_extractor("ocr", Weights())


@needs_reader
def test_the_reader_reads_motion_shapes_words_and_none_off_other_clips():
    reader = open_extractor("ocr", Weights())
    for number, word in enumerate(("HELLO", "SNOW", "GO")):
        scene = make_scene(5, number)
        spelt = dataclasses.replace(scene, shape=WORD_SHAPE, motion=WORD_MOTION, size="", word=word)
        texts_N1 = reader(scenes.rendered(spelt, (4, 48, 80, 6.0)), "")
        assert ocr.similarity(list(texts_N1[:, 0]), word) == 1
    plain = dataclasses.replace(make_scene(5, 9), shape="circle", motion="left", word="")
    texts_N1 = reader(scenes.rendered(plain, (4, 48, 80, 6.0)), "")
    assert max(ocr.similarity(list(texts_N1[:, 0]), word) for word in WORDS) < 1
