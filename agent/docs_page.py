"""PUBLIC: the description of an API as one page for people, without scripts or anything from elsewhere. Standard library only."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping
from typing import Any

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }
h2 { margin-top: 2rem; border-bottom: 1px solid #ddd } summary { cursor: pointer; padding: .3rem 0 }
code, pre { font: 13px/1.45 ui-monospace, monospace } pre { background: #f5f5f5; padding: .6rem; overflow: auto }
.method { display: inline-block; width: 4.2rem; font-weight: 600 } .quiet { color: #666 }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #161616 } pre { background: #222 } .quiet { color: #999 } }
"""


def page(said: Mapping[str, Any]) -> str:
    """HTML of an OpenAPI document: every operation by its tag, with parameters, body and answers."""
    title = html.escape(f"{said['info']['title']} {said['info']['version']}")
    groups: dict[str, list[str]] = {}
    for path, methods in said["paths"].items():
        for method, operation in methods.items():
            tag = (operation.get("tags") or ["operations"])[0]
            groups.setdefault(tag, []).append("".join(_operation(method, path, operation)))
    body = "".join(f"<h2>{html.escape(tag)}</h2>{''.join(found)}" for tag, found in groups.items())
    schemas = "".join(
        f'<details id="{html.escape(name)}"><summary><code>{html.escape(name)}</code></summary>{_json(schema)}</details>'
        for name, schema in said.get("components", {}).get("schemas", {}).items()
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
        f'<h1>{title}</h1><p class="quiet">For programs: <a href="openapi.json">openapi.json</a></p>'
        f"{body}<h2>schemas</h2>{schemas}</html>"
    )


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    text = html.escape(operation.get("description") or operation.get("summary", ""))
    yield f'<details><summary><span class="method">{method.upper()}</span><code>{html.escape(path)}</code> '
    yield f'<span class="quiet">{text}</span></summary>'
    for parameter in operation.get("parameters", ()):
        needed = ", required" if parameter.get("required") else ""
        about = html.escape(f"{parameter['name']} ({parameter['in']}{needed})")
        yield f"<p><code>{about}</code></p>{_json(parameter.get('schema', {}))}"
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"<p>body, <code>{html.escape(kind)}</code></p>{_json(content.get('schema', {}))}"
    for status, answer in operation["responses"].items():
        kinds = answer.get("content", {})
        yield f"<p>{html.escape(status)} <span class='quiet'>{html.escape(', '.join(kinds))}</span></p>"
        for content in kinds.values():
            yield _json(content.get("schema", {}))
    yield "</details>"


def _json(value: Any) -> str:
    return f"<pre>{html.escape(json.dumps(value, indent=1, ensure_ascii=False))}</pre>" if value else ""
