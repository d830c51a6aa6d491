"""What a stranger may hide in a folder, made on copies of sound ones, and whether it is refused.

Each attack changes a copy and says what the refusal must say. As a script, `python -O attacks.py HOME`, it tries all of
them and prints what became of each as JSON: checks must not hang on `assert`.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import resource
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

ATTACKS: dict[str, tuple[str, str, Callable[[Path], Any]]] = {}
"""By name: what is attacked, what the refusal says, and what changes the copy."""
SECONDS = 60


def attack(target: str, says: str, name: str | None = None) -> Callable[[Callable[[Path], Any]], Callable[[Path], Any]]:
    def add(change: Callable[[Path], Any]) -> Callable[[Path], Any]:
        called = f"{target}: {name or change.__name__.replace('_', ' ')}"
        assert called not in ATTACKS
        ATTACKS[called] = target, says, change
        return change

    return add


class Bomb:
    """Makes the canary where it is unpickled."""

    def __reduce__(self) -> Any:
        return open, (str(canary()), "w")


def canary() -> Path:
    return Path(os.environ["CANARY"])


def code() -> str:
    return f"open({str(canary())!r}, 'w')\n\nclass Model:\n    pass\n"


def a_pickle(protocol: int = 4) -> bytes:
    return pickle.dumps(Bomb(), protocol=protocol)


def torch_pickle(path: Path) -> None:
    torch.save({"weight": Bomb()}, path)


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def put(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def listed(folder: Path, *more: str) -> None:
    """The attacker's list of files is right: every hash is that of what lies there."""
    content = json.loads((folder / "bundle.json").read_text())
    for name in [*content["files"], *more]:
        path = folder / name
        if path.is_file() and not path.is_symlink():
            content["files"][name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "bundle.json").write_text(json.dumps(content))


def encoder(folder: Path, kind: str = "text") -> Path:
    return next((folder / "backbones").glob(f"{kind}*"))


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensor(dtype: str = "F32", shape: Any = (2,), place: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(place)}


HEADERS: dict[str, tuple[bytes, str]] = {
    "header of 2^63": (safetensors({}, length=2**63), r"9,223,372,036,854,775,808 bytes"),
    "header longer than the file": (safetensors({}, length=1000), "1,000 bytes, of a file"),
    "header that is a list": (safetensors([1]), "no list of tensors"),
    "header that is no JSON": (safetensors(b"\xff" * 30), "utf-8|JSON|Expecting"),
    "header of brackets": (safetensors(b"[" * 300_000), "nested too deeply"),
    "overlap": (safetensors({"a": tensor(), "b": tensor(place=(4, 12))}, b"0" * 12), "overlap"),
    "gap": (safetensors({"a": tensor(), "b": tensor(place=(12, 20))}, b"0" * 20), "overlap or leave gaps"),
    "past the end": (safetensors({"a": tensor(shape=(2000,), place=(0, 8000))}, b"0" * 8), "end at byte"),
    "more data": (safetensors({"a": tensor()}, b"0" * 80), "end at byte"),
    "lying shape": (safetensors({"a": tensor(shape=(2**40, 2**40))}, b"0" * 8), "is not 8 bytes"),
    "negative shape": (safetensors({"a": tensor(shape=(-1, -2))}, b"0" * 8), "cannot be"),
    "a shape of text": (safetensors({"a": {**tensor(), "shape": "22"}}, b"0" * 8), "cannot be"),
    "no such dtype": (safetensors({"a": tensor(dtype="PICKLE")}, b"0" * 8), "dtype that there is not"),
    "another key": (safetensors({"a": {**tensor(), "auto_map": "x"}}, b"0" * 8), "not a tensor's"),
    "empty": (b"", "0 bytes|of a file"),
}


def giant_header(path: Path) -> None:
    with path.open("wb") as file:
        file.write((200 * 2**20).to_bytes(8, "little"))
        file.truncate(200 * 2**20 + 16)


def overlong(path: Path) -> None:
    """The dtype of one tensor is another of the same size."""
    state = load_file(path)
    name = next(name for name, value in state.items() if value.dtype == torch.float32 and value.numel())
    save_file({**state, name: torch.ones(state[name].shape, dtype=torch.int32)}, path)


