"""Strangers' images and arrays: each is read or refused in one line, in bounded time and memory, and nothing else of
the machine is read through it."""

import ast
import os
import shutil
import socket
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import raster_mutations
import raster_samples as samples
import rasterio
from fuzz_engine import Target, fuzz, table
from fuzz_rasters import targets

from common.datasets import glacier_files, landslide_files
from common.datasets.arrays import read_npz
from common.datasets.limits import LIMITS
from common.datasets.rasters import open_checked
from common.datasets.readers import declared_size, read_photo
from common.datasets.scenes import open_scene
from common.errors import InputError
from common.outputs.masks import read_frame, read_probs

ROOT = Path(__file__).resolve().parents[2]
SHORT, LONG = 20, 1000


def check(results) -> None:
    print(table(results))
    assert not [(r.name, *fault) for r in results for fault in r.faults]
    for r in results:
        assert r.inputs == r.read + r.refused and r.read and r.refused, r


def test_readers_of_images_survive_damage(tmp_path):
    check([fuzz(target, tmp_path, inputs=SHORT) for target in targets()])


@pytest.mark.soak
@pytest.mark.parametrize("target", targets(), ids=lambda target: target.name)
def test_readers_of_images_survive_much_damage(target, tmp_path):
    check([fuzz(target, tmp_path, inputs=LONG, seed=7)])


def found(read, tmp_path, **options) -> str:
    """What the fuzzer says of a reader."""
    target = Target("own", [{"a.npy": b"12345678"}], raster_mutations.mutate, read)
    return "\n".join(said for _, said in fuzz(target, tmp_path, inputs=1, **options).faults)


def test_the_fuzzer_finds_each_kind_of_fault(tmp_path, monkeypatch):
    monkeypatch.setattr("fuzz_engine.SECONDS", 1)

    def refuse(text):
        raise InputError(text)

    hog = []
    assert "ZeroDivisionError" in found(lambda home: 1 / 0, tmp_path / "a")
    assert "hangs" in found(lambda home: sum(iter(lambda: 0, 1)), tmp_path / "b")
    assert "address space" in found(lambda home: hog.append(np.empty(5 * 2**30, np.uint8)), tmp_path / "c")
    assert "SIGSEGV" in found(lambda home: os.kill(os.getpid(), 11), tmp_path / "d")
    assert "names none" in found(lambda home: refuse("wrong"), tmp_path / "e")
    assert "sound sample is refused" in found(lambda home: refuse("a.npy: wrong"), tmp_path / "f")
    assert "in vain" in found(lambda home: refuse("a.npy: Unable to allocate 9 GiB"), tmp_path / "g")
    assert not found(lambda home: (home / "a.npy").read_bytes(), tmp_path / "h")


# headers


