"""The container that torch.save writes: an uncompressed zip with a pickle and one record per storage."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

from arrowquant_dist.errors import InvalidCheckpoint
from arrowquant_dist.folder.threads import in_threads
from arrowquant_dist.storage.base import ByteRange, ObjectInfo, Store

MAX_PICKLE_NBYTES = 64 << 20  # a tensor takes about 200 bytes
_MAX_DIRECTORY_NBYTES = 32 << 20  # an entry takes about 100 bytes
_MAX_READ_NBYTES = max(_MAX_DIRECTORY_NBYTES, MAX_PICKLE_NBYTES)
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    LookupError,
    NotImplementedError,
    OverflowError,
    ValueError,
)
_AGAIN = "download the file again"


@dataclass(frozen=True, slots=True)
class TorchArchive:
    """A file's pickle and storages. pickle: bytes of data.pkl. storages: {key: byte range of its values}."""

    pickle: bytes
    storages: dict[str, ByteRange]


def read_archive(store: Store, info: ObjectInfo) -> TorchArchive:
    """Reads the directory, the pickle and the places of the storages, but no values. Raises InvalidCheckpoint."""
    uri = store.url(info.path)
    try:
        with store.open_reader(info.path) as file, zipfile.ZipFile(_BoundedReader(file, uri)) as archive:
            records = _check_records(archive, info.nbytes, uri)
            prefix = _find_prefix(records, uri)
            _check_kind(archive, records, prefix, uri)
            pickle = archive.read(records[f"{prefix}data.pkl"])
    except _ZIP_ERRORS as error:
        raise InvalidCheckpoint(f"its zip is damaged or cut off ({error}); {_AGAIN}", uri=uri) from error
    folder = f"{prefix}data/"
    stored = [record for name, record in records.items() if name.startswith(folder)]
    ranges = in_threads(lambda record: _locate(store, info, record), stored)
    keys = [record.filename.removeprefix(folder) for record in stored]
    return TorchArchive(pickle, dict(zip(keys, ranges, strict=True)))


def rebuild_archive(archive: TorchArchive) -> tuple[io.BytesIO, dict[int, str]]:
    """A zip with the same pickle and storages of 0 bytes, and {offset of a storage in it: its key}.

    torch reads this one: its zip reader never sees a container that a stranger made, nor any value.
    """
    buffer = io.BytesIO()
    offsets: dict[int, str] = {}
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as rebuilt:
        rebuilt.writestr("archive/data.pkl", archive.pickle)
        rebuilt.writestr("archive/version", b"3\n")
        rebuilt.writestr("archive/byteorder", b"little")
        for key in archive.storages:
            rebuilt.writestr(f"archive/data/{key}", b"")
            offsets[buffer.tell()] = key
    buffer.seek(0)
    return buffer, offsets


def _check_records(archive: zipfile.ZipFile, file_nbytes: int, uri: str) -> dict[str, zipfile.ZipInfo]:
    records: dict[str, zipfile.ZipInfo] = {}
    for record in archive.infolist():
        if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
            _refuse(
                f"its record {record.filename!r} is compressed, which torch.save never does; "
                "load it and torch.save it again, or convert it to safetensors",
                uri,
            )
        if record.flag_bits & 1:
            _refuse(f"its record {record.filename!r} is encrypted; save it without a password", uri)
        if not 0 <= record.header_offset <= file_nbytes - record.file_size:
            _refuse(f"its record {record.filename!r} goes beyond the end of the file; {_AGAIN}", uri)
        if record.filename in records:
            _refuse(f"its record {record.filename!r} is stored twice; {_AGAIN}", uri)
        records[record.filename] = record
    return records


def _find_prefix(records: dict[str, zipfile.ZipInfo], uri: str) -> str:
    pickles = [name for name in records if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        _refuse(
            "this zip was not made by torch.save, which writes one data.pkl; use a checkpoint's file", uri
        )
    return pickles[0].removesuffix("data.pkl")


def _check_kind(archive: zipfile.ZipFile, records: dict[str, zipfile.ZipInfo], prefix: str, uri: str) -> None:
    if f"{prefix}constants.pkl" in records:
        _refuse("this is a TorchScript archive, which is a program; torch.save its state_dict()", uri)
    if records[f"{prefix}data.pkl"].file_size > MAX_PICKLE_NBYTES:
        _refuse(f"its data.pkl is over {MAX_PICKLE_NBYTES >> 20} MiB; convert it to safetensors", uri)
    order = records.get(f"{prefix}byteorder")
    if order is not None and order.file_size <= 16 and archive.read(order) != b"little":
        _refuse("it was saved on a big-endian machine; load it there and save it as safetensors", uri)


def _locate(store: Store, info: ObjectInfo, record: zipfile.ZipInfo) -> ByteRange:
    """The byte range of a record's content, by its local header: the directory does not record the padding."""
    uri = store.url(info.path)
    start, size = record.header_offset, _LOCAL_HEADER.size
    if start + size > info.nbytes:
        _refuse(f"its record {record.filename!r} begins beyond the end of the file; {_AGAIN}", uri)
    fields = _LOCAL_HEADER.unpack(store.read_range(info.path, ByteRange(start, start + size)).tobytes())
    content = start + size + int(fields[-2]) + int(fields[-1])
    if fields[0] != b"PK\x03\x04" or content + record.file_size > info.nbytes:
        _refuse(f"its record {record.filename!r} is not where the zip says; {_AGAIN}", uri)
    return ByteRange(content, content + record.file_size)


class _BoundedReader(io.RawIOBase):
    """A reader that refuses to use more memory at once than a directory or a pickle needs."""

    def __init__(self, file: BinaryIO, uri: str) -> None:
        self._file, self._uri = file, uri

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_READ_NBYTES:
            size = _MAX_READ_NBYTES + 1
        data = self._file.read(size)
        if len(data) > _MAX_READ_NBYTES:
            _refuse("its zip directory is absurdly large; this is not a checkpoint", self._uri)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _refuse(message: str, uri: str) -> NoReturn:
    raise InvalidCheckpoint(message, uri=uri)
