"""Odd input to a study: each is read to the same values or refused in one line, without a traceback.

Mutated specifications, odd command-line arguments, stores and cache entries with a flipped bit, and folders of
images and of Parquet files that are damaged or strange.

python tools/fuzz.py [--specifications 2000] [--seed 0] [--arguments 300] and so for stores, caches, folders, tables
"""

import argparse
import io
import json
import os
import random
import re
import shutil
import tempfile
import warnings
from contextlib import chdir, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from cdgrad import cli
from cdgrad.study import StudyError, data
from cdgrad.study.data import cache, decoding
from cdgrad.study.records import Run
from cdgrad.study.records.store import FILE, Store
from cdgrad.study.spec import Task, load, parse

# fmt: off
VALUES = (
    "2**63", "9" * 400, "-1", "0", "1e999", "nan",
    "true", '""', "[]", "{}", "1979-05-27", '"\\u202e"', "[[[1]]]",
)

ODD = (
    "", "-", "--", "-1", "0", "9" * 400, "\x1b[31m", "a\nb", "\u202e", "\udcff", "a\0b", "n" * 5000,
    "no.toml", ".", "/", "~", "os:getcwd", "os:", ":", "no_module:x", "timm:", "torchvision:x",
    "3x3x3", "1e999", "=", "*",
    *("file", "bad.toml", "damaged", "--out", "--help", "%s", "{}", "nul\t", "/dev/null", "file/below"),
)
# fmt: on


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
    messages = []
    for _ in range(count):
        changed = mutated(text, chance)
        messages += [fault] if (fault := faults(lambda changed=changed: parse(changed, "fuzz"))) else []
    return messages


