"""Files that somebody could send as weights, to do harm or by mistake. Each of the functions makes one kind."""

from __future__ import annotations

import collections
import gzip
import io
import json
import os
import pickle
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from gkl.models import build_model

Make = Callable[[], bytes]


@dataclass(frozen=True)
class Hostile:
    make: Make
    says: str
    """In the sentence that refuses it."""


# --- safetensors -------------------------------------------------------------------------------------------------


def safetensors(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file with this header: bytes as they are, anything else as JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(begin: int = 0, end: int = 8, **changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [begin, end]} | changes


def one(**changes: object) -> bytes:
    """A tensor that is well but for the changes."""
    return safetensors({"weight": tensor(**changes)}, bytes(8))


_WHOLE = save({"weight": torch.zeros(1000)})

SAFETENSORS = {
    "cut in the length": Hostile(lambda: _WHOLE[:5] + b"   {", "neither safetensors nor|header claims"),
    "cut in the header": Hostile(lambda: _WHOLE[:30], "was it cut off"),
    "cut in the tensors": Hostile(lambda: _WHOLE[:-1], "was it cut off"),
    "more than the tensors": Hostile(lambda: _WHOLE + b"x", "was it cut off"),
    "header longer than the file": Hostile(lambda: safetensors({}, length=10**6), "was it cut off"),
    "header of 2^64 - 1 bytes": Hostile(lambda: safetensors({}, length=2**64 - 1), "at most 8388608"),
    "header of 9 MiB": Hostile(
        lambda: safetensors({"__metadata__": {"a": "x" * 9 * 2**20}}), "at most 8388608 are read"
    ),
    "header too short": Hostile(lambda: safetensors({"weight": tensor()}, bytes(8), length=9), "invalid JSON"),
    "no JSON": Hostile(lambda: safetensors(b"{weight: 1}"), "invalid JSON"),
    "not UTF-8": Hostile(lambda: safetensors(b'{"\xff": 1}'), "invalid UTF-8"),
    "half a character": Hostile(lambda: safetensors({"\ud800": tensor()}, bytes(8)), "invalid JSON"),
    "deep lists": Hostile(lambda: safetensors(b'{"a":' + b"[" * 15_000), "recursion limit"),
    "deeper lists": Hostile(lambda: safetensors(b'{"a":' + b"[" * 5_000_000), "recursion limit"),
    "deep objects": Hostile(lambda: safetensors(b'{"a":' * 9_000), "recursion limit"),
    "millions of empty lists": Hostile(lambda: safetensors(b'{"a":[' + b"[]," * 2_000_000), "invalid JSON"),
    "100000 tensors": Hostile(
        lambda: safetensors({f"t{i}": tensor(0, 0, shape=[0]) for i in range(100_000)}), "more than 10000"
    ),
    "the same key twice": Hostile(
        lambda: safetensors(b'{"a":{"dtype":"F32","dtype":"F64","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
        "duplicate field",
    ),
    "no tensor": Hostile(lambda: safetensors({}), "holds no tensor"),
    "a list": Hostile(lambda: safetensors([tensor()], bytes(8)), "neither safetensors nor"),
    "tensor without a shape": Hostile(lambda: safetensors({"a": {"dtype": "F32"}}), "missing field `shape`"),
    "metadata that is no text": Hostile(lambda: safetensors({"__metadata__": {"a": [1]}}), "expected a string"),
    "unknown format": Hostile(lambda: one(dtype="object"), "unknown variant `object`"),
    "format that is no text": Hostile(lambda: one(dtype=["F32"]), "expected string"),
    "negative size": Hostile(lambda: one(shape=[-2]), "`-2`, expected usize"),
    "broken size": Hostile(lambda: one(shape=[2.0]), "`2.0`, expected usize"),
    "size that is no number": Hostile(lambda: one(shape=[True, 2]), "`true`, expected usize"),
    "size NaN": Hostile(lambda: one(shape=[float("nan")]), "invalid JSON"),
    "size of a million digits": Hostile(
        lambda: safetensors(b'{"a":{"dtype":"F32","shape":[' + b"9" * 10**6 + b"]}}"), "number out of range"
    ),
    "huge shape, tiny data": Hostile(lambda: one(shape=[2**30, 2**20]), "invalid shape"),
    "shape that overflows": Hostile(lambda: one(shape=[2**62, 2**62, 2**5]), "overflow"),
    "hundreds of dimensions": Hostile(lambda: one(shape=[1] * 200 + [2]), "201 dimensions"),
    "too few bytes": Hostile(lambda: one(end=4), "invalid shape"),
    "end before begin": Hostile(lambda: one(begin=8, end=0), "invalid offset"),
    "offsets outside the file": Hostile(lambda: one(begin=10**6, end=10**6 + 8), "invalid offset"),
    "offsets beyond 64 bits": Hostile(lambda: one(begin=2**70, end=2**70 + 8), "expected usize"),
    "overlapping tensors": Hostile(
        lambda: safetensors({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12)), "invalid offset"
    ),
    "the same bytes twice": Hostile(
        lambda: safetensors({"a": tensor(0, 8), "b": tensor(0, 8)}, bytes(8)), "invalid offset"
    ),
    "a hole": Hostile(lambda: safetensors({"a": tensor(0, 8), "b": tensor(16, 24)}, bytes(24)), "invalid offset"),
    "a hole at the begin": Hostile(lambda: safetensors({"a": tensor(8, 16)}, bytes(16)), "invalid offset"),
}


# --- torch.save --------------------------------------------------------------------------------------------------


class Calls:
    """Unpickling it calls something."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.what = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.what


def saved(content: object, *, zipped: bool = True, protocol: int = 2) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    return file.getvalue()


def zipped(entries: dict[str, bytes], **changes: int) -> bytes:
    """An archive whose entries all have these attributes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            for attribute, value in changes.items():
                setattr(info, attribute, value)
            archive.writestr(info, content)
    return file.getvalue()


def unzipped(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def torchscript() -> bytes:
    import warnings

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), file)
    return file.getvalue()


def exported() -> bytes:
    """The layout of torch.export.save, which takes seconds to make one."""
    names = ("archive_format", "archive_version", "models/model.json", "data/weights/weight_0", "version")
    return zipped({f"model/{name}": b"pt2" for name in names})


def overlapping() -> bytes:
    """Two entries of the index that are the same bytes, as in a zip bomb without compression."""
    plain = bytearray(zipped({"a/data.pkl": pickle.dumps({}, protocol=2), "a/data/0": bytes(100)}))
    second = plain.rindex(b"PK\x01\x02")
    plain[second + 42 : second + 46] = struct.pack("<I", 0)
    # With the first one's name, or the standard library would tell first.
    return bytes(plain)


def lying_size() -> bytes:
    """An entry that is said to have 1 TiB."""
    plain = bytearray(saved({"a": torch.zeros(10)}))
    index = plain.rindex(b"PK\x01\x02")
    plain[index + 20 : index + 28] = struct.pack("<II", 2**32 - 2, 2**32 - 2)
    return bytes(plain)


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        info = tarfile.TarInfo("storages")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"code"))
    return file.getvalue()


