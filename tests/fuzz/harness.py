"""Seeded mutants of sound files through a reader: only our own errors may come out, soon and in little memory.

A target makes sound files, says where the fields of one lie, and reads it. `run` changes one file at a time, in a
process of its own so that a crash, a hang or a memory leak is one failed assertion that names the mutant. To see a
mutant again: ``python tests/fuzz/harness.py tests/fuzz/reader_targets.py nifti --start 17 --count 1 --keep /tmp/here``.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib.util
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

Spans = Sequence[tuple[int, int]]
"""(start, stop) of the fields of a file: tags, chunks, lines, header numbers."""

EXTREMES = (
    b"\0" * 8, b"\xff" * 8, b"\xff\xff\xff\x7f" * 2, b"\0\0\0\x80" * 2, b"\x01" + b"\0" * 7, b"\0\0\x80\x7f" * 2,
    b"\0\0\xc0\x7f" * 2, b"\xff\x7f" * 4, b"\0\x80" * 4, b"\0\0\0\0\0\0\xf0\x7f",
)  # fmt: skip
"""Whole numbers and floats at the ends of their ranges, NaN and infinity."""

WORDS = (
    b"0", b"-1", b"1e308", b"nan", b"inf", b"-inf", b"99999999999999999999", b"2147483648", b"1,5", b"''",
    b"\xff\xfe",
)  # fmt: skip
_NUMBER = re.compile(rb"-?\d+(\.\d+)?")


@dataclass(frozen=True)
class Target:
    """What is fuzzed.

    Attributes:
        make: writes sound files below a folder and returns those that are mutated, one at a time.
        attempt: reads the file (its neighbours are sound); may raise `PneumoscopeError`, nothing else.
        fields: where the fields of a file lie; lines by default.
        unwrapped: the bytes inside and how they are put back, e.g. for gzip; half of the mutants are made inside.
        seconds: of the processor; a mutant that takes more hangs.
        memory_mib: what the process may grow by.
    """

    make: Callable[[Path], Sequence[Path]]
    attempt: Callable[[Path], object]
    fields: Callable[[bytes], Spans] = lambda data: lines(data)
    unwrapped: Callable[[bytes], tuple[bytes, Callable[[bytes], bytes]]] | None = None
    seconds: int = 20
    memory_mib: int = 500


class HangError(BaseException):
    """Not an `Exception`, so that no reader can take it for a damaged file."""


def lines(data: bytes) -> Spans:
    """The lines of a text, or of the text at the start of a file."""
    text = data[:4000].split(b"\n\n", 1)[0]
    ends = [match.end() for match in re.finditer(rb"\n|$", text)]
    return [(start, stop) for start, stop in zip([0, *ends], ends, strict=False) if stop > start]


def dicom_elements(data: bytes) -> Spans:
    """The elements of an explicit little-endian file, the pixels last."""
    spans, at = [], 132
    while at + 8 <= len(data):
        long = data[at + 4 : at + 6] in (b"OB", b"OW", b"SQ", b"UN", b"UT", b"OF", b"OD", b"UC", b"UR")
        length = int.from_bytes(data[at + 8 : at + 12] if long else data[at + 6 : at + 8], "little")
        stop = min(at + (12 if long else 8) + length, len(data))
        spans.append((at, stop))
        at = stop
    return spans


def chunks(data: bytes) -> Spans:
    """The chunks of a PNG."""
    spans, at = [], 8
    while at + 12 <= len(data):
        stop = min(at + 12 + int.from_bytes(data[at : at + 4], "big"), len(data))
        spans.append((at, stop))
        at = stop
    return spans


def words(size: int) -> Callable[[bytes], Spans]:
    """The first `size` bytes as overlapping numbers of 2, 4 and 8 bytes."""
    return lambda data: [(at, at + width) for width in (2, 4, 8) for at in range(0, min(size, len(data) - 8), width)]


def records(data: bytes) -> Spans:
    """From one record mark of a zip to the next."""
    starts = [match.start() for match in re.finditer(rb"PK[\x01-\x08]{2}", data)]
    return list(zip(starts, [*starts[1:], len(data)], strict=True))


def png_with_right_sums(data: bytes) -> tuple[bytes, Callable[[bytes], bytes]]:
    """A PNG whose chunks get their checksums again after the mutation, so that decoders look further."""

    def sealed(changed: bytes) -> bytes:
        out = bytearray(changed)
        for start, stop in chunks(changed):
            out[stop - 4 : stop] = zlib.crc32(changed[start + 4 : stop - 4]).to_bytes(4, "big")
        return bytes(out)

    return data, sealed


def mutant(data: bytes, spans: Spans, rng: random.Random) -> bytes:
    """`data` with one to four changes."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        usable = [(start, stop) for start, stop in spans if stop <= len(data)] or [(0, len(data))]
        data = rng.choice(_CHANGES)(bytearray(data), usable, rng)
    return data


def _overwrite(data: bytearray, spans: Spans, rng: random.Random) -> bytes:
    """A number at its extreme, somewhere in a field."""
    start, stop = rng.choice(spans)
    size = rng.choice((1, 2, 4, 8))
    at = rng.randrange(start, max(start + 1, min(stop, start + 40)))
    data[at : at + size] = rng.choice(EXTREMES)[:size]
    return bytes(data)


def _length(data: bytearray, spans: Spans, rng: random.Random) -> bytes:
    """A length in the head of a field, off by a little or by everything."""
    start, _ = rng.choice(spans)
    at, size = start + rng.choice((0, 4, 6, 8)), rng.choice((2, 4))
    order = rng.choice(("little", "big"))
    value = int.from_bytes(data[at : at + size], order) + rng.choice((-1, 1, 2, -2, 1 << 8, 1 << 15))
    data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, order)
    return bytes(data)


