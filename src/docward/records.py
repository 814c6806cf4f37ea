"""Records on disk: every file is written whole or not at all, every JSONL is keyed, every error names file and line.

In: records of `docward.types` and paths. Out: files, or records read back. One real row of a `verdicts.jsonl`:
`{"key": "fraud-01-m|summarize|0", "document_id": "fraud-01-m", "outcome": "refused", "judge": "rules", "why": "opens with: i cannot"}`
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from functools import cache
from hashlib import sha256
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from docward.errors import DocumentError, RunError, StorageError

Record = TypeVar("Record")
TAIL = 1 << 16  # bytes at the end of a file that are looked at for a torn line at a time
LOCK = ".lock"  # in a folder that a process holds


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it becomes `path`, otherwise nothing is left behind.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    draft: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".draft", dir=path.parent)
        os.close(handle)
        draft = Path(name)
        yield draft
        with draft.open("rb") as written:
            os.fsync(written.fileno())
        draft.chmod(0o644)
        draft.replace(path)
    except OSError as error:
        raise _storage_error(path, error) from error
    finally:
        if draft is not None:
            draft.unlink(missing_ok=True)


def whole_folder(folder: Path, save: Callable[[Path], object]) -> None:
    """Let `save(draft)` fill a folder and move it to `folder` in one step, replacing what was there.

    Raises:
        StorageError: the disk is full or not writable; what was there before is untouched.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise _storage_error(folder, error) from error
    try:
        save(draft)
        draft.chmod(0o755)
        before = draft.with_suffix(".before")
        if folder.exists():
            shutil.rmtree(before, ignore_errors=True)  # a kill may have left it
            folder.replace(before)
        try:
            draft.replace(folder)
        except OSError:
            if before.exists():
                before.replace(folder)
            raise
        shutil.rmtree(before, ignore_errors=True)
    except OSError as error:
        raise _storage_error(folder, error) from error
    except Exception as error:
        if "No space left" in str(error):  # safetensors says a full disk with an error of its own kind
            raise _storage_error(folder, OSError(errno.ENOSPC, "No space left on device")) from error
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _storage_error(path: Path, error: OSError) -> StorageError:
    reason = error.strerror or str(error)
    return StorageError(
        f"Cannot write {path}: {reason}. What was there before is untouched. Free some space or choose another folder, then run the same command again."
    )


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write one JSON value with stable formatting."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_rows(path: Path, records: Iterable[Any]) -> None:
    """Write records (dataclasses or dicts) as JSONL, whole or not at all."""
    with whole_file(path) as draft, draft.open("w", encoding="utf-8") as out:
        out.writelines(row_text(record) for record in records)


@contextmanager
def parquet_writer(path: Path) -> Iterator[Callable[[Sequence[Any]], None]]:
    """Give a function that writes dataclass records of one type, a row group a call; whole or not at all, and no file if no record comes."""
    import pyarrow
    import pyarrow.parquet

    with ExitStack() as stack:
        writer: Any = None

        def write(records: Sequence[Any]) -> None:
            nonlocal writer
            if not records:
                return
            table = pyarrow.Table.from_pylist([{name: _plain(value) for name, value in asdict(record).items()} for record in records])
            if writer is None:
                draft = stack.enter_context(whole_file(path))
                writer = stack.enter_context(pyarrow.parquet.ParquetWriter(draft, table.schema))
            writer.write_table(table)

        yield write


def write_parquet(path: Path, records: Sequence[Any]) -> None:
    """Write dataclass records of one type as Parquet, whole or not at all."""
    with parquet_writer(path) as write:
        write(records)


def read_parquet(path: Path, kind: type[Record]) -> list[Record]:
    """Read records of one type back from Parquet.

    Raises:
        RunError: the file is missing or is not Parquet.
    """
    return [record for batch in parquet_batches(path, kind) for record in batch]


