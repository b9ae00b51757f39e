"""A DuckDB catalog of all manifests in a store. It is built from them each time, so it cannot disagree with them.

Tables: `artifacts` (one row each), `parts`, `files`, and `inputs` (edges to the parts that an artifact was made from).
The view `dropped` covers the `dropped.parquet` of every stage.
"""

from __future__ import annotations

import json
from typing import Any

import duckdb
import pyarrow as pa

from storage.errors import OnwardError
from storage.runs import references
from storage.store import Store

_DROPPED = "dropped.parquet"
_SCHEMAS = {
    "artifacts": pa.schema(
        [
            ("stage", pa.string()),
            ("key", pa.string()),
            ("version", pa.int64()),
            ("path", pa.string()),
            ("bytes", pa.int64()),
            ("config", pa.string()),
            ("stats", pa.string()),
            ("code", pa.string()),
            ("started", pa.string()),
            ("seconds", pa.float64()),
        ]
    ),
    "parts": pa.schema(
        [("key", pa.string()), ("part", pa.string()), ("digest", pa.string()), ("files", pa.int64())]
    ),
    "files": pa.schema(
        [
            ("key", pa.string()),
            ("part", pa.string()),
            ("path", pa.string()),
            ("bytes", pa.int64()),
            ("sha256", pa.string()),
            ("rows", pa.int64()),
            ("tokens", pa.int64()),
        ]
    ),
    "inputs": pa.schema(
        [
            ("key", pa.string()),
            ("from_stage", pa.string()),
            ("from_key", pa.string()),
            ("part", pa.string()),
            ("digest", pa.string()),
        ]
    ),
}


class Catalog:
    """Queries about the contents of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.connection = duckdb.connect()
        rows = _rows(store)
        for name, schema in _SCHEMAS.items():
            table = pa.Table.from_pylist(rows[name], schema=schema)
            self.connection.register(f"_{name}", table)
            self.connection.execute(f"create table {name} as select * from _{name}")
            self.connection.unregister(f"_{name}")
        self._views = False

    def sql(self, query: str, parameters: list[Any] | None = None) -> list[dict[str, Any]]:
        """The rows of a query, as dictionaries."""
        if (
            "dropped" in query and not self._views
        ):  # it opens files, which may be damaged, so not before it is asked
            self._views = True
            self._dropped_view()
        result = self.connection.execute(query, parameters or [])
        names = [column[0] for column in result.description or []]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]

    def find(self, prefix: str) -> dict[str, Any]:
        """Find the one artifact whose key, or `stage/key` (`tokenize/3f9a2c`), starts so.

        Raises OnwardError if none or several do, and DamagedArtifact if it is one whose manifest cannot be read.
        """
        stage, _, key = prefix.rpartition("/")
        found = self.sql(
            "select * from artifacts where starts_with(key, ?) and (? = '' or stage = ?) order by stage, key",
            [key, stage, stage],
        )
        for path in [] if found else self.store.unreadable():
            if stage in ("", path.parent.name) and path.name.startswith(key[:16]):
                self.store.read(path)  # it raises the fitting error
        if len(found) != 1:
            what = (
                "no artifact"
                if not found
                else f"{len(found)} artifacts ({', '.join(a['stage'] for a in found[:5])})"
            )
            raise OnwardError(f"{what} in {self.store.root} with a key that begins with {prefix!r}")
        return found[0]

    def upstream(self, key: str) -> list[dict[str, Any]]:
        """All artifacts that this one was made from, nearest first: stage, key, path, depth."""
        return self.sql(
            """
            with recursive way(key, depth) as (
                select ?::varchar, 0
                union
                select i.from_key, way.depth + 1 from way join inputs i on i.key = way.key
            )
            select a.stage, a.key, a.path, max(way.depth) as depth
            from way join artifacts a using (key) group by all order by depth, a.stage, a.key
            """,
            [key],
        )

    def fate(self, document: int) -> list[dict[str, Any]]:
        """The stages that dropped a document, with the reason; empty if no stage dropped it."""
        return self.sql("select * from dropped where id = ?", [document])

    def _dropped_view(self) -> None:
        rows = self.sql("select path from artifacts order by path")
        paths = [str(path) for row in rows if (path := self.store.root / row["path"] / _DROPPED).is_file()]
        if paths:
            listed = ", ".join("'" + path.replace("'", "''") + "'" for path in paths)
            self.connection.execute(
                f"create view dropped as select * from read_parquet([{listed}], filename = true)"
            )
        else:
            self.connection.execute(
                "create table dropped (id ubigint, source varchar, stage varchar, reason varchar, "
                "value double, detail varchar, filename varchar)"
            )


def _rows(store: Store) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in _SCHEMAS}
    for artifact in store.artifacts():
        manifest, key = artifact.manifest, artifact.key
        rows["artifacts"].append(
            {
                "stage": artifact.stage,
                "key": key,
                "version": manifest.version,
                "path": str(artifact.path.relative_to(store.root)),
                "bytes": manifest.bytes,
                "config": json.dumps(manifest.config),
                "stats": json.dumps(manifest.stats),
                "code": manifest.provenance.get("code"),
                "started": manifest.provenance.get("started"),
                "seconds": manifest.provenance.get("seconds"),
            }
        )
        for name, part in manifest.parts.items():
            rows["parts"].append({"key": key, "part": name, "digest": part.digest, "files": len(part.files)})
            for entry in part.files:
                rows["files"].append({"key": key, "part": name, **vars(entry)})
        for edge in references(artifact):
            rows["inputs"].append(
                {
                    "key": key,
                    "from_stage": edge["stage"],
                    "from_key": edge["key"],
                    **_named(edge, "part", "digest"),
                }
            )
    return rows


def _named(edge: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: edge[name] for name in names}
