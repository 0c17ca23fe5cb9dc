"""Video files in and out: colour and time survive, hostile and damaged files are refused in one line."""

import hashlib
import io
import json
import os
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from imagen_video_jax.errors import UserError
from imagen_video_jax.video import files, reading
from imagen_video_jax.video.containers import EncodedMedia
from imagen_video_jax.video.cover import cover
from imagen_video_jax.video.files import (
    MediaError,
    read_image,
    read_media,
    read_metadata,
    read_video,
    select_frames,
    write_contact_sheet,
    write_video,
)
from imagen_video_jax.video.reading import scan_media
from tests.data import hostile_folder


def smooth_video(frames=12, height=48, width=80):
    """A coarse random texture that pans: smooth colours, so that halved colour resolution costs little."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 10, 3)).astype(np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize((width + 2 * frames, height), Image.Resampling.BICUBIC))
    return np.stack([picture[:, 2 * t : 2 * t + width] for t in range(frames)])


def encode(path, frames_THWC, *, codec, container, pix_fmt="yuv420p", rate=12, times_ms=None):
    """Writes a file that `write_video` does not write: another codec, or frames at given times."""
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate)
        stream.height, stream.width = frames_THWC.shape[1:3]
        stream.pix_fmt = pix_fmt
        if times_ms is not None:
            stream.codec_context.time_base = files.Fraction(1, 1000)
        for t, frame_HWC in enumerate(frames_THWC):
            frame = av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[t], files.Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def test_colour_survives_an_mp4(tmp_path):
    video = smooth_video()
    write_video(tmp_path / "a.mp4", video, fps=24)
    read = read_video(tmp_path / "a.mp4")
    error = read.frames_THWC.astype(int) - video
    assert read.fps == 24
    assert np.abs(error).mean() < 2.5
    # No shift of brightness or hue in any channel: the conversion there and back agree on matrix, range and siting.
    assert np.abs(error.mean(axis=(0, 1, 2))).max() < 0.4


def test_flat_colours_survive_an_mp4_almost_exactly(tmp_path):
    for colour in ([255, 0, 0], [0, 255, 0], [0, 0, 255], [128, 128, 128], [255, 255, 255], [12, 200, 99]):
        write_video(tmp_path / "a.mp4", np.full((4, 16, 16, 3), colour, np.uint8), fps=8)
        read = read_video(tmp_path / "a.mp4").frames_THWC
        assert np.abs(read.astype(int) - colour).max() <= 4, colour


def test_a_gif_keeps_length_rate_and_few_colours_exactly(tmp_path):
    video = np.zeros((25, 20, 30, 3), np.uint8)
    for t in range(25):
        video[t, :, t : t + 5] = (250, 10, 90)
    video[10:13] = video[10]  # frames alike in a row are merged in the file and come back
    write_video(tmp_path / "a.gif", video, fps=24)
    read = read_video(tmp_path / "a.gif")
    assert abs(read.fps - 24) < 1.1
    assert abs(len(read.frames_THWC) / read.fps - 25 / 24) < 0.05
    np.testing.assert_array_equal(read.frames_THWC[0], video[0])
    np.testing.assert_array_equal(read.frames_THWC[-1], video[-1])


@pytest.mark.parametrize("fps", [3, 6, 12, 23.976, 24, 25, 29.97, 60])
def test_the_frame_rate_comes_back(tmp_path, fps):
    write_video(tmp_path / "a.mp4", smooth_video(8), fps=fps)
    assert read_video(tmp_path / "a.mp4").fps == pytest.approx(fps, rel=1e-5)


@pytest.mark.parametrize(("height", "width"), [(47, 63), (47, 64), (12, 20), (2, 2), (1, 1)])
def test_odd_and_tiny_sizes_are_made_even_by_repeating_the_edge(tmp_path, height, width):
    video = np.full((3, height, width, 3), (200, 40, 40), np.uint8)
    write_video(tmp_path / "a.mp4", video, fps=8)
    read = read_video(tmp_path / "a.mp4").frames_THWC
    assert read.shape == (3, height + height % 2, width + width % 2, 3)
    assert np.abs(read.astype(int) - (200, 40, 40)).max() <= 4


def test_the_same_pixels_give_the_same_bytes(tmp_path):
    blocks = np.random.default_rng(0).integers(0, 256, (6, 6, 3)).astype(np.uint8).repeat(16, 0).repeat(16, 1)
    video = np.stack([np.roll(blocks, 4 * t, axis=1) for t in range(24)])
    digests = set()
    for _ in range(6):
        write_video(tmp_path / "a.mp4", video, fps=24, metadata={"seed": "1"})
        digests.add(hashlib.sha256((tmp_path / "a.mp4").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_an_mp4_starts_to_play_before_it_is_loaded_and_is_plain_h264(tmp_path):
    write_video(tmp_path / "a.mp4", smooth_video(), fps=24)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(tmp_path / "a.mp4")) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt, codec.colorspace, codec.color_range) == ("h264", "yuv420p", 1, 1)


@pytest.mark.parametrize("ending", ["mp4", "gif"])
def test_provenance_is_in_the_file(tmp_path, ending):
    given = {"cascade": "out/demo/cascade.json", "prompt": 'a "red"\n\u202eball \ud800\x00 é 球', "seed": "7"}
    write_video(tmp_path / f"a.{ending}", smooth_video(3), fps=8, metadata=given)
    tags = read_metadata(tmp_path / f"a.{ending}")
    assert tags.pop("made_by").startswith("imagen_video_jax ")
    assert tags == given
    if ending == "mp4":
        with av.open(str(tmp_path / "a.mp4")) as container:
            assert container.metadata["title"] == 'a "red" ball ? é 球'
            assert json.loads(container.metadata["comment"])["seed"] == "7"


def test_a_file_of_others_has_no_provenance(tmp_path):
    encode(tmp_path / "a.mp4", smooth_video(3), codec="mpeg4", container="mp4")
    assert read_metadata(tmp_path / "a.mp4") == {}


def test_a_failed_write_leaves_nothing_and_the_old_file_stays(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", smooth_video(3), fps=8)
    before = (tmp_path / "a.mp4").read_bytes()
    monkeypatch.setattr(files, "_ENCODER_OPTIONS", {"chroma_sample_location": "nowhere"})
    with pytest.raises(av.FFmpegError):
        write_video(tmp_path / "a.mp4", smooth_video(4), fps=8)
    assert (tmp_path / "a.mp4").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_what_cannot_be_written_is_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"a\.avi: videos are written as \.mp4 or \.gif"):
        write_video(tmp_path / "a.avi", smooth_video(3), fps=8)
    with pytest.raises(UserError, match="fps must be in"):
        write_video(tmp_path / "a.mp4", smooth_video(3), fps=0)
    with pytest.raises(ValueError, match="expected uint8"):
        write_video(tmp_path / "a.mp4", smooth_video(3).astype(np.float32), fps=8)


@pytest.mark.parametrize(
    ("codec", "container", "ending"),
    [
        ("libx264", "mov", "mov"),
        ("libvpx", "webm", "webm"),
        ("libvpx-vp9", "webm", "webm"),
        ("mpeg4", "avi", "avi"),
        ("mpeg2video", "mp4", "mp4"),
        ("ffv1", "matroska", "mkv"),
    ],
)
def test_every_listed_codec_reads(tmp_path, codec, container, ending):
    video = smooth_video()
    path = encode(tmp_path / f"a.{ending}", video, codec=codec, container=container, rate=25)
    read = read_video(path)
    assert read.frames_THWC.shape == video.shape
    assert read.fps == 25
    assert np.abs(read.frames_THWC.astype(int) - video).mean() < 12


def test_a_codec_off_the_list_is_refused(tmp_path):
    path = encode(tmp_path / "a.mkv", smooth_video(3), codec="mpeg1video", container="matroska", rate=25)
    with pytest.raises(MediaError, match="codec mpeg1video is not one of h264"):
        read_video(path)


@pytest.mark.parametrize("text", ["ffconcat version 1.0\nfile secret.mp4\n", "#EXTM3U\n#EXTINF:1,\nsecret.mp4\n"])
def test_a_playlist_posing_as_mp4_is_refused_and_its_files_are_not_read(tmp_path, text):
    write_video(tmp_path / "secret.mp4", smooth_video(3), fps=8)
    (tmp_path / "evil.mp4").write_text(text)
    with pytest.raises(MediaError, match=r"evil\.mp4: not an mp4"):
        read_video(tmp_path / "evil.mp4")
    # Even when the first bytes pass, the demuxer is forced.
    (tmp_path / "evil.mp4").write_bytes(b"\0\0\0\x08ftyp" + text.encode())
    with pytest.raises(MediaError):
        read_video(tmp_path / "evil.mp4")


def test_a_playlist_would_be_followed_without_the_guard(tmp_path):
    """The control of the test above: the library itself opens what the list names."""
    write_video(tmp_path / "secret.mp4", smooth_video(3), fps=8)
    (tmp_path / "evil.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    with av.open(str(tmp_path / "evil.mp4")) as container:
        assert len(list(container.decode(video=0))) == 3


def test_a_file_name_is_never_a_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video("concat:a|b.mp4", smooth_video(3), fps=8)
    assert len(read_video("concat:a|b.mp4").frames_THWC) == 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"<html>not found</html>", "not an mp4"), (b"\0\0\0\x18ftypisom" + b"\0" * 99, "decoded|video")],
)
def test_things_that_are_no_video_are_refused(tmp_path, content, reason):
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(MediaError, match=reason) as caught:
        read_video(tmp_path / "a.mp4")
    assert str(caught.value).startswith(f"{tmp_path}/a.mp4: ")
    assert "\n" not in str(caught.value)


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(MediaError, match="No such file"):
        read_video(tmp_path / "a.mp4")
    with pytest.raises(MediaError, match="directory"):
        read_video(tmp_path)


def test_sound_without_pictures_is_refused(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as output:
        stream = output.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    with pytest.raises(MediaError, match="holds no video stream"):
        read_video(tmp_path / "a.mp4")


@pytest.mark.parametrize("ending", ["mp4", "gif", "webm", "avi"])
def test_damage_is_either_read_or_refused_never_a_crash(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    if ending in ("mp4", "gif"):
        write_video(path, smooth_video(6, 16, 16), fps=8)
    else:
        encode(path, smooth_video(6, 16, 16), codec="mpeg4" if ending == "avi" else "libvpx", container=ending)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(whole[: rng.integers(1, len(whole))] if rng.random() < 0.4 else whole)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        try:
            assert read_video(path).frames_THWC.dtype == np.uint8
        except MediaError as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_an_mp4_cut_short_is_refused_though_it_would_decode(tmp_path):
    write_video(tmp_path / "a.mp4", smooth_video(24), fps=24)
    with av.open(str(tmp_path / "a.mp4")) as container:
        twentieth = container.streams.video[0].index_entries[20].pos
    (tmp_path / "a.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:twentieth])
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert len(list(container.decode(video=0))) == 20
    with pytest.raises(MediaError, match="cut off"):
        read_video(tmp_path / "a.mp4")


def test_a_size_change_on_the_way_is_refused(tmp_path):
    with av.open(str(tmp_path / "a.webm"), "w") as output:
        first = output.add_stream("libvpx", rate=8)
        first.height, first.width, first.pix_fmt = 32, 32, "yuv420p"
        second = av.CodecContext.create("libvpx", "w")
        second.height, second.width, second.pix_fmt, second.time_base = 48, 64, "yuv420p", files.Fraction(1, 8)
        for t, (encoder, size) in enumerate([(first, (32, 32)), (second, (48, 64))]):
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), 90, np.uint8), format="rgb24")
            for packet in [*encoder.encode(frame), *encoder.encode(None)]:
                packet.stream, packet.pts, packet.dts = first, t, t
                packet.time_base = files.Fraction(1, 8)
                output.mux(packet)
    with pytest.raises(MediaError, match="frame size changes from 32x32 to 64x48"):
        read_video(tmp_path / "a.webm")


def test_too_many_pixels_are_refused_before_decoding(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", smooth_video(3), fps=8)
    monkeypatch.setattr(reading, "MAX_PIXELS", 48 * 80 - 1)
    monkeypatch.setattr(reading, "_decode", None)
    with pytest.raises(MediaError, match="frames of 80x48 exceed 3839 pixels"):
        read_video(tmp_path / "a.mp4")


def test_too_much_memory_is_refused_while_decoding(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", smooth_video(24), fps=8)
    monkeypatch.setattr(reading, "MAX_BYTES", 5 * 48 * 80 * 3)
    with pytest.raises(MediaError, match="cut it into shorter clips"):
        read_video(tmp_path / "a.mp4")
    assert len(read_video(tmp_path / "a.mp4", max_frames=5).frames_THWC) == 5


@pytest.mark.parametrize(("matrix", "turns"), [((0, 1, -1, 0), 3), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_display_rotation_is_applied(tmp_path, matrix, turns):
    """A phone writes the sensor's frames and a matrix in the track header; (0, 1, -1, 0) turns them clockwise."""
    video = smooth_video(3, 32, 48)
    write_video(tmp_path / "a.mp4", video, fps=8)
    upright = read_video(tmp_path / "a.mp4").frames_THWC
    data = (tmp_path / "a.mp4").read_bytes()
    a, b, c, d = (value << 16 for value in matrix)
    identity = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    at = data.index(identity, data.index(b"tkhd"))
    turned = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(data[:at] + turned + data[at + len(turned) :])
    np.testing.assert_array_equal(read_video(tmp_path / "a.mp4").frames_THWC, np.rot90(upright, turns, axes=(1, 2)))


