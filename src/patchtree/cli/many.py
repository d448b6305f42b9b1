"""Work on many images: one after the other, whatever is wrong with one, and what became of each."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from patchtree.cli.common import explain, make_folder, print_json, say, tell_error
from patchtree.cli.progress import Step, progress
from patchtree.errors import InputError

Report = Callable[[str, int, int], None]  # what is counted, how many are done, and of how many


def at_once(work: Callable[[], dict[str, Any]]) -> Callable[[Report], dict[str, Any]]:
    """Make the work of a job of what does not tell how far it is."""
    return lambda _: work()


@dataclass(frozen=True, eq=False)
class Job:
    """One image of many, and what is to be done to it.

    Attributes:
        files: the image, or its channels.
        outputs: what `work` writes, all in one folder; its state is kept under the name of the first.
        work: does it, and may tell how far it is; gives what ``--json`` prints, with ``files``: what was written.
        settings: what the outputs depend on, in values that JSON knows.
        derived: what can be made of the outputs alone.
        derive: makes some of `derived`; takes what `work` gave and gives what ``--json`` prints.
        companions: what earlier calls may have made of outputs that `work` replaces, or beside them.
    """

    files: tuple[str | Path, ...]
    outputs: tuple[Path, ...]
    work: Callable[[Report], dict[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    derived: tuple[Path, ...] = ()
    derive: Callable[[dict[str, Any], Sequence[Path]], dict[str, Any]] | None = None
    companions: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """What its state is kept under."""
        return self.outputs[0].stem

    def missing(self, result: Mapping[str, Any]) -> list[Path]:
        """List what is still to be derived where `work` gave a result."""
        there = {Path(file).name for file in result["files"]}
        return [file for file in self.derived if file.name not in there]


def do_jobs(
    label: str,
    jobs: Sequence[Job],
    out: Path,
    describe: Callable[[dict[str, Any]], str],
    json: bool,
    failed: int,
    resume: bool = False,
    num_parts: int = 1,
    part_id: int | None = None,
) -> None:
    """Work on images one after the other: whatever is wrong with one is told, and the rest is done.

    Warnings that several images share are told once, at the end, with their number. What became of each is kept in the
    folder of outputs, see `patchtree.jobs.States`.

    Args:
        label: of the progress bar.
        jobs: one an image.
        out: folder for output.
        describe: makes the words for a person.
        json: print JSON instead.
        failed: images that failed before.
        resume: skip what is done.
        num_parts: do only one of so many parts of the jobs.
        part_id: which, from 0.

    Raises:
        InputError: an input would be overwritten; there is no such part; or `out` cannot be written to. Nothing is done
            then.
        typer.Exit: an image failed.
    """
    from patchtree.files import remove, sweep
    from patchtree.jobs import States, fingerprint, take_part

    if num_parts != 1 and part_id is None:
        raise InputError(f"--num-parts {num_parts} needs --part-id, from 0 to {num_parts - 1}")
    clashes = _clashes(jobs)
    jobs = take_part(jobs, num_parts, part_id or 0)
    for job in jobs:
        if job in clashes:
            failed += 1
            tell_error(clashes[job])
    jobs = [job for job in jobs if job not in clashes]
    if not jobs:
        _conclude([], json, failed)
        return
    states = States.open(make_folder(out))
    keys = [fingerprint(job.settings, job.files) for job in jobs]
    results: list[dict[str, Any] | None] = [
        _finished(job, states.done(job.name, key)) if resume else None for job, key in zip(jobs, keys, strict=True)
    ]
    todo = [
        at
        for at, (job, result) in enumerate(zip(jobs, results, strict=True))
        if result is None or job.missing(result) or states.failed(job.name)
    ]
    sweep(file for at in todo for file in (*jobs[at].outputs, *jobs[at].derived, states.file(jobs[at].name)))
    if len(todo) < len(jobs) and not json:
        say(f"{len(jobs) - len(todo):,} of {len(jobs):,} were done before and are skipped")
    files: tuple[str | Path, ...] = ()
    warned: dict[str, dict[str | Path, None]] = {}

    def gather(message: Warning | str, *_: Any, **__: Any) -> None:
        text = str(message)
        for file in files:
            text = text.removeprefix(f"{file}: ")
        warned.setdefault(text, {})[files[0]] = None

    try:
        with warnings.catch_warnings(), progress(label, len(todo)) as step:
            warnings.showwarning = gather
            for at in todo:
                job, files = jobs[at], jobs[at].files
                result, results[at] = results[at], None
                try:
                    if result is None:
                        earlier = states.begin(job.name)
                        for file in job.companions:
                            if file.name in earlier:
                                remove(file)
                        result = job.work(functools.partial(_within, step, Path(files[0]).name))
                        states.finish(job.name, str(files[0]), keys[at], result)
                    if job.derive is not None and (missing := job.missing(result)):
                        result = job.derive(result, missing)
                    states.finish(job.name, str(files[0]), keys[at], result)
                except Exception as error:
                    failed += 1
                    tell_error(error, files[0])
                    # Where not even this can be written, it was told; what is not done is done again.
                    with suppress(InputError, OSError):
                        states.fail(job.name, str(files[0]), keys[at], explain(error, files[0]), result)
                else:
                    results[at] = result
                    if not json:
                        say(describe(result))
                step()
    finally:
        for text, images in warned.items():
            more = f" and {len(images) - 1} more image{'s' if len(images) > 2 else ''}" if len(images) > 1 else ""
            warnings.warn(f"{next(iter(images))}{more}: {text}", stacklevel=2)
    _conclude([result for result in results if result is not None], json, failed)


def _within(step: Step, name: str, what: str, done: int, total: int) -> None:
    """Tell how far an input is."""
    step(f"{name}, {what}", done, total)


def _finished(job: Job, result: dict[str, Any] | None) -> dict[str, Any] | None:
    """Give the result of a job that was finished before, with the files that are there; None if outputs are not."""
    if result is None:
        return None
    folder = job.outputs[0].parent
    there = [file for file in result["files"] if folder.joinpath(Path(file).name).exists()]
    return {**result, "files": there} if {file.name for file in job.outputs} <= {Path(f).name for f in there} else None


def _conclude(results: Sequence[dict[str, Any]], json: bool, failed: int) -> None:
    """Print results as JSON where that is wanted, and fail where something failed."""
    if json:
        print_json(results)
    if failed:
        raise typer.Exit(1)


def _clashes(jobs: Sequence[Job]) -> dict[Job, InputError]:
    """Find the jobs that would write what another one writes.

    Raises:
        InputError: an input would be overwritten.
    """
    clashes: dict[Job, InputError] = {}
    writers = Counter(path for job in jobs for path in (*job.outputs, *job.derived))
    names = Counter(job.name for job in jobs)
    inputs = {Path(file).resolve() for job in jobs for file in job.files}
    for job in jobs:
        for path in (*job.outputs, *job.derived):
            if writers[path] > 1 or names[job.name] > 1:
                twins = (o for o in jobs if o is not job and (path in (*o.outputs, *o.derived) or o.name == job.name))
                error = InputError(
                    f"{job.files[0]}: would be written to {path}, as would {next(twins).files[0]}; run them with "
                    "different --out folders, or give them names in a --manifest"
                )
                clashes.setdefault(job, error)
            if path.resolve() in inputs:
                raise InputError(
                    f"{path}: would be overwritten by the output for {job.files[0]}; choose another --out folder"
                )
    return clashes