def pipe(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    path.unlink(missing_ok=True)
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def link(path: Path, target: Path | None = None) -> None:
    """What lay there lies elsewhere, and a link leads to it."""
    moved = path.with_name(path.name + ".elsewhere") if target is None else target
    if target is None:
        moved = Path(tempfile.mkdtemp(dir=canary().parent)) / path.name
        shutil.move(path, moved)
    path.symlink_to(moved)


BRACKETS = "[" * 20_000 + "]" * 20_000
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


def yamls() -> dict[str, tuple[str, str]]:
    """By name, a text and what its refusal says."""
    run = f"[\"touch '{canary()}'\"]"
    return {
        "apply": (f"train: !!python/object/apply:os.system {run}", "python/object/apply"),
        "new": (f"train: !!python/object/new:os.system {run}", "python/object/new"),
        "name": ("train: !!python/name:os.system", "python/name"),
        "module": ("train: !!python/module:os", "python/module"),
        "own tag": ("train: !evil x", "evil"),
        "tag as a key": ("? !!python/object/apply:os.getpid []\n: 1", "python|key"),
        "laughs": (LAUGHS, "anchors make too much"),
        "merged laughs": (
            "a: &a {x: 1}\n"
            + "".join(
                f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 9)}]}}\n"
                for old, new in zip("abcdefgh", "bcdefghi", strict=True)
            ),
            "anchors make too much",
        ),
        "itself": ("a: &a [*a]", "contains itself"),
        "brackets": (BRACKETS, "nested too deeply"),
        "indents": ("".join(" " * depth + "a:\n" for depth in range(1200)), "nested too deeply"),
        "digits": ("seed: " + "9" * 10_000, "value cannot be read|digits|limit"),
        "a day that is none": ("seed: 2024-02-31", "cannot be read|day"),
        "list as a key": ("? [a]\n: b", "key that is no text"),
        "two documents": ("a: 1\n---\nb: 2\n", "single document"),
        "large": ("# " + "x" * 5_000_000, "at most"),
        "code": ("text: {name: x, trust_remote_code: true}", "trust_remote_code"),
        "map of code": ("text: {name: x, auto_map: {AutoModel: evil.Model}}", "auto_map"),
    }


def make_attacks() -> None:
    """Fill `ATTACKS`."""
    for make in (on_models, on_backbones, on_runs, on_yaml):
        make()


