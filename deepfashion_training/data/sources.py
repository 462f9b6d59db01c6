"""Opening a dataset SRC: a Hub id, a local folder of parquet files, or a folder written by ``save_to_disk``."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import datasets
import pyarrow.parquet
from datasets.exceptions import DatasetsError

from training_run.hub import is_hub_id, why_not_loaded


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
    known = _columns_before_loading(source, revision, cache_dir)
    if known:
        check_columns(known, source)
    folder = Path(source).expanduser()
    if folder.is_dir():
        loaded = _load_folder(folder, cache_dir)
    else:
        with _hub_errors(source, revision, cache_dir):
            loaded = datasets.load_dataset(source, revision=revision, cache_dir=cache_dir)
    splits = {"train": loaded} if isinstance(loaded, datasets.Dataset) else dict(loaded)
    for split in splits.values():
        check_columns(split.column_names, source)
    return splits


def source_columns(source: str, *, revision: str | None = None) -> list[str]:
    """Column names of ``source``, without reading its rows where possible. Errors as of ``open_splits``."""
    known = _columns_before_loading(source, revision, cache_dir=None)
    if known:
        return known
    splits = open_splits(source, check_columns=lambda *_: None, revision=revision)
    return next(iter(splits.values())).column_names


def source_fingerprint(source: str, splits: Mapping[str, datasets.Dataset] | None = None) -> str:
    """A name for the content of ``source`` that changes with it, without reading pictures.

    A local folder: names, sizes and times of its files. A Hub dataset, opened as ``splits``: the addresses of the
    files that were downloaded, which hold the commit.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        files = sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix in (".parquet", ".arrow"))
        stats = [(file, file.stat()) for file in files]
        content = repr([(str(file.relative_to(folder)), (at.st_size, at.st_mtime_ns)) for file, at in stats])
    else:
        checksums = [split.info.download_checksums or {} for split in (splits or {}).values()]
        content = repr(sorted(file for files in checksums for file in files))
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def _columns_before_loading(source: str, revision: str | None, cache_dir: str | None) -> list[str] | None:
    """Column names as a parquet file or the Hub tells them; None where only loading the dataset does."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return None if _is_saved(folder) else _parquet_columns(folder)
    if not is_hub_id(source):
        raise ValueError(f"no such folder: {source} (and a Hub id looks like 'owner/name')")
    with _hub_errors(source, revision, cache_dir):
        features = datasets.load_dataset_builder(source, revision=revision, cache_dir=cache_dir).info.features
    return list(features) if features else None


def _is_saved(folder: Path) -> bool:
    """Whether ``save_to_disk`` wrote ``folder``."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _parquet_columns(folder: Path) -> list[str]:
    files = sorted(folder.glob("data/*.parquet")) or sorted(folder.glob("*.parquet"))
    if not files:
        raise ValueError(
            f"{folder} holds no dataset: neither parquet files (or a folder 'data' of them) nor what save_to_disk wrote"
        )
    try:
        columns = [pyarrow.parquet.read_schema(file).names for file in files]  # all, to find a broken one early
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the dataset in {folder}: {_first_line(error)}") from error
    return columns[0]


def _load_folder(folder: Path, cache_dir: str | None) -> datasets.Dataset | datasets.DatasetDict:
    try:
        if _is_saved(folder):
            return datasets.load_from_disk(str(folder))
        # datasets 5.2 knows a folder whose card names data files by the folder's name alone, and takes the rows of
        # another folder, or those of yesterday, from its cache. So each content gets a cache of its own.
        cache = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / f"local-{source_fingerprint(str(folder))}"
        return datasets.load_dataset(str(folder), cache_dir=str(cache))
    except Exception as error:  # datasets does not check what its files hold: TypeError, KeyError and others
        raise ValueError(
            f"cannot read the dataset in {folder}, in which a split may be empty: {_first_line(error)}"
        ) from error


@contextlib.contextmanager
def _hub_errors(name: str, revision: str | None, cache_dir: str | None) -> Iterator[None]:
    """Errors of loading a Hub dataset as ``ValueError``, one line with the fix."""
    try:
        yield
    except (OSError, ValueError, DatasetsError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        why = why_not_loaded(name, cause, revision, cache_dir) if isinstance(cause, OSError) else _first_line(error)
        raise ValueError(f"--dataset_name {name}: {why} (and {Path(name).absolute()} is no folder)") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
