"""Every kind of image file becomes the pixels that its format says, or is refused in one line."""

from __future__ import annotations

import logging
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import loaders.imageset
import main_imagenet
from common.errors import InputError
from loaders import load_dataset
from loaders.pictures import read_picture, read_size
from loaders.transforms import Preprocess
from tests.conftest import PROJECT
from tests.test_layering import project_files

PLAIN = Preprocess((0.0,) * 3, (1.0,) * 3)


def pixels(path: Path) -> np.ndarray:
    """(H, W, 3) uint8."""
    picture = read_picture(path)
    assert picture.mode == "RGB"
    assert read_size(path) == picture.size
    return np.asarray(picture)


def grey(path: Path) -> np.ndarray:
    """(H, W) uint8 of an image whose channels are equal."""
    found = pixels(path)
    assert (found == found[:, :, :1]).all()
    return found[:, :, 0]


def require_nearest(found: np.ndarray, exact: np.ndarray) -> None:
    """The nearest of the 256 values; Pillow rounds to 16 bits first, which moves ties by 1/514."""
    assert found.dtype == np.uint8
    assert np.abs(found.astype(float) - exact).max() <= 0.5 + 1 / 514


def netpbm(path: Path, values: np.ndarray, maxval: int, plain: bool) -> Path:
    """Write (H, W) or (H, W, 3) values as a PGM or PPM file."""
    kind = (2 if plain else 5) + (values.ndim == 3)
    head = f"P{kind}\n# by hand\n{values.shape[1]} {values.shape[0]}\n{maxval}\n".encode()
    width = ">u2" if maxval > 255 else "u1"
    body = " ".join(map(str, values.ravel())).encode() if plain else values.astype(width).tobytes()
    path.write_bytes(head + body)
    return path


def read_netpbm(path: Path) -> np.ndarray:
    """A decoder of its own: values of a PGM or PPM file, as 0 to 255 in float64."""
    magic, _, size, maxval, body = path.read_bytes().split(b"\n", 4)
    width, height = map(int, size.split())
    if magic in (b"P2", b"P3"):
        values = np.array(body.split(), dtype=float)
    else:
        values = np.frombuffer(body, ">u2" if int(maxval) > 255 else "u1").astype(float)
    shape = (height, width, 3) if magic in (b"P3", b"P6") else (height, width)
    return values.reshape(shape) * 255 / int(maxval)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("maxval", [1, 15, 100, 255, 256, 1023, 4095, 10000, 65535])
def test_netpbm_is_scaled_by_the_maximum_of_its_header(tmp_path, maxval, plain):
    random = np.random.RandomState(maxval)
    for name, shape in (("a.pgm", (9, 7)), ("a.ppm", (9, 7, 3))):
        values = random.randint(0, maxval + 1, shape)
        values[0, 0], values[-1, -1] = 0, maxval
        path = netpbm(tmp_path / name, values, maxval, plain)
        expected = read_netpbm(path)
        found = pixels(path)
        require_nearest(found, expected if name == "a.ppm" else expected[:, :, None])
        assert (found[0, 0], found[-1, -1]) == (pytest.approx(0), pytest.approx(255))


def png(path: Path, rows: Sequence[bytes], width: int, bits: int, colours: bool = False) -> Path:
    """Write rows of packed samples as a PNG file, grey or RGB."""

    def chunk(name: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + check

    header = struct.pack(">IIBBBBB", width, len(rows), bits, 2 if colours else 0, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


def deep_rows(values: np.ndarray) -> list[bytes]:
    return [row.astype(">u2").tobytes() for row in values]


def test_a_grey_png_of_16_bits_is_scaled_by_65535(tmp_path):
    values = np.arange(65536).reshape(256, 256)
    found = grey(png(tmp_path / "a.png", deep_rows(values), 256, 16))
    assert np.array_equal(found, np.rint(values / 257).astype(np.uint8))


def test_a_coloured_png_of_16_bits_keeps_its_high_bytes(tmp_path):
    values = np.random.RandomState(0).randint(0, 65536, (9, 7, 3))
    values[0, 0], values[-1, -1] = 0, 65535
    found = pixels(png(tmp_path / "a.png", deep_rows(values), 7, 16, colours=True))
    assert np.array_equal(found, values >> 8)
    assert np.abs(found - values / 257).max() < 1


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_grey_png_of_few_bits_is_scaled_to_255(tmp_path, bits):
    values = np.arange(8)[None] % (1 << bits)
    packed = np.unpackbits(values.astype(np.uint8).T, axis=1)[:, -bits:]
    row = np.packbits(packed.ravel()).tobytes()
    found = grey(png(tmp_path / "a.png", [row], 8, bits))
    assert np.array_equal(found, values * 255 // ((1 << bits) - 1))


UNSIGNED, SIGNED, FLOAT = 1, 2, 3  # sample formats of TIFF
WHITE_IS_ZERO, BLACK_IS_ZERO = 0, 1


def tiff(
    path: Path,
    values: np.ndarray,
    kind: int,
    photometric: int = BLACK_IS_ZERO,
    body: bytes | None = None,
    bits: int | None = None,
) -> Path:
    """Write (H, W) values as an uncompressed grey TIFF in the byte order of their type."""
    order = ">" if values.dtype.byteorder == ">" else "<"
    body = values.tobytes() if body is None else body
    body += bytes(len(body) % 2)
    bits = 8 * values.dtype.itemsize if bits is None else bits
    height, width = values.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1}
    tags |= {278: height, 279: len(body), 339: kind}
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(body))
    entries = [struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items()]
    for index, (tag, value) in enumerate(tags.items()):
        if tag in (258, 259, 262, 277, 339):
            entries[index] = struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0)
    directory = struct.pack(f"{order}H", len(tags)) + b"".join(entries) + bytes(4)
    path.write_bytes(head + body + directory)
    return path


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_of_16_bits_is_scaled_by_65535(tmp_path, order):
    values = np.arange(0, 65536, 5).reshape(4, -1)[:, :3277]
    found = grey(tiff(tmp_path / "a.tif", values.astype(f"{order}u2"), UNSIGNED))
    assert np.array_equal(found, np.rint(values / 257).astype(np.uint8))