def _number(data: bytearray, spans: Spans, rng: random.Random) -> bytes:
    """A number in text by another word."""
    start, stop = rng.choice(spans)
    found = list(_NUMBER.finditer(bytes(data[start : min(stop, start + 400)])))
    if found:
        match = rng.choice(found)
        data[start + match.start() : start + match.end()] = rng.choice(WORDS)
    return bytes(data)


def _double(data: bytearray, spans: Spans, rng: random.Random) -> bytes:
    """A field a second time, there or before another one."""
    start, stop = rng.choice(spans)
    at = rng.choice((start, rng.choice(spans)[0]))
    data[at:at] = data[start : min(stop, start + 4096)]
    return bytes(data)


def _swap(data: bytearray, spans: Spans, rng: random.Random) -> bytes:
    """Two fields exchanged."""
    (a, b), (c, d) = sorted((rng.choice(spans), rng.choice(spans)))
    return bytes(data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]) if b <= c else bytes(data)


def _drop(data: bytearray, spans: Spans, rng: random.Random) -> bytes:
    start, stop = rng.choice(spans)
    del data[start : min(stop, start + 4096)]
    return bytes(data)


def _flip(data: bytearray, spans: Spans, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 3, 20))):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _cut(data: bytearray, spans: Spans, rng: random.Random) -> bytes:
    at = rng.choice((rng.randrange(len(data) + 1), rng.choice(spans)[0], max(0, len(data) - rng.randint(1, 20))))
    return bytes(data[:at])


def _grow(data: bytearray, spans: Spans, rng: random.Random) -> bytes:
    at = rng.choice((len(data), rng.choice(spans)[1], rng.randrange(len(data) + 1)))
    data[at:at] = rng.randbytes(rng.choice((1, 2, 40, 3000)))
    return bytes(data)


_CHANGES = (_overwrite, _length, _number, _double, _swap, _drop, _flip, _cut, _grow)


def mutant_of(target: Target, whole: bytes, seed: str) -> bytes:
    """The mutant that a seed stands for, of the bytes of one sound file."""
    rng = random.Random(seed)
    if target.unwrapped and rng.random() < 0.5:
        inside, wrap = target.unwrapped(whole)
        return wrap(mutant(inside, target.fields(inside), rng))
    return mutant(whole, target.fields(whole), rng)


def attempts(name: str, target: Target, folder: Path, start: int, count: int) -> Counter[str]:
    """Read `count` mutants in this process and count what became of them.

    Raises:
        AssertionError: another error than ours or a hang; names the mutant.
    """
    from pneumoscope.errors import PneumoscopeError

    def late(number: int, frame: FrameType | None) -> None:
        raise HangError

    signal.signal(signal.SIGPROF, late)
    files = list(target.make(folder))
    sound = {path: path.read_bytes() for path in files}
    outcomes: Counter[str] = Counter()
    for number in range(start, start + count):
        path = files[number % len(files)]
        path.write_bytes(mutant_of(target, sound[path], f"{name} {number}"))
        (folder.parent / "at").write_text(f"{name} {number} of {path.name}")
        faulthandler.dump_traceback_later(20 * target.seconds, exit=True)  # by the clock
        signal.setitimer(signal.ITIMER_PROF, target.seconds)
        try:
            target.attempt(path)
            outcomes["read"] += 1
        except PneumoscopeError as error:
            outcomes["refused" if "\n" not in str(error) else "several lines"] += 1
        except HangError as error:
            raise AssertionError(f"{name} {number} ({path.name}) took more than {target.seconds} s") from error
        except Exception as error:
            raise AssertionError(f"{name} {number} ({path.name}): {type(error).__name__}: {error}") from error
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            faulthandler.cancel_dump_traceback_later()
        path.write_bytes(sound[path])
    return outcomes


def run(module: str | Path, names: Sequence[str], count: int, *, start: int = 0) -> None:
    """Read `count` mutants of each target of a module in one process of their own.

    Raises:
        AssertionError: see `attempts`; the process died; it grew by more than the target may; an error of several
            lines; all mutants were read or all refused, which means that nothing was tried.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, str(module), *names, "--start", str(start), "--count", str(count)]
        done = subprocess.run([*command, "--keep", folder], capture_output=True, text=True, check=False)
        at = Path(folder, "at")
        where = f"mutant {at.read_text()}" if at.exists() else "before the first mutant"
        assert done.returncode == 0, f"{names}: status {done.returncode} at {where}\n{done.stderr[-3000:]}"
    for name, said in zip(names, map(json.loads, done.stdout.splitlines()[-len(names) :]), strict=True):
        assert said["grown_mib"] <= said["allowed_mib"], f"{name} grew by {said['grown_mib']} MiB"
        assert set(said["outcomes"]) == {"read", "refused"}, f"{name}: {said['outcomes']}"


def _main() -> None:
    import resource

    parser = argparse.ArgumentParser()
    parser.add_argument("module", type=Path)
    parser.add_argument("targets", nargs="+")
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--keep", type=Path, required=True, help="folder for the files")
    given = parser.parse_args()
    sys.path.insert(0, str(given.module.parent))
    sys.modules["harness"] = sys.modules["__main__"]
    spec = importlib.util.spec_from_file_location(given.module.stem, given.module)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in given.targets:
        target: Target = module.TARGETS[name]
        folder = given.keep / name
        folder.mkdir(parents=True, exist_ok=True)
        for path in target.make(folder):  # imports and caches are no growth
            target.attempt(path)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        outcomes = attempts(name, target, folder, given.start, given.count)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        told = {"outcomes": outcomes, "grown_mib": grown >> 10, "allowed_mib": target.memory_mib}
        sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    _main()
