"""Files by path or URL through pyarrow's filesystems: list, read, write atomically, remove.

Knows nothing about what the files hold.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import json
import os
import posixpath
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from rayrank.config import ConfigError

TABLE_FIX = "delete this file if it is there, and run prepare again"
SHARD_FIX = f"{TABLE_FIX}; or validate with on_bad_shard=quarantine to go on without it"
_GLOB = "*?["
_QUERY = re.compile(r"\?\w+=")
if pa.default_memory_pool().backend_name != os.environ.get("ARROW_DEFAULT_MEMORY_POOL"):
    pa.set_memory_pool(pa.system_memory_pool())  # it was imported before rayrank could say so; for most allocations
_RENAMES = ("local", "hdfs")
"""Filesystems, by pyarrow's type name, that rename a file in one step."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_WORDS = ("No space left on device", "Disk quota exceeded", "File too large")


def locate(path: str) -> tuple[fs.FileSystem, str]:
    """Filesystem and path inside it, of a local path or a URL (``s3://…``, ``gs://…``, ``file://…``)."""
    if "://" not in path:
        return fs.LocalFileSystem(), path
    if _QUERY.search(path):  # names are joined to its end; and who may read it does not belong into manifests
        fix = "say it in the environment: AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, …"
        raise ConfigError(path.partition("?")[0], None, "a URL must have no settings behind a '?'", fix)
    try:
        return fs.FileSystem.from_uri(path)
    except (pa.ArrowInvalid, ValueError, OSError) as error:
        rule = f"the URL's filesystem must be reachable ({error})"
        raise ConfigError(path, path, rule, "check scheme, bucket and credentials") from None


def join(path: str, *parts: str) -> str:
    """``path`` with parts below it; works for URLs too."""
    return posixpath.join(path, *parts)


def exists(path: str) -> bool:
    """Whether a file or folder is there."""
    system, inside = locate(path)
    return bool(system.get_file_info(inside).type != fs.FileType.NotFound)


def found(path: str) -> bool:
    """Whether a file, folder or glob matches anything."""
    try:
        return bool(list_files(path))
    except (ConfigError, NotADirectoryError):
        return False


def list_files(path: str, suffixes: tuple[str, ...] = ()) -> list[str]:
    """Files of a file, folder (recursive) or glob, sorted; hidden ones and other suffixes are left out.

    In a glob ``*``, ``?`` and ``[`` stay within one name; ``**`` stands for any folders, or for all below.

    Raises:
        ConfigError: nothing is found.
    """
    system, inside = locate(path)
    prefix = path[: len(path) - len(inside)] if path.endswith(inside) else ""
    info = system.get_file_info(inside)
    if info.type == fs.FileType.File:
        return [path]
    folder = info.type == fs.FileType.Directory
    root, wanted = (inside, ["**"]) if folder else _split_glob(inside)
    selector = fs.FileSelector(root, allow_not_found=True, recursive=len(wanted) > 1 or "**" in wanted)
    found = [(f, f.path[len(root) :].strip("/").split("/")) for f in (system.get_file_info(selector) if root else [])]
    below = [(f.path, names) for f, names in found if f.type == fs.FileType.File and _visible(names)]
    names = sorted(name for name, parts in below if _matches(parts, wanted))
    names = [n for n in names if not suffixes or n.lower().endswith(suffixes)]
    if not names:
        fix = f"check the path{'; expected ' + ', '.join(suffixes) if suffixes else ''}"
        fix += "" if folder or not root else "; '*' stays within one name, '**' stands for any folders"
        raise ConfigError(path, path, "no file, folder or glob match found there", fix)
    return [prefix + n for n in names]


def names_in(path: str) -> list[str]:
    """Names of the files directly in a folder, sorted; none where there is no folder."""
    system, inside = locate(path)
    found = system.get_file_info(fs.FileSelector(inside, allow_not_found=True))
    return sorted(f.base_name for f in found if f.type == fs.FileType.File)


def signature(paths: list[str]) -> str:
    """Hash of names, sizes and modification times: changes when the input changes, without reading it."""
    seen = []
    for path in paths:
        system, inside = locate(path)
        info = system.get_file_info(inside)
        seen.append([path, info.size, info.mtime_ns])
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def size(path: str) -> int:
    """Bytes of a file."""
    system, inside = locate(path)
    return int(system.get_file_info(inside).size or 0)


