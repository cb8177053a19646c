"""Users, model repositories, and what the Hub shows and reads of their files."""

import json
import re
from collections import Counter, deque
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from math import prod
from pathlib import PurePosixPath

LFS_SIZE = 10 * 1024 * 1024
LFS_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n"
YAML_PAIR = re.compile(r"([\w.-][^:]*):(?:\s+(.+))?")
YAML_ITEM = re.compile(r"(-\s+)(.+)")


@dataclass
class User:
    """The holder of a token; `role` is the token's, "read" or "write"."""

    name: str
    orgs: tuple[str, ...] = ()
    role: str = "write"
    expired: bool = False

    def owns(self, repo_id):
        return repo_id.partition("/")[0] in (self.name, *self.orgs)


@dataclass
class Repo:
    """A model repository with one branch, `main`, at commit `sha`; users in `granted` pass its gate."""

    id: str
    created_by: str
    files: dict[str, bytes]
    private: bool = False
    gated: bool | str = False
    granted: set[str] = field(default_factory=set)
    sha: str = ""
    history: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def __post_init__(self):
        self.commit(self.files)

    def commit(self, files):
        """Make `files` the content of `main`."""
        lineage = [self.id, self.sha, *(f"{path} {git_oid(files[path])}" for path in sorted(files))]
        self.files, self.sha = files, sha1("\n".join(lineage).encode()).hexdigest()
        self.history[self.sha] = files

    def resolve(self, revision):
        """The commit that `revision` names, None where there is no such commit."""
        sha = self.sha if revision == "main" else revision
        return sha if sha in self.history else None


def git_oid(content):
    return sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_lfs(path, size):
    return size >= LFS_SIZE or (size > 0 and path.endswith(LFS_SUFFIXES))


def entry(path, content):
    """A file as the Hub lists it."""
    size = len(content)
    if not is_lfs(path, size):
        return {"type": "file", "path": path, "size": size, "oid": git_oid(content)}
    oid = sha256(content).hexdigest()
    pointer = POINTER.format(oid=oid, size=size).encode()
    lfs = {"oid": oid, "sha256": oid, "size": size, "pointerSize": len(pointer)}
    return {"type": "file", "path": path, "size": size, "oid": git_oid(pointer), "lfs": lfs}


def entries(files):
    """The files and folders as the Hub lists them, by path."""
    folders = {str(parent) for path in files for parent in PurePosixPath(path).parents} - {"."}
    listing = {
        path: {"type": "directory", "path": path, "size": 0, "oid": git_oid(path.encode())}
        for path in folders
    }
    listing |= {path: entry(path, content) for path, content in files.items()}
    return dict(sorted(listing.items()))


def describe(files, blobs):
    """The part of the model info that follows from the model's files."""
    card = mapping(front_matter, files.get("README.md", b"").decode(errors="replace"))
    config = mapping(json.loads, files.get("config.json", b""))
    counts = parameters(files)
    causal = any(name.endswith("ForCausalLM") for name in config.get("architectures") or [])
    library = card.get("library_name", "transformers" if "model_type" in config else None)
    task = card.get("pipeline_tag", "text-generation" if causal else None)
    labels = [f"{key}:{value}" for key in ("license", "base_model") for value in values(card, key)]
    tags = [
        library,
        counts and "safetensors",
        config.get("model_type"),
        task,
        *values(card, "tags"),
        *labels,
    ]
    siblings = {path: entry(path, content) if blobs else {} for path, content in sorted(files.items())}
    return {
        "library_name": library,
        "pipeline_tag": task,
        "tags": list(dict.fromkeys(filter(None, tags))),
        "cardData": card,
        "config": {key: config[key] for key in ("architectures", "model_type") if key in config},
        "safetensors": {"parameters": counts, "total": sum(counts.values())} if counts else None,
        "siblings": [
            {"rfilename": path, "blobId": item.get("oid"), **item} for path, item in siblings.items()
        ],
    }


def parameters(files):
    """How many parameters of each dtype the safetensors files hold."""
    counts = Counter()
    for content in (content for path, content in files.items() if path.endswith(".safetensors")):
        header = mapping(json.loads, content[8 : 8 + int.from_bytes(content[:8], "little")])
        for tensor in (header[name] for name in header if name != "__metadata__"):
            counts[tensor["dtype"]] += prod(tensor["shape"])
    return dict(counts)


def mapping(parse, text):
    """What `parse` makes of `text`, {} where that fails or is no mapping."""
    try:
        value = parse(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def values(card, key):
    """The values of a field that may hold one or a list."""
    value = card.get(key) or []
    return value if isinstance(value, list) else [value]


def front_matter(text):
    """The metadata of a model card, {} without any: block YAML as huggingface_hub writes it, and no more."""
    fenced = re.match(r"\s*---[ \t\r]*\n(.*?)^---\s*?$", text, re.DOTALL | re.MULTILINE)
    kept = [
        line.rstrip()
        for line in (fenced[1] if fenced else "").splitlines()
        if not re.match(r"\s*(#|$)", line)
    ]
    lines = deque((len(line) - len(line.lstrip()), line.lstrip()) for line in kept)
    metadata = yaml_block(lines) if lines else {}
    if lines or not isinstance(metadata, dict):
        raise ValueError("the metadata is not one evenly indented mapping")
    return metadata


def yaml_block(lines):
    """The list or the mapping at the head of `lines`, (indentation, text) pairs that it consumes."""
    return (yaml_list if YAML_ITEM.fullmatch(lines[0][1]) else yaml_mapping)(lines, lines[0][0])


def yaml_list(lines, indent):
    items = []
    while lines and lines[0][0] == indent and (item := YAML_ITEM.fullmatch(lines[0][1])):
        lines[0] = (indent + len(item[1]), item[2])
        nested = YAML_PAIR.fullmatch(item[2]) or YAML_ITEM.fullmatch(item[2])
        items.append(yaml_block(lines) if nested else yaml_scalar(lines.popleft()[1]))
    return items


def yaml_mapping(lines, indent):
    pairs = {}
    while lines and lines[0][0] == indent and not YAML_ITEM.fullmatch(lines[0][1]):
        text = lines.popleft()[1]
        if not (pair := YAML_PAIR.fullmatch(text)):
            raise ValueError(f"expected 'key: value', found: {text}")
        nested = not pair[2] and lines and (lines[0][0] > indent or YAML_ITEM.fullmatch(lines[0][1]))
        pairs[pair[1]] = yaml_block(lines) if nested else yaml_scalar(pair[2] or "null")
    return pairs


def yaml_scalar(text):
    try:
        return json.loads(text)
    except ValueError:
        pass
    if re.fullmatch(r"'([^']|'')*'", text):
        return text[1:-1].replace("''", "'")
    if re.fullmatch(r"\[.*\]", text):
        return [yaml_scalar(item.strip()) for item in text[1:-1].split(",")]
    if re.match(r"[\[\]{}\"'&*!|>%@`]", text) or re.search(r":(\s|$)", text):
        raise ValueError(f"cannot read the value: {text}")
    return text