def test_a_variable_rate_comes_back_as_a_constant_one(tmp_path):
    levels = [0, 60, 120, 180, 240]
    video = np.stack([np.full((16, 16, 3), level, np.uint8) for level in levels])
    encode(tmp_path / "a.mkv", video, codec="ffv1", container="matroska", times_ms=[0, 100, 200, 600, 700])
    read = read_video(tmp_path / "a.mkv")
    assert read.fps == pytest.approx(10)
    # The third frame stays on the screen for 400 ms.
    shown = [levels[int(np.abs(np.array(levels) - frame[0, 0, 0]).argmin())] for frame in read.frames_THWC]
    assert shown == [0, 60, 120, 120, 120, 120, 180, 240]


@pytest.mark.parametrize("kind", ["plain", "odd", "rotated", "upside down", "wide pixels", "ten bits"])
@pytest.mark.parametrize("covering", [(24, 40), (11, 9), (47, 20), (96, 40), (1, 1)])
def test_frames_shrunk_while_they_are_decoded_are_those_shrunk_afterwards(tmp_path, kind, covering):
    """To rounding: then the colours are converted before, here after."""
    video = smooth_video(4, 47, 63) if kind == "odd" else smooth_video(4, 90, 150)
    changes = {
        "rotated": lambda stream: stream.set_display_rotation(90),
        "upside down": lambda stream: stream.set_display_rotation(180),
        "wide pixels": lambda stream: setattr(stream.codec_context, "sample_aspect_ratio", Fraction(3, 2)),
    }
    pix_fmt = {"odd": "bgr0", "ten bits": "yuv444p10le"}.get(kind, "yuv420p")
    form = ("libx264", "mp4", "yuv420p") if kind in changes else ("ffv1", "matroska", pix_fmt)
    hostile_folder.encode(tmp_path / "a.mp4", video, *form, change=changes.get(kind))
    shrunk = read_media(tmp_path / "a.mp4", covering=covering).frames_THWC
    expected = cover(read_media(tmp_path / "a.mp4").frames_THWC, height=covering[0], width=covering[1])
    assert shrunk.shape == expected.shape
    assert np.abs(shrunk.astype(int) - expected).mean() < (2 if covering == (1, 1) else 1.2)


