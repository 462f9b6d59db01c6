"""Opening a dataset SRC: a Hub id, a local folder of parquet files, or a folder written by ``save_to_disk``."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
from datasets.exceptions import DatasetsError

_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")


def is_hub_id(source: str) -> bool:
    """Whether ``source`` is no path on this machine and looks like a dataset's name on the Hub."""
    return not Path(source).exists() and bool(_HUB_ID.fullmatch(source))


def open_splits(
    source: str,
    *,
    check_columns: Callable[[Sequence[str]], None],
    revision: str | None = None,
    cache_dir: str | None = None,
) -> dict[str, datasets.Dataset]:
    """The splits of ``source`` by name, opened but not read.

    A local folder comes before a Hub id of the same name. A single saved ``Dataset`` is the split ``train``.
    ``check_columns`` gets the column names as early as they are known, which for parquet files and most Hub
    datasets is before anything is downloaded or converted, and raises when they will not do. ``revision`` (of a
    Hub dataset) and ``cache_dir`` go to ``datasets.load_dataset``.

    Raises ``ValueError``, one line, for a source that does not exist, is empty or cannot be loaded.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        splits = _open_folder(folder, check_columns, cache_dir)
    elif folder.exists():
        raise ValueError(f"{source} is a file: pass the folder that holds the parquet files")
    elif _HUB_ID.fullmatch(source):
        splits = _open_hub(source, check_columns, revision, cache_dir)
    else:
        raise ValueError(f"no such folder: {source} (and a Hub id looks like 'owner/name')")
    for split in splits.values():
        check_columns(split.column_names)
    return splits


def source_columns(source: str, *, revision: str | None = None, cache_dir: str | None = None) -> list[str]:
    """Column names of ``source``, without reading its rows where that can be had. Errors as of ``open_splits``."""

    class Known(Exception):
        pass

    found: list[str] = []

    def stop(columns: Sequence[str]) -> None:
        found.extend(columns)
        raise Known

    with contextlib.suppress(Known):
        open_splits(source, check_columns=stop, revision=revision, cache_dir=cache_dir)
    return found


def source_fingerprint(source: str, splits: Mapping[str, datasets.Dataset] | None = None) -> str:
    """A name for the content of ``source`` that changes with it, without reading pictures.

    A local folder: names, sizes and times of its files. A Hub dataset: the files that were downloaded, whose addresses
    hold the commit; ``splits`` is what they were opened as.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        files = sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix in (".parquet", ".arrow"))
        known: list[Any] = [(str(file.relative_to(folder)), _size_and_time(file)) for file in files]
    else:
        known = sorted(
            address for split in (splits or {}).values() for address in (split.info.download_checksums or {})
        )
    return hashlib.blake2b(repr(known).encode(), digest_size=16).hexdigest()


def _size_and_time(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _open_folder(
    folder: Path, check_columns: Callable[[Sequence[str]], None], cache_dir: str | None
) -> dict[str, datasets.Dataset]:
    saved_dict, saved = (folder / "dataset_dict.json").is_file(), (folder / "state.json").is_file()
    parquet = sorted(folder.glob("data/*.parquet")) or sorted(folder.glob("*.parquet"))
    if not (saved_dict or saved or parquet):
        what = "is an empty folder" if not any(folder.iterdir()) else "holds no dataset"
        raise ValueError(
            f"{folder} {what}: expected parquet files in it or in its folder 'data', or what save_to_disk wrote"
        )
    if saved_dict or saved:
        try:
            _check_saved_splits(folder)
            return _by_name(datasets.load_from_disk(str(folder)))
        except Exception as error:  # datasets does not check what its files hold: TypeError, KeyError and others
            raise ValueError(f"cannot read the dataset in {folder}: {_first_line(error)}") from error
    columns = [_parquet_columns(file) for file in parquet]
    check_columns(columns[0])
    # datasets 5.2 knows a folder whose card names data files by the folder's name alone, and takes the rows of another
    # folder, or those of yesterday, from its cache. So each content gets a cache of its own.
    cache = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / f"local-{source_fingerprint(str(folder))}"
    try:
        return _by_name(datasets.load_dataset(str(folder), cache_dir=str(cache)))
    except (OSError, ValueError, DatasetsError) as error:
        for file in parquet:  # `datasets` will not load a folder with an empty split, and does not say so clearly
            if pyarrow.parquet.read_metadata(file).num_rows == 0:
                raise ValueError(f"{file} is empty: no rows to read; remove it") from error
        raise ValueError(f"cannot read the parquet files in {folder}: {_first_line(error)}") from error


def _parquet_columns(file: Path) -> list[str]:
    try:
        return pyarrow.parquet.read_schema(file).names
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the dataset in {file.parent}: {file.name}: {_first_line(error)}") from error


def _check_saved_splits(folder: Path) -> None:
    """Raise for saved splits with no rows: ``datasets`` writes them, and dies of an ``IndexError`` reading them."""
    for state in sorted([*folder.glob("state.json"), *folder.glob("*/state.json")]):
        if not json.loads(state.read_text(encoding="utf-8")).get("_data_files"):
            raise ValueError(f"{state.parent} is empty: no rows to read; save the dataset without that split")


def _open_hub(
    name: str, check_columns: Callable[[Sequence[str]], None], revision: str | None, cache_dir: str | None
) -> dict[str, datasets.Dataset]:
    unavailable = f"{name!r} is neither a local folder (looked in {Path.cwd()}) nor loadable from the Hub"
    try:
        builder = datasets.load_dataset_builder(name, revision=revision, cache_dir=cache_dir)
    except (OSError, ValueError, DatasetsError) as error:
        raise ValueError(f"{unavailable}: {_first_line(error)}") from error
    if builder.info.features:
        check_columns(list(builder.info.features))
    try:
        return _by_name(datasets.load_dataset(name, revision=revision, cache_dir=cache_dir))
    except (OSError, ValueError, DatasetsError) as error:
        raise ValueError(f"{unavailable}: {_first_line(error)}") from error


def _by_name(loaded: datasets.Dataset | datasets.DatasetDict) -> dict[str, datasets.Dataset]:
    return {"train": loaded} if isinstance(loaded, datasets.Dataset) else dict(loaded)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
