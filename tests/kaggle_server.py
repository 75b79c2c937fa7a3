"""A local server that takes what the official Kaggle client sends: kernels and data sets, kept in a folder.

`Server.environment` holds a `kaggle` on PATH that is the official client with another address. Answers are those of
Kaggle as far as the client reads them; `Server.answers` replaces them to play a failure.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
GIT = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost"]
KEY = "0123456789abcdef"
MAX_SOURCE = 1_000_000  # characters of a kernel's source
CLIENT = """#!{python}
import sys
from kagglesdk import kaggle_env
kaggle_env._env_to_endpoint[kaggle_env.KaggleEnv.PROD] = {url!r}
from kaggle.cli import main
sys.exit(main())
"""


def git(folder: Path, *words: str) -> str:
    """What git prints in the folder."""
    return subprocess.run([*GIT, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def clean_checkout(folder: Path) -> Path:
    """Makes a checkout of the tracked files as they lie in the tree, in one commit; the folder."""
    for name in git(ROOT, "ls-files", "-z").split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "all")
    return folder


def slugify(title: str) -> str:
    """The address part that Kaggle makes of a title."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


class Server:
    """As a context: serves at `url` until its end.

    kernels: slug -> the JSON of its last push. datasets: slug -> folder of the files of its last version, as received
    (sub-folders are zips). records: slug -> the JSON of its creation, and of its last version under "version".
    answers: name of a call (SaveKernel, CreateDataset, …; "upload", "upload <file name>") -> (status, JSON) to give
    instead of doing it.
    calls: the names of the calls taken, in order.
    """

    def __init__(self, folder: Path, *, user: str = "learner"):
        self.folder, self.user = Path(folder), user
        self.kernels, self.datasets, self.records, self.answers = {}, {}, {}, {}
        self.versions, self.blobs, self.calls = {}, {}, []
        self.lock = threading.Lock()
        (self.folder / "blobs").mkdir(parents=True)
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"server_state": self}))
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> "Server":
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def environment(self, **more: str) -> dict:
        """Variables of a process whose `kaggle` speaks to this server: an empty home and the server's user."""
        home = self.folder / "home"
        (home / "tmp").mkdir(parents=True, exist_ok=True)
        client = home / "bin" / "kaggle"
        client.parent.mkdir(exist_ok=True)
        client.write_text(CLIENT.format(python=sys.executable, url=self.url))
        client.chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not re.match("kaggle_|.*_proxy$", name, re.I)}
        path = f"{client.parent}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        user = {"KAGGLE_USERNAME": self.user, "KAGGLE_KEY": KEY}
        return kept | {"PATH": path, "HOME": str(home), "TMPDIR": str(home / "tmp")} | user | more

    def unpack(self, slug: str, target: Path) -> Path:
        """Writes a data set as Kaggle shows it in a mount; returns the folder.

        An archive is a folder of its name there; where it is all that a data set has, its content lies at the root.
        """
        target = Path(target)
        target.mkdir(parents=True)
        paths = sorted(self.datasets[slug].iterdir())
        for path in paths:
            stem = re.sub(r"\.(zip|tar|tar\.gz|tgz)$", "", path.name)
            if stem != path.name:
                shutil.unpack_archive(path, target / stem if len(paths) > 1 else target)
            else:
                shutil.copyfile(path, target / path.name)
        return target

    def authorized(self, header: str | None) -> bool:
        """Whether an Authorization header is that of the server's user: with the key, or with a token of its text."""
        basic = base64.b64encode(f"{self.user}:{KEY}".encode()).decode()
        return header in (f"Basic {basic}", f"Bearer {KEY}")

    def save_kernel(self, body: dict) -> dict:
        owner, _, asked = body["slug"].partition("/")
        if owner != self.user:
            return refused(403, f"Permission 'kernels.update' was denied on {body['slug']}")
        if len(body["text"]) > MAX_SOURCE:
            return {"ref": "", "url": "", "error": "The source is larger than 1 MB"}
        # a new kernel gets its address from the title, whatever was asked for
        slug = asked if asked in self.kernels else slugify(body.get("newTitle") or asked)
        self.kernels[slug] = body
        self.versions[slug] = self.versions.get(slug, 0) + 1
        return {
            "ref": f"/{owner}/{slug}",
            "url": f"https://www.kaggle.com/code/{owner}/{slug}",
            "versionNumber": self.versions[slug],
            "error": "",
            "invalidDatasetSources": self.absent(body.get("datasetDataSources", []), self.datasets),
            "invalidKernelSources": self.absent(body.get("kernelDataSources", []), self.kernels),
        }

    def absent(self, sources: list[str], known: dict) -> list[str]:
        """Sources of the user that are not on the server. Those of others are taken to be there."""
        return [source for source in sources if source.split("/")[0] == self.user and source.split("/")[1] not in known]

    def get_dataset_status(self, body: dict) -> dict:
        if body.get("ownerSlug") != self.user or body["datasetSlug"] not in self.datasets:
            return refused(403, "Permission 'datasets.get' was denied")  # Kaggle does not say what exists
        return {"status": "ready"}

    def start_blob_upload(self, body: dict) -> dict:
        token = f"blob-{len(self.blobs)}"
        self.blobs[token] = body
        return {"token": token, "createUrl": f"{self.url}/upload/{token}"}

    def create_dataset(self, body: dict) -> dict:
        if body["ownerSlug"] != self.user:
            return refused(403, "Permission 'datasets.create' was denied")
        if body["slug"] in self.datasets:
            return {"status": "error", "error": f"The requested title {body['title']} is already in use by a dataset"}
        self.records[body["slug"]] = body
        return self.keep_version(body["slug"], body.get("files", []))

    def create_dataset_version(self, body: dict) -> dict:
        found = self.get_dataset_status(body)
        if "code" in found:
            return found
        self.records[body["datasetSlug"]]["version"] = body["body"]
        return self.keep_version(body["datasetSlug"], body["body"].get("files", []))

    def keep_version(self, slug: str, files: list[dict]) -> dict:
        """The files of the request become the version: nothing is taken over from the one before."""
        if not files:
            return {"status": "error", "error": "A dataset has at least one file"}
        number = self.versions.get(slug, 0) + 1
        folder = self.folder / "datasets" / slug / str(number)
        folder.mkdir(parents=True)
        for file in files:
            shutil.move(self.folder / "blobs" / file["token"], folder / self.blobs[file["token"]]["name"])
        self.versions[slug], self.datasets[slug] = number, folder
        url = f"https://www.kaggle.com/datasets/{self.user}/{slug}"
        return {"ref": f"{self.user}/{slug}", "url": url, "status": "ok", "error": ""}

    def introspect_token(self, body: dict) -> dict:
        return {"active": body.get("token") == KEY, "username": self.user}