def test_a_frame_far_larger_than_the_clip_is_shrunk_too(tmp_path):
    write_video(tmp_path / "a.mp4", smooth_video(1, 540, 960), fps=8)
    for covering in ((9, 15), (6, 8)):  # within and beyond what one pass can
        shrunk = read_media(tmp_path / "a.mp4", covering=covering).frames_THWC
        expected = cover(read_media(tmp_path / "a.mp4").frames_THWC, height=covering[0], width=covering[1])
        assert np.abs(shrunk.astype(int) - expected).mean() < 1.5


def test_frames_nearest_in_time_are_selected():
    assert select_frames(9, fps=24, target_fps=8).tolist() == [0, 3, 6]
    assert select_frames(10, fps=24, target_fps=8).tolist() == [0, 3, 6, 9]
    assert select_frames(10, fps=24, target_fps=24).tolist() == list(range(10))
    assert select_frames(4, fps=12, target_fps=24).tolist() == [0, 1, 1, 2, 2, 3, 3]
    assert select_frames(10, fps=30, target_fps=24, frames=6, start=2).tolist() == [2, 3, 5, 6, 7, 8]
    assert select_frames(3, fps=8, target_fps=8, frames=5, start=1).tolist() == [1, 2, 2, 2, 2]


def test_selection_is_never_more_than_half_a_frame_off():
    for fps, target in [(30, 24), (29.97, 24), (25, 24), (60, 24), (24, 3), (23.976, 12)]:
        chosen = select_frames(500, fps=fps, target_fps=target)
        ticks = np.arange(len(chosen)) / target
        assert np.abs(chosen / fps - ticks).max() <= 0.5 / fps + 1e-9
        assert (len(chosen)) / target > (500 - 1) / fps  # nothing is left out at the end