def on_models() -> None:
    places = {
        "stray.pkl": "is a pickle",
        "notes.txt": "is a pickle",
        ".hidden": "is a pickle",
        "stack/0-0.pkl": "no file of a model folder",
        "README.md": "is a pickle",
        "report.html": "is a pickle",
        "rejected.jsonl": "is a pickle",
        "logs/events": "is a pickle",
        "logs/run/model.pt": "may run code",
        "checkpoints/tune/optimizer.bin": "may run code",
        ".bundle.json.123": "is a pickle",
    }
    for place, says in places.items():
        attack("model", says, f"a pickle as {place}")(lambda f, place=place: put(f / place, a_pickle()))
    for place in ("evil.json", "backbones/KEY/vocab.txt", "backbones/KEY/spiece.model", "stack/0-0.txt"):
        for protocol in (0, 4):

            @attack("model", "is a pickle", f"a listed pickle of protocol {protocol} as {place}")
            def _(folder: Path, place: str = place, protocol: int = protocol) -> None:
                name = place.replace("KEY", encoder(folder).name)
                put(folder / name, a_pickle(protocol))
                listed(folder, name)

    for name in ("pytorch_model.bin", "optimizer.pt", "tokenizer.pkl", "vocab.npy", "model.joblib", "evil.py"):

        @attack("model", "no file of a model folder", f"{name}, listed")
        def _(folder: Path, name: str = name) -> None:
            path = encoder(folder) / name
            put(path, a_pickle() if name.endswith("pkl") else code())
            if name == "vocab.npy":
                np.save(path, np.asarray([Bomb()]), allow_pickle=True)
            elif name[-3:] in ("bin", ".pt"):
                torch_pickle(path)
            listed(folder, path.relative_to(folder).as_posix())

    @attack("model", "archive")
    def weights_by_torch_save(folder: Path) -> None:
        torch_pickle(folder / "model.safetensors")
        listed(folder)

    for protocol in (0, 4):

        @attack("model", "is a pickle", f"weights that are a pickle of protocol {protocol}")
        def _(folder: Path, protocol: int = protocol) -> None:
            put(folder / "model.safetensors", a_pickle(protocol))
            listed(folder)

    for name, (content, says) in HEADERS.items():

        @attack("model", says, f"weights: {name}")
        def _(folder: Path, content: bytes = content) -> None:
            put(folder / "model.safetensors", content)
            listed(folder)

    @attack("model", "at most 25,000,000")
    def weights_with_a_header_of_200_MB(folder: Path) -> None:
        giant_header(folder / "model.safetensors")
        listed(folder)

    @attack("model", "another dtype")
    def weights_of_another_dtype(folder: Path) -> None:
        overlong(folder / "model.safetensors")
        listed(folder)

    for name in ("../secret.txt", "/etc/hostname", "backbones/../../x", "a/./b.txt", "x\0y.json", "..", "a\\b.txt"):

        @attack("model", "outside itself", f"lists {name!r}")
        def _(folder: Path, name: str = name) -> None:
            put(folder.parent / "secret.txt", "secret")
            digest = hashlib.sha256(b"secret").hexdigest()
            edit(folder / "bundle.json", lambda content: content["files"].update({name: digest}))

    for key in ("../../elsewhere", "/tmp", "a/b", "x\0", "", 7, None, ["x"]):

        @attack("model", "outside itself|TypeError", f"an encoder in {key!r}")
        def _(folder: Path, key: Any = key) -> None:
            edit(folder / "bundle.json", lambda content: content["columns"]["note"].update(encoder=key))

    for name in ("model.safetensors", "README.md", "report.json", "config.yaml", "backbones", "logs"):
        attack("model", "is a link.*outside itself", f"{name} is a link")(lambda f, name=name: link(f / name))
    attack("model", "is a link", "a link among an encoder's files")(lambda f: link(encoder(f) / "tokenizer.json"))
    attack("model", "is a link", "a link to nothing")(lambda f: link(f / "logs" / "x", Path("/nowhere/at/all")))
    attack("model", "is a link", "a link to itself")(lambda f: link(f / "loop", f))
    attack("model", "is a link", "a link to a device")(lambda f: link(f / "report.md", Path("/dev/zero")))
    for name in ("model.safetensors", "README.md", "report.json", "more.json", "logs/events", "config.yaml"):
        attack("model", "is no file: a pipe", f"{name} is a pipe")(lambda f, name=name: pipe(f / name))
    attack("model", "is no file: a pipe", "a pipe among an encoder's files")(lambda f: pipe(encoder(f) / "config.json"))
    attack("model", "is no file: a socket", "a socket")(lambda f: a_socket(f / "README.md"))
    attack("model", "no model folder", "bundle.json is a pipe")(lambda f: pipe(f / "bundle.json"))

    for name in ("bundle.json", "report.json"):
        attack("model", "nested too deeply", f"{name} of brackets")(lambda f, name=name: put(f / name, BRACKETS))
        attack("model", "digits|limit", f"{name} of digits")(lambda f, name=name: put(f / name, "9" * 9999))
    attack("model", "cannot be read", "bundle.json of nothing")(lambda f: put(f / "bundle.json", "\0" * 99))

    for name, says in {"trust_remote_code": "trust_remote_code", "auto_map": "auto_map"}.items():
        value = True if name == "trust_remote_code" else {"AutoModel": "evil.Model"}
        changes: dict[str, Callable[[Any], Any]] = {
            "": lambda content, one: content.update(one),
            "of a column": lambda content, one: content["columns"]["note"].update(one),
            "of a task": lambda content, one: content["tasks"]["label"]["state"].update(one),
            "of the fusion": lambda content, one: content["fusion"].update(one),
        }
        for where, change in changes.items():

            @attack("model", says, f"{name} {where}")
            def _(folder: Path, change: Any = change, one: Any = {name: value}) -> None:  # noqa: B006
                put(folder / "evil.py", code())
                edit(folder / "bundle.json", lambda content: change(content, one))

        for file in ("config.json", "tokenizer_config.json", "backbone.json"):

            @attack("model", says, f"{name} in an encoder's {file}")
            def _(folder: Path, file: str = file, one: Any = {name: value}) -> None:  # noqa: B006
                put(encoder(folder) / "evil.txt", code())
                edit(encoder(folder) / file, lambda content: content.update(one))
                listed(folder, f"backbones/{encoder(folder).name}/evil.txt")

    for name, (text, says) in yamls().items():
        for file in ("config.yaml", "schema.yaml"):

            @attack("model", says, f"{file}: {name}")
            def _(folder: Path, file: str = file, text: str = text) -> None:
                put(folder / file, text)
                listed(folder)

    sizes: dict[str, Callable[[Any], Any]] = {
        "a wide encoder": lambda config: config.update(hidden_size=160_000, intermediate_size=10**9),
        "an encoder of many layers": lambda config: config.update(num_hidden_layers=10**9),
        "an encoder of many words": lambda config: config.update(vocab_size=10**12),
        "an encoder of many places": lambda config: config.update(max_position_embeddings=10**11),
        "an encoder of nonsense": lambda config: config.update(hidden_act="nonsense"),
        "heads that do not fit": lambda config: config.update(num_attention_heads=0),
        "a type of nonsense": lambda config: config.update(model_type=["x"]),
    }
    for name, change in sizes.items():

        @attack("model", "cannot be restored", name)
        def _(folder: Path, change: Any = change) -> None:
            edit(encoder(folder) / "config.json", change)
            listed(folder)

    for name, value in {"dim": 10**9, "heads": 10**9, "layers": 10**9, "name": ["x"]}.items():

        @attack("model", "FolderError", f"a fusion with a {name} of {value}")
        def _(folder: Path, one: Any = {name: value}) -> None:  # noqa: B006
            edit(folder / "bundle.json", lambda content: content["fusion"].update(one))

    for name, change in {
        "bins without number": lambda content: content["columns"]["price"]["state"].update(bins=10**12, edges=["x"]),
        "edges that are none": lambda content: content["columns"]["price"]["state"].update(edges={"a": 1}),
        "no classes": lambda content: content["tasks"]["label"]["state"].update(classes=None),
    }.items():
        attack("model", "FolderError", name)(lambda f, change=change: edit(f / "bundle.json", change))

    for name, source in {"itself": None, "nowhere": "/nowhere", "a pickle": "PICKLE"}.items():

        @attack("model", "cannot be restored", f"an adapter to {name}")
        def _(folder: Path, source: str | None = source) -> None:
            base = str(folder) if source is None else source
            if source == "PICKLE":
                base = str(folder.parent / "base")
                shutil.copytree(encoder(folder), base)
                torch_pickle(Path(base) / "pytorch_model.bin")
            told = {"adapter": {"name": "lora", "rank": 4}, "source": base}
            edit(encoder(folder) / "backbone.json", lambda content: content.update(told))
            listed(folder)


