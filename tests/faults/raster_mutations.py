"""Damage to files of images and arrays: of any bytes, and of what the formats declare."""

import io
import random
import re
import struct
import zipfile
import zlib

NUMBERS = (0, 1, 2, 3, 7, 8, 16, 64, 255, 256, 4096, 65535, 65536, 100_000, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
DOUBLES = (float("nan"), float("inf"), float("-inf"), 0.0, -1.0, 1e-300, 1e300, 1e18, 360.0, 1e-12)
TIFF_TYPES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8}
SHAPES = ("()", "(0,)", "(5,)", "(16, 16)", "(0, 16, 16)", "(5, 16, 16)", "(5, -16, 16)", "(100000, 100000)",
          "(65535, 65535, 65535)", "(9223372036854775807,)", "(5, 16, True)", "(" + "1, " * 40 + ")", "(2**70,)",
          "(4611686018427387904, 4)", "[5, 16, 16]", "(5, 16.0, 16)", "'abc'", "(18446744073709551617,)")  # fmt: skip
KINDS = ("'<f4'", "'>f4'", "'<f8'", "'|u1'", "'<u2'", "'|b1'", "'<i8'", "'<f2'", "'<c8'", "'|O'", "'<U9'", "'|S5'",
         "'|V8'", "'<M8[s]'", "'<f16'", "[('a', '<f4')]", "[('a', '|O')]", "'<f4, <f4'", "'(100000,100000)f4'", "''",
         "None", "5", "'zzz'", "-" * 3000 + "1", "(" * 90 + ")" * 90, "'<U2147483647'")  # fmt: skip


def any_bytes(data: bytes, draws: random.Random) -> bytes:
    """Bits, bytes, numbers and pieces of a file changed, most often near its start or its end."""
    data = bytearray(data or b"\0")
    near = draws.choice((64, 512, len(data)))
    at = min(draws.randrange(near), len(data) - 1)
    at = len(data) - 1 - at if draws.random() < 0.2 else at
    way = draws.randrange(7)
    if way == 0:
        data[at] ^= 1 << draws.randrange(8)
    elif way == 1:
        data[at] = draws.randrange(256)
    elif way == 2:
        size, order = draws.choice((1, 2, 4, 8)), draws.choice(("little", "big"))
        data[at : at + size] = (draws.choice(NUMBERS) % 256**size).to_bytes(size, order)
    elif way == 3:
        del data[draws.randrange(len(data)) :]
    elif way == 4:
        del data[at : at + draws.choice((1, 2, 7, 64))]
    elif way == 5:
        piece = data[at : at + draws.choice((1, 4, 64))]
        data[at:at] = piece * draws.choice((1, 2, 100))
    else:
        data[at : at + 16] = draws.randbytes(draws.choice((4, 16)))
    return bytes(data)


