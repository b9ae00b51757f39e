"""What the loopback hub does with what is pushed to it: repositories made, large files taken, commits written to a disk."""

from __future__ import annotations

import base64
import json
import re
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.support.loopback import LoopbackHub

_PREUPLOAD = re.compile(r"/api/models/([^/]+/[^/]+)/preupload/[^/]+")
_COMMIT = re.compile(r"/api/models/([^/]+/[^/]+)/commit/[^/]+")
_BATCH = re.compile(r"/[^/]+/[^/]+\.git/info/lfs/objects/batch")
_OBJECT = re.compile(r"/lfs/([0-9a-f]{64})")


@dataclass
class Taken:
    """Files that were pushed, in a directory of their own. Who does not bring `token` may not write."""

    token: str
    root: Path = field(default_factory=lambda: Path(tempfile.mkdtemp()))
    objects: dict[str, bytes] = field(default_factory=dict)
    uploads: list[str] = field(default_factory=list)
    """The large files that were sent, each as often as it was."""
    visibility: dict[str, str | None] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    cards: list[str] = field(default_factory=list)
    """The cards whose metadata the client asked about."""
    complaints: list[str] = field(default_factory=list)
    """What is wrong with the metadata of each card."""
    breaks: int = 0
    """So many of the next commits are answered 500."""

    def close(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def answer(
        self, hub: LoopbackHub, method: str, path: str, authorization: str | None, body: bytes
    ) -> tuple[int, Any] | None:
        """Status and JSON; None for what is no request of a push."""
        if found := _OBJECT.fullmatch(path):
            self.objects[found[1]] = body
            self.uploads.append(found[1])
            return 200, {}
        if path == "/api/validate-yaml":
            self.cards.append(json.loads(body)["content"])
            errors = [{"message": one} for one in self.complaints]
            return 400 if errors else 200, {"errors": errors, "warnings": []}
        if method != "POST" or not (
            path == "/api/repos/create" or any(one.fullmatch(path) for one in (_PREUPLOAD, _COMMIT, _BATCH))
        ):
            return None
        if authorization != f"Bearer {self.token}":
            return 403 if authorization else 401, {"error": "this token may not write"}
        if path == "/api/repos/create":
            return self._create(hub, json.loads(body))
        if found := _PREUPLOAD.fullmatch(path):
            files = [
                {"path": one["path"], "uploadMode": _mode(one["path"]), "shouldIgnore": False, "oid": None}
                for one in json.loads(body)["files"]
            ]
            return 200, {"files": files}
        if _BATCH.fullmatch(path):
            return 200, {
                "transfer": "basic",
                "objects": [self._object(hub, one) for one in json.loads(body)["objects"]],
            }
        found = _COMMIT.fullmatch(path)
        assert found
        return self._commit(hub, found[1], [json.loads(line) for line in body.splitlines() if line])

    def _create(self, hub: LoopbackHub, wanted: dict[str, Any]) -> tuple[int, Any]:
        name = f"{wanted['organization']}/{wanted['name']}"
        if ("models", name) in hub.repositories:
            return 409, {"url": f"{hub.endpoint}/{name}"}
        first = Path(tempfile.mkdtemp(dir=self.root))
        (first / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
        hub.publish("models", name, first)
        self.visibility[name] = wanted.get("visibility")
        return 200, {"url": f"{hub.endpoint}/{name}"}

    def _object(self, hub: LoopbackHub, wanted: dict[str, Any]) -> dict[str, Any]:
        known = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] in self.objects:
            return known
        return known | {"actions": {"upload": {"href": f"{hub.endpoint}/lfs/{wanted['oid']}"}}}

    def _commit(self, hub: LoopbackHub, name: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        if self.breaks:
            self.breaks -= 1
            return 500, {"error": "not now"}
        repository = hub.repositories["models", name]
        to = Path(tempfile.mkdtemp(dir=self.root))
        shutil.copytree(repository.commits[repository.main], to, dirs_exist_ok=True)
        for line in lines:
            kind, value = line["key"], line["value"]
            if kind == "header":
                self.messages.append(value["summary"])
            elif kind == "file":
                (to / value["path"]).parent.mkdir(parents=True, exist_ok=True)
                (to / value["path"]).write_bytes(base64.b64decode(value["content"]))
            elif kind == "lfsFile":
                (to / value["path"]).write_bytes(self.objects[value["oid"]])
            elif kind == "deletedFile":
                (to / value["path"]).unlink()
        commit = hub.publish("models", name, to)
        return 200, {
            "commitUrl": f"{hub.endpoint}/{name}/commit/{commit}",
            "commitOid": commit,
            "success": True,
        }


def _mode(path: str) -> str:
    return "lfs" if path.endswith((".safetensors", ".gguf", "tokenizer.json")) else "regular"
