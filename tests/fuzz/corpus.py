"""Inputs of the targets: small seeds in git, and what runs have found, in ``.cache/fuzz``."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from random import Random

from tests.fuzz.traffic import broken, pieces_of

ROOT = Path(__file__).parents[2]
SEEDS = Path(__file__).parent / "seeds"
KEPT = ROOT / ".cache" / "fuzz"
MAX_KEPT = 500
"""Inputs that are kept for a target."""
MAX_SIZE = 20_000

WORDS = (
    *(b'"', b"\\", b"\\u0000", b"\\ud83d", b"{", b"}", b"[", b"]", b":", b",", b"null", b"NaN"),
    *(b"-1", b"1e999", b"10000000000000000000", b"true", b'""', b"{}", b"[]", b"[" * 1500),
    *(b"\r\n", b"\n", b"\n\n", b"\r", b"\0", b"\xff", b"\xc3", b"\xef\xbb\xbf"),
    *(b"data: ", b"event: ", b"<think>", b"</think>"),
    *(b"[DONE]", b"--", b"%00", b"..", b"@", b"#", b"\xe2\x80\xae", b"\x1b[2J"),
)  # fmt: skip


class Corpus:
    """The inputs of one target.  An input is kept if its run showed something new."""

    def __init__(self, name: str, seeds: tuple[bytes, ...], kept: Path = KEPT) -> None:
        self._directory = kept / name
        self._seen: set[object] = set()
        files = [*_files(SEEDS / name), *_files(self._directory)]
        self.inputs = [*seeds, *(file.read_bytes() for file in files)] or [b""]

    def make(self, rng: Random) -> bytes:
        """Return an input: one that is there, changed in a few places or joined with another."""
        data = rng.choice(self.inputs)
        if rng.random() < 0.2:
            other = rng.choice(self.inputs)
            data = data[: rng.randint(0, len(data))] + other[rng.randint(0, len(other)) :]
        for _ in range(rng.choice([0, 1, 1, 2, 5])):
            if rng.random() < 0.5:
                data = broken(rng, data)
            else:
                at = rng.randint(0, len(data))
                data = data[:at] + rng.choice(WORDS) + data[at + rng.choice([0, 0, 1, 5]) :]
        return data[:MAX_SIZE]

    def note(self, data: bytes, result: object) -> None:
        """Keep the input if no run of this target had this result before."""
        if result in self._seen:
            return
        self._seen.add(result)
        if data not in self.inputs and len(self.inputs) < MAX_KEPT:
            self.inputs.append(data)
            write(self._directory, data)


def write(directory: Path, data: bytes) -> Path:
    """Write an input to a file that its contents name."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{sha256(data).hexdigest()[:16]}.bin"
    path.write_bytes(data)
    return path


def cut(data: bytes) -> list[bytes]:
    """Cut an input in pieces, the same ones each time."""
    return pieces_of(Random(sha256(data).digest()), data)


def _files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*")) if directory.is_dir() else []
