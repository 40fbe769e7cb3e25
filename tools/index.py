"""Write what is generated from the cards and reports: indices, public names, README tables.

Run it after adding or changing a method, a report or a benchmark. With ``--check`` nothing is
written; the exit code is 1 if a file is out of date. Per package it writes

- ``src/cv_x/index.json``, from which ``cvlab list`` answers without importing anything;
- the lower part of ``src/cv_x/__init__.pyi``: the public names, imported lazily (not for cv-core,
  whose users import its submodules);
- the tables between the markers in ``README.md``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from cv_core.experiment.compare import headline, verdicts
from cv_core.experiment.results import read
from cv_core.registry import Entry, discover

ROOT = Path(__file__).resolve().parent.parent
PYI_MARK = "# The methods' public names, written from the cards by tools/index.py:\n"


def packages() -> list[str]:
    return sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))


def row(entry: Entry) -> dict[str, Any]:
    """Return a method's row of the index."""
    card = entry.card
    report = ROOT / "packages" / entry.package / "reports" / f"{card.slug}.json"
    experiment = source_path(entry.package, "experiments", f"{card.stem}.py")
    judged, words, data = [], "", ""
    if report.is_file():
        results = read(report)
        found = verdicts(results)
        judged = [
            {"claim": str(item.claim), "case": item.case, "verdict": item.outcome} for item in found
        ]
        words, data = headline(found), results.data.name
    return {
        "slug": card.slug,
        "package": entry.package,
        "title": card.title,
        "reference": dataclasses.asdict(card.reference),
        "kind": card.kind,
        "objects": list(card.objects),
        "experiment": entry.experiment_module if experiment.is_file() else "",
        "headline": words,
        "data": data,
        "verdicts": judged,
    }


def source_path(package: str, *parts: str) -> Path:
    return ROOT.joinpath("packages", package, "src", package.replace("-", "_"), *parts)


def index_text(rows: list[dict[str, Any]]) -> str:
    return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"


def pyi_text(path: Path, rows: list[dict[str, Any]]) -> str:
    """Keep what is written by hand above the mark, and write the cards' names below it."""
    names: dict[str, str] = {}
    for dotted in (name for item in rows for name in item["objects"]):
        module, _, name = dotted.rpartition(".")
        if names.setdefault(name, module) != module:
            raise SystemExit(f"two methods of one package have a public name {name!r}")
    by_hand = path.read_text(encoding="utf-8").partition(PYI_MARK)[0]
    lines = []
    for name, module in sorted(names.items(), key=lambda item: (item[1], item[0])):
        lines.append(f"from .{module.partition('.')[2]} import {name} as {name}\n")
    return by_hand + PYI_MARK + "".join(lines)


def methods_table(rows: list[dict[str, Any]], *, link: str) -> str:
    """Return the table of methods: what, paper, import names, verdict with its report."""
    if not rows:
        return "No methods yet.\n"
    lines = ["| method | what it does | paper | verdict of its experiment |", "|---|---|---|---|"]
    for item in rows:
        paper = item["reference"]
        verdict = "no report yet"
        if item["headline"]:
            report = link.format(package=item["package"], slug=item["slug"])
            verdict = f"[{item['headline']}]({report}) on {item['data']}"
        lines.append(
            f"| `{item['slug']}` | {item['title']} | {paper['title']}, {paper['venue']}, "
            f"{paper['year']} | {verdict} |"
        )
    return "\n".join(lines) + "\n"


def benchmark_table(package: str) -> str:
    """Return the table of a package's races against its peers, lost ones included."""
    files = sorted(ROOT.glob(f"packages/{package}/benchmarks/results/*.json"))
    if not files:
        return "No races yet.\n"
    lines = [
        "| operation | ours | peer | peer's time | ratio (95 % interval) | bar |",
        "|---|---|---|---|---|---|",
    ]
    for path in files:
        race = json.loads(path.read_text(encoding="utf-8"))
        for name, peer in race["peers"].items():
            bar = peer.get("bar")
            verdict = "none"
            if bar is not None:
                verdict = f"{bar:g}x: {'met' if peer['ratio'] >= bar else 'missed'}"
            lines.append(
                f"| {race['operation']}, {race['input']} | {race['ours_ms']:.3g} ms | {name} "
                f"{peer['version']} | {peer['median_ms']:.3g} ms | {peer['ratio']:.2f}x "
                f"({peer['ratio_low']:.2f} to {peer['ratio_high']:.2f}) | {verdict} |"
            )
    return "\n".join(lines) + "\n"


def fill(text: str, mark: str, content: str) -> str:
    """Return a document with what stands between two markers replaced."""
    begin, end = f"<!-- {mark}:begin -->\n", f"<!-- {mark}:end -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    return before + begin + content + end + after if found and closed else text


def wanted() -> dict[Path, str]:
    """Return every generated file with the text that it should have."""
    files: dict[Path, str] = {}
    every: list[dict[str, Any]] = []
    for package in packages():
        rows = [row(entry) for entry in discover(package).values()]
        every += rows
        files[source_path(package, "index.json")] = index_text(rows)
        if package != "cv-core":
            pyi = source_path(package, "__init__.pyi")
            files[pyi] = pyi_text(pyi, rows)
        readme = ROOT / "packages" / package / "README.md"
        text = fill(readme.read_text(encoding="utf-8"), "benchmarks", benchmark_table(package))
        for table in sorted(ROOT.glob(f"packages/{package}/benchmarks/results/*.md")):
            text = fill(text, table.stem, table.read_text(encoding="utf-8"))
        files[readme] = fill(text, "methods", methods_table(rows, link="reports/{slug}.md"))
    front = ROOT / "README.md"
    table = methods_table(every, link="packages/{package}/reports/{slug}.md")
    files[front] = fill(front.read_text(encoding="utf-8"), "methods", table)
    return files


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, only compare")
    check = parser.parse_args().check
    stale = {
        path: text
        for path, text in wanted().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    }
    for path, text in stale.items():
        print(f"{'out of date' if check else 'written'}: {path.relative_to(ROOT)}")
        if not check:
            path.write_text(text, encoding="utf-8")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
