"""RUN/report.html: the whole report in one file that opens from disk, without a network.

Enters: the store of a run. Leaves: the page's path. Data stand in JSON script elements, in which "<" is escaped, and
viewer_*.js builds the page from them by textContent; a policy in the page allows this very script and style and nothing
else, so no text of a manifest can become code.
"""

import base64
import dataclasses
import hashlib
import html
import json
import os
import re
from datetime import UTC, datetime
from importlib import resources
from typing import Any

from ov2_core.report.collect import RunSummary, collect_run, read_sample
from ov2_core.report.sample_page import sample_page
from ov2_core.storage.files import Store

REPORT_HTML = "report.html"
MAX_PAGE_BYTES = 25_000_000
MAX_SAMPLE_BYTES = 3_500_000
"""Share of the page that one sample may take; with more than six samples it is less."""
_FIXED_BYTES = 2_000_000
_SCRIPTS = ("viewer_dom.js", "viewer_run.js", "viewer_rebuild.js", "viewer_timeline.js", "viewer_sample.js")


def write_report(store_or_root: Store | str | os.PathLike[str], *, num_samples: int = 6) -> str:
    """Write RUN/report.html, at once and whole; returns its path or URL. The run may still be going on.

    Raises:
        ValueError: there is no run there, or num_samples is out of range.
    """
    store = store_or_root if isinstance(store_or_root, Store) else Store(store_or_root)
    summary = collect_run(store, num_samples=num_samples)
    store.write_bytes(REPORT_HTML, render_report(store, summary).encode())
    return store.url(REPORT_HTML)


def render_report(store: Store, summary: RunSummary) -> str:
    """The page of a summary; the chosen samples are read from the store. One that cannot be read is named, not skipped."""
    samples: list[dict[str, Any]] = []
    max_bytes = min(MAX_SAMPLE_BYTES, (MAX_PAGE_BYTES - _FIXED_BYTES) // max(1, len(summary.shown)))
    for shown in summary.shown:
        try:
            samples.append(sample_page(read_sample(store, shown), run_root=store.root, max_bytes=max_bytes))
        except (OSError, ValueError, KeyError, EOFError) as error:
            samples.append(
                {"key": shown.sample.key, "id": shown.sample.id, "error": f"{type(error).__name__}: {error}"}
            )
    parts = {"run-data": _run_page(summary, len(samples))}
    parts |= {f"sample-data-{i}": sample for i, sample in enumerate(samples)}
    data = "\n".join(
        f'<script type="application/json" id="{name}">{_json(value)}</script>' for name, value in parts.items()
    )
    style, script = asset("viewer.css"), "".join(asset(name) for name in _SCRIPTS)
    policy = (
        f"default-src 'none'; img-src data:; style-src '{source_hash(style)}'; script-src '{source_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    recipe = summary.run.recipe if summary.run else "run"
    fields = {
        "csp": policy,
        "title": html.escape(f"{recipe}: {summary.committed} samples"),
        "style": style,
        "data": data,
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: fields[match[1]], asset("viewer.html"))


def _run_page(summary: RunSummary, num_samples: int) -> dict[str, Any]:
    run, plan = summary.run, summary.plan
    hidden = ("run", "plan", "shown")
    page = {f.name: getattr(summary, f.name) for f in dataclasses.fields(summary) if f.name not in hidden}
    for name in ("predictions", "quarantine", "filter_rules", "histograms"):
        page[name] = [dataclasses.asdict(entry) for entry in page[name]]
    identity = [("Root", summary.root)]
    if run is not None:
        created = datetime.fromtimestamp(run.created_unix_seconds, UTC)
        identity += [
            ("Recipe", run.recipe),
            ("Config digest", run.config_digest),
            ("Code version", run.code_version),
            ("Manifest", run.manifest_uri),
            ("Manifest digest", run.manifest_digest),
            ("Created", f"{created:%Y-%m-%d %H:%M} UTC"),
        ]
    elif plan is not None:
        identity += [("Manifest", plan.manifest_uri), ("Config digest", plan.config_digest)]
    return page | {
        "recipe": run.recipe if run else "Run without run.json",
        "identity": identity,
        "libraries": sorted(run.library_versions.items()) if run else [],
        "config": run.config if run else None,
        "num_shown": num_samples,
    }


def _json(value: Any) -> str:
    """JSON that is safe inside a script element: no "<" and no ">" stands in it, so neither a tag nor a comment can."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def asset(name: str) -> str:
    """A file of this package as text."""
    return (resources.files("ov2_core.report") / name).read_text(encoding="utf-8")


def source_hash(text: str) -> str:
    """Source expression of the content security policy for an inline element of this text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
