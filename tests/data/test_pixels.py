"""Laws of pixels: what an image of every mode becomes, by Pillow's rule at 8 bits and by value at more."""

import io
from pathlib import Path

import numpy as np
import pytest
from conftest import refusal
from helpers.numbered_images import read_number, settings
from PIL import Image

from amp.data.batches import Batches
from amp.data.listing import list_images
from amp.data.pixels import EXTENSIONS, BrokenImageError, as_rgb, read_rgb

RAMP = np.arange(48).reshape(6, 8)


def saved(image: Image.Image, kind: str, **more: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file


def grey(image: Image.Image) -> np.ndarray:
    pixels_HWC = np.asarray(image)
    assert image.mode == "RGB"
    assert (pixels_HWC == pixels_HWC[:, :, :1]).all()
    return pixels_HWC[:, :, 0]


def eight_bit() -> list[Image.Image]:
    colour = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8))
    see_through = colour.copy()
    see_through.putalpha(Image.fromarray(RAMP.astype(np.uint8)))
    palette = colour.quantize(5)
    palette.info["transparency"] = 0
    converted = [colour.convert(mode) for mode in ("L", "1", "CMYK", "YCbCr", "HSV", "LAB")]
    return [colour, see_through, see_through.convert("LA"), palette, *converted]


@pytest.mark.parametrize("image", eight_bit(), ids=lambda image: image.mode)
def test_eight_bits_are_as_pillow_has_them(image: Image.Image) -> None:
    assert as_rgb(image).tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_image_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    file = saved(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    with Image.open(file) as image:
        assert image.n_frames == 2
        assert as_rgb(image).getpixel((0, 0)) == pytest.approx((255, 0, 0), abs=1)


def test_an_orientation_is_not_applied() -> None:
    image = Image.fromarray(RAMP.astype(np.uint8)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(saved(image, "PNG", exif=exif)) as found:
        assert as_rgb(found).tobytes() == image.tobytes()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "I", "I;16B"])
def test_sixteen_bits_keep_black_and_white(kind: str) -> None:
    values = np.array([[0, 128, 129, 257 * 100, 65535 - 128, 65535]], np.uint16)
    if kind == "I":
        image = Image.fromarray(values.astype(np.int32))
    elif kind == "I;16B":
        image = Image.frombytes("I;16B", (6, 1), values.astype(">u2").tobytes())
    else:
        image = Image.open(saved(Image.fromarray(values), kind))
    assert image.mode in ("I", "I;16", "I;16B")
    assert grey(as_rgb(image)).tolist() == [[0, 0, 1, 100, 255, 255]]


def test_floats_from_0_to_1_are_the_range() -> None:
    image = Image.fromarray(np.array([[0, 0.25, 0.5, 1]], np.float32))
    assert grey(as_rgb(Image.open(saved(image, "TIFF")))).tolist() == [[0, 64, 128, 255]]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.float32([[0, 200]]), "values from 0 to 200; a floating-point image holds 0 to 1"),
        (np.float32([[-1, 0]]), "values from -1 to 0;"),
        (np.float32([[0, np.nan]]), "values from nan to nan;"),
        (np.int32([[0, 65536]]), "values from 0 to 65536; a 16-bit image holds 0 to 65535"),
        (np.int32([[-1, 0]]), "values from -1 to 0;"),
    ],
)
def test_values_without_a_meaning_are_a_broken_image(tmp_path: Path, values: np.ndarray, said: str) -> None:
    Image.fromarray(values).save(tmp_path / "a.tiff")
    with pytest.raises(BrokenImageError, match=said):
        read_rgb(tmp_path / "a.tiff")
    for name in "bcd":  # one of four is held out
        Image.fromarray(values).save(tmp_path / f"{name}.tiff")
    own = settings(tmp_path, strict=True, batch_size=2, shuffle=False)
    message = refusal(lambda: list(Batches(list_images(own, "train"), read_number, own)))
    assert message.startswith(f"data.strict: {tmp_path}/a.tiff: broken image ({said}")


def test_what_starts_a_program_is_no_image(tmp_path: Path) -> None:
    """Pillow gives PostScript to ghostscript, whatever the file is called."""
    (tmp_path / "a.png").write_bytes(saved(Image.new("RGB", (8, 6)), "EPS").getvalue())
    with pytest.raises(BrokenImageError, match="not an image of a known format"):
        read_rgb(tmp_path / "a.png")
    assert {".eps", ".pdf"}.isdisjoint(EXTENSIONS)
    assert {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"} <= EXTENSIONS


def test_a_name_with_a_line_break_is_one_line(tmp_path: Path) -> None:
    for number in range(4):
        Image.new("RGB", (8, 6)).save(tmp_path / f"{number}.png")
    (tmp_path / "0\n.png").write_bytes(b"no image")
    own = settings(tmp_path, strict=True, batch_size=2, shuffle=False)
    message = refusal(lambda: list(Batches(list_images(own, "train"), read_number, own)))
    assert message == f"data.strict: {tmp_path}/0\\n.png: broken image (not an image of a known format)"
