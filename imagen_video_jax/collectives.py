"""What a compiled program says that its chips send each other: read from its text, loops counted as often as they turn.

Bytes are those that one chip receives as a ring sends them: a sum over chips (all-reduce) is received twice, once to be
added up and once added; of a reduce-scatter, which leaves each chip a share, the whole once.
"""

import re
from collections.abc import Iterator

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")
_ITEM_BITS = {"pred": 8, "token": 0, "c64": 64, "c128": 128}
_COLLECTIVE = re.compile(r"= (.*?) (" + "|".join(KINDS) + r")(-start)?\(")


def read_collectives(text: str) -> tuple[dict[str, float], tuple[tuple[float, str], ...]]:
    """(kind -> bytes received in one run, (bytes, operation name) of all-gathers, the largest first)."""
    turns, devices = _turns_of_computations(text), _devices(text)
    totals, gathers = {}, []
    for name, body in _computations(text):
        # The TPU compiler's reduce-scatter is an all-reduce with slices of its result, in a kernel of this name.
        for kind, size, operation in _collectives_of(body, devices, scattered="all-reduce-scatter" in name):
            totals[kind] = totals.get(kind, 0.0) + size * turns.get(name, 1)
            if kind == "all-gather":
                gathers.append((size, operation))
    return totals, tuple(sorted(gathers, reverse=True))


def groups_of(line: str, devices: int) -> np.ndarray:
    """[groups, members] of the collective that a line of the text describes; ValueError where they cannot be read."""
    if listed := re.search(r"replica_groups=\{(\{[\d,{}\s]*\})\}", line):
        return np.array(
            [[int(number) for number in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])]
        )
    if made := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        return _iota(made[2], made[3]).reshape(_numbers(made[1]))
    mesh = re.search(
        r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{(.*?)\}", line
    )
    if mesh:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        ids = _iota(mesh[2], mesh[3]) if mesh[2] else np.arange(int(np.prod(list(sizes.values()))))
        over = [list(sizes).index(name) for name in re.findall(r"'(\w+)'", mesh[4])]
        rest = [axis for axis in range(len(sizes)) if axis not in over]
        members = int(np.prod([list(sizes.values())[axis] for axis in over]))
        return ids.reshape(list(sizes.values())).transpose(rest + over).reshape(-1, members)
    if "replica_groups={}" in line or "replica_groups" not in line:
        return np.arange(devices)[None]
    raise ValueError(f"unknown replica groups: {line.strip()[:300]}")


def _iota(sizes: str, order: str | None) -> np.ndarray:
    sizes = _numbers(sizes)
    numbers = np.arange(int(np.prod(sizes))).reshape(sizes)
    return numbers.transpose(_numbers(order)) if order else numbers


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _devices(text: str) -> int:
    found = [int(number) for number in re.findall(r"(?:num_partitions|replica_count)=(\d+)", text.partition("\n")[0])]
    return int(np.prod(found)) if found else 1


def _collectives_of(lines: list[str], devices: int, *, scattered: bool) -> Iterator[tuple[str, float, str]]:
    """(kind, bytes that a chip receives, operation name)."""
    for line in lines:
        if not (match := _COLLECTIVE.search(line)):
            continue
        shapes, kind, started = match.groups()
        sizes = [_bytes(*shape) for shape in re.findall(r"(\w+)\[([\d,]*)\]", shapes)]
        if started and kind != "all-reduce":
            # What starts one gives its operands, then its results, then perhaps numbers of its own.
            half = len(sizes) // 2 if kind != "collective-permute" else 1
            sizes = sizes[:half] if kind == "reduce-scatter" else sizes[half : 2 * half]
        factor = 1
        if kind == "all-reduce":
            kind, factor = ("reduce-scatter", 1) if scattered else (kind, 2)
        elif kind == "reduce-scatter" and not started:
            factor = groups_of(line, devices).shape[1]
        name = re.search(r'op_name="([^"]*)"', line)
        yield kind, factor * sum(sizes), name[1] if name else ""


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    name, lines = None, []
    for line in text.splitlines():
        if line.endswith("{") and (match := re.match(r"(?:ENTRY )?%?([\w.\-]+) ", line)):
            name, lines = match[1], []
        elif line.startswith("}") and not line.startswith("}}") and name:  # "}}" ends what a kernel says of itself
            yield name, lines
            name = None
        elif name:
            lines.append(line)


def _turns_of_computations(text: str) -> dict[str, int]:
    """How often each computation runs in one run of the program, from the trip counts of the loops around it."""
    computations = dict(_computations(text))
    calls: dict[str, list[tuple[str, int]]] = {}
    for name, body in computations.items():
        for line in body:
            count = _trips(line, computations) if " while(" in line else 1
            for called in re.findall(r"(?:body|calls|to_apply)=%?([\w.\-]+)", line):
                calls.setdefault(called, []).append((name, count))
    found: dict[str, int] = {}

    def turns(name: str) -> int:
        if name not in found:
            found[name] = 1
            callers = calls.get(name, [])
            found[name] = sum(turns(caller) * count for caller, count in callers) if callers else 1
        return found[name]

    return {name: turns(name) for name in calls}


def _trips(loop: str, computations: dict[str, list[str]]) -> int:
    """How often a loop turns: what the compiler notes beside it, or what its condition counts up to from 0."""
    if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop):
        return int(noted[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop)
    lines = computations.get(condition[1], []) if condition else []
    limits = [limit[1] for line in lines if (limit := re.search(r"= s32\[\]\S* constant\((\d+)\)", line))]
    below = any(" compare(" in line and "direction=LT" in line for line in lines)
    return int(limits[0]) if below and len(limits) == 1 else 1


def _bytes(kind: str, sizes: str) -> float:
    bits = _ITEM_BITS.get(kind) or int((re.search(r"\d+", kind) or ["32"])[0])
    count = 1
    for size in filter(None, sizes.split(",")):
        count *= int(size)
    return count * bits / 8