def entries(data: bytes) -> list[tuple[int, str]]:
    """(offset, order of bytes) of the entries in the first directory of a plain TIFF."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None or len(data) < 10:
        return []
    at = struct.unpack_from(order + "I", data, 4)[0]
    if at + 2 > len(data):
        return []
    count = struct.unpack_from(order + "H", data, at)[0]
    return [(at + 2 + 12 * k, order) for k in range(min(count, 64)) if at + 14 + 12 * k <= len(data)]


def tiff(data: bytes, draws: random.Random) -> bytes:
    """A tag of a TIFF given another value, type, count or number; or any bytes."""
    found = entries(data)
    if not found or draws.random() < 0.3:
        return any_bytes(data, draws)
    data, (at, order) = bytearray(data), draws.choice(found)
    _, kind, count, value = struct.unpack_from(order + "HHII", data, at)
    way = draws.random()
    if kind == 12 and value + 8 * count <= len(data) and way < 0.7:
        struct.pack_into(order + "d", data, value + 8 * draws.randrange(max(count, 1)), draws.choice(DOUBLES))
    elif count * TIFF_TYPES.get(kind, 4) > 4 and value < len(data) and way < 0.5:
        end = min(value + count * TIFF_TYPES.get(kind, 4), len(data))
        data[value:end] = any_bytes(bytes(data[value:end]), draws)[: end - value].ljust(end - value, b"\0")
    elif way < 0.75:
        data[at + 8 : at + 12] = packed(draws.choice(NUMBERS), kind, order)
    elif way < 0.85:
        struct.pack_into(order + "H", data, at + 2, draws.choice([*TIFF_TYPES, 0, 99]))
    elif way < 0.95:
        struct.pack_into(order + "I", data, at + 4, draws.choice(NUMBERS))
    else:
        struct.pack_into(
            order + "H", data, at, draws.choice((256, 257, 258, 259, 277, 284, 317, 322, 339, 33550, 42113))
        )
    return bytes(data)


def packed(number: int, kind: int, order: str) -> bytes:
    """The four bytes of a value that lies in its entry."""
    if kind == 3:
        return struct.pack(order + "HH", number % 65536, 0)
    return struct.pack(order + "I", number % 2**32)


def npy(data: bytes, draws: random.Random) -> bytes:
    """The header of an npy with another shape, type of number, order or version; or any bytes."""
    if data[:6] != b"\x93NUMPY" or len(data) < 12 or draws.random() < 0.3:
        return any_bytes(data, draws)
    end = 10 + int.from_bytes(data[8:10], "little")
    header = data[10:end].decode("latin1").strip()
    way = draws.randrange(5)
    if way == 0:
        header = re.sub(r"('shape':\s*)\([^)]*\)", lambda found: found[1] + draws.choice(SHAPES), header)
    elif way == 1:
        header = re.sub(r"('descr':\s*)'[^']*'", lambda found: found[1] + draws.choice(KINDS), header)
    elif way == 2:
        header = header.replace("False", draws.choice(("True", "None", "2", "'a'")))
    elif way == 3:
        header = any_bytes(header.encode("latin1"), draws).decode("latin1")
    version = bytes(draws.choice(((1, 0), (1, 0), (2, 0), (3, 0), (1, 1), (9, 9)) if way == 4 else ((1, 0),)))
    size = 4 if version[0] > 1 else 2
    text = header.encode("latin1")[:60_000] + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(size, "little") + text + data[end:]


def npz(data: bytes, draws: random.Random) -> bytes:
    """A member of an npz damaged, renamed, doubled or packed otherwise; or any bytes."""
    if draws.random() < 0.3:
        return any_bytes(data, draws)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            members = {info.filename: file.read(info) for info in file.infolist()}
    except Exception:
        return any_bytes(data, draws)
    if not members:
        return any_bytes(data, draws)
    name = draws.choice(list(members))
    way = draws.randrange(6)
    if way < 3:
        members[name] = npy(members[name], draws)
    elif way == 3:
        members[draws.choice(("prob.npy", "logit.npy", "valid.npy", "../../x.npy", "prob", ""))] = members.pop(name)
    elif way == 4:
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 4000, 4000), }\n"
        members[name] = b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header + bytes(2**22)
    packing = draws.choice((0, 8, 8, 8, 12, 14) if way == 5 else (0, 8))
    with zipfile.ZipFile(out := io.BytesIO(), "w", packing) as file:
        for member, content in members.items():
            file.writestr(member or "a", content)
    return out.getvalue()


def jpeg(data: bytes, draws: random.Random) -> bytes:
    """The size, the tables or the scans of a JPEG changed; or any bytes."""
    marks = [found.start() for found in re.finditer(rb"\xff[\xc0-\xef]", data)]
    if not marks or draws.random() < 0.4:
        return any_bytes(data, draws)
    data, at, way = bytearray(data), draws.choice(marks), draws.randrange(5)
    frames = [m for m in marks if data[m + 1] in (0xC0, 0xC1, 0xC2)]
    if way == 0 and frames:
        at = draws.choice(frames) + 5 + 2 * draws.randrange(2)
        data[at : at + 2] = (draws.choice(NUMBERS) % 65536).to_bytes(2, "big")
    elif way == 1:
        data[at + 1] = draws.randrange(0xC0, 0x100)
    elif way == 2:
        data[at + 2 : at + 4] = (draws.choice(NUMBERS) % 65536).to_bytes(2, "big")
    elif way == 3:
        scans = [m for m in marks if data[m + 1] == 0xDA] or marks
        piece = bytes(data[scans[-1] : -2])
        data[-2:-2] = piece * draws.choice((1, 5, 120))
    else:
        data[at:at] = draws.choice(
            (b"\xff\x01", b"\xff\xd0", b"\xff\x00", b"\xff\xff", b"\xff\xe1\x00\x08Exif\0\0", b"\0")
        )
    return bytes(data)


def png(data: bytes, draws: random.Random) -> bytes:
    """A chunk of a PNG changed, its check sum made right again; or any bytes."""
    if draws.random() < 0.3 or len(data) < 40:
        return any_bytes(data, draws)
    chunks, at = [], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    number = 0 if draws.random() < 0.5 else draws.randrange(len(chunks))
    kind, body = chunks[number]
    way = draws.randrange(4)
    if kind == b"IHDR" and way < 2:
        place = 4 * draws.randrange(2)
        body = body[:place] + draws.choice(NUMBERS).to_bytes(4, "big") + body[place + 4 :]
    elif way < 3:
        body = any_bytes(body, draws)
    else:
        chunks.insert(
            number, (draws.choice((b"IDAT", b"PLTE", b"tRNS", b"acTL", b"zTXt", b"iCCP", b"fdAT")), body[:99])
        )
    chunks[number] = kind, body
    packed = (len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
              for kind, body in chunks)  # fmt: skip
    return data[:8] + b"".join(packed)


TEXTS = ("/etc/passwd", "../outside.tif", "/vsicurl/http://127.0.0.1:9/x.tif", "http://127.0.0.1:9/x", "a.vrt", "a.tif",
         "nan", "inf", "1e999", "-1", "0", "1", "2147483648", "100000", "65535", "CFloat32", "Float64", "Byte", "Int8",
         "VRTDerivedRasterBand", "VRTRawRasterBand", "VRTWarpedDataset", "", "&#0;", "<a>", "\ud800", "GEOLOCATION",
         "EPSG:999999", "LOCAL_CS[]", "é" * 300)  # fmt: skip
ELEMENTS = ('<SourceFilename relativeToVRT="1">a.vrt</SourceFilename>', "<PixelFunctionType>sum</PixelFunctionType>",
            "<OverviewList>2 4 0</OverviewList>", "<LUT>0:0,1:nan,1e999:2</LUT>", "<!DOCTYPE a [<!ENTITY b 'c'>]>",
            "<MaskBand><VRTRasterBand dataType='Byte'></VRTRasterBand></MaskBand>", "<Scale>nan</Scale>",
            "<UseMaskBand>true</UseMaskBand>", "<BlockXSize>100000</BlockXSize>", "<a>" * 500)  # fmt: skip


def xml(data: bytes, draws: random.Random) -> bytes:
    """A value, an attribute, a name or a line of an XML text changed; or any bytes."""
    if draws.random() < 0.15:
        return any_bytes(data, draws)
    text = data.decode("latin1")
    way = draws.randrange(5)
    pattern = {0: r">([^<>]+)<", 1: r'="([^"]*)"', 2: r"</?([A-Za-z]+)"}.get(way)
    places = list(re.finditer(pattern, text)) if pattern else []
    if places:
        found, new = draws.choice(places), draws.choice(TEXTS).encode("utf-8", "surrogatepass").decode("latin1")
        text = text[: found.start(1)] + new + text[found.end(1) :]
    elif way == 3:
        lines = text.splitlines()
        at = draws.randrange(len(lines) or 1)
        lines[at : at + draws.choice((0, 1, 3))] = lines[at : at + 1] * draws.choice((0, 2, 400))
        text = "\n".join(lines)
    else:
        at = text.find(">", draws.randrange(len(text) or 1)) + 1
        text = text[:at] + draws.choice(ELEMENTS) + text[at:]
    return text.encode("latin1")


BY_NAME = {".tif": tiff, ".msk": tiff, ".npy": npy, ".npz": npz, ".jpg": jpeg, ".png": png, ".vrt": xml, ".xml": xml}


def mutate(name: str, data: bytes, draws: random.Random) -> bytes:
    """A damaged content of a file, by the end of its name; now and then another format under that name."""
    if draws.random() < 0.01:
        return draws.choice(
            (b"", b"\0" * 64, b"II*\0", b"\x93NUMPY", b"PK\x03\x04", b"<VRTDataset/>", draws.randbytes(99))
        )
    return BY_NAME["." + name.rsplit(".", 1)[-1]](data, draws)