def on_backbones() -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pth", "x.ckpt", "vocab.pkl"):
        attack("bert", "may run code", f"{name} beside the weights")(lambda f, name=name: torch_pickle(f / name))

    @attack("bert", "may run code")
    def weights_of_pickle_alone(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        torch_pickle(folder / "pytorch_model.bin")

    for name in ("notes", "vocab.txt", "special_tokens_map.json", "1_Pooling/config.json", "chat_template.jinja"):
        for protocol in (0, 4):
            change = lambda f, name=name, protocol=protocol: put(f / name, a_pickle(protocol))  # noqa: E731
            attack("bert", "may run code", f"a pickle of protocol {protocol} as {name}")(change)

    @attack("bert", "may run code")
    def objects_in_numpy(folder: Path) -> None:
        np.save(folder / "positions.npy", np.asarray([Bomb()]), allow_pickle=True)

    for protocol in (0, 4):
        change = lambda f, protocol=protocol: put(f / "model.safetensors", a_pickle(protocol))  # noqa: E731
        attack("bert", "pickle", f"weights that are a pickle of protocol {protocol}")(change)
    attack("bert", "archive", "weights by torch.save")(lambda f: torch_pickle(f / "model.safetensors"))
    for name, (content, says) in HEADERS.items():
        attack("bert", says, f"weights: {name}")(lambda f, content=content: put(f / "model.safetensors", content))
    attack("bert", "at most 25,000,000", "weights with a header of 200 MB")(
        lambda f: giant_header(f / "model.safetensors")
    )

    files = {
        "bert": (
            "config.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "config_sentence_transformers.json",
        ),
        "vit": ("config.json", "preprocessor_config.json"),
        "wav2vec2": ("config.json", "preprocessor_config.json"),
    }
    for target, names in files.items():
        for file in names:
            settings: dict[str, tuple[dict[str, Any], str]] = {
                "auto_map": (
                    {"auto_map": {"AutoModel": "evil.Model", "AutoTokenizer": ["evil.Model", None]}},
                    "never run",
                ),
                "trust_remote_code": ({"trust_remote_code": True}, "never run"),
                "code inside": ({"inner": [{"auto_map": {"AutoConfig": "evil.Model"}}]}, "never run"),
                "brackets": ({}, "nested too deeply"),
            }
            for name, (update, says) in settings.items():

                @attack(target, says, f"{name} in {file}")
                def _(folder: Path, file: str = file, update: Any = update) -> None:
                    put(folder / "evil.py", code())
                    if not (folder / file).exists():
                        put(folder / file, "{}")
                    if update:
                        edit(folder / file, lambda content: content.update(update))
                    else:
                        put(folder / file, BRACKETS)

    elsewhere = {
        "another configuration": ({"configuration_files": ["../../config.4.0.0.json"]}, "other files"),
        "a second model": ({"backbone": "evil/model"}, "second model"),
        "a pretrained part": ({"use_pretrained_backbone": True}, "second model"),
        "a kernel": ({"_attn_implementation": "evil/kernel"}, "code of a hub"),
        "an attention": ({"attn_implementation": "evil/kernel"}, "code of a hub"),
        "its own code": ({"model_type": "mine"}, "no model type"),
        "a list as its type": ({"model_type": ["bert"]}, "no model type"),
        "10^9 layers": ({"num_hidden_layers": 10**9}, "layers"),
        "a width of 10^6": ({"hidden_size": 10**6, "intermediate_size": 10**9}, "do(es)? not belong|cannot load"),
        "10^12 words": ({"vocab_size": 10**12}, "do(es)? not belong"),
        "no heads": ({"num_attention_heads": 0}, "cannot load"),
        "text for a number": ({"hidden_size": "x"}, "cannot load"),
    }
    for name, (update, says) in elsewhere.items():
        change = lambda f, update=update: edit(f / "config.json", lambda content: content.update(update))  # noqa: E731
        attack("bert", says, f"config.json names {name}")(change)
    attack("bert", "other files", "tokenizer files elsewhere")(
        lambda f: edit(
            f / "tokenizer_config.json", lambda c: c.update(fast_tokenizer_files=["../x/tokenizer.4.0.0.json"])
        )
    )
    for name, value in {"height": 10**9, "shortest_edge": 10**7}.items():
        size = {"height": value, "width": value} if name == "height" else {name: value}
        attack("vit", "pixels a side", f"pictures with a {name} of {value}")(
            lambda f, size=size: edit(f / "preprocessor_config.json", lambda c: c.update(size=size))
        )
    for rate in (10**15, 0, -1, "x"):
        attack("wav2vec2", "sampling rate", f"a sampling rate of {rate}")(
            lambda f, rate=rate: edit(f / "preprocessor_config.json", lambda c: c.update(sampling_rate=rate))
        )
    attack("vit", "cannot be loaded", "an image mean of nonsense")(
        lambda f: edit(f / "preprocessor_config.json", lambda c: c.update(image_mean="x"))
    )

    def words(change: Callable[[Any], Any]) -> Callable[[Path], None]:
        return lambda folder: edit(folder / "tokenizer.json", change)

    attack("bert", "does not belong", "a word beyond the model's")(
        words(lambda c: c["model"]["vocab"].update(w0=10**6))
    )
    attack("bert", "cannot be loaded", "a word's number is text")(words(lambda c: c["model"]["vocab"].update(w0="x")))
    attack("bert", "cannot be loaded|belong", "a word of 2^63")(words(lambda c: c["model"]["vocab"].update(w0=2**63)))
    attack("bert", "cannot be loaded", "a tokenizer without words")(words(lambda c: c.update(model=None)))
    attack("bert", "cannot be loaded", "a tokenizer of nonsense")(
        words(lambda c: c.update(pre_tokenizer={"type": "x"}))
    )
    attack("bert", "cannot be loaded", "a broken pattern")(
        words(lambda c: c.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}))
    )
    attack("bert", "cannot be", "a table that is none")(
        words(lambda c: c.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}))
    )
    attack("bert", "cannot be", "an unknown word that is none")(
        words(
            lambda c: c.update(model={"type": "Unigram", "unk_id": 99, "vocab": [["a", 0.0]], "byte_fallback": False})
        )
    )
    attack("bert", "cannot be", "a tokenizer of brackets")(lambda f: put(f / "tokenizer.json", BRACKETS))
    attack("bert", "cannot be loaded", "an empty tokenizer")(lambda f: put(f / "tokenizer.json", ""))
    attack("bert", "cannot be|max_tokens", "a length of text")(
        lambda f: edit(f / "tokenizer_config.json", lambda c: c.update(model_max_length="x"))
    )
    attack("bert", "max_tokens|cannot be", "a length below 0")(
        lambda f: edit(f / "tokenizer_config.json", lambda c: c.update(model_max_length=-5))
    )

    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        attack("bert", "is a link", f"{name} is a link")(lambda f, name=name: link(f / name))
        attack("bert", "is no file: a pipe", f"{name} is a pipe")(lambda f, name=name: pipe(f / name))
    attack("bert", "is a link", "a folder that is a link")(lambda f: link(f / "1_Pooling", Path("/etc")))
    attack("bert", "is no file: a socket", "a socket")(lambda f: a_socket(f / "README.md"))

    def shards(names: Any) -> Callable[[Path], None]:
        def change(folder: Path) -> None:
            (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
            put(folder / "model.safetensors.index.json", json.dumps({"weight_map": names}))

        return change

    attack("bert", "outside the folder", "a shard outside")(shards({"a": "../model.safetensors"}))
    attack("bert", "outside the folder", "a shard with NUL")(shards({"a": "x\0.safetensors"}))
    attack("bert", "weights are missing", "shards that are none")(shards([1, 2]))
    attack("bert", "weights are missing", "shards of another sort")(shards({"a": {"b": 1}}))


def on_runs() -> None:
    def checkpoints(run: Path) -> list[Path]:
        found = sorted(path for path in (run / "checkpoints").glob("*/????????-*"))
        assert found
        return found

    def sealed(path: Path) -> None:
        """The manifest says what lies there, and the folder is named by it."""
        manifest = json.loads((path / "manifest.json").read_text())
        for name in manifest["files"]:
            content = (path / name).read_bytes()
            manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        (path / "manifest.json").write_text(json.dumps(manifest))
        digest = hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest()
        path.rename(path.with_name(f"{path.name[:8]}-{digest[:16]}"))

    def each(change: Callable[[Path], Any]) -> Callable[[Path], None]:
        def all_of_them(run: Path) -> None:
            for path in checkpoints(run):
                change(path)
                sealed(path)

        return all_of_them

    def state(change: Callable[[Any], Any]) -> Callable[[Path], None]:
        return each(lambda path: edit(path / "state.json", change))

    for name, (content, says) in HEADERS.items():
        change = each(lambda path, content=content: put(path / "tensors.safetensors", content))
        attack("run", says, f"tensors: {name}")(change)
    attack("run", "is a pickle|in truth", "tensors that are a pickle")(
        each(lambda path: put(path / "tensors.safetensors", a_pickle()))
    )
    attack("run", "archive", "tensors by torch.save")(each(lambda path: torch_pickle(path / "tensors.safetensors")))
    attack("run", "nested too deeply", "a state of brackets")(each(lambda path: put(path / "state.json", BRACKETS)))
    attack("run", "no state", "a state that is a list")(each(lambda path: put(path / "state.json", "[]")))
    attack("run", "nested too deeply|recursion|no state", "a state of tuples")(
        each(lambda path: put(path / "state.json", '{"$tuple": [' * 400 + "1" + "]}" * 400))
    )
    for name in ("optimizer.pt", "random_states.pkl", "evil.py"):
        attack("run", "no file of a run|not those", f"{name} beside a state")(
            each(lambda path, name=name: torch_pickle(path / name))
        )
        attack("run", "no file of a run", f"{name} beside the states")(
            lambda run, name=name: torch_pickle(run / "checkpoints" / name)
        )
    attack("run", "is a link", "a state that is a link")(lambda run: [link(p / "state.json") for p in checkpoints(run)])
    attack("run", "is a link", "a checkpoint that is a link")(lambda run: [link(path) for path in checkpoints(run)])
    attack("run", "a pipe", "a state that is a pipe")(lambda run: [pipe(p / "state.json") for p in checkpoints(run)])
    attack("run", "is a link", "checkpoints that are a link")(lambda run: link(run / "checkpoints"))
    attack("run", "is a link", "a lock that is a link")(
        lambda run: [
            (run / "checkpoints" / ".lock").unlink(missing_ok=True),
            link(run / "checkpoints" / ".lock", canary().parent / "emptied"),
        ]
    )
    attack("run", "no run to go on with", "run.json is a pipe")(lambda run: pipe(run / "checkpoints" / "run.json"))
    for name, text in {"brackets": BRACKETS, "a list": "[]", "no settings": '{"settings": 3}'}.items():
        attack("run", "cannot be read", f"run.json: {name}")(
            lambda run, text=text: put(run / "checkpoints" / "run.json", text)
        )
    attack("run", "cannot be read", "run.json: facts that are none")(
        lambda run: edit(run / "checkpoints" / "run.json", lambda content: content.update(facts={"tables": 3}))
    )
    broken: dict[str, Callable[[Any], Any]] = {
        "weights that are none": lambda s: s.update(weights=3),
        "weights of another shape": lambda s: s["weights"].update({next(iter(s["weights"])): s["optimizer"]}),
        "weights of another model": lambda s: s["weights"].update(evil={"$tensor": "0"}),
        "no optimiser": lambda s: s.update(optimizer=None),
        "an optimiser of text": lambda s: s.update(optimizer={"state": "x", "param_groups": "y"}),
        "generators of text": lambda s: s.update(processes=["x"]),
        "watchers of text": lambda s: s.update(watchers="x"),
        "a precision of nonsense": lambda s: s.update(precision="evil/kernel"),
        "sums of nonsense": lambda s: s.update(sums=None),
        "no outer": lambda s: s.update(outer=3),
        "a tensor that is not there": lambda s: s.update(weights={"$tensor": "../../x"}),
        "a tensor's name of another sort": lambda s: s.update(weights={"$tensor": ["x"]}),
    }
    for name, change in broken.items():
        attack("run", "does not fit|no checkpoint is intact|lacks", name)(state(change))


def on_yaml() -> None:
    for name, (text, says) in yamls().items():
        for target in ("config", "schema"):
            attack(target, says, name)(lambda path, text=text: put(path, text))
    for target in ("config", "schema"):
        attack(target, "a pipe", "a pipe")(pipe)


def load(target: str, path: Path) -> Any:
    """Read what was attacked as a user would."""
    import fusetune
    from fusetune.backbones.load import load_backbone
    from fusetune.config.config import Config
    from fusetune.data.schema import Schema

    kinds = {"bert": "text", "vit": "image", "wav2vec2": "audio"}
    if target in kinds:
        return load_backbone(str(path), kinds[target])
    if target == "run":
        return fusetune.api.resume(path, progress=False)
    return {"model": fusetune.load, "config": Config.from_yaml, "schema": Schema.load}[target](path)


def attempt(name: str, home: Path) -> str | None:
    """Try one attack: why it is wrong as it went, None where it was refused as it should be."""
    from fusetune.errors import UserError

    target, says, change = ATTACKS[name]
    work = Path(tempfile.mkdtemp(dir=home))
    path = work / target
    if (home / target).is_dir():
        shutil.copytree(home / target, path, symlinks=True)
    change(path)
    before = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(Hangs()))
    signal.alarm(SECONDS)
    try:
        load(target, path)
        found = "it was not refused"
    except UserError as error:
        text = f"{type(error).__name__}: {error}"
        found = None if re.search(says, text, re.DOTALL) else f"the refusal does not say {says!r}: {text}"
    except BaseException as error:
        found = f"not an error of ours: {type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        shutil.rmtree(work, ignore_errors=True)
    if canary().exists():
        canary().unlink()
        found = "code was run"
    return found


class Hangs(BaseException):
    """It took too long; no `except Exception` swallows it."""


def main() -> None:
    home = Path(sys.argv[1])
    make_attacks()
    for target in ("model", "bert", "vit", "wav2vec2", "run"):  # which are sound
        copy = shutil.copytree(home / target, home / "sound" / target)
        load(target, copy)
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {name: attempt(name, home) for name in ATTACKS}
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start
    print(json.dumps({"debug": __debug__, "found": found, "mib": grown // 1024}))


if __name__ == "__main__":
    main()
