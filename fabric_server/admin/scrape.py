"""Metrics of several processes in one text: each sample gets the label ``worker``.

# HELP fabric_x What it is.       comments of a family once, samples of all workers behind them
# TYPE fabric_x gauge
fabric_x{worker="w0"} 1.0
fabric_x{worker="w1",port="api"} 2.0
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping


def merge(texts: Mapping[str, str]) -> str:
    """Return one text in Prometheus' format for those of the workers, by their ids."""
    families: dict[str, tuple[list[str], list[str]]] = {}
    for worker, text in texts.items():
        for family, comments, samples in _families(text):
            known = families.setdefault(family, (comments, []))
            known[1].extend(_labelled(sample, worker) for sample in samples)
    lines = (line for comments, samples in families.values() for line in (*comments, *samples))
    return "".join(f"{line}\n" for line in lines)


def _families(text: str) -> Iterator[tuple[str, list[str], list[str]]]:
    family, comments, samples = "", list[str](), list[str]()
    for line in text.splitlines():
        if line.startswith("# HELP "):
            if comments:
                yield family, comments, samples
            family, comments, samples = line.split(" ", 3)[2], [line], []
        elif line.startswith("#"):
            comments.append(line)
        elif line:
            samples.append(line)
    if comments:
        yield family, comments, samples


def _labelled(sample: str, worker: str) -> str:
    name, brace, rest = sample.partition("{")
    if brace and " " not in name:
        return f'{name}{{worker="{worker}",{rest}'
    name, _, value = sample.partition(" ")
    return f'{name}{{worker="{worker}"}} {value}'
