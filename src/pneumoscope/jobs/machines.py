"""Where jobs run: in processes of this machine, on Dask, or on SLURM; and which part of them.

The verbs do not know: they run inside ``with machines(...)``, and the runner asks `current`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from pneumoscope.errors import InputError

PROFILE = Path("~/.config/pneumoscope/cluster.toml")  # Read where no file is named, if it is there

T = TypeVar("T")


@dataclass(frozen=True)
class Cluster:
    """What is asked of SLURM for each worker."""

    # partition, account: as of `sbatch`; None for the cluster's own
    partition: str | None = None
    account: str | None = None
    walltime: str = "04:00:00"  # ``HH:MM:SS``; a worker that reaches it is replaced
    memory: str = "8GB"  # with its unit, such as ``8GB``
    cpus: int = 2  # and threads of a worker
    gpus: int = 0  # of a worker; its jobs use one
    workers: int = 4  # how many, where ``--jobs`` does not say
    # lines of the job script before the worker starts, such as ``module load apptainer``
    preamble: tuple[str, ...] = ()
    container: str | None = None  # an Apptainer image to run workers in
    directives: tuple[str, ...] = ()  # further lines for ``#SBATCH``, such as ``--constraint=avx2``
    interface: str | None = None  # network interface by which workers reach this machine, such as ``ib0``

    def __post_init__(self) -> None:
        if not re.fullmatch(r"(\d+-)?\d{1,3}:\d\d:\d\d", self.walltime):
            raise InputError(f"walltime is HH:MM:SS, got {self.walltime!r}")
        if not re.fullmatch(r"\d+(\.\d+)? ?[kKMGT]i?B", self.memory):
            raise InputError(f"memory is a number with its unit, such as 8GB, got {self.memory!r}")
        for name, least in (("cpus", 1), ("gpus", 0), ("workers", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Machines:
    """Where the jobs of a run are done."""

    # ``local``, ``dask`` (a cluster of this machine), ``dask://HOST:PORT`` (one that is there) or ``slurm``
    on: str = "local"
    jobs: int | None = None  # processes or workers; None for what the kind takes by itself
    cluster: Cluster = field(default_factory=Cluster)  # settings of SLURM
    part: tuple[int, int] = (1, 1)  # number and count of the part of the jobs that is done, from ``(1, 1)``
    # how long the first worker may take to start; None waits, and says why from time to time
    patience_seconds: float | None = None

    @property
    def remote(self) -> bool:
        """Whether the work is left to workers of Dask or SLURM."""
        return self.on != "local"

    def recorded(self) -> dict[str, str]:
        """What `run.json` says of it; nothing of a whole run on this machine."""
        on = {"on": self.on.partition(":")[0]} if self.remote else {}
        return on | ({"part": "{}/{}".format(*self.part)} if self.part != (1, 1) else {})


_current: ContextVar[Machines] = ContextVar("machines", default=Machines())  # noqa: B039


def current() -> Machines:
    """Where jobs run now."""
    return _current.get()


@contextmanager
def machines(
    on: str = "local", *, jobs: int | None = None, cluster: Sequence[str | Path] = (), part: str | None = None
) -> Iterator[Machines]:
    """Run the verbs inside on other machines, or only a part of their jobs.

    Args:
        cluster: a TOML file of `Cluster` settings, and settings as ``NAME=VALUE``; the later go before the earlier.
        part: ``K/N``; every N-th job from the K-th.

    Raises:
        InputError: anything else, or the packages for `on` are not installed.
    """
    if on not in ("local", "dask", "slurm") and not re.fullmatch(r"dask://.+:\d{1,5}", on):
        raise InputError(f"jobs run on local, dask, dask://HOST:PORT or slurm, got {on!r}")
    if on != "local":
        _require_packages(on)
    token = _current.set(
        Machines(on, jobs, read_cluster(cluster) if on == "slurm" or cluster else Cluster(), _part(part))
    )
    try:
        yield current()
    finally:
        _current.reset(token)


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Give up when no worker has started after so long."""
    token = _current.set(replace(current(), patience_seconds=seconds))
    try:
        yield
    finally:
        _current.reset(token)


def part_of(items: Sequence[T]) -> list[T]:
    """The items of this run's part, in their order.

    Raises:
        InputError: there are fewer items than parts.
    """
    number, count = current().part
    if count > max(1, len(items)):
        raise InputError(f"there are {len(items)} jobs, too few for {count} parts; use --part 1/{max(1, len(items))}")
    return list(items[number - 1 :: count])


def read_cluster(given: Sequence[str | Path]) -> Cluster:
    """Settings of SLURM from files and ``NAME=VALUE``; the user's own profile where no file is named.

    Raises:
        InputError: a file that cannot be read, an unknown name, or a value of another kind.
    """
    files = [value for value in given if "=" not in str(value)]
    profile = PROFILE.expanduser()
    values: dict[str, Any] = {}
    for path in map(Path, files or ([profile] if profile.is_file() else [])):
        try:
            values |= {name: (value, path) for name, value in tomllib.loads(path.read_text(encoding="utf-8")).items()}
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as problem:
            reason = getattr(problem, "strerror", None) or problem
            raise InputError(f"is no cluster profile that can be read ({reason})", path=path) from problem
    for text in given:
        name, equals, value = str(text).partition("=")
        if equals:
            values[name.strip()] = (value, None)
    known = {item.name: item.default for item in fields(Cluster)}
    result = Cluster()
    for name, (value, source) in values.items():
        if name not in known:
            raise InputError(f"no cluster setting {name!r}; there are {', '.join(known)}", path=source)
        result = replace(result, **{name: _setting(name, value, known[name], source)})
    return result


def _setting(name: str, value: Any, default: Any, source: Path | None) -> Any:
    if isinstance(default, tuple):
        lines = [value] if isinstance(value, str) else value
        if isinstance(lines, list) and all(isinstance(line, str) for line in lines):
            return tuple(lines)
    elif isinstance(default, int):
        if not isinstance(value, bool) and re.fullmatch(r"\d{1,6}", str(value)):
            return int(value)
    elif isinstance(value, str):
        return value
    kind = {tuple: "a list of lines", int: "a whole number"}.get(type(default), "a text in quotes")
    raise InputError(f"cluster setting {name} is {kind}, got {value!r}", path=source)


def _part(text: str | None) -> tuple[int, int]:
    if text is None:
        return 1, 1
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"a part is K/N with K from 1 to N, got {text!r}")
    return int(found[1]), int(found[2])


def _require_packages(on: str) -> None:
    from importlib.util import find_spec

    wanted = ["distributed", *(["dask_jobqueue"] if on == "slurm" else [])]
    missing = [name.replace("_", "-") for name in wanted if find_spec(name) is None]
    if missing:
        raise InputError(
            f"--on {on} needs {' and '.join(missing)}, which this Python lacks; install it with pip install "
            "'pneumoscope[cluster]'"
        )