def test_a_tiff_of_12_bits_is_scaled_by_4095(tmp_path):
    values = np.arange(4096, dtype="<u2").reshape(64, 64)
    pairs = values.reshape(-1, 2)
    triples = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1]])
    body = triples.T.astype(np.uint8).tobytes()
    found = grey(tiff(tmp_path / "a.tif", values, UNSIGNED, body=body, bits=12))
    require_nearest(found, values.astype(float) * 255 / 4095)


def test_a_tiff_whose_white_is_zero_is_inverted(tmp_path):
    deep = np.array([[0, 257, 32767, 65535]], dtype="<u2")
    found = grey(tiff(tmp_path / "a.tif", deep, UNSIGNED, WHITE_IS_ZERO))
    assert found.tolist() == [[255, 254, 128, 0]]
    shallow = np.array([[0, 1, 100, 255]], dtype="u1")
    found = grey(tiff(tmp_path / "b.tif", shallow, UNSIGNED, WHITE_IS_ZERO))
    assert found.tolist() == [[255, 254, 155, 0]]
    floats = np.array([[0, 0.25, 1]], dtype="<f4")
    found = grey(tiff(tmp_path / "c.tif", floats, FLOAT, WHITE_IS_ZERO))
    assert found.tolist() == [[255, 191, 0]]


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_tiff_of_floats_is_scaled_from_0_to_1(tmp_path, order):
    values = np.linspace(0, 1, 1000).reshape(10, 100).astype(f"{order}f4")
    found = grey(tiff(tmp_path / "a.tif", values, FLOAT))
    require_nearest(found, values.astype(float) * 255)
    assert (found[0, 0], found[-1, -1]) == (0, 255)


UNKNOWN = {
    "signed 8": ("<i1", SIGNED, [[0, 1], [2, -3]], "signed integers"),
    "signed 16": ("<i2", SIGNED, [[0, 1], [2, 3]], "signed integers"),
    "signed 32": (">i4", SIGNED, [[0, 1], [2, 3]], "signed integers"),
    "unsigned 32": (
        "<u4",
        UNSIGNED,
        [[0, 1], [2, 70000]],
        "32-bit integers in TIFF, whose maximum is unknown",
    ),
    "large floats": ("<f4", FLOAT, [[0, 1], [2, 255]], "values from 0 to 255 where white is 1"),
    "small floats": ("<f4", FLOAT, [[0, 1], [1, -0.5]], "values from -0.5 to 1 where white is 1"),
    "NaN": (">f4", FLOAT, [[0, 1], [1, np.nan]], "values from nan to nan where white is 1"),
    "infinity": ("<f4", FLOAT, [[0, 1], [1, np.inf]], "values from 0 to inf where white is 1"),
}
MUST = "pixels must be of at most 16 bits without sign, or floats from 0 to 1 in TIFF"


@pytest.mark.parametrize("name", UNKNOWN)
def test_samples_of_unknown_maximum_are_refused(tmp_path, name):
    dtype, kind, values, got = UNKNOWN[name]
    path = tiff(tmp_path / "a.tif", np.array(values, dtype=dtype), kind)
    with pytest.raises(InputError) as caught:
        read_picture(path)
    assert str(caught.value) == f"{MUST}, got {got}"


