"""Small made-up texts and wheels for the data tests."""

import hashlib
import json
import random
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

from moe.data.wheels import Pin

ENGLISH = [
    "the",
    "router",
    "of",
    "expert",
    "token",
    "balances",
    "loss",
    "window",
    "batch",
    "global",
    "learns",
    "domain",
]
CHINESE = ["第一条", "为了", "保护", "权利", "人民", "法律", "规定", "机关", "应当", "责任", "国家", "组织", "管理"]


def texts(words: list[str], count: int, joined: str = " ") -> list[str]:
    """`count` different documents of 20 to 60 random words, always the same ones."""
    rng = random.Random(0)
    return [f"{n}{joined}" + joined.join(rng.choices(words, k=rng.randint(20, 60))) for n in range(count)]


def write_jsonl(path: Path, documents: list[str]) -> Path:
    """The documents as {"text": ...} lines."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    return path


def make_wheel(folder: Path, members: dict[str, bytes], name: str = "tiny-corpus") -> tuple[Path, Pin]:
    """A wheel that pip accepts, and its pin."""
    stem = name.replace("-", "_")
    info = f"{stem}-1.0.dist-info"
    path = folder / f"{stem}-1.0-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode()
    tags = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with ZipFile(path, "w", ZIP_DEFLATED) as wheel:
        for member, content in {**members, f"{info}/METADATA": metadata, f"{info}/WHEEL": tags}.items():
            wheel.writestr(member, content)
    return path, Pin(name, "1.0", hashlib.sha256(path.read_bytes()).hexdigest())
