"""Users and model repositories of the loopback Hub, and what it reports about their files."""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from math import prod
from pathlib import PurePosixPath

import yaml

LFS_SIZE = 10 * 1024 * 1024
LFS_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt")
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n"


@dataclass
class User:
    """The owner of a token; `role` is that of the token, "read" or "write"."""

    name: str
    orgs: tuple[str, ...] = ()
    role: str = "write"
    expired: bool = False

    def owns(self, repo_id):
        """Return whether a repository is in the user's namespace or in that of an organization."""
        return repo_id.partition("/")[0] in (self.name, *self.orgs)


@dataclass
class Repo:
    """A repository with one branch, `main`, at commit `sha`; users in `granted` pass its gate."""

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
        """Return the commit that `revision` names, None if there is none."""
        sha = self.sha if revision == "main" else revision
        return sha if sha in self.history else None


def git_oid(content):
    """Return the id that git gives to a file."""
    return sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_lfs(path, size):
    """Return whether the Hub stores a file in LFS."""
    return size >= LFS_SIZE or (size > 0 and path.endswith(LFS_SUFFIXES))


def entry(path, content):
    """Return a file as the Hub lists it."""
    size = len(content)
    if not is_lfs(path, size):
        return {"type": "file", "path": path, "size": size, "oid": git_oid(content)}
    oid = sha256(content).hexdigest()
    pointer = POINTER.format(oid=oid, size=size).encode()
    lfs = {"oid": oid, "sha256": oid, "size": size, "pointerSize": len(pointer)}
    return {"type": "file", "path": path, "size": size, "oid": git_oid(pointer), "lfs": lfs}


def entries(files):
    """Return files and their folders as the Hub lists them, by path."""
    folders = {str(parent) for path in files for parent in PurePosixPath(path).parents} - {"."}
    listing = {
        path: {"type": "directory", "path": path, "size": 0, "oid": git_oid(path.encode())}
        for path in folders
    }
    listing |= {path: entry(path, content) for path, content in files.items()}
    return dict(sorted(listing.items()))


def describe(files, blobs):
    """Return the part of the model info that follows from the files; `blobs`: with their sizes and ids."""
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
    """Count the parameters of each dtype in the safetensors files."""
    counts = Counter()
    for content in (content for path, content in files.items() if path.endswith(".safetensors")):
        header = mapping(json.loads, content[8 : 8 + int.from_bytes(content[:8], "little")])
        for tensor in (header[name] for name in header if name != "__metadata__"):
            counts[tensor["dtype"]] += prod(tensor["shape"])
    return dict(counts)


def mapping(parse, text):
    """Parse a text, and return {} if that fails or does not give a mapping."""
    try:
        value = parse(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def values(card, key):
    """Return the values of a field that may hold one value or a list."""
    value = card.get(key) or []
    return value if isinstance(value, list) else [value]


def front_matter(text):
    """Return the metadata of a model card, {} if it has none. Raises `ValueError` if it is not a mapping."""
    fenced = re.match(r"\s*---[ \t\r]*\n(.*?)^---\s*?$", text, re.DOTALL | re.MULTILINE)
    try:
        metadata = (yaml.safe_load(fenced[1]) if fenced else None) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"the metadata is not YAML: {error}") from None
    if not isinstance(metadata, dict):
        raise ValueError("the metadata is not a mapping")
    return metadata