def test_floats_in_a_portable_map_are_refused(tmp_path):
    path = tmp_path / "a.ppm"
    path.write_bytes(b"Pf\n2 1\n-1.0\n" + np.array([0, 1], dtype="<f4").tobytes())
    with pytest.raises(InputError, match="got floats in PPM, whose maximum is unknown"):
        read_picture(path)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes of two images, one of which is of 32-bit integers."""
    for name in "ab":
        (tmp_path / "images" / "val" / name).mkdir(parents=True)
        for number in range(2):
            path = tmp_path / "images" / "val" / name / f"{number}.tif"
            tiff(path, np.full((8, 8), 257 * number, dtype="<u2"), UNSIGNED)
    tiff(path, np.full((8, 8), 70000, dtype="<u4"), UNSIGNED)
    return tmp_path / "images"


def test_a_run_on_such_an_image_ends_in_one_line(folder, capsys):
    argv = ["--arch", "cifar_resnet20", "--data_path", str(folder), "--quant_method", "rtn"]
    argv += ["--no-correction", "--output_dir", str(folder.parent / "out")]
    assert main_imagenet.main(argv) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == (
        f"error: {folder / 'val/b/1.tif'}: {MUST}, got 32-bit integers in TIFF, whose maximum is "
        "unknown (--skip_bad_images leaves it out)"
    )


def test_such_an_image_is_skipped_and_counted(folder, caplog):
    data = load_dataset("imagenet", folder, PLAIN, skip_bad=True)
    with caplog.at_level(logging.WARNING):
        found = data.val.loaded()
    assert found.ids == ["val/a/0.tif", "val/a/1.tif", "val/b/0.tif"]
    assert found.pixels[:, 0, 0, 0].tolist() == [0, 1, 0]
    assert caplog.text.count("skipped unreadable image") == 1
    assert f"b/1.tif: {MUST}, got 32-bit integers" in caplog.text


def test_such_an_image_is_found_by_its_header_where_images_do_not_fit(folder, monkeypatch):
    monkeypatch.setattr(loaders.imageset, "MEMORY_LIMIT", 10)
    with pytest.raises(InputError, match=r"b/1\.tif: pixels must be of at most 16 bits"):
        load_dataset("imagenet", folder, PLAIN).val.loaded()
    kept = load_dataset("imagenet", folder, PLAIN, skip_bad=True).val.loaded()
    assert kept.ids == ["val/a/0.tif", "val/a/1.tif", "val/b/0.tif"]


# --- what Pillow does right


RED_GREEN = np.array([[[255, 0, 0, 10], [0, 255, 0, 200]]], dtype=np.uint8)


def test_alpha_is_dropped_as_torchvision_does(tmp_path):
    Image.fromarray(RED_GREEN).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png").tolist() == [[[255, 0, 0], [0, 255, 0]]]
    Image.new("LA", (2, 1), (100, 7)).save(tmp_path / "b.png")
    assert grey(tmp_path / "b.png").tolist() == [[100, 100]]


def test_a_palette_is_looked_up_with_and_without_transparency(tmp_path):
    picture = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).convert("P")
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    expected = [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]
    for name, options in (("a.png", {}), ("b.png", {"transparency": 1}), ("c.gif", {})):
        picture.save(tmp_path / name, **options)
        assert pixels(tmp_path / name).tolist() == expected


def test_cmyk_is_multiplied_out(tmp_path):
    inks = np.array([[[0, 255, 255, 0], [0, 0, 0, 128], [51, 0, 0, 0]]], dtype=np.uint8)
    picture = Image.frombytes("CMYK", (3, 1), inks.tobytes())
    picture.save(tmp_path / "a.tif")
    colour, black = inks[:, :, :3].astype(float), inks[:, :, 3:].astype(float)
    expected = (255 - colour) * (255 - black) / 255
    assert np.abs(pixels(tmp_path / "a.tif") - expected).max() <= 1
    picture.resize((48, 16), Image.Resampling.NEAREST).save(tmp_path / "a.jpg", quality=100)
    assert np.abs(pixels(tmp_path / "a.jpg")[8, ::16] - expected[0]).max() <= 3


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_of_several_frames_the_first_is_read(tmp_path, name):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((200, 40, 40), (0, 0, 255))]
    options = {"lossless": True} if name == "a.webp" else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    with Image.open(tmp_path / name) as image:
        assert image.n_frames == 2
    assert (pixels(tmp_path / name) == (200, 40, 40)).all()


def test_ordinary_files_are_decoded_as_by_torchvisions_folder(tmp_path):
    from torchvision.datasets.folder import default_loader

    picture = Image.fromarray(np.random.RandomState(0).randint(0, 256, (40, 30, 3), dtype=np.uint8))
    pictures = {
        "a.png": picture,
        "a.jpg": picture,
        "b.jpg": picture.convert("L"),
        "a.bmp": picture,
        "a.gif": picture.convert("P"),
        "a.webp": picture,
        "a.tif": picture.convert("1"),
    }
    for name, content in pictures.items():
        content.save(tmp_path / name)
        assert np.array_equal(pixels(tmp_path / name), np.asarray(default_loader(tmp_path / name)))


def test_image_files_are_opened_in_one_place():
    opening = re.compile(r"Image\.open|imread|read_image|decode_image|default_loader")
    found = [path for path in project_files() if opening.search(path.read_text())]
    names = sorted(str(path.relative_to(PROJECT)) for path in found)
    assert names == ["loaders/pictures.py", "plots/axes.py"]  # the latter: marks in own figures
