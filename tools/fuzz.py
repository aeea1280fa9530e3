"""Mutated specifications and damaged stores: each is read to the same values or refused in one line.

python tools/fuzz.py [--specifications 2000] [--stores 300] [--seed 0]
"""

import argparse
import random
import tempfile
from pathlib import Path

from cdgrad.study import StudyError
from cdgrad.study.records.store import FILE, Store
from cdgrad.study.spec import load, parse

VALUES = (
    "2**63",
    "9" * 400,
    "-1",
    "0",
    "1e999",
    "nan",
    "true",
    '""',
    "[]",
    "{}",
    "1979-05-27",
    '"\\u202e"',
    "[[[1]]]",
)


def mutated(text, chance):
    """`text` with one or two values, keys, lines or characters replaced."""
    lines = text.splitlines()
    for _ in range(chance.randrange(1, 3)):
        index = chance.randrange(len(lines))
        key, equals, _ = lines[index].partition("=")
        kind = chance.randrange(4)
        if kind == 0 and equals:
            lines[index] = f"{key}= {chance.choice(VALUES)}"
        elif kind == 1:
            lines.insert(index, chance.choice(lines))
        elif kind == 2:
            del lines[index]
        else:
            at = chance.randrange(len(lines[index]) + 1)
            lines[index] = lines[index][:at] + chr(chance.randrange(1, 0x3000)) + lines[index][at:]
        lines = lines or [""]
    return "\n".join(lines)


def faults(attempt):
    """What went wrong in an attempt that may raise a `StudyError` of one line; empty where nothing did."""
    try:
        attempt()
    except StudyError as error:
        return "several lines" if "\n" in str(error) else ""
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:200]
    return ""


def specifications(count, chance):
    """The faults of `count` mutated specifications."""
    text = load("quickstart").text
    found = []
    for _ in range(count):
        changed = mutated(text, chance)
        found += [fault] if (fault := faults(lambda changed=changed: parse(changed, "fuzz"))) else []
    return found


def stores(count, chance, path):
    """The faults of `count` stores with a flipped bit; a difference without a word is one."""

    def read():
        with Store(path.parent, write=False) as store:
            return store.runs(), store.spec()[1]

    whole, content, found = read(), path.read_bytes(), []

    def attempt():
        if read() != whole:
            raise AssertionError("a silent difference")

    for _ in range(count):
        damaged = bytearray(content)
        damaged[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        found += [fault] if (fault := faults(attempt)) else []
    return found


def main():
    """Print the faults; the exit status says whether there are any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--specifications", type=int, default=2000)
    parser.add_argument("--stores", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    found = specifications(options.specifications, chance)
    with tempfile.TemporaryDirectory() as folder:
        with Store(Path(folder), write=True) as store:
            store.use_spec("quickstart", load("quickstart").text)
        found += stores(options.stores, chance, Path(folder) / FILE)
    print(f"{options.specifications} specifications, {options.stores} stores: {len(found)} faults")
    print(*sorted(set(found)), sep="\n")
    return bool(found)


if __name__ == "__main__":
    raise SystemExit(main())
