"""House-keeping: ``gc``, ``verify``, ``export``, ``import``."""

from __future__ import annotations

import argparse
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from overopt.base.errors import ConfigError, DataError, OveroptError, StoreError
from overopt.cli.options import experiment_options

if TYPE_CHECKING:
    from overopt.engine.archive import Archive
    from overopt.engine.store import Store

DAMAGED = 1
"""Exit status of ``verify`` where something is damaged."""


def add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Declare the arguments of this family's commands."""
    gc = commands.add_parser(
        "gc", parents=[common], help="list, and delete, what no experiment in a store needs"
    )
    gc.add_argument("store", type=Path, help="directory of a store, such as runs")
    gc.add_argument(
        "--keep",
        nargs="+",
        action="extend",
        default=None,
        metavar="NAME",
        help="experiments whose artefacts stay: as the store notes them, or a preset or experiment"
        " file, with overrides in quotes: 'quick seed=1' (default: all that the store notes)",
    )
    gc.add_argument("--delete", action="store_true", help="delete what is listed otherwise")
    gc.set_defaults(command=collect_garbage)

    verify = commands.add_parser(
        "verify", parents=[common], help="compare every file with its checksum"
    )
    verify.add_argument("path", type=Path, help="a store, a results directory or an exported file")
    verify.set_defaults(command=verify_path)

    export = commands.add_parser(
        "export",
        parents=[experiment_options(), common],
        help="write the artefacts and records of a finished experiment into one file",
    )
    export.add_argument("--out", type=Path, required=True, help="file to write, such as quick.zip")
    export.add_argument(
        "--results",
        type=Path,
        default=None,
        help="directory of its records (default: results/<name+overrides>)",
    )
    export.set_defaults(command=export_experiment)

    import_ = commands.add_parser(
        "import", parents=[common], help="take in what `overopt export` wrote, after checking it"
    )
    import_.add_argument("file", type=Path, help="the exported file")
    import_.add_argument(
        "--store", type=Path, default=Path("runs"), help="store to add to (default: runs)"
    )
    import_.add_argument(
        "--results",
        type=Path,
        default=None,
        help="where its records go (default: results/<name+overrides>)",
    )
    import_.set_defaults(command=import_file)


# --- gc -------------------------------------------------------------------------------------------


def collect_garbage(args: argparse.Namespace) -> int:
    """Show what no kept experiment needs; with ``--delete``, delete it."""
    from overopt.engine import keeping
    from overopt.engine.progress import duration

    store = _existing_store(args.store)
    noted = dict(_noted(store))
    if args.keep is None and not noted:
        raise ConfigError(
            f"{store.root}: notes no finished experiment, so everything would go: name what to keep"
            " with --keep, or delete the directory"
        )
    kept: set[tuple[str, str]] = set()
    for name in noted if args.keep is None else args.keep:
        kept |= keeping.with_inputs(store, noted[name] if name in noted else _asked_for(name))
    found = keeping.entries(store)
    going = [e for e in found if e.key not in kept]
    for entry in going:
        what = "checkpoints" if entry.is_partial else "artefact"
        print(
            f"{entry.size / 1e6:10.1f} MB  {duration(entry.age_s):>12} old  {what:11}"
            f"  {entry.stage}/{entry.fingerprint}"
        )
    total = sum(entry.size for entry in going) / 1e6
    names = ", ".join(noted if args.keep is None else args.keep)
    summary = f"{len(going)} of {len(found)} are not needed by {names}: {total:.1f} MB"
    if not args.delete:
        print(f"{summary}; nothing was deleted: add --delete")
        return 0
    keeping.check_idle(store)
    store.create()
    for entry in going:
        keeping.remove(store, entry)
    print(f"{summary}, deleted")
    return 0


def _existing_store(path: Path) -> Store:
    from overopt.engine.store import Store

    if not (path / "store.json").is_file():
        raise StoreError(f"{path}: is no store (it has no store.json); give the one of --store")
    return Store(path)