def test_images_read_upright_over_white_and_in_eight_bits(tmp_path):
    red = np.full((8, 12, 3), (200, 30, 30), np.uint8)
    Image.fromarray(red).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), red)
    exif = Image.Exif()
    exif[0x0112] = 6  # show turned clockwise
    Image.fromarray(red).save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert read_image(tmp_path / "a.jpg").shape == (12, 8, 3)
    Image.fromarray(np.zeros((4, 4, 4), np.uint8), "RGBA").save(tmp_path / "clear.webp", lossless=True)
    assert (read_image(tmp_path / "clear.webp") == 255).all()
    Image.fromarray(np.full((4, 4), 0x8000, np.uint16)).save(tmp_path / "deep.png")
    assert (read_image(tmp_path / "deep.png") == 128).all()
    Image.new("CMYK", (4, 4)).save(tmp_path / "cmyk.jpg")
    assert read_image(tmp_path / "cmyk.jpg").shape == (4, 4, 3)


def test_images_off_the_list_damaged_or_huge_are_refused(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.bmp")
    (tmp_path / "a.bmp").rename(tmp_path / "a.png")
    with pytest.raises(MediaError, match="not a png, jpeg or webp"):
        read_image(tmp_path / "a.png")
    buffer = io.BytesIO()
    Image.fromarray(smooth_video(1)[0]).save(buffer, "PNG")
    (tmp_path / "cut.png").write_bytes(buffer.getvalue()[:-200])
    with pytest.raises(MediaError, match="cannot be decoded"):
        read_image(tmp_path / "cut.png")
    for side in (8000, 10_000):  # under and over the point where Pillow itself warns
        Image.new("1", (side, side)).save(tmp_path / "bomb.png")
        with pytest.raises(MediaError, match="exceeds 33177600 pixels"):
            read_image(tmp_path / "bomb.png")


def test_a_contact_sheet_has_a_row_per_clip(tmp_path):
    write_contact_sheet(tmp_path / "a.png", [smooth_video(12), smooth_video(3, 12, 20)], ["pan", "tiny\n"], frames=4)
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.height > 2 * 96
        assert sheet.width > 4 * 80


CUTTABLE = [
    ("libx264", "mp4", "mp4"),
    ("libx265", "mov", "mov"),
    ("libvpx-vp9", "webm", "webm"),
    ("ffv1", "matroska", "mkv"),
    ("mpeg4", "avi", "avi"),
    ("mpeg2video", "mpegts", "ts"),
    ("gif", "gif", "gif"),
]


@pytest.mark.parametrize(("codec", "container", "ending"), CUTTABLE)
def test_a_file_cut_anywhere_is_never_taken_for_a_shorter_clip(tmp_path, codec, container, ending):
    pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
    video = smooth_video(12)
    data = encode(tmp_path / f"a.{ending}", video, codec=codec, container=container, pix_fmt=pix_fmt).read_bytes()
    whole = read_media(EncodedMedia(f"a.{ending}", data))
    assert len(whole.frames_THWC) == 12
    for length in np.linspace(1, len(data) - 1, 25).astype(int):
        if codec == "mpeg2video" and length % 188 == 0:
            continue  # a transport stream says nowhere how long it is
        with pytest.raises(MediaError):
            read_media(EncodedMedia(f"a.{ending}", data[:length]))


def test_bytes_in_memory_read_like_the_file(tmp_path):
    write_video(tmp_path / "a.mp4", smooth_video(), fps=24)
    Image.fromarray(smooth_video(1)[0]).save(tmp_path / "a.png")
    for path in (tmp_path / "a.mp4", tmp_path / "a.png"):
        from_disk, from_memory = read_media(path), read_media(EncodedMedia(path.name, path.read_bytes()))
        assert from_disk.fps == from_memory.fps
        np.testing.assert_array_equal(from_disk.frames_THWC, from_memory.frames_THWC)
        facts, _ = scan_media(path)
        assert (facts.frames, facts.height, facts.width) == from_disk.frames_THWC.shape[:3]
        assert facts.fps == from_disk.fps


def test_pixels_that_are_not_square_are_shown_as_a_player_shows_them(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as output:
        stream = output.add_stream("libx264", rate=12)
        stream.height, stream.width, stream.pix_fmt = 48, 40, "yuv420p"
        stream.codec_context.sample_aspect_ratio = files.Fraction(2, 1)
        for frame_HWC in smooth_video(3, 48, 40):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        output.mux(stream.encode(None))
    shown = read_video(tmp_path / "a.mp4").frames_THWC
    assert shown.shape == (3, 48, 80, 3)
    wide = np.asarray(Image.fromarray(smooth_video(3, 48, 40)[0]).resize((80, 48), Image.Resampling.BICUBIC))
    assert np.abs(shown[0].astype(int) - wide).mean() < 10  # the default conversion to YUV costs 6


def test_length_on_disk_and_in_time_is_limited_before_decoding(tmp_path, monkeypatch):
    write_video(tmp_path / "a.mp4", smooth_video(12), fps=12)
    monkeypatch.setattr(reading, "_decode", None)
    monkeypatch.setattr(reading, "MAX_SECONDS", 0.5)
    with pytest.raises(MediaError, match=r"lasts 1 s, more than 0"):
        read_video(tmp_path / "a.mp4")
    monkeypatch.setattr(reading, "MAX_FILE_BYTES", 100)
    with pytest.raises(MediaError, match="bytes are more than 100"):
        read_video(tmp_path / "a.mp4")


@pytest.mark.parametrize("ending", ["mp4", "png"])
def test_a_pipe_in_the_folder_is_refused_instead_of_waited_for(tmp_path, ending):
    os.mkfifo(tmp_path / f"a.{ending}")
    with pytest.raises(MediaError, match="not a regular file"):
        read_media(tmp_path / f"a.{ending}")


def test_few_frames_spread_over_a_year_do_not_fill_the_memory(tmp_path):
    times = [0, 1, 2, 3_000_000]
    encode(tmp_path / "a.mkv", smooth_video(4), codec="mpeg4", container="matroska", times_ms=times)
    with pytest.raises(MediaError, match="timestamps span 3000 s"):
        scan_media(tmp_path / "a.mkv")