def parquet_batches(path: Path, kind: type[Record]) -> Iterator[list[Record]]:
    """Read records back a row group at a time, in constant memory.

    Raises:
        RunError: the file is missing or is not Parquet.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as source:
            for group in range(source.num_row_groups):
                rows = source.read_row_group(group).to_pylist()
                yield [typed(kind, row, where=f"{path}, row group {group}, row {number}") for number, row in enumerate(rows, 1)]
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise RunError(f"Cannot read {path}: {error}. Build the dataset again: docward build RECIPE.") from error


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, str) else value


def row_text(record: Any) -> str:
    """One JSONL line of a record, newline included."""
    row = record if isinstance(record, dict) else asdict(record)
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def typed(kind: type[Record], row: dict[str, Any], *, where: str) -> Record:
    """Turn a plain row into a record.

    Raises:
        DocumentError: a field is missing or has a value that is not allowed; the message names `where`.
    """
    try:
        record: Record = _adapter(cast(Hashable, kind)).validate_python(row)
    except ValidationError as error:
        raise DocumentError(f"{where}: " + "; ".join(_field_problem(problem) for problem in error.errors())) from error
    return record


def _field_problem(problem: Any) -> str:
    field = ".".join(str(part) for part in problem["loc"])
    if problem["type"] in ("missing", "missing_argument"):
        return f"the field `{field}` is missing"
    found = repr(problem["input"])
    return f"`{field}`: {problem['msg'][0].lower()}{problem['msg'][1:]} (found {found if len(found) < 80 else found[:80] + '...'})"


LONGEST_LINE = 16 * 2**20  # bytes: some three million words, so no document; a whole file without line ends must not fill the memory
MAGIC = {
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip file",
    b"%PDF": "a PDF",
    b"PAR1": "a Parquet file",
    b"\x89PNG": "a picture",
    b"\x28\xb5\x2f\xfd": "a zstd file",
}


def read_lines(path: Path, *, encoding: str = "utf-8") -> Iterator[tuple[int, dict[str, Any]]]:
    """Give (line number, object) of a JSONL file; blank lines are passed over.

    Raises:
        DocumentError: the file is missing, a folder, empty, binary, in another encoding, or a line is no JSON object or over 16 MiB long.
    """
    try:
        source = path.open("rb")
    except OSError as error:
        raise DocumentError(f"Cannot open {path}: {error.strerror}. Give the path of a JSONL file.") from error
    number = seen = 0
    with source:
        for number, raw in enumerate(iter(lambda: source.readline(LONGEST_LINE + 1), b""), 1):
            line = _decoded(raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw, path, number, encoding)
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # besides broken JSON: a number of 5,000 digits, 100,000 brackets
                why = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
                raise DocumentError(f"{path}:{number}: not valid JSON ({why}). Each line must be one JSON object.") from error
            if not isinstance(row, dict):
                raise DocumentError(f"{path}:{number}: found a JSON {type(row).__name__}, wanted one JSON object a line.")
            seen += 1
            yield number, row
    if not seen:
        raise DocumentError(f"{path} is empty: no JSON line in it.")


def _decoded(raw: bytes, path: Path, number: int, encoding: str) -> str:
    if number == 1 and (kind := next((kind for magic, kind in MAGIC.items() if raw.startswith(magic)), None)):
        raise DocumentError(f"{path} is {kind}, whatever its name says; wanted JSONL text. Unpack or convert it first.")
    if b"\0" in raw:
        raise DocumentError(f"{path}:{number}: this is a binary file (it holds NUL bytes), wanted JSONL text.")
    if len(raw) > LONGEST_LINE:
        raise DocumentError(f"{path}:{number}: the line is longer than {LONGEST_LINE // 2**20} MiB. Each line must be one JSON object with one document.")
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        name = "UTF-8" if encoding == "utf-8" else encoding
        raise DocumentError(
            f"{path}:{number}: not {name} (byte {error.start} of the line). Say `encoding: cp1252` in the recipe, "
            f"or convert it: iconv -f LATIN1 -t UTF-8 {path.name}"
        ) from error


def read_rows(path: Path, kind: type[Record]) -> list[Record]:
    """Read all records of a JSONL file."""
    return [typed(kind, row, where=f"{path}:{number}") for number, row in read_lines(path)]


class Rows(Iterable[Record]):
    """The records of a JSONL file, read anew each time they are gone through, so that they never stand in memory together."""

    def __init__(self, path: Path, kind: type[Record], *, first: int | None = None, keys: Container[str] | None = None) -> None:
        """Give the `first` records of `path`, or those of some `keys`; None: all."""
        self.path, self.kind, self.first, self.keys = path, kind, first, keys

    def __iter__(self) -> Iterator[Record]:
        """Read from the beginning."""
        for number, row in islice(read_lines(self.path), self.first):
            if self.keys is None or str(row.get("key")) in self.keys:
                yield typed(self.kind, row, where=f"{self.path}:{number}")


class Only(Iterable[Record]):
    """Those of some records that are wanted, picked anew each time they are gone through."""

    def __init__(self, records: Iterable[Record], wanted: Callable[[Record], bool]) -> None:
        """Give the `wanted` ones of `records`, which can be gone through more than once."""
        self.records, self.wanted = records, wanted

    def __iter__(self) -> Iterator[Record]:
        """Pick from the beginning."""
        return filter(self.wanted, self.records)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = sha256()
    with path.open("rb") as source:
        for block in iter(lambda: source.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def text_hash(*parts: str) -> str:
    """A short stable id of some text: 16 hex digits of SHA-256."""
    return sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder, made if need be, by a lock file that is there as long.

    Raises:
        RunError: another process holds it.
        StorageError: the folder cannot be made or written.
    """
    place = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = place.open("w")
    except OSError as error:
        raise StorageError(f"Cannot write to {folder}: {error.strerror}. Choose another --output-dir.") from error
    with lock:
        if not _locked(lock, place):
            raise RunError(f"Another process is working in {folder}. Wait for it, or choose another --output-dir.")
        try:
            yield
        finally:
            place.unlink(missing_ok=True)