def _noted(store: Store) -> Iterator[tuple[str, set[tuple[str, str]]]]:
    """Name and final stages of every experiment that was finished in a store."""
    from overopt.engine.manifest import read_recorded

    folder = store.root / "experiments"
    for file in sorted(folder.glob("[!.]*.json")) if folder.is_dir() else ():
        note = read_recorded(file)
        stages = note["stages"].values()
        yield str(note["experiment"]), {(s["stage"], s["fingerprint"]) for s in stages}


def _asked_for(name: str) -> set[tuple[str, str]]:
    """Stages of an experiment given by name or file, with overrides after it."""
    from overopt.engine.graph import topological
    from overopt.study import chain, presets

    first, *overrides = shlex.split(name) or [""]
    stages = topological(chain.build_graph(presets.load_experiment(first, overrides)))
    return {(stage.name, stage.fingerprint) for stage in stages}


# --- verify ---------------------------------------------------------------------------------------


def verify_path(args: argparse.Namespace) -> int:
    """Check a store, results or an exported file; every damage is a line."""
    path: Path = args.path
    if path.is_dir() and (path / "store.json").exists():
        checked, damages = _verify_store(path)
    elif path.is_dir():
        checked, damages = _verify_results(path)
    elif path.is_file():
        checked, damages = _verify_export(path)
    else:
        raise DataError(f"{path}: does not exist")
    for damage in damages:
        print(f"DAMAGED {damage}")
    print(f"{checked}, {len(damages)} damaged")
    return DAMAGED if damages else 0


def _verify_store(path: Path) -> tuple[str, list[str]]:
    from overopt.engine import keeping
    from overopt.engine.manifest import read_recorded

    store, damages = _existing_store(path), []
    found = [entry for entry in keeping.entries(store) if not entry.is_partial]
    notes = sorted((path / "experiments").glob("[!.]*.json"))
    for entry in found:
        try:
            store.open(*entry.key)
        except OveroptError as error:
            damages.append(str(error))
    for note in notes:
        try:
            read_recorded(note)
        except OveroptError as error:
            damages.append(str(error))
    return f"{len(found)} artefacts and {len(notes)} notes of experiments checked", damages


def _verify_results(path: Path) -> tuple[str, list[str]]:
    """Of a results directory, or of one that holds several, as a comparison's does."""
    from overopt.records.results import check_sums, held_results
    from overopt.records.schema import validate_records

    folders = sorted({file.parent for file in path.rglob("records.jsonl")})
    folders = folders or sorted({file.parent for file in path.rglob("checksums.json")})
    if not folders:
        raise DataError(f"{path}: is neither a store nor a results directory")
    damages, compared, without = [], 0, 0
    for folder in folders:
        try:
            names = check_sums(folder)
            compared, without = compared + len(names), without + (not names)
            validate_records(held_results(folder).records)
        except OveroptError as error:
            damages.append(str(error))
    told = f"{len(folders)} results directories read, {compared} files compared with checksums"
    if without:
        told += f"; {without} of before there were checksums"
    return told, damages


def _verify_export(path: Path) -> tuple[str, list[str]]:
    from overopt.engine import archive

    damages: list[str] = []
    with archive.opened(path) as opened, tempfile.TemporaryDirectory() as folder:
        for i, name in enumerate(opened.sums):
            target = Path(folder, str(i))
            try:
                opened.extract(name, target)
            except OveroptError as error:
                damages.append(str(error))
            target.unlink(missing_ok=True)
        return f"{len(opened.sums)} files checked", damages


# --- export and import ----------------------------------------------------------------------------