def flipped(content, chance):
    """`content` with one bit changed."""
    damaged = bytearray(content)
    damaged[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def example(seed):
    """A finished run."""
    return Run(
        cell="", arm="sgd", trial=None, seed=seed, status="ok", error=3.0 + seed, evaluated="test", values={},
        epochs=[{"loss": 0.5}], measures={"norm": 1.0}, config={"a": 1}, fingerprint="f" * 64,
        environment={"torch": "2"}, started="2026-01-01T00:00:00+00:00", seconds=1.5,
    )  # fmt: skip


def stores(count, chance, folder):
    """The faults of `count` stores of runs with a flipped bit; a difference without a word is one."""
    path = folder / FILE
    with Store(folder, write=True) as store:
        text = load("quickstart").text
        for seed in range(6):
            store.add(example(seed), store.use_spec("quickstart", f"{text}# {seed // 3}\n"))

    def read():
        with Store(folder, write=False) as store:
            return [vars(run) for run in store.runs()], store.spec(), store.earlier_specs()

    whole, content, messages = read(), path.read_bytes(), []

    def attempt():
        if read() != whole:
            raise AssertionError("a silent difference in a store")

    for _ in range(count):
        path.write_bytes(flipped(content, chance))
        messages += [fault] if (fault := faults(attempt)) else []
    return messages


def option_names(command):
    """The options of a command."""
    parser = argparse.ArgumentParser()
    import_module(f"cdgrad.commands.{command}").add_arguments(parser)
    return sorted({*re.findall(r"(?<![\w-])--?[a-z][a-z-]*", parser.format_usage()), "--help"})


def arguments(count, chance, folder):
    """The faults of `count` command lines with an odd argument or several."""
    (folder / "file").write_text("x")
    (folder / "bad.toml").write_text('title = "\\u202e"\n[task\n')
    (folder / "damaged").mkdir()
    (folder / "damaged" / FILE).write_bytes(b"SQLite format 3\0" + bytes(200))
    messages = []
    with chdir(folder):
        for _ in range(count):
            command = chance.choice(
                ("init", "plan", "study", "report", "export", "record", "train", "inspect")
            )
            line = [command, chance.choice(ODD)]
            for _ in range(chance.randrange(3)):
                line += [chance.choice(option_names(command)), chance.choice(ODD)][: chance.randrange(1, 3)]
            messages += [f"{line!r:.200}: {fault}"] if (fault := fault_of(line)) else []
    return messages


def fault_of(line):
    """What is wrong with how a command line ends."""
    output, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(errors), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            status = cli.main(line)
        except SystemExit as error:
            status = error.code
        except BaseException as error:
            return f"{type(error).__name__}: {error}"[:200]
    said = errors.getvalue()
    if status not in (0, 1, 2) or "Traceback" in said or "unexpected " in said:
        return f"status {status}: {said[:200]}"
    if len(re.findall("^cdgrad", said, re.MULTILINE)) > 1 or re.search(r"[\x00-\x09\x0b-\x1f\u202e]", said):
        return f"several lines or control characters: {said[:200]!r}"
    return ""


def caches(count, chance, folder):
    """The faults of `count` cache entries with a flipped bit; a difference without a word is one."""

    def build(entry):
        generator = np.random.default_rng(0)
        for role in ("train", "test"):
            np.save(cache.images_file(entry, role), generator.integers(0, 256, (6, 1, 4, 4), dtype=np.uint8))
            np.save(cache.labels_file(entry, role), np.arange(6))
        cache.describe(entry, cache.Description({"train": "train", "test": "test"}, 6))

    def attempt():
        decoded = cache.load("entry", build)
        if decoded.description != whole.description or not all(
            torch.equal(getattr(new, kind), getattr(old, kind))
            for new, old in ((decoded.train, whole.train), (decoded.test, whole.test))
            for kind in ("pixels", "labels")
        ):
            raise AssertionError("a silent difference in a cache entry")

    os.environ["CDGRAD_CACHE"] = str(folder)
    whole = cache.load("entry", build)
    files, messages = sorted((folder / "entry").iterdir()), []
    for _ in range(count):
        file = chance.choice(files)
        content = file.read_bytes()
        replace(file, flipped(content, chance))
        messages += [f"{file.name}: {fault}"] if (fault := faults(attempt)) else []
        replace(file, content)
    return messages


def replace(file, content):
    """Give a file a content; arrays that are mapped keep the earlier one."""
    file.unlink()
    file.write_bytes(content)


def folders(count, chance, folder, make=None):
    """The faults of `count` folders of images, each with something damaged or strange."""
    os.environ["CDGRAD_CACHE"] = str(folder / "cache")
    messages = []
    for number in range(count):
        place = folder / f"set{number}"
        (make or image_files)(place, chance)
        for _ in range(chance.randrange(1, 3)):
            disturb(place, chance)
        hidden = {"datasets"} if chance.random() < 0.5 else set()
        find = mock.patch.object(
            decoding, "find_spec", lambda name, hidden=hidden: name not in hidden or None
        )
        with warnings.catch_warnings(), find:
            warnings.simplefilter("ignore")
            fault = faults(lambda place=place: data.load(Task(str(place), 4, 2), seed=0))
        messages += [fault] if fault else []
        shutil.rmtree(place)
    return messages


def tables(count, chance, folder):
    """The faults of `count` Parquet files, each with something damaged or strange."""
    return folders(count, chance, folder, parquet_file)


def image_files(place, chance):
    """A folder for each of two classes."""
    for name in ("cat", chance.choice(("dog", "d\x1bg", "d\ng", "\u202edog", "train", "\udcff"))):
        (place / name).mkdir(parents=True)
        for index in range(5):
            picture(chance).save(place / name / f"{index}.png")


def picture(chance):
    """A small image of a usual size or another one."""
    mode, side = chance.choice(("L", "L", "L", "RGB", "1", "P")), chance.choice((4, 4, 4, 1, 7))
    return Image.new(mode, (side, side), chance.randrange(2))


def parquet_file(place, chance):
    """One table with a column of images and one of labels, or of something else."""
    place.mkdir()
    encoded = io.BytesIO()
    Image.new("L", (4, 4)).save(encoded, "png")
    image = [{"bytes": encoded.getvalue(), "path": None}] * 10
    paths = ({"bytes": None, "path": path} for path in ("/no/file.png", "/dev/zero", "a\0b", "..", None))
    odd = chance.choice((None, {"bytes": b"", "path": None}, {"bytes": b"%PDF", "path": None}, *paths))
    pairs = [
        [0, 1],
        [0, 1],
        [0, 1],
        ["a", "b\n"],
        [None, 1],
        [0.5, 1.0],
        [2**62, -1],
        [[1], [2]],
        [None, None],
    ]
    pairs += [
        [b"x", b"\xff"],
        [{"a": 1}, {"a": 2}],
        [float("nan"), 1.0],
        ["a\x1b[31m", "\u202e"],
        [True, False],
    ]
    pair = chance.choice(pairs)
    rows = chance.choice((10, 10, 1, 0))
    columns = [([*image[:-1], odd] if chance.random() < 0.3 else image)[:rows], (pair * 5)[:rows]]
    titles = chance.choice(
        (["image", "label"], ["image", "label"], ["image", "image"], ["\x1b[31m", "label"])
    )
    table = pa.table(columns, titles)
    names = chance.choice((None, None, ["a", "b"], 5, [1, 2], ["a", "a"], {"a": 1}))
    if names is not None:
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    name = chance.choice(("train-0", "train-00000-of-00001", "train-00000-of-00001", "odd\n"))
    pq.write_table(table, place / f"{name}.parquet", row_group_size=chance.choice((1, 3, 100)))


def disturb(place, chance):
    """Change one thing in a folder, or nothing."""
    file = chance.choice([path for path in place.rglob("*") if path.is_file()] or [place / "new"])
    content = file.read_bytes() if file.exists() else b""
    kind = chance.randrange(7)
    if kind == 0 and content:
        file.write_bytes(flipped(content, chance))
    elif kind == 1:
        file.write_bytes(content[: chance.randrange(len(content) + 1)])
    elif kind == 2:
        (place / f"link{chance.random()}.png").symlink_to(chance.choice((place, file, place / "missing")))
    elif kind == 3:
        (file.parent / f"odd{chance.choice(ODD[6:10])}{file.suffix}").write_bytes(content)
    elif kind == 4:
        (
            place / f"table{chance.random()}.{chance.choice(('csv', 'json', 'parquet', 'zip', 'txt'))}"
        ).write_bytes(chance.randbytes(chance.randrange(60)))
    elif kind == 5 and file.exists():
        file.unlink()


def main():
    """Print the faults; the exit status says whether there are any."""
    kinds = {
        "arguments": arguments,
        "stores": stores,
        "caches": caches,
        "folders": folders,
        "tables": tables,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--specifications", type=int, default=2000)
    for kind in kinds:
        parser.add_argument(f"--{kind}", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    messages = specifications(options.specifications, random.Random(options.seed))
    print(f"{options.specifications} specifications: {len(messages)} faults", flush=True)
    for name, kind in kinds.items():
        with tempfile.TemporaryDirectory() as folder:
            new = kind(getattr(options, name), random.Random(options.seed), Path(folder))
        print(f"{getattr(options, name)} {name}: {len(new)} faults", flush=True)
        messages += new
    print(*sorted(set(messages)), sep="\n")
    return bool(messages)


if __name__ == "__main__":
    raise SystemExit(main())