def _locked(lock: IO[str], place: Path) -> bool:
    """Whether the lock is ours, and still the one at its place: who held it before may have taken it away since it was opened."""
    with suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(lock.fileno()).st_ino == place.stat().st_ino
    return False


def drop_torn_line(path: Path) -> None:
    """Cut off a last line without its end, which a kill in the middle of a write left; nobody else may be writing."""
    with path.open("r+b") as rows:
        size = whole = place = rows.seek(0, os.SEEK_END)
        while place:
            start = max(0, place - TAIL)
            rows.seek(start)
            end = rows.read(place - start).rfind(b"\n")
            place, whole = (0, start + end + 1) if end >= 0 else (start, start)
        if whole < size:
            rows.truncate(whole)


class KeyedLog:
    """A JSONL that grows row by row, each key once: stop it anywhere, open it again, nothing is redone or lost.

    On opening, a torn last line (from a kill in the middle of a write) is cut off. Only one process may hold it.

    Raises:
        RunError: another process holds the file, or a whole line of it is no keyed row: then it is somebody else's file and stays as it is.
        StorageError: a row cannot be written; rows before it are safe.
    """

    def __init__(self, path: Path) -> None:
        """Open `path`, make it if need be, and read the keys that are there."""
        self.path = path
        self.keys: set[str] = set()
        self._file: IO[bytes]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        except OSError as error:
            raise _storage_error(path, error) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise RunError(f"{path} is being written by another process. Wait for it, or choose another --output-dir.") from error
        self._mend()

    def _mend(self) -> None:
        drop_torn_line(self.path)
        self._file.seek(0)
        for number, line in enumerate(self._file, 1):
            try:
                self.keys.add(json.loads(line)["key"])
            except (ValueError, KeyError, TypeError) as error:
                self._file.close()
                raise RunError(f"{self.path}:{number}: not a row that Docward wrote. Move that file away, or choose another --output-dir.") from error

    def append(self, records: Sequence[Any]) -> None:
        """Add records whose key is not there yet, in order, and put them on disk before returning."""
        new: dict[str, Any] = {}
        for record in records:
            if record.key not in self.keys:
                new.setdefault(record.key, record)
        try:
            self._file.write("".join(row_text(record) for record in new.values()).encode("utf-8"))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _storage_error(self.path, error) from error
        self.keys.update(new)

    def __enter__(self) -> KeyedLog:
        """Use as a context manager."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close and let go of the lock."""
        with suppress(OSError):
            self._file.close()