def sha256(path: str) -> str:
    """Checksum of a file's bytes, streamed."""
    system, inside = locate(path)
    state = hashlib.sha256()
    with system.open_input_stream(inside, compression=None) as stream:
        while chunk := stream.read(1 << 20):
            state.update(chunk)
    return state.hexdigest()


def read_bytes(path: str) -> bytes:
    """The whole file.

    Raises:
        ConfigError: it does not exist or cannot be read.
    """
    system, inside = locate(path)
    try:
        with system.open_input_stream(inside, compression=None) as stream:
            return bytes(stream.read())
    except OSError as error:
        raise ConfigError(path, path, f"file must be readable ({_reason(error)})", "check path and rights") from None


def write_bytes(path: str, data: bytes) -> None:
    """The whole file at once, atomically."""
    with growing(path) as stream:
        stream.write(data)


@contextmanager
def growing(path: str) -> Iterator[pa.NativeFile]:
    """A file that takes its content bit by bit; readers see the old one or the new one, never half, whatever fails.

    Where a rename is one step, the file is renamed when it is whole. An object store shows an upload when it is
    complete, but pyarrow cannot call one off: it completes an upload that an exception closes. So there the content
    waits on this machine until it is whole, and the one upload goes to the final name.
    """
    system, inside = locate(path)
    make_folder(posixpath.dirname(path))
    if system.type_name not in _RENAMES:
        with tempfile.TemporaryDirectory(prefix="rayrank-") as folder:
            whole = join(folder, "upload")
            with pa.OSFile(whole, "wb") as stream:
                yield stream
            fs.copy_files(whole, inside, fs.LocalFileSystem(), system)
        return
    temporary = f"{inside}.tmp"
    try:
        with system.open_output_stream(temporary, compression=None) as stream:
            yield stream
        system.move(temporary, inside)
    except BaseException:
        with suppress(OSError):
            system.delete_file(temporary)  # it may be what fills the disk
        raise


@contextmanager
def placed(path: str) -> Iterator[str]:
    """A path on this machine for a writer that wants a name; what it writes appears at ``path`` when it is whole."""
    system, inside = locate(path)
    if system.type_name != "local":
        with tempfile.TemporaryDirectory(prefix="rayrank-") as folder:
            yield (whole := join(folder, "upload"))
            with growing(path) as stream, pa.OSFile(whole) as file:
                stream.upload(file)
        return
    make_folder(posixpath.dirname(path))
    temporary = f"{inside}.tmp"
    try:
        yield temporary
        system.move(temporary, inside)
    except BaseException:
        with suppress(OSError):
            system.delete_file(temporary)
        raise


def write_json(path: str, value: Any, allow_nan: bool = True) -> None:
    """Indented JSON with sorted keys, atomically; ``allow_nan``: NaN and infinities may be written, as bare words."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=allow_nan)
    write_bytes(path, (text + "\n").encode())


@contextmanager
def room_for(path: str) -> Iterator[None]:
    """Around writing below ``path``: a full disk, a quota and a size limit become the user's mistake to mend.

    Raises:
        ConfigError: instead of the :class:`OSError` that says so.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL and not any(word in str(error) for word in _FULL_WORDS):
            raise
        rule = f"the disk must have room for what is written ({_reason(error)})"
        raise ConfigError(path, None, rule, "free space, or choose another folder; nothing is half-written") from None


def make_folder(path: str) -> None:
    """Create a folder and its parents.

    Raises:
        ConfigError: not permitted.
    """
    system, inside = locate(path)
    try:
        system.create_dir(inside, recursive=True)
    except OSError as error:
        raise ConfigError(path, path, f"folder must be writable ({_reason(error)})", "choose another folder") from None


def move(source: str, target: str) -> None:
    """Rename a file within one filesystem; the target's folder is made."""
    make_folder(posixpath.dirname(target))
    system, inside = locate(source)
    system.move(inside, locate(target)[1])


def remove(path: str) -> None:
    """Delete a file or a folder with everything in it; absent ones are fine."""
    system, inside = locate(path)
    kind = system.get_file_info(inside).type
    if kind == fs.FileType.Directory:
        system.delete_dir(inside)
    elif kind == fs.FileType.File:
        system.delete_file(inside)