CALLS = {
    "SaveKernel": Server.save_kernel,
    "GetDatasetStatus": Server.get_dataset_status,
    "StartBlobUpload": Server.start_blob_upload,
    "CreateDataset": Server.create_dataset,
    "CreateDatasetVersion": Server.create_dataset_version,
    "IntrospectToken": Server.introspect_token,
}


def refused(code: int, message: str) -> dict:
    """Kaggle's answer to what it does not do; the code is the HTTP status too."""
    return {"code": code, "message": message}


class Handler(BaseHTTPRequestHandler):
    """One request: POST /v1/<service>/<call> with JSON, PUT /upload/<token> with the bytes of a file."""

    server_state: Server

    def log_message(self, *_):
        """Nothing: the tests' output stays readable."""

    def do_POST(self):
        state, name = self.server_state, urlsplit(self.path).path.rsplit("/", 1)[-1]
        body = json.loads(self.received() or b"{}")
        with state.lock:
            state.calls.append(name)
            if name in state.answers:
                return self.answer(*state.answers[name])
            if name != "IntrospectToken" and not state.authorized(self.headers.get("Authorization")):
                return self.answer(401, refused(401, "Unauthenticated"))
            if name not in CALLS:
                return self.answer(404, refused(404, f"this server has no call {name}"))
            found = CALLS[name](state, body)
        self.answer(found.get("code", 200), found)

    def do_PUT(self):
        state, token = self.server_state, urlsplit(self.path).path.rsplit("/", 1)[-1]
        content = self.received()
        with state.lock:
            state.calls.append("upload")
            for name in ("upload", f"upload {state.blobs.get(token, {}).get('name')}"):
                if name in state.answers:
                    return self.answer(*state.answers[name])
            if token not in state.blobs or len(content) != state.blobs[token].get("contentLength", 0):
                return self.answer(400, refused(400, "not the announced file"))
            (state.folder / "blobs" / token).write_bytes(content)
        self.answer(200, {})

    def received(self) -> bytes:
        """The body of the request; an empty file comes in chunks, since requests knows no length 0."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, status: int, body: dict):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
