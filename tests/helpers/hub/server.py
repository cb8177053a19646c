"""The part of the Hugging Face Hub's HTTP interface that huggingface_hub 2.4 uses for models,
and the download of files from data sets.

Everything lives in memory and is served on 127.0.0.1. Users, repositories and faults are set up
on a `LoopbackHub`; clients reach it through `HfApi(endpoint=hub.url)`, or through `HF_ENDPOINT`
in a process of their own.
"""

import json
import re
import threading
from base64 import b64decode
from dataclasses import dataclass
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from .repos import LFS_SUFFIXES, Repo, User, describe, entries, entry, front_matter, is_lfs

CLIENT_ENV = {  # huggingface_hub reads these once, when it is imported
    "HF_HUB_DISABLE_XET": "1",  # the client alone decides between Xet and LFS for uploads
    "HF_HUB_DISABLE_TELEMETRY": "1",  # else its first call asks HF_ENDPOINT for api/agent-harnesses
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
GITATTRIBUTES = "".join(
    f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES
).encode()
NAME = r"[\w.-]+(?:/[\w.-]+)?"
REPO = rf"/(?P<repo>{NAME})"
ANY = rf"/(?:models/)?(?P<repo>(?:datasets/)?{NAME})"
REV = r"/(?P<rev>[^/]+)"
OID = r"/(?P<oid>[0-9a-f]{64})"
ROUTES = []


@dataclass
class Reply:
    """A response about to be sent."""

    status: int
    body: bytes
    headers: dict[str, str]

    @classmethod
    def json(cls, value, status=200, headers=None):
        content_type = {"Content-Type": "application/json; charset=utf-8"}
        return cls(status, json.dumps(value, default=str).encode(), content_type | (headers or {}))

    def ranged(self, header):
        """This reply cut down to what a Range header asks for."""
        if not (match := re.fullmatch(r"bytes=(?:(\d+)-(\d*)|-(\d+))", header or "")):
            return self
        first, last, suffix = match.groups()
        total = len(self.body)
        start = max(total - int(suffix), 0) if suffix else int(first)
        stop = min(int(last) + 1, total) if last else total
        if start >= stop:
            return Reply(416, b"", {"Content-Range": f"bytes */{total}"})
        span = {"Content-Range": f"bytes {start}-{stop - 1}/{total}"}
        return Reply(206, self.body[start:stop], self.headers | span)


@dataclass
class Fault:
    """What goes wrong with the next `times` requests that match, after `after` have gone well.

    `reply`: sent in place of an answer; None drops the connection. `kept`: the request is carried out
    all the same, and only the answer is lost. `cut`: the true answer, its second half missing.
    `stall`: seconds of silence before the connection is dropped.
    """

    pattern: str
    reply: Reply | None = None
    times: int = 1
    after: int = 0
    kept: bool = False
    cut: bool = False
    stall: float = 0.0

    def strikes(self, request):
        if self.times == 0 or not re.search(self.pattern, request):
            return False
        if self.after:
            self.after -= 1
            return False
        self.times -= 1
        return True


class HubError(Exception):
    """An answer of 400 or more; huggingface_hub chooses its exception class by `code`."""

    def __init__(self, status, message, code=None, headers=None, **body):
        super().__init__(message)
        named = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.reply = Reply.json({"error": message, **body}, status, named | (headers or {}))


def route(method, pattern, access=None):
    """Serve the requests that match with this endpoint, given `access` to the repository in their path."""

    def register(endpoint):
        ROUTES.append((method, re.compile(pattern), access, endpoint))
        return endpoint

    return register


@dataclass
class Call:
    """A request, with the repository and the commit its path names. Its methods are the endpoints."""

    hub: "LoopbackHub"
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

    def asks(self, name):
        return self.query.get(name, [""])[-1].lower() in ("1", "true")

    def login(self):
        if self.user is None:
            raise HubError(401, "Invalid username or password.")
        return self.user

    def named_repo(self):
        """The id in the body of a create or delete request."""
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
            raise HubError(400, "This hub keeps models only")
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
            there = entry(path, self.files[path]) if path in self.files else {}
            mode = "lfs" if is_lfs(path, size) else "regular"
            return {
                "path": path,
                "uploadMode": mode,
                "shouldIgnore": False,
                "oid": there.get("lfs", there).get("oid"),
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

        return {"transfer": "basic", "objects": [plan(**each) for each in self.json["objects"]]}

    @route("PUT", rf"/lfs{OID}")
    def lfs_upload(self):
        if sha256(self.body).hexdigest() != self.args["oid"]:
            raise HubError(400, "The content does not match its oid")
        self.hub.lfs[self.args["oid"]] = self.body
        return {}

    @route("POST", rf"/lfs{OID}/verify")
    def lfs_verify(self):
        if len(self.hub.lfs.get(self.args["oid"], b"")) != self.json["size"]:
            raise HubError(404, "The object was not uploaded whole")
        return {}

    @route("POST", rf"/api/models{REPO}/commit{REV}", "write")
    def commit(self):
        header, *operations = map(json.loads, self.body.splitlines())
        if self.asks("create_pr"):
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
            item for path, item in below.items() if self.asks("recursive") or "/" not in path[len(prefix) :]
        ]

    @route("POST", rf"/api{ANY}/paths-info{REV}", "read")
    def paths_info(self):
        known = entries(self.files)
        asked = (path.strip("/") for path in parse_qs(self.body.decode()).get("paths", []))
        return [known[path] for path in asked if path in known]

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
        known = {
            "id": repo.id,
            "author": repo.id.partition("/")[0],
            "sha": self.sha,
            "private": repo.private,
        }
        known |= {
            "gated": "auto" if repo.gated is True else repo.gated,
            **describe(self.files, self.asks("blobs")),
        }
        wanted = self.query.get("expand", known)
        return {key: known[key] for key in known if key == "id" or key in wanted}

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


class LoopbackHub:
    """The stand-in: `with LoopbackHub() as hub` serves it at `hub.url`.

    `requests` logs (method, path, status), with None for the status of a dropped connection.
    `watch`, where it is set, is called with the method and the path of each request before it is answered.
    """

    def __init__(self):
        self.tokens: dict[str, User] = {}
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.watch = None
        self.closed = threading.Event()
        self.requests: list[tuple[str, str, int | None]] = []
        self.lock = threading.Lock()

    def __enter__(self):
        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.hub = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closed.set()
        self.server.shutdown()
        self.server.server_close()

    def env(self, home, token=None):
        """The variables for a client process that knows this hub only and keeps its cache in `home`."""
        return CLIENT_ENV | {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_TOKEN": token or ""}

    def add_user(self, token, name, orgs=(), role="write"):
        self.tokens[token] = User(name, tuple(orgs), role)

    def expire(self, token):
        self.tokens[token].expired = True

    def add_model(self, repo_id, source, private=False, gated=False):
        """A repository with the files of `source`, a folder or a dict of path to bytes."""
        if not isinstance(source, dict):
            paths = [path for path in Path(source).rglob("*") if path.is_file()]
            source = {path.relative_to(source).as_posix(): path.read_bytes() for path in paths}
        self.repos[repo_id] = Repo(repo_id, repo_id.partition("/")[0], dict(source), private, gated)
        return self.repos[repo_id]

    def add_dataset(self, repo_id, files):
        """A public data set; its files can be downloaded, and nothing else."""
        path = f"datasets/{repo_id}"
        self.repos[path] = Repo(path, repo_id.partition("/")[0], files)

    def fail(self, pattern, status=503, headers=None, drop=False, **how):
        """Answer requests whose "METHOD path" matches with `status`, or not at all; see `Fault`."""
        silent = drop or any(how.get(name) for name in ("kept", "cut", "stall"))
        reply = None if silent else Reply.json({"error": "Injected fault"}, status, headers)
        self.faults.append(Fault(pattern, reply, **how))

    def open(self, repo_id, user, access):
        """The repository, if `user` (None for anonymous) may "read" it, read its "files" or "write" it."""
        repo, refused = self.repos.get(repo_id), 403 if user else 401
        mine = user is not None and user.owns(repo_id)
        if repo is None or (repo.private and not mine):
            raise HubError(404 if user else 401, "Repository not found", "RepoNotFound")
        if access == "write" and not (mine and user.role == "write"):
            raise HubError(refused, "You don't have write access to this repository")
        if access == "files" and repo.gated and not mine and (user is None or user.name not in repo.granted):
            raise HubError(refused, f"Access to model {repo_id} is restricted", "GatedRepo")
        return repo

    def handle(self, method, target, headers, body):
        """The reply to a request, None where the connection is to be dropped."""
        url = urlsplit(target)
        with self.lock:
            if self.watch:
                self.watch(method, url.path)
            fault = next((fault for fault in self.faults if fault.strikes(f"{method} {url.path}")), None)
            reply = fault.reply if fault else None
            if fault is None or fault.kept or fault.cut:
                reply = self.answer(method, url, headers, body)
            if fault and fault.cut:
                whole = {"Content-Length": str(len(reply.body))}
                reply = Reply(reply.status, reply.body[: len(reply.body) // 2], reply.headers | whole)
            if fault and fault.kept:
                reply = None
            self.requests.append((method, url.path, reply and reply.status))
        if fault and fault.stall:
            self.closed.wait(fault.stall)
        return reply

    def answer(self, method, url, headers, body):
        try:
            result = self.call(method, url, headers, body)
        except HubError as error:
            return error.reply
        return result if isinstance(result, Reply) else Reply.json(result)

    def call(self, method, url, headers, body):
        """What the endpoint that serves this request returns."""
        token = headers.get("Authorization", "").removeprefix("Bearer ")
        user = self.tokens.get(token)
        if token and (user is None or user.expired):
            raise HubError(401, "Invalid credentials in Authorization header")
        for verb, pattern, access, endpoint in ROUTES:
            if verb == method.replace("HEAD", "GET") and (match := pattern.fullmatch(url.path)):
                args = {name: unquote(text) for name, text in match.groupdict().items() if text}
                call = Call(self, user, parse_qs(url.query), headers, body, args)
                if access:
                    call.repo = self.open(args["repo"], user, access)
                    call.sha = call.repo.resolve(args.get("rev", "main"))
                    if call.sha is None:
                        raise HubError(404, f"Invalid rev id: {args['rev']}", "RevisionNotFound")
                return endpoint(call)
        raise HubError(404, "Sorry, we can't find the page you are looking for.")


class Server(ThreadingHTTPServer):
    request_queue_size = 64
    hub: LoopbackHub


class Handler(BaseHTTPRequestHandler):
    """Carries one request per connection to the hub, and its reply back."""

    protocol_version = "HTTP/1.1"

    def exchange(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.close_connection = True
        if reply := self.server.hub.handle(self.command, self.path, self.headers, body):
            self.send_response(reply.status)
            sent = {"Content-Length": str(len(reply.body)), "Connection": "close", **reply.headers}
            for name, value in sent.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else reply.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = exchange

    def log_message(self, *_):
        """`LoopbackHub.requests` is the log."""