def write_arrow(path: str, table: pa.Table) -> None:
    """One Arrow file."""
    system, inside = locate(path)
    with system.open_output_stream(inside, compression=None) as stream, pa.ipc.new_file(stream, table.schema) as out:
        out.write_table(table)


def read_arrow(path: str) -> pa.Table:
    """The table of one Arrow file."""
    system, inside = locate(path)
    with system.open_input_file(inside) as file:
        return pa.ipc.open_file(file).read_all()


def write_table(path: str, table: pa.Table) -> None:
    """A Parquet table, deterministic in its bytes."""
    system, inside = locate(path)
    with system.open_output_stream(inside, compression=None) as stream:
        pq.write_table(table, stream, compression="zstd", write_statistics=False, write_page_checksum=True)


def read_table(path: str) -> pa.Table:
    """A whole Parquet table.

    Raises:
        ConfigError: the file is corrupt or truncated.
    """
    with readable(path, None, TABLE_FIX), open_parquet(path) as file:
        return file.read()


def read_row_group(path: str, group: int, columns: Sequence[str] | None = None) -> pa.Table:
    """One row group of a Parquet file; a list column is named by its plain name.

    Raises:
        ConfigError: the file is corrupt or truncated.
    """
    names = list(columns) if columns is not None else None
    with readable(path, group, SHARD_FIX), open_parquet(path) as file:
        return whole_row_group(file, group, names)


def whole_row_group(file: pq.ParquetFile, group: int, columns: list[str] | None = None) -> pa.Table:
    """A row group with as many values as the file's footer tells of.

    Raises:
        ArrowInvalid: other pages than were written. Checksums do not cover their headers, which hold their lengths.
    """
    table, told = file.read_row_group(group, columns=columns, use_threads=False), file.metadata.row_group(group)
    if columns is None:
        for number, (name, column) in enumerate(zip(table.column_names, table.itercolumns(), strict=True)):
            _check_length(name, column, told.column(number).num_values)
    else:
        for number, name in enumerate(file.schema_arrow.names):  # flat and list columns: one leaf each
            if name in columns:
                _check_length(name, table[name], told.column(number).num_values)
    return table


def _check_length(name: str, column: pa.ChunkedArray, told: int) -> None:
    """Parquet counts an empty list as a value."""
    lists = column.chunks if pa.types.is_list(column.type) else []
    values = sum(len(chunk.values) for chunk in lists) if lists else len(column)
    if values != told:
        values += sum(int((np.diff(chunk.offsets.to_numpy()) == 0).sum()) for chunk in lists)
    if values != told:
        raise pa.ArrowInvalid(f"column {name} has {values} values, {told} were written")


def open_parquet(path: str) -> pq.ParquetFile:
    """A Parquet file that compares every page it reads with the checksum it was written with."""
    system, inside = locate(path)
    return pq.ParquetFile(system.open_input_file(inside), page_checksum_verification=True)


@contextmanager
def readable(path: str, group: int | None, fix: str) -> Iterator[None]:
    """Around reading a Parquet file.

    Raises:
        ConfigError: instead of whatever a file makes that is not what was written; names the file and the row group.
    """
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        rule = f"file must be readable and as it was written ({(str(error).splitlines() or [''])[0]})"
        raise ConfigError(path, group, rule, fix) from None


def _split_glob(pattern: str) -> tuple[str, list[str]]:
    """The folder that a glob starts from, and the names below it; an empty folder: it is no glob."""
    parts = pattern.split("/")
    first = next((i for i, part in enumerate(parts) if any(c in part for c in _GLOB)), None)
    if first is None:
        return "", parts
    return "/".join(parts[:first]) or ("/" if first else "."), parts[first:]


def _matches(names: list[str], wanted: list[str]) -> bool:
    """Whether a path below the folder of a glob is meant by it."""
    if not wanted:
        return not names
    if wanted[0] == "**":
        return any(_matches(names[i:], wanted[1:]) for i in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatchcase(names[0], wanted[0]) and _matches(names[1:], wanted[1:])


def _visible(names: list[str]) -> bool:
    return not any(name.startswith((".", "_")) for name in names)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).split(". Detail")[0]