def export_experiment(args: argparse.Namespace) -> int:
    """Write an experiment's artefacts, and its records where there are some, into one file."""
    from overopt.base import folders
    from overopt.engine import archive
    from overopt.engine.graph import snapshot, topological
    from overopt.engine.manifest import files_in
    from overopt.records.results import RESULT_FILES, check_sums
    from overopt.study.run import default_results, load

    store = _existing_store(args.store)
    _, targets, name = load(args.experiment, args.overrides)
    folders.check_folder(args.out.parent, "--out", args.out.name)
    wanted = {stage.fingerprint for stage in targets}
    members: dict[str, Path] = {}
    for stage in topological(targets):
        if stage.fingerprint not in wanted and not store.has(stage.name, stage.fingerprint):
            continue  # an input that was deleted on purpose
        folder = store.open(stage.name, stage.fingerprint).path
        for file in files_in(folder):
            members[f"store/{stage.name}/{stage.fingerprint}/{file}"] = folder / file
    results = args.results or default_results(name)
    if (results / "records.jsonl").is_file():
        check_sums(results)
        present = [n for n in RESULT_FILES if (results / n).is_file()]
        members |= {f"results/{n}": results / n for n in present}
    elif args.results is not None:
        raise DataError(f"{results}: holds no records; leave out --results to export without")
    about = {"experiment": name, "stages": snapshot(targets)}
    archive.write(folders.made_for(args.out), members, about)
    size = args.out.stat().st_size / 1e6
    print(f"{len(members)} files, {size:.1f} MB, of {name!r} written to {args.out}")
    return 0


def import_file(args: argparse.Namespace) -> int:
    """Add an exported experiment to a store, and its records to a results directory."""
    from overopt.base import files, folders
    from overopt.engine import archive
    from overopt.engine.manifest import check_stages
    from overopt.engine.store import Store
    from overopt.study.run import default_results

    with archive.opened(args.file) as opened:
        about = files.need(opened.index, f"{args.file}:", ("experiment", "stages"))
        name = str(about["experiment"])
        artefacts = _artefacts_of(opened, args.file)
        results = args.results or default_results(name)
        check_stages(about["stages"], f"{args.file}: stages")
        has_records = "results/records.jsonl" in opened.sums
        if has_records:
            folders.check_folder(results, "--results")
        store = Store(args.store).create()
        added = sum(_put(store, opened, key, names) for key, names in artefacts.items())
        if has_records:
            _take_in_records(opened, results)
        if store.recorded(name) is None:
            store.record(name, about["stages"])
    print(f"{name}: {added} artefacts added to {store.root}, {len(artefacts) - added} were there")
    if has_records:
        print(f"records are in {results}")
    return 0


def _artefacts_of(opened: Archive, path: Path) -> dict[tuple[str, str], list[str]]:
    """Names of the archive by artefact; raises where one is neither of an artefact nor of results."""
    from overopt.records.results import RESULT_FILES

    found: dict[tuple[str, str], list[str]] = {}
    for name in opened.sums:
        match name.split("/"):
            case ["store", stage, fp, _, *_] if stage != "experiments":
                found.setdefault((stage, fp), []).append(name)
            case ["results", file] if file in RESULT_FILES:
                pass
            case _:
                raise DataError(f"{path}: {name!r} belongs to no artefact and no results")
    return found


def _put(store: Store, opened: Archive, key: tuple[str, str], names: list[str]) -> bool:
    from overopt.engine import keeping

    def fill(folder: Path) -> None:
        for name in names:
            opened.extract(name, folder.joinpath(*name.split("/")[3:]))

    return keeping.put(store, *key, fill)


def _take_in_records(opened: Archive, results: Path) -> None:
    from overopt.records.results import check_joins, held_results, save_results, transaction
    from overopt.records.schema import validate_records

    scratch = Path(tempfile.mkdtemp())
    try:
        for name in opened.sums:
            if name.startswith("results/"):
                opened.extract(name, scratch / name)
        new = held_results(scratch / "results")
    finally:
        shutil.rmtree(scratch)
    validate_records(new.records)
    with transaction(results):
        check_joins(results, held_results(results), new.run_ids)
        save_results(results, new)