def tiff(width, height, bands=1, *, bits=8, sample=1, tile=None, packed=1) -> bytes:
    """A TIFF of a few bytes that declares what it likes."""
    tags = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, packed), (262, 3, 1), (277, 3, bands),
            (284, 3, 1), (339, 3, sample)]  # fmt: skip
    tags += (
        [(322, 4, tile), (323, 4, tile), (324, 4, 8), (325, 4, 10)]
        if tile
        else [(273, 4, 8), (278, 4, 1), (279, 4, 10)]
    )
    directory = b"".join(struct.pack("<HHII", code, kind, 1, value) for code, kind, value in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(68)


BOMBS = {
    "pixels": (tiff(100_000, 100_000, tile=512), "pixels in a raster that is held whole"),
    "bands": (tiff(16, 16, 65_535), "bands in a raster"),
    "block": (tiff(512, 512, 4096, bits=64, tile=512, packed=8), "bytes in one block"),
    "side": (tiff(2**31 - 1, 1), "pixels along a side"),
    "blocks": (tiff(2**18, 2**18, tile=16), "blocks in a raster"),
    "complex": (tiff(16, 16, bits=64, sample=6), "real numbers"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_raster_that_declares_too_much_is_refused_before_memory_is_taken(tmp_path, name):
    content, said = BOMBS[name]

    def read(home):
        with pytest.raises(InputError, match=said) as refused:
            landslide_files.load_label(home / "a.tif") if name == "pixels" else open_checked(home / "a.tif")
        assert len(str(refused.value).splitlines()) == 1

    result = fuzz(Target(name, [{"a.tif": content}], raster_mutations.mutate, read), tmp_path, inputs=1)
    assert result.faults == [] and result.memory < 2**28, result


def test_a_tile_of_too_many_values_is_refused_and_a_scene_of_them_is_not(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(40_000, 40_000, 3, tile=512))
    with pytest.raises(InputError, match=r"4,800,000,000 values .* cut it into smaller tiles"):
        landslide_files.read_tile(tmp_path / "a.tif", ["band1", "band2", "band3"])
    with open_scene(tmp_path / "a.tif", ("red", "green", "blue")) as scene:
        assert (scene.height, scene.width) == (40_000, 40_000)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_a_georeference_that_places_nothing_is_refused(tmp_path, value):
    content = bytearray(samples.tif(samples.values((1, 16, 16))))
    offset = next(struct.unpack_from("<I", content, at + 8)[0] for at, _ in raster_mutations.entries(bytes(content))
                  if struct.unpack_from("<H", content, at)[0] == 33550)  # fmt: skip
    struct.pack_into("<d", content, offset, value)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(InputError, match="a.tif: its georeference places no pixel"):
        open_checked(tmp_path / "a.tif")


def npy(header: str, numbers: bytes = bytes(64)) -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text + numbers


@pytest.mark.parametrize("kind, shape, said", [
    ("'<f4'", "(5, 100000, 100000)", "is cut off: 200,000,000,000 bytes"), ("'|O'", "(5, 2, 2)", "no array of numbers"),
    ("'<c8'", "(2, 2, 2)", "no array of numbers"), ("'|V8'", "(2, 2, 2)", "no array of numbers"),
    ("'<f4'", "(2, -2, 2)", "impossible"), ("'<f4'", "(0, 2, 2)", "shape")])  # fmt: skip
def test_an_npy_that_holds_no_tile_is_refused(tmp_path, kind, shape, said):
    path = tmp_path / "a.npy"
    path.write_bytes(npy(f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}"))
    for read in (glacier_files.read_tile, lambda path: landslide_files.read_tile(path, None)):
        with pytest.raises(InputError, match=said):
            read(path)


def test_a_zip_that_unpacks_to_too_much_is_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    header = npy("{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3000, 1000), }", b"")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("prob.npy", header + bytes(6_000_000))
    assert path.stat().st_size < 10_000 and read_probs(path).shape == (2, 3000, 1000)
    monkeypatch.setitem(LIMITS, "array", (5_000_000, *LIMITS["array"][1:]))
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(InputError, match=r"a.npz: 6,000,\d+ bytes in an array, where at most 5,000,000 are taken"):
        read_probs(path)


def test_an_npz_that_declares_more_than_it_holds_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("prob.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 90000, 90000), }"))
    with pytest.raises(InputError, match="cut off: 64,800,000,000 bytes"):
        read_probs(tmp_path / "a.npz")


def test_arrays_of_an_npz_are_what_numpy_reads(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.asfortranarray(np.eye(3, dtype=">f4")), "c": np.zeros((0, 2)),
              "d": np.array([True, False])}  # fmt: skip
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    read = read_npz(tmp_path / "a.npz", ("a", "b", "c", "d", "e"))
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype and read[name].flags.writeable


# photos


def png(width, height) -> bytes:
    body = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", body), (b"IDAT", zlib.compress(bytes(3000))), (b"IEND", b"")]
    packed = (struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
              for kind, body in chunks)  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_photos_that_declare_too_much_are_not_decoded(tmp_path, monkeypatch):
    jpeg = bytearray(samples.photo_samples()[0]["a.jpg"])
    frame = jpeg.find(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"
    monkeypatch.setattr("common.datasets.readers.decode", lambda _data: pytest.fail("decoded"))
    for name, content in (("a.jpg", bytes(jpeg)), ("a.png", png(60_000, 60_000))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}: .* pixels in a photo, where at most"):
            read_photo(tmp_path / name, None)


def test_a_jpeg_of_hundreds_of_scans_is_refused(tmp_path):
    data = samples.photo_samples()[1]["a.jpg"]
    scan = data.rfind(b"\xff\xda")
    (tmp_path / "a.jpg").write_bytes(data[:-2] + data[scan:-2] * 200 + data[-2:])
    with pytest.raises(InputError, match="a.jpg: 2.. scans"):
        read_photo(tmp_path / "a.jpg", None)


def test_the_size_is_read_where_the_decoder_reads_it():
    """Markers without a segment hide no other frame from the walk over the header."""
    data = samples.photo_samples()[0]["a.jpg"]
    false = b"\xff\xc0\0\x11\x08\0\x01\0\x01\x03\x01\x22\0\x02\x11\x01\x03\x11\x01"
    for marker in (b"\xff\x01", b"\xff\xd3", b"\xff\xff"):
        assert declared_size(data[:2] + marker + data[2:]) == (24, 40)
    assert declared_size(data[:2] + b"\xff\0" + len(data).to_bytes(2, "big") + false + data[2:]) == (0, 0)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_not_waited_for(tmp_path, kind):
    path = tmp_path / "a.tif"
    {"pipe": lambda: os.mkfifo(path), "folder": path.mkdir, "device": lambda: path.symlink_to("/dev/zero")}[kind]()
    for read in (read_photo, glacier_files.load_array, read_frame, lambda path: open_scene(path, ("red",))):
        with pytest.raises(InputError, match="a.tif"):
            read(path)


# virtual rasters


def vrt_text(name: str, beside: str = "1") -> str:
    usual = 'relativeToVRT="1" shared="0">parts/a.tif'
    return samples.vrt_samples()[0]["a.vrt"].decode().replace(usual, f'relativeToVRT="{beside}" shared="0">{name}')


@pytest.fixture
def mosaic(tmp_path) -> Path:
    """A folder with a.vrt and its parts, and a raster outside of it."""
    for name, content in samples.vrt_samples()[0].items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    shutil.copy(tmp_path / "data/parts/a.tif", tmp_path / "outside.tif")
    return tmp_path / "data"


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_scene(path, ("red", "green", "blue"))
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_plain_mosaic_is_read(mosaic):
    with open_scene(mosaic / "a.vrt", ("red", "green", "blue")) as scene:
        with rasterio.open(mosaic / "parts/a.tif") as part:
            np.testing.assert_array_equal(scene.read(0, 0, 16, 16), part.read().astype(np.float32))
    link = mosaic.parent / "link.vrt"
    link.symlink_to(mosaic / "a.vrt")
    with open_scene(link, ("red", "green", "blue")) as scene:
        assert (scene.height, scene.width) == (16, 32)


ELSEWHERE = ["../outside.tif", "/etc/passwd", "parts/link.tif", "/vsicurl/http://127.0.0.1:1/a.tif", "parts",
             "gone.tif", "http://127.0.0.1:1/a.tif", "/vsizip/a.zip/a.tif", ""]  # fmt: skip


@pytest.mark.parametrize("name", ELSEWHERE)
@pytest.mark.parametrize("beside", ["0", "1"])
def test_a_mosaic_of_what_lies_elsewhere_is_refused(mosaic, name, beside):
    (mosaic / "parts/link.tif").symlink_to(mosaic.parent / "outside.tif")
    (mosaic / "a.vrt").write_text(vrt_text(name, beside))
    assert "is made of" in refused(mosaic / "a.vrt")


@pytest.mark.parametrize("old, new", [
    ('band="1"', 'band="1" subClass="VRTRawRasterBand"'), ('band="1"', 'band="1" subclass="VRTDerivedRasterBand"'),
    ("<VRTDataset ", '<VRTDataset subClass="VRTWarpedDataset" '), ("SourceFilename", "sourcefilename"),
    ("<Metadata>", '<Metadata domain="GEOLOCATION">'), ('relativeToVRT="1"', 'relativetovrt="1"'),
    ("<NoDataValue>", "<PixelFunctionType>sum</PixelFunctionType><NoDataValue>"),
    ('relativeToVRT="1"', 'relativeToVRT="2"'),
    ("<VRTDataset ", '<!DOCTYPE a [<!ENTITY b "c">]><VRTDataset '), ("</VRTDataset>", "")])  # fmt: skip
def test_a_vrt_that_is_more_than_a_mosaic_is_refused(mosaic, old, new):
    text = (mosaic / "a.vrt").read_text()
    assert old in text
    (mosaic / "a.tif").write_text(text.replace(old, new))  # by its content, whatever its name
    said = refused(mosaic / "a.tif")
    assert any(part in said for part in ("more than a mosaic", "declares entities", "no whole .vrt", "neither 0 nor 1"))


def test_bytes_of_other_files_are_not_read_as_pixels(mosaic):
    """GDAL alone takes this for a raster and gives the first bytes of /etc/passwd."""
    text = """<VRTDataset rasterXSize="8" rasterYSize="1"><VRTRasterBand dataType="Byte" band="1"
      subClass="VRTRawRasterBand"><SourceFilename relativetoVRT="0">/etc/passwd</SourceFilename><ImageOffset>0
      </ImageOffset><PixelOffset>1</PixelOffset><LineOffset>8</LineOffset></VRTRasterBand></VRTDataset>"""
    (mosaic / "a.tif").write_text(text)
    with rasterio.open(mosaic / "a.tif") as file:
        assert file.read(1).tobytes() == Path("/etc/passwd").read_bytes()[:8]
    assert "VRTRawRasterBand" in refused(mosaic / "a.tif")
    for suffix in (".msk", ".ovr"):
        shutil.copy(mosaic / "parts/b.tif", mosaic / "b.tif")
        shutil.copy(mosaic / "a.vrt", mosaic / f"b.tif{suffix}")
        with pytest.raises(InputError, match=f"b.tif{suffix}: GDAL would read it"):
            landslide_files.read_tile(mosaic / "b.tif", None)
        (mosaic / f"b.tif{suffix}").unlink()


def test_no_address_is_called(mosaic):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        address = f"127.0.0.1:{server.getsockname()[1]}"
        for name in (f"/vsicurl/http://{address}/a.tif", f"http://{address}/a.tif"):
            (mosaic / "a.vrt").write_text(vrt_text(name, "0"))
            refused(mosaic / "a.vrt")
        (mosaic / "a.tif").write_text(
            f"<GDAL_WMS><Service name='TMS'><ServerUrl>http://{address}/</ServerUrl></Service></GDAL_WMS>"
        )
        refused(mosaic / "a.tif")
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_part_of_a_mosaic_is_judged_as_a_raster_is(mosaic):
    (mosaic / "parts/a.tif").write_bytes(BOMBS["block"][0])
    assert "bytes in one block" in str(pytest.raises(InputError, open_checked, mosaic / "a.vrt").value)
    (mosaic / "parts/a.tif").write_bytes((mosaic / "a.vrt").read_bytes())  # a .vrt again, which names itself
    with pytest.raises(InputError):
        open_checked(mosaic / "a.vrt")


def test_nothing_reads_pickles_and_one_function_opens_rasters():
    """np.load says allow_pickle=False or reads what this process wrote; rasterio.open reads only maps of our own."""
    opens = {}
    for path in sorted((ROOT / "common").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "rasterio.open", "pickle.load"):
                name = ast.unparse(node.func)
                words = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert name != "pickle.load" and words.get("allow_pickle", "False") == "False", path
                written = name == "rasterio.open" and len(node.args) > 1
                if not written:
                    opens.setdefault(name, set()).add(path.stem)
    ours = {"scene_truth", "ordered_truth", "demo_landslide"}
    assert opens["rasterio.open"] <= {"rasters", *ours}
    assert opens["np.load"] <= {"arrays", "tiles", "stereo", "features", "side_store", "biomass"}
