"""Mangled files against what reads strangers' files: the checks of weights, and the importer of `model_info`.

`python benchmarks/fuzz.py --seconds 600` prints how many files were tried and what was found. Each finding is the
smallest file that shows it.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save
from sqlalchemy import select

from app.boards.robustbench import import_files
from app.boards.robustbench_export import model_info
from app.db import migrations
from app.db.database import Database
from app.db.tables import Entry
from gkl.errors import InvalidInput
from gkl.formats.safetensors_header import read_header
from gkl.formats.torch_archive import check_torch_file

_MOST_SECONDS = 5.0
_EDITS = 6


@dataclass
class Tried:
    """What a target has seen."""

    directory: Path
    database: Database
    counts: Counter[str] = field(default_factory=Counter)
    slowest_seconds: float = 0.0


@contextmanager
def opened() -> Iterator[Tried]:
    with tempfile.TemporaryDirectory() as name:
        database = Database(f"sqlite:///{name}/fuzz.sqlite3")
        try:
            migrations.upgrade(database)
            yield Tried(Path(name), database)
        finally:
            database.close()


# --- files -------------------------------------------------------------------------------------------------------

_LIMITS = [2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63)]
_numbers = st.one_of(st.integers(-2, 20), st.sampled_from(_LIMITS), st.integers())
_words = st.one_of(
    st.sampled_from(["a", "b", "weight", "__metadata__", "dtype", "shape", "", "\ud800"]), st.text(max_size=8)
)
_values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), _numbers, st.floats(), _words),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_words, inner, max_size=4)),
    max_leaves=6,
)
_FORMATS = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "U8": 1, "BOOL": 1, "F64": 8, "F8_E4M3": 1, "I16": 2, "U32": 4}
_OTHER_FORMATS = ["F4", "F6_E2M3", "F8_E8M0", "C64", "f32", "", "F128"]
_TOKENS = [
    *(b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\u0000", b"\\ud800", b"-", b"0", b"9", b"1e3", b".", b" "),
    *(b"null", b"true", b"NaN", b"\xff", b"\x00", b"\xc3\xa9", b"\xed\xa0\x80", b"\n", b"\xef\xbb\xbf"),
    b"PK\x01\x02",
]


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """Mostly whole files, with something wrong in their header."""
    tensors: dict[str, Any] = {}
    begin = 0
    for name in draw(st.lists(_words, max_size=4, unique=True)):
        dtype = draw(st.sampled_from(sorted(_FORMATS)))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        size = _FORMATS[dtype]
        for length in shape:
            size *= length
        tensors[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + size]}
        begin += size
    if tensors and draw(st.booleans()):
        changed, other = (tensors[draw(st.sampled_from(sorted(tensors)))] for _ in range(2))
        moved = [place + draw(st.sampled_from([-4, -1, 0, 0, 1, 4])) for place in changed["data_offsets"]]
        key = draw(st.one_of(st.sampled_from(["dtype", "shape", "data_offsets"]), _words))
        known = st.sampled_from([moved, other["data_offsets"], other["shape"], *_OTHER_FORMATS, *_FORMATS])
        changed[key] = draw(st.one_of(known, _values, st.lists(_numbers, max_size=4)))
    if draw(st.booleans()):
        tensors["__metadata__"] = draw(st.one_of(_values, st.dictionaries(_words, _words, max_size=3)))
    text = json.dumps(tensors, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    text += b" " * draw(st.integers(0, 9))
    if draw(st.booleans()):
        text = draw(edited(text))
    length = draw(st.one_of(st.just(len(text)), st.just(len(text)), st.integers(0, 2**64 - 1)))
    data = bytes(max(0, begin + draw(st.sampled_from([0, 0, 0, 0, 1, -1, 8]))))
    return length.to_bytes(8, "little") + text + data


def edited(original: bytes) -> st.SearchStrategy[bytes]:
    """Some bytes of it replaced, left out, or there twice."""
    place = st.integers(0, len(original))
    edits = st.tuples(place, place, st.one_of(st.sampled_from(_TOKENS), st.binary(max_size=6), st.just(original[:40])))

    def apply(chosen: list[tuple[int, int, bytes]]) -> bytes:
        content = original
        for at, length, new in chosen:
            content = content[:at] + new + content[at + length % 8 :]
        return content

    return st.lists(edits, max_size=_EDITS).map(apply)


def archives(samples: list[bytes]) -> st.SearchStrategy[bytes]:
    return st.sampled_from(samples).flatmap(edited).map(lambda content: b"PK\x03\x04" + content[4:])


def pickles(samples: list[bytes]) -> st.SearchStrategy[bytes]:
    mangled = st.one_of(st.sampled_from(samples).flatmap(edited), st.binary(max_size=200))
    return mangled.map(lambda content: b"\x80\x02" + content[2:])


_KEYS = (
    *("link", "name", "authors", "dataset", "venue", "architecture", "clean_acc", "additional_data", "eps", "reported"),
    *("number_forward_passes", "autoattack_acc", "external", "unreliable", "footnote", "corruptions_acc"),
    *("corruptions_mce", "corruptions_acc_3d", "corruptions_mce_3d"),
)
_ODD = ["8/255", "71.2", "1/0", "0.5", "nan", "1e9", "\0", "\ud800", "<b>x", "$\\ell_2", "NeurIPS 2020", "9" * 400]
_texts = st.one_of(st.text(), st.sampled_from(_ODD))
_infos = st.dictionaries(st.one_of(st.sampled_from(_KEYS), _texts), st.one_of(_texts, _values), max_size=12)
_names = st.one_of(
    st.tuples(
        st.sampled_from(["cifar10", "imagenet", "digits"]),
        st.sampled_from(["Linf", "L2", "corruptions", "corruptions_3d", "Linf-0.1", "Linf-1-0"]),
        st.one_of(st.sampled_from(["A", "B"]), st.text(max_size=10)),
    ).map(lambda parts: "/".join(parts) + ".json"),
    st.text(max_size=40),
)


@st.composite
def descriptions(draw: st.DrawFn) -> tuple[str, bytes]:
    text = json.dumps(draw(_infos), ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    content = draw(st.one_of(st.just(text), edited(text), st.binary(max_size=60)))
    return draw(_names), content


# --- what must hold ----------------------------------------------------------------------------------------------


def check_header(tried: Tried, content: bytes) -> None:
    """Either it is refused in words, or safetensors reads the same in it."""
    path = tried.directory / "file"
    path.write_bytes(content)
    try:
        found = read_header(path)
    except InvalidInput as error:
        assert len(str(error)) < 1000, "a sentence"
        tried.counts["refused"] += 1
        return
    tried.counts["accepted"] += 1
    try:
        theirs = dict(deserialize(content))
    except SafetensorError as error:
        raise AssertionError(f"safetensors refuses it: {error}") from error
    assert theirs.keys() == found.keys()
    for name, each in found.items():
        assert (each.dtype, list(each.shape)) == (theirs[name]["dtype"], theirs[name]["shape"])


def check_torch(tried: Tried, content: bytes) -> None:
    """Either it is refused in words, or it passes; nothing else happens."""
    path = tried.directory / "file"
    path.write_bytes(content)
    try:
        check_torch_file(path)
    except InvalidInput as error:
        assert len(str(error)) < 1000, "a sentence"
        tried.counts["refused"] += 1
    else:
        tried.counts["accepted"] += 1


def check_import(tried: Tried, given: tuple[str, bytes]) -> None:
    """It is reported on, and what is taken comes out again as it went in, the second time as nothing new."""
    report = import_files(tried.database, [given])
    assert report.added + report.changed + report.unchanged + report.refused == 1
    report.model_dump_json()
    if report.refused:
        assert report.anomalies
        tried.counts["refused"] += 1
        return
    tried.counts["accepted"] += 1
    assert import_files(tried.database, [given]).unchanged == 1
    dataset, board, file = given[0].split("/")[-3:]
    with tried.database.reading() as session:
        where = Entry.dataset == dataset, Entry.board == board, Entry.slug == file.removesuffix(".json")
        exported = model_info(session.scalars(select(Entry).where(*where)).one())
    assert exported.encode() == given[1]
    json.loads(exported)


def targets() -> dict[str, tuple[st.SearchStrategy[Any], Callable[[Tried, Any], None]]]:
    import torch  # noqa: PLC0415 - takes seconds

    samples: dict[bool, list[bytes]] = {True: [], False: []}
    for zipped, state in ((z, s) for z in (True, False) for s in ({"a": torch.zeros(2)}, {"state_dict": {}, "n": 1})):
        file = io.BytesIO()
        torch.save(state, file, _use_new_zipfile_serialization=zipped)
        samples[zipped].append(file.getvalue())
    whole = save({"a": torch.zeros(3, 2).numpy(), "b": torch.zeros(2, dtype=torch.int64).numpy()}, {"x": "y"})
    return {
        "safetensors headers": (st.one_of(headers(), edited(whole)), check_header),
        "archives of torch.save": (archives(samples[True]), check_torch),
        "pickles of torch.save": (pickles(samples[False]), check_torch),
        "model_info": (descriptions(), check_import),
    }


def fuzz(
    seconds: float, *, first_seed: int = 0, files_per_round: int = 500, rounds: int | None = None
) -> tuple[dict[str, Tried], list[str]]:
    """Try files of each kind in turn until the time or the rounds are over.

    Returns:
        What was tried, and each finding in words.
    """
    findings: list[str] = []
    end, number = time.monotonic() + seconds, first_seed
    tried: dict[str, Tried] = {}
    with opened() as room:
        kinds = targets()
        tried = {kind: Tried(room.directory, room.database) for kind in kinds}
        while time.monotonic() < end and (rounds is None or number < first_seed + rounds):
            number += 1
            for kind, (files, check) in kinds.items():
                if time.monotonic() < end:
                    findings += _round(kind, files, check, tried[kind], number=number, count=files_per_round, end=end)
    return tried, findings


class _TimeIsOver(BaseException):
    pass


def _round(
    kind: str,
    files: st.SearchStrategy[Any],
    check: Callable[[Tried, Any], None],
    tried: Tried,
    *,
    number: int,
    count: int,
    end: float,
) -> list[str]:
    smallest: list[object] = []

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(files)
    def one(given_file: Any) -> None:
        started = time.monotonic()
        if not smallest and started > end:
            raise _TimeIsOver
        tried.counts["tried"] += 1
        try:
            check(tried, given_file)
        except BaseException:
            smallest.append(given_file)
            raise
        took = time.monotonic() - started
        tried.slowest_seconds = max(tried.slowest_seconds, took)
        assert took < _MOST_SECONDS, f"took {took:.1f} s"

    try:
        one()
    except _TimeIsOver:
        pass
    except Exception:  # noqa: BLE001 - whatever it is, it is a finding
        return [f"{kind}, seed {number}: {smallest[-1:]!r:.2000}\n{traceback.format_exc(limit=-3)}"]
    return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31), help="of the first round")
    options = parser.parse_args()
    tried, findings = fuzz(options.seconds, first_seed=options.seed)
    print(f"first seed {options.seed}")
    for kind, each in tried.items():
        counts = each.counts
        print(
            f"{kind}: {counts['tried']} tried, {counts['accepted']} accepted, {counts['refused']} refused, "
            f"the slowest in {each.slowest_seconds * 1000:.0f} ms"
        )
    print(f"most memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    print(f"{len(findings)} findings")
    for finding in findings:
        print(finding)
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
