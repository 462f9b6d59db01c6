"""Opening a dataset SRC: a Hub id, or a folder of parquet files, of ``save_to_disk``, or of ``pair_folders``."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import datasets
import pyarrow.parquet
from datasets.exceptions import DatasetsError

from deepfashion_training.data.pair_folders import Lists, folder_fingerprint, read_folder
from deepfashion_training.data.schema import QUARANTINE, UNPAIRED
from training_run.hub import cache_fault, is_hub_id, local_path, why_not_loaded
from training_run.not_data import is_no_data, why_damaged

#: Paths that mean themselves: nothing of a pattern, a shell's variable or an address is in them.
_PLAIN = re.compile(r"[^*?\[\]{}$:~%\\\x00-\x1f]*")
#: Endings of the files that it reads of a folder: rows, cards, and what save_to_disk notes.
_READ_BY_DATASETS = frozenset({".parquet", ".arrow", ".json", ".md", ".yaml"})

#: What it logs of a file that it cannot read: the file's name, and perhaps a screenful of columns.
_parquet_log = logging.getLogger("datasets.packaged_modules.parquet.parquet")


def open_splits(
    source: str,
    *,
    check_columns: Callable[[Sequence[str], str], object],
    revision: str | None = None,
    cache_dir: str | None = None,
) -> dict[str, datasets.Dataset]:
    """The splits of ``source`` by name, opened but not read.

    A local folder comes before a Hub id of the same name. A single saved ``Dataset`` is the split ``train``.
    ``check_columns`` gets the column names and ``source`` as early as they are known, which for parquet files and most
    Hub datasets is before anything is downloaded or converted, and raises when they will not do.

    Raises ``ValueError``, one line, for a source that does not exist, is empty or cannot be loaded.
    """
    if lists := listed_pairs(source):
        for split in lists.splits.values():
            try:
                check_columns(split.column_names, source)
            except ValueError as error:
                raise ValueError(f"{error} {lists.lacking}".rstrip()) from error
        return dict(lists.splits)
    known = _columns_before_loading(source, revision, cache_dir)
    if known:
        check_columns(known, source)
    folder = local_path(source)
    if not (folder.is_dir() and _is_saved(folder)):
        _check_cache(cache_dir)
    if folder.is_dir():
        loaded = _load_folder(folder, cache_dir)
    else:
        with _hub_errors(source, revision, cache_dir):
            loaded = datasets.load_dataset(source, revision=revision, cache_dir=cache_dir)
    splits = {"train": loaded} if isinstance(loaded, datasets.Dataset) else dict(loaded)
    for split in splits.values():
        check_columns(split.column_names, source)
    return splits


def listed_pairs(source: str) -> Lists | None:
    """What ``pair_folders`` reads of ``source``; None for any other dataset. Errors as of ``open_splits``."""
    folder = local_path(source)
    if not folder.is_dir() or _is_saved(folder) or _parquet_files(folder):
        return None
    return read_folder(folder)


def source_columns(source: str, *, revision: str | None = None) -> list[str]:
    """Column names of ``source``, without reading its rows where possible. Errors as of ``open_splits``."""
    known = None if listed_pairs(source) else _columns_before_loading(source, revision, cache_dir=None)
    if known:
        return known
    splits = open_splits(source, check_columns=lambda *_: None, revision=revision)
    return next(iter(splits.values())).column_names


def source_fingerprint(source: str, splits: Mapping[str, datasets.Dataset] | None = None) -> str:
    """A name for the content of ``source`` that changes with it, without reading pictures.

    A local folder: names, sizes and times of its files; of one of ``pair_folders`` the files that its rows name. A Hub
    dataset, opened as ``splits``: the addresses of the files that were downloaded, which hold the commit.
    """
    folder = local_path(source)
    if lists := listed_pairs(source):
        return folder_fingerprint(folder, lists)
    if folder.is_dir():
        stats = [(file, file.stat()) for file in _files(folder, "**/*.parquet") + _files(folder, "**/*.arrow")]
        content = repr([(str(file.relative_to(folder)), (at.st_size, at.st_mtime_ns)) for file, at in stats])
    else:
        checksums = [split.info.download_checksums or {} for split in (splits or {}).values()]
        content = repr(sorted(file for files in checksums for file in files))
    return _digest(content.encode())


def _columns_before_loading(source: str, revision: str | None, cache_dir: str | None) -> list[str] | None:
    """Column names as a parquet file or the Hub tells them; None where only loading the dataset does."""
    folder = local_path(source)
    if folder.is_dir():
        return None if _is_saved(folder) else _parquet_columns(folder)
    if not is_hub_id(source):
        raise ValueError(f"no such folder: {source} (and a Hub id looks like 'owner/name')")
    _check_cache(cache_dir)
    with _hub_errors(source, revision, cache_dir):
        features = datasets.load_dataset_builder(source, revision=revision, cache_dir=cache_dir).info.features
    return list(features) if features else None


def _check_cache(cache_dir: str | None) -> None:
    """Raise ``ValueError`` where ``datasets`` could not write what it makes of a dataset."""
    if fault := cache_fault(cache_dir, "HF_DATASETS_CACHE", datasets.config.HF_DATASETS_CACHE):
        raise ValueError(fault)


def _is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` wrote ``folder``."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _files(folder: Path, pattern: str) -> list[Path]:
    """Files of ``folder``, in order, without those that other programs left there."""
    return sorted(file for file in folder.glob(pattern) if not file.is_dir() and not is_no_data(file, folder))


def _parquet_files(folder: Path) -> list[Path]:
    """Data files; what ``prepare`` writes beside pairs is none."""
    beside = [file for file in _files(folder, "*.parquet") if file.name not in (QUARANTINE, UNPAIRED)]
    return _files(folder, "data/*.parquet") or beside


def _parquet_columns(folder: Path) -> list[str]:
    """Column names of the parquet files; ``ValueError`` names the first that is broken, or has other columns."""
    files = _parquet_files(folder)
    if not files:
        raise ValueError(
            f"{folder} holds no dataset: neither parquet files (or a folder 'data' of them) nor what save_to_disk "
            "wrote, nor train/image (VITON-HD), upper_body/images (DressCode), metadata.jsonl or metadata.csv"
        )
    schemas = {}
    for file in files:  # all, to find a broken one early
        try:
            with file.open("rb") as opened:  # pyarrow would read an address or a home directory into a path
                schemas[file] = pyarrow.parquet.read_schema(opened)
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read the dataset in {folder}: {_fault_of(file, error)}") from error
    card = folder / "README.md"
    several = card.is_file() and card.read_bytes().count(b"config_name:") > 1  # datasets, each of files of its own
    if not several and (other := _difference(schemas, names_only=True)):  # datasets would make up what a file lacks
        raise ValueError(f"cannot read the dataset in {folder}: {other}")
    return list(schemas[files[0]].names)


def _fault_of(file: Path, error: Exception) -> str:
    """What is wrong with a file that pyarrow cannot read."""
    if not file.is_file():
        return f"{file} is a link to nothing: fetch what it leads to"
    return f"{file} is {why_damaged(file) or f'damaged or cut short ({_first_line(error)}): fetch or write it again'}"


def _difference(schemas: Mapping[Path, pyarrow.Schema], *, names_only: bool = False) -> str | None:
    """The first file whose columns, or their types, are not those of the first, and which; None where all agree."""
    first, *others = schemas
    wanted = {field.name: field.type for field in schemas[first]}
    for file in others:
        found = {field.name: field.type for field in schemas[file]}
        fix = "the files of a dataset need the same columns: write this one anew, or move it away"
        for name in sorted(wanted.keys() ^ found.keys()):
            return f"{file} {'lacks' if name in wanted else 'has'} the column {name!r}, unlike {first.name}: {fix}"
        for name in () if names_only else wanted:
            if wanted[name] != found[name]:
                return f"the column {name!r} is {found[name]} in {file} and {wanted[name]} in {first.name}: {fix}"
    return None


def _load_folder(folder: Path, cache_dir: str | None) -> datasets.Dataset | datasets.DatasetDict:
    # datasets 5.2 knows a folder whose card names data files by the folder's name alone, and takes the rows of another
    # folder, or those of yesterday, from its cache. So each content gets a cache of its own.
    cache = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / f"local-{source_fingerprint(str(folder))}"
    named = folder
    try:
        named = _plainly_named(folder, cache)
        if _is_saved(folder):
            return datasets.load_from_disk(str(named))
        with _noting([]):
            return datasets.load_dataset(str(named), cache_dir=str(cache))
    except Exception as error:  # datasets does not check what its files hold: TypeError, KeyError and others
        why = _why_not_read(folder)
        said = _first_line(error).replace(str(named), str(folder))
        why = f": {why}" if why else f", in which a split may be empty: {said}"
        raise ValueError(f"cannot read the dataset in {folder}{why}") from error


def _why_not_read(folder: Path) -> str | None:
    """Which file of ``folder`` cannot be read, or differs from the others, and in what; None where none does."""
    schemas = {}
    for file in _files(folder, "**/*.json") + _files(folder, "**/*.arrow") + _files(folder, "**/*.parquet"):
        try:
            if why := why_damaged(file):
                return f"{file} is {why}"
            if file.suffix == ".parquet":
                with file.open("rb") as opened:
                    rows = pyarrow.parquet.ParquetFile(opened)
                    for _ in rows.iter_batches(64):
                        pass
                    schemas[file] = rows.schema_arrow
        except (OSError, ValueError) as error:
            return _fault_of(file, error)
    return _difference(schemas) if schemas else None


def _plainly_named(folder: Path, cache: Path) -> Path:
    """``folder`` where ``datasets`` takes its paths as they stand; else a folder of links to its files that is so.

    It reads patterns, shell variables and addresses into paths. The links lie beside ``cache``, as ``datasets`` would
    take for rows what it writes into it. Other files, or another card, get another folder; the same ones get the same
    each time, since its name is part of what rows are cached by. Raises ``ValueError`` where no folder will do.
    """
    folder = folder.absolute()
    there = list(folder.rglob("*"))
    files = [file for file in there if file.suffix in _READ_BY_DATASETS and file.is_file()]
    files = sorted(file for file in files if not is_no_data(file, folder))
    # Hidden files datasets leaves out itself; in a folder of a Synology disk it would look for rows.
    others = any(is_no_data(file, folder) and not file.name.startswith(".") for file in there)
    if not others and all(_PLAIN.fullmatch(str(file)) for file in files):
        return folder
    places = [place.absolute() for place in (cache.parent, Path(tempfile.gettempdir()))]
    plain = next((place for place in places if _PLAIN.fullmatch(str(place))), None)
    if plain is None:
        raise ValueError(
            f"its name, or one in it, means something else to the library that reads it, and so do {places[0]} and "
            f"{places[1]}, where links to it would lie: set HF_DATASETS_CACHE or TMPDIR to a folder of a plain name"
        )
    content = [(str(file), file.read_bytes() if file.suffix in (".md", ".yaml") else b"") for file in files]
    links = plain / f"links-{os.getuid()}-{_digest(os.fsencode(repr(content)))}"
    for file in files:
        link = links / file.relative_to(folder)
        if not _PLAIN.fullmatch(str(file.relative_to(folder))):
            stem = re.sub("[^a-zA-Z0-9-]", "_", file.stem)  # which names the split
            link = links / "data" / f"{stem}-{_digest(os.fsencode(file))}{file.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        draft = link.with_name(f".{os.getpid()}-{link.name}")
        draft.symlink_to(file)
        draft.replace(link)  # whatever was there, and whoever else is about to
    return links


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


@contextlib.contextmanager
def _hub_errors(name: str, revision: str | None, cache_dir: str | None) -> Iterator[None]:
    """Errors of loading a Hub dataset as ``ValueError``, one line with the fix."""
    unread: list[Path] = []
    try:
        with _noting(unread):
            yield
    except (OSError, ValueError, DatasetsError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        why = why_not_loaded(name, cause, revision, cache_dir) if isinstance(cause, OSError) else _first_line(error)
        if unread:  # its neighbours in the cache tell which column is another one
            why = _why_not_read(unread[0].parent) or f"{unread[0]}: {why}"
        raise ValueError(f"--dataset_name {name}: {why} (and {Path(name).absolute()} is no folder)") from error


@contextlib.contextmanager
def _noting(unread: list[Path]) -> Iterator[None]:
    """Collect the parquet files that ``datasets`` cannot read, and keep what it says of them off the screen."""

    def note(record: logging.LogRecord) -> bool:
        if found := re.search(r"Failed to read (?:file|schema from) '(.+?)' with", record.getMessage()):
            unread.append(Path(found[1]))
        return found is None

    _parquet_log.addFilter(note)
    try:
        yield
    finally:
        _parquet_log.removeFilter(note)


def _first_line(error: BaseException) -> str:
    if isinstance(error, DatasetsError) and error.__cause__ is not None:  # which says no more than that it happened
        return _first_line(error.__cause__)
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
