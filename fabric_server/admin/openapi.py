"""The OpenAPI 3.1 document, generated from the table of routes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from fabric_server.admin.parameters import is_list, is_required
from fabric_server.admin.routes import Operation, Text

_REFERENCE = "#/components/schemas/{name}"


class Problem(Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: Annotated[str, Meta(description="Stable: programs should check this.")]


class Error(Struct, frozen=True):
    """Any error, in OpenAI's format."""

    error: Problem


def document(operations: Sequence[Operation], release: str) -> dict[str, Any]:
    """Generate the document; ``release`` is the version of this API."""
    types = {kind for row in operations for kind in (row.body, row.result) if _is_struct(kind)}
    types.add(Error)
    _, schemas = msgspec.json.schema_components(
        sorted(types, key=lambda kind: kind.__name__), ref_template=_REFERENCE
    )
    paths: dict[str, dict[str, Any]] = {}
    for row in operations:
        paths.setdefault(row.path, {})[row.method.lower()] = _operation(row)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Fabric",
            "version": release,
            "description": "For operators, monitoring and joining nodes. Times are Unix seconds.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "management": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A management key, mk-fab-…",
                }
            },
        },
        "security": [{"management": []}],
    }


def _operation(row: Operation) -> dict[str, Any]:
    summary = row.description.partition("\n")[0]
    operation: dict[str, Any] = {
        "operationId": row.name,
        "summary": summary,
        "description": row.description,
    }
    parameters = [
        {"name": part, "in": "path", "required": True, "schema": {"type": "string"}}
        for part in row.parts
    ]
    if row.query is not None:
        parameters += map(_parameter, msgspec.structs.fields(row.query))
    if parameters:
        operation["parameters"] = parameters
    if row.body is not None:
        operation["requestBody"] = {
            "required": any(map(is_required, msgspec.structs.fields(row.body))),
            "content": {"application/json": {"schema": _schema(row.body)}},
        }
    content = {row.media: {"schema": _schema(row.result)}}
    responses: dict[str, Any] = {
        str(status): {"description": summary, "content": content} for status in row.statuses
    }
    responses["default"] = {
        "description": "The request failed.",
        "content": {"application/json": {"schema": _schema(Error)}},
    }
    operation["responses"] = responses
    if row.public:
        operation["security"] = []
    return operation


def _parameter(field: msgspec.structs.FieldInfo) -> dict[str, Any]:
    schema = msgspec.json.schema(field.type)
    if "anyOf" in schema:  # a query has no null: the parameter is left out instead
        (option,) = (one for one in schema.pop("anyOf") if one != {"type": "null"})
        schema = option | schema
    parameter: dict[str, Any] = {"name": field.encode_name, "in": "query"}
    if (description := schema.pop("description", None)) is not None:
        parameter["description"] = description
    if is_required(field):
        parameter["required"] = True
    elif field.default is not msgspec.NODEFAULT and field.default is not None:
        schema["default"] = field.default
    if is_list(field.type):
        parameter |= {"style": "form", "explode": False}
    return parameter | {"schema": schema}


def _schema(kind: Any) -> dict[str, Any]:
    if _is_struct(kind):
        return {"$ref": _REFERENCE.format(name=kind.__name__)}
    return {"type": "string" if kind in (Text, None) else "object"}


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Struct)
