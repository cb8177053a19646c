"""The endpoints of the loopback Hub: the part of the Hub's HTTP interface that huggingface_hub 2.4 uses for
models, and the download of files from data sets."""

import json
import re
from base64 import b64decode
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qs

from .replies import HubError, Reply
from .repos import LFS_SUFFIXES, Repo, User, describe, entries, entry, front_matter, is_lfs

GITATTRIBUTES = "".join(
    f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES
).encode()
NAME = r"[\w.-]+(?:/[\w.-]+)?"
REPO = rf"/(?P<repo>{NAME})"
ANY = rf"/(?:models/)?(?P<repo>(?:datasets/)?{NAME})"
REV = r"/(?P<rev>[^/]+)"
OID = r"/(?P<oid>[0-9a-f]{64})"
ROUTES = []


def route(method, pattern, access=None):
    """Register an endpoint for the requests that match, and the `access` it needs to their repository."""

    def register(endpoint):
        ROUTES.append((method, re.compile(pattern), access, endpoint))
        return endpoint

    return register


@dataclass
class Call:
    """A request, with the repository and the commit that its path names. Its methods are the endpoints."""

    hub: Any
    user: User | None
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    args: dict[str, str]
    repo: Repo | None = None
    sha: str = ""

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def files(self):
        return self.repo.history[self.sha]

    def is_set(self, name):
        """Return whether a parameter of the query is true."""
        return self.query.get(name, [""])[-1].lower() in ("1", "true")

    def login(self):
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        return self.user

    def named_repo(self):
        """Return the id in the body of a create or delete request."""
        owner = self.json.get("organization") or self.login().name
        return f"{owner}/{self.json['name']}"

    @route("GET", "/api/whoami-v2")
    def whoami(self):
        user = self.login()
        orgs = [
            {"type": "org", "id": org, "name": org, "fullname": org, "roleInOrg": "write"}
            for org in user.orgs
        ]
        auth = {"type": "access_token", "accessToken": {"displayName": "tests", "role": user.role}}
        return {
            "type": "user",
            "id": user.name,
            "name": user.name,
            "fullname": user.name,
            "orgs": orgs,
            "auth": auth,
        }

    @route("POST", "/api/repos/create")
    def create(self):
        user, repo_id = self.login(), self.named_repo()
        if self.json.get("type", "model") != "model":
            raise HubError(400, "This hub stores models only")
        if user.role != "write" or not user.owns(repo_id):
            namespace = repo_id.partition("/")[0]
            raise HubError(
                403,
                f'You don\'t have the rights to create a model under the namespace "{namespace}"',
            )
        url = f"{self.hub.url}/{repo_id}"
        if repo_id in self.hub.repos:
            raise HubError(409, "You already created this model repo", url=url)
        private = self.json.get("visibility") == "private"
        self.hub.repos[repo_id] = Repo(repo_id, user.name, {".gitattributes": GITATTRIBUTES}, private)
        return {"url": url, "name": repo_id, "id": repo_id}

    @route("DELETE", "/api/repos/delete")
    def delete(self):
        del self.hub.repos[self.hub.open(self.named_repo(), self.login(), "write").id]
        return {}

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self):
        try:
            card = front_matter(self.json["content"])
        except ValueError as error:
            return Reply.json({"errors": [{"message": str(error)}], "warnings": []}, 400)
        warnings = [] if card else [{"message": "empty or missing yaml metadata in repo card"}]
        return {"errors": [], "warnings": warnings}

    @route("POST", rf"/api/models{REPO}/preupload{REV}", "write")
    def preupload(self):
        def plan(path, size, **_):
            current = entry(path, self.files[path]) if path in self.files else {}
            mode = "lfs" if is_lfs(path, size) else "regular"
            return {
                "path": path,
                "uploadMode": mode,
                "shouldIgnore": False,
                "oid": current.get("lfs", current).get("oid"),
            }

        return {"files": [plan(**file) for file in self.json["files"]]}

    @route("POST", rf"{REPO}\.git/info/lfs/objects/batch", "write")
    def lfs_batch(self):
        def plan(oid, size):
            href = f"{self.hub.url}/lfs/{oid}"
            actions = {
                "upload": {"href": href, "header": {}},
                "verify": {"href": f"{href}/verify", "header": {}},
            }
            return {"oid": oid, "size": size} | ({} if oid in self.hub.lfs else {"actions": actions})

        return {"transfer": "basic", "objects": [plan(**item) for item in self.json["objects"]]}

    @route("PUT", rf"/lfs{OID}")
    def lfs_upload(self):
        if sha256(self.body).hexdigest() != self.args["oid"]:
            raise HubError(400, "The content does not match its oid")
        self.hub.lfs[self.args["oid"]] = self.body
        return {}

    @route("POST", rf"/lfs{OID}/verify")
    def lfs_verify(self):
        if len(self.hub.lfs.get(self.args["oid"], b"")) != self.json["size"]:
            raise HubError(404, "The upload of the object is incomplete")
        return {}

    @route("POST", rf"/api/models{REPO}/commit{REV}", "write")
    def commit(self):
        header, *operations = map(json.loads, self.body.splitlines())
        if self.is_set("create_pr"):
            raise HubError(400, "This hub has no pull requests")
        if not self.repo.sha.startswith(header["value"].get("parentCommit", "")):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(self.repo.files)
        for operation in operations:
            match operation["key"], operation["value"]:
                case "file", {"path": path, "content": content}:
                    files[path] = b64decode(content)
                case "lfsFile", {"path": path, "oid": oid} if oid in self.hub.lfs:
                    files[path] = self.hub.lfs[oid]
                case "deletedFile", {"path": path} if path in files:
                    del files[path]
                case "deletedFolder", {"path": path}:
                    files = {
                        each: files[each] for each in files if not each.startswith(path.rstrip("/") + "/")
                    }
                case "deletedFile", _:
                    raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
                case _:
                    raise HubError(400, f"Cannot commit this {operation['key']}")
        self.repo.commit(files)
        url = f"{self.hub.url}/{self.repo.id}/commit/{self.repo.sha}"
        return {"success": True, "commitOid": self.repo.sha, "commitUrl": url, "hookOutput": ""}

    @route("GET", rf"/api{ANY}/tree{REV}(?:/(?P<path>.+))?", "read")
    def tree(self):
        prefix = f"{self.args['path']}/" if "path" in self.args else ""
        below = {path: item for path, item in entries(self.files).items() if path.startswith(prefix)}
        if prefix and not below:
            raise HubError(404, "Entry not found", "EntryNotFound")
        return [
            item for path, item in below.items() if self.is_set("recursive") or "/" not in path[len(prefix) :]
        ]

    @route("POST", rf"/api{ANY}/paths-info{REV}", "read")
    def paths_info(self):
        listing = entries(self.files)
        requested = (path.strip("/") for path in parse_qs(self.body.decode()).get("paths", []))
        return [listing[path] for path in requested if path in listing]

    @route("GET", rf"/api/models{REPO}/refs", "read")
    def refs(self):
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": self.sha}
        return {"branches": [main], "converts": [], "tags": [], "pullRequests": []}

    @route("PUT", rf"/api/models{REPO}/settings", "write")
    def settings(self):
        self.repo.gated = self.json.get("gated", self.repo.gated)
        self.repo.private = {"private": True, "public": False}.get(
            self.json.get("visibility"), self.repo.private
        )
        return {"gated": self.repo.gated, "private": self.repo.private}

    @route("GET", rf"/api/models{REPO}/auth-check", "files")
    def auth_check(self):
        return {}

    @route("GET", rf"/api/models{REPO}(?:/revision{REV})?", "read")
    @route("GET", rf"/api/(?P<repo>datasets/{NAME})(?:/revision{REV})?", "read")
    def model_info(self):
        repo = self.repo
        info = {
            "id": repo.id,
            "author": repo.id.partition("/")[0],
            "sha": self.sha,
            "private": repo.private,
        }
        info |= {
            "gated": "auto" if repo.gated is True else repo.gated,
            **describe(self.files, self.is_set("blobs")),
        }
        requested = self.query.get("expand", info)
        return {key: info[key] for key in info if key == "id" or key in requested}

    @route("GET", rf"/(?P<repo>(?:datasets/)?{NAME})/resolve{REV}/(?P<path>.+)", "files")
    def resolve(self):
        headers, content = {"X-Repo-Commit": self.sha}, self.files.get(self.args["path"])
        if content is None:
            raise HubError(404, "Entry not found", "EntryNotFound", headers)
        item = entry(self.args["path"], content)
        headers |= {
            "ETag": f'"{item["oid"]}"',
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        if "lfs" in item:
            headers |= {
                "X-Linked-Etag": f'"{item["lfs"]["oid"]}"',
                "X-Linked-Size": str(item["size"]),
            }
        return Reply(200, content, headers).ranged(self.headers.get("Range"))
