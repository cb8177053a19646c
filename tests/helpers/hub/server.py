"""The loopback Hub itself: users, repositories and faults in memory, served on 127.0.0.1.

Clients reach it through `HfApi(endpoint=hub.url)`, or through `HF_ENDPOINT` in a process of their own.
"""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from .endpoints import ROUTES, Call
from .replies import Fault, HubError, Reply
from .repos import Repo, User

CLIENT_ENV = {  # huggingface_hub reads these once, when it is imported
    "HF_HUB_DISABLE_XET": "1",  # the client alone decides between Xet and LFS for uploads
    "HF_HUB_DISABLE_TELEMETRY": "1",  # otherwise its first call asks HF_ENDPOINT for api/agent-harnesses
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


class LoopbackHub:
    """A stand-in for the Hub: `with LoopbackHub() as hub` serves it at `hub.url`.

    `requests` logs (method, path, status); the status of a dropped connection is None. `watch`, if set, is
    called with the method and the path of each request before it is handled.
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
        """Return the variables for a client process that reaches this hub alone, with its cache in `home`."""
        return CLIENT_ENV | {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_TOKEN": token or ""}

    def add_user(self, token, name, orgs=(), role="write"):
        self.tokens[token] = User(name, tuple(orgs), role)

    def expire(self, token):
        self.tokens[token].expired = True

    def add_model(self, repo_id, source, private=False, gated=False):
        """Add a repository with the files of `source`, a folder or a dict of path to bytes."""
        if not isinstance(source, dict):
            paths = [path for path in Path(source).rglob("*") if path.is_file()]
            source = {path.relative_to(source).as_posix(): path.read_bytes() for path in paths}
        self.repos[repo_id] = Repo(repo_id, repo_id.partition("/")[0], dict(source), private, gated)
        return self.repos[repo_id]

    def add_dataset(self, repo_id, files):
        """Add a public data set, which supports the download of files only."""
        path = f"datasets/{repo_id}"
        self.repos[path] = Repo(path, repo_id.partition("/")[0], files)

    def fail(self, pattern, status=503, headers=None, drop=False, **options):
        """Reply to requests whose "METHOD path" matches with `status`, or not at all; see `Fault`."""
        silent = drop or any(options.get(name) for name in ("reply_lost", "truncated", "stall"))
        reply = None if silent else Reply.json({"error": "Injected fault"}, status, headers)
        self.faults.append(Fault(pattern, reply, **options))

    def open(self, repo_id, user, access):
        """Return the repository if `user` (None: anonymous) may "read" it, read its "files" or "write" it."""
        repo, status = self.repos.get(repo_id), 403 if user else 401
        owned = user is not None and user.owns(repo_id)
        if repo is None or (repo.private and not owned):
            raise HubError(404 if user else 401, "Repository not found", "RepoNotFound")
        if access == "write" and not (owned and user.role == "write"):
            raise HubError(status, "You don't have write access to this repository")
        if access == "files" and repo.gated and not owned and (user is None or user.name not in repo.granted):
            raise HubError(status, f"Access to model {repo_id} is restricted", "GatedRepo")
        return repo

    def handle(self, method, target, headers, body):
        """Return the reply to a request, None to drop the connection."""
        url = urlsplit(target)
        with self.lock:
            if self.watch:
                self.watch(method, url.path)
            fault = next((fault for fault in self.faults if fault.strikes(f"{method} {url.path}")), None)
            reply = fault.reply if fault else None
            if fault is None or fault.reply_lost or fault.truncated:
                reply = self.respond(method, url, headers, body)
            if fault and fault.truncated:
                full_length = {"Content-Length": str(len(reply.body))}
                reply = Reply(reply.status, reply.body[: len(reply.body) // 2], reply.headers | full_length)
            if fault and fault.reply_lost:
                reply = None
            self.requests.append((method, url.path, reply and reply.status))
        if fault and fault.stall:
            self.closed.wait(fault.stall)
        return reply

    def respond(self, method, url, headers, body):
        """Return the reply to a request without a fault."""
        try:
            result = self.call(method, url, headers, body)
        except HubError as error:
            return error.reply
        return result if isinstance(result, Reply) else Reply.json(result)

    def call(self, method, url, headers, body):
        """Call the endpoint of a request, and return what it returns."""
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
    """Hands one request per connection to the hub, and sends its reply."""

    protocol_version = "HTTP/1.1"

    def exchange(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.close_connection = True
        if reply := self.server.hub.handle(self.command, self.path, self.headers, body):
            self.send_response(reply.status)
            fields = {"Content-Length": str(len(reply.body)), "Connection": "close", **reply.headers}
            for name, value in fields.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else reply.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = exchange

    def log_message(self, *_):
        """`LoopbackHub.requests` is the log."""