def torch_files(canary: Path) -> dict[str, Hostile]:
    """Those that would make the canary if their code ran, and the rest."""
    touch = f"touch {canary}"
    runs = {
        "os.system": Calls(os.system, touch),
        "exec": Calls(exec, f"open({str(canary)!r}, 'w')"),
        "getattr": Calls(getattr, Path(canary), "touch"),
        "subprocess": Calls(__import__("subprocess").Popen, ["touch", str(canary)]),
        "torch.load again": Calls(torch.load, str(canary)),
    }
    state = {"weight": torch.zeros(10)}
    plain = saved(state)
    entries = unzipped(plain)
    inner = next(iter(entries)).partition("/")[0]
    module = nn.Sequential(nn.Linear(2, 2))
    bomb = {f"{inner}/data.pkl": entries[f"{inner}/data.pkl"], f"{inner}/data/0": bytes(10**7)}
    sparse = torch.eye(3).to_sparse()
    deep = b"\x80\x02" + b"]" * 3_000_000 + b"."
    return {
        **{
            f"pickle that runs {name}": Hostile(lambda p=p: pickle.dumps(p, 2), "holds a pickled")
            for name, p in runs.items()
        },
        **{f"archive that runs {name}": Hostile(lambda p=p: saved(p), "holds a pickled") for name, p in runs.items()},
        "pickle of protocol 4 that runs os.system": Hostile(
            lambda: pickle.dumps(runs["os.system"], 4), "holds a pickled posix.system"
        ),
        "archive of protocol 4 that runs os.system": Hostile(
            lambda: saved(runs["os.system"], protocol=4), "holds a pickled posix.system"
        ),
        "old archive that runs os.system": Hostile(
            lambda: saved({"weight": runs["os.system"]}, zipped=False), "holds a pickled posix.system"
        ),
        "state dict with a payload beside it": Hostile(
            lambda: saved({"state_dict": state, "epoch": runs["os.system"]}), "holds a pickled posix.system"
        ),
        "whole module": Hostile(lambda: saved(module), "holds a pickled torch.nn.modules.container.Sequential"),
        "pickled module": Hostile(lambda: pickle.dumps(module, 2), "holds a pickled torch.nn.modules"),
        "object array": Hostile(
            lambda: saved({"weight": __import__("numpy").array([{}, None])}), "holds a pickled numpy"
        ),
        "plain pickle": Hostile(lambda: pickle.dumps({"weight": 1}, 2), "torch.save did not write"),
        "registered object": Hostile(lambda: b"\x80\x02\x82\x01.", "object of the extension registry"),
        "pickle cut off": Hostile(lambda: b"\x80\x02}q\x00(X\x05", "its pickle is damaged"),
        "pickle of unknown steps": Hostile(lambda: b"\x80\x02\xff\xff", "its pickle is damaged"),
        "pickle of a text of 4 GiB": Hostile(lambda: b"\x80\x02X\xff\xff\xff\xff", "its pickle is damaged"),
        "pickle of millions of steps": Hostile(lambda: deep, "more than 2000000 steps"),
        "huge data.pkl": Hostile(lambda: zipped({"a/data.pkl": bytes(17 * 2**20)}), "more than 16777216"),
        "sparse tensors": Hostile(lambda: saved({"weight": sparse}), "holds sparse tensors"),
        "quantized tensors": Hostile(
            lambda: saved({"weight": Calls(torch._utils._rebuild_qtensor, 0)}), "holds quantized tensors"
        ),
        "tensors without values": Hostile(
            lambda: saved({"weight": torch.zeros(3, device="meta")}), "tensors without values"
        ),
        "TorchScript": Hostile(torchscript, "is a TorchScript program"),
        "exported program": Hostile(exported, "is an exported program"),
        "old exported program": Hostile(
            lambda: zipped({"serialized_exported_program.json": b"{}", "version": b"1"}), "is an exported program"
        ),
        "zip of other things": Hostile(lambda: zipped({"a/readme.txt": b"hello"}), "without data.pkl"),
        "npz": Hostile(lambda: zipped({"weight.npy": b"hello"}), "NumPy arrays"),
        "empty zip": Hostile(lambda: b"PK\x03\x04" + zipped({}), "begin with an entry|damaged|data.pkl"),
        "zip bomb": Hostile(lambda: zipped(bomb, compress_type=zipfile.ZIP_DEFLATED), "compressed entry"),
        "zip bomb of bzip2": Hostile(lambda: zipped(bomb, compress_type=zipfile.ZIP_BZIP2), "compressed entry"),
        "zip of a size that is none": Hostile(lying_size, "claims to hold more bytes than the file"),
        "zip of too many entries": Hostile(
            lambda: zipped(dict.fromkeys(map(str, range(20_001)), b"")), "entries, more"
        ),
        "zip with a link": Hostile(
            lambda: zipped({"a/data.pkl": b"/etc/passwd"}, external_attr=(stat.S_IFLNK | 0o777) << 16),
            "its pickle is damaged",
        ),
        "zip that leads out": Hostile(lambda: zipped({"a/../../data.pkl": b""}), "without data.pkl"),
        "zip of the whole disk": Hostile(lambda: zipped({"/etc/passwd": b""}), "without data.pkl"),
        "zip with a drive's path": Hostile(lambda: zipped({"a\\..\\data.pkl": b""}), "without data.pkl"),
        "zip that is encrypted": Hostile(lambda: encrypted(entries), "is encrypted"),
        "zip with an entry twice": Hostile(lambda: twice(entries), "an entry twice"),
        "zip of two folders": Hostile(lambda: zipped({**entries, "b/data/0": b""}), "several folders"),
        "zip cut in the first entry": Hostile(lambda: plain[:40], "damaged or cut off"),
        "zip cut in the tensors": Hostile(lambda: plain[: len(plain) // 2], "damaged or cut off"),
        "zip cut in the index": Hostile(lambda: plain[:-30], "damaged or cut off"),
        "zip with another checksum": Hostile(
            lambda: plain.replace(b"torch._utils\n", b"torch.Xtils\n\n", 1), "damaged or cut off"
        ),
        "old archive cut off": Hostile(lambda: saved(state, zipped=False)[:60], "its pickle is damaged"),
    }


def encrypted(entries: dict[str, bytes]) -> bytes:
    """Marked as such, in the index, as the standard library writes none."""
    plain = bytearray(zipped(entries))
    index = plain.index(b"PK\x01\x02")
    plain[index + 8] |= 1
    return bytes(plain)


def twice(entries: dict[str, bytes]) -> bytes:
    import warnings

    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as archive:
        warnings.simplefilter("ignore")
        for name in (*entries, next(iter(entries))):
            archive.writestr(name, b"")
    return file.getvalue()


OTHER = {
    "empty": Hostile(lambda: b"", "neither safetensors nor"),
    "one byte": Hostile(lambda: b"\x80", "neither safetensors nor"),
    "zeros": Hostile(lambda: bytes(4096), "neither safetensors nor"),
    "text": Hostile(lambda: b"#!/bin/sh\nrm -rf /\n", "neither safetensors nor"),
    "program": Hostile(lambda: b"\x7fELF" + bytes(100), "neither safetensors nor"),
    "HTML": Hostile(lambda: b"<!DOCTYPE html><html>Quota exceeded</html>", "is an HTML page"),
    "XML": Hostile(lambda: b"\n  <?xml version='1.0'?><Error>AccessDenied</Error>", "is an HTML page"),
    "JSON": Hostile(lambda: b'{"error": "not found"}', "neither safetensors nor"),
    "gzip": Hostile(lambda: gzip.compress(_WHOLE), "is a gzip archive"),
    "tar, and torch before 0.2": Hostile(tar, "is a tar archive"),
    "7z": Hostile(lambda: b"7z\xbc\xaf\x27\x1c" + bytes(50), "is a 7z archive"),
    "numpy": Hostile(lambda: b"\x93NUMPY\x01\x00" + bytes(50), "neither safetensors nor"),
    "HDF5": Hostile(lambda: b"\x89HDF\r\n\x1a\n" + bytes(50), "neither safetensors nor"),
    "pickle of protocol 0": Hostile(lambda: b"cposix\nsystem\n(S'true'\ntR.", "neither safetensors nor"),
}


# --- judged only with the architecture, or by reading it ---------------------------------------------------------


def network() -> dict[str, torch.Tensor]:
    return dict(build_model("tiny_cnn", "digits").state_dict())


def changed(name: str, value: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """tiny_cnn's state dict with another tensor under the first name that ends so."""
    state = network()
    key = next(key for key in state if key.endswith(name))
    if value is None:
        del state[key]
    else:
        state[key] = value
    return state


def floats(change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: change(t) if t.is_floating_point() else t for name, t in network().items()}


def with_pickle(pickled: bytes) -> bytes:
    """An archive that passes for one of torch.save, with this in it."""
    return zipped({"a/data.pkl": pickled, "a/data/0": bytes(64), "a/version": b"3\n", "a/byteorder": b"little"})


def of_storage(kind: str, *identity: object) -> bytes:
    """A pickle of a dictionary with one tensor, of ten numbers, of a storage that is called so."""

    class Saved(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return identity if isinstance(value, torch.UntypedStorage) else None

    file = io.BytesIO()
    rebuilt = Calls(
        torch._utils._rebuild_tensor_v2, torch.UntypedStorage(64), 0, (10,), (1,), False, collections.OrderedDict()
    )
    Saved(file, protocol=2).dump({kind: rebuilt})
    return file.getvalue()


FOR_THE_ARCHITECTURE = {
    "another network": Hostile(lambda: save({"layer.weight": torch.zeros(3)}), "lacks the tensor"),
    "another network, of torch.save": Hostile(lambda: saved({"layer.weight": torch.zeros(3)}), "lacks the tensor"),
    "a tensor too few": Hostile(lambda: save(changed("weight", None)), "lacks the tensor"),
    "a tensor too many": Hostile(lambda: save(network() | {"extra": torch.zeros(1)}), "has a tensor 'extra' that the"),
    "wrong shape": Hostile(lambda: save(changed("weight", torch.zeros(2, 2))), "choose the architecture it was"),
    "whole numbers": Hostile(
        lambda: save(changed("bias", torch.zeros(16, dtype=torch.int64))), "choose the architecture it was"
    ),
    "NaN": Hostile(lambda: save(floats(lambda t: t * torch.nan)), "NaN or infinite"),
    "infinite, of torch.save": Hostile(lambda: saved(floats(lambda t: t / 0)), "NaN or infinite"),
    "beyond float32": Hostile(lambda: save(floats(lambda t: t.double() + 1e300)), "NaN or infinite"),
}
FOR_THE_READER = {
    "zip bomb of overlaps": Hostile(overlapping, "cannot be read as a state dict"),
    "zip with something before it": Hostile(
        lambda: b"PK\x03\x04" + saved({"weight": torch.zeros(3)}), "cannot be read as a state dict"
    ),
    "tensor of 4 TB out of one number": Hostile(
        lambda: saved({"weight": torch.zeros(1).expand(10**12)}), "too much memory or disk space for a file of its size"
    ),
    "tensor of 4 GB out of one number": Hostile(
        lambda: saved({"weight": torch.zeros(1).expand(10**9)}), "too much memory or disk space for a file of its size"
    ),
    "no tensors": Hostile(lambda: saved({"weight": "text"}), "holds no state dict"),
    "a tensor alone": Hostile(lambda: saved(torch.zeros(3)), "holds no state dict"),
    "numbers for names": Hostile(lambda: saved({1: torch.zeros(3)}), "holds no state dict"),
    "dictionary in itself": Hostile(
        lambda: saved(in_itself()), "holds no state dict|too much processor time|took more"
    ),
    "storage that is none": Hostile(
        lambda: with_pickle(of_storage("weight", "storage", torch.FloatStorage, "../../etc/passwd", "cpu", 10)),
        "cannot be read as a state dict",
    ),
    "storage larger than its file": Hostile(
        lambda: with_pickle(of_storage("weight", "storage", torch.FloatStorage, "0", "cpu", 10**12)),
        "cannot be read as a state dict|too much memory",
    ),
    "storage in a storage": Hostile(
        lambda: with_pickle(of_storage("weight", ("storage",), torch.FloatStorage, "0", "cpu", 10)),
        "cannot be read as a state dict",
    ),
    "module of persistent id": Hostile(
        lambda: with_pickle(of_storage("weight", "module", torch.FloatStorage, "0", "cpu")), "cannot be read as a state"
    ),
    "call of what may not be called": Hostile(
        lambda: with_pickle(b"\x80\x02ctorch\nfloat32\n)R."), "cannot be read as a state dict"
    ),
    "empty stack": Hostile(lambda: with_pickle(b"\x80\x02R."), "cannot be read as a state dict"),
    "set of bytes": Hostile(
        lambda: with_pickle(b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R."),
        "holds no state dict|too much memory",
    ),
    "complex numbers": Hostile(lambda: saved({"weight": torch.zeros(3, dtype=torch.complex128)}), "safetensors cannot"),
}


def in_itself() -> dict[str, object]:
    content: dict[str, object] = {}
    content["state_dict"] = content
    return content
