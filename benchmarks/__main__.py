"""``python -m benchmarks``: measure everything, write it down, and say which budgets were kept."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import budgets, chart, curves, growth, http, inprocess, machine, peers_inprocess, promises, tables
from benchmarks.contenders import CONTENDERS, FEW, OWN, ROOT, install, running
from benchmarks.databases import Place, postgresql, sqlite
from benchmarks.importing import importing
from benchmarks.network import Network, bare, network
from benchmarks.rounds import frozen
from benchmarks.scale import FULL, SHORT, Scale

HERE = Path(__file__).parent
TURNS = [(path, state) for path in ("/read", "/write") for state in (http.PLAIN, http.FROZEN)]
"""What is asked for over HTTP, and of whom: of each contender as it is, and frozen."""


def main() -> int:
    """Run the command line; 0 if everything that does not hang on a clock is as promised."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--short", action="store_true", help="a small scale, and no time is judged")
    parser.add_argument("--venvs", type=Path, default=ROOT / ".nox" / "peers", help="where the peers are installed")
    parser.add_argument("--output", type=Path, default=None, help="where the results go; not written for --short")
    arguments = parser.parse_args()
    scale = SHORT if arguments.short else FULL
    output = arguments.output or (None if arguments.short else HERE)
    install(arguments.venvs)
    start = time.monotonic()
    found = measure(scale, arguments.venvs.absolute())
    judged = budgets.judge(found)
    print(tables.document(found, judged))
    print(f"took {time.monotonic() - start:.0f} s", file=sys.stderr)
    if output is not None:
        write(output, found, judged)
    return int(any(not one.met and not one.timed for one in judged))


def measure(scale: Scale, venvs: Path) -> dict[str, Any]:
    """Measure everything; whatever is not as it should be raises AssertionError."""
    found: dict[str, Any] = {"machine": machine.describe(), "scale": scale._asdict()}
    found["import"] = importing(scale)
    with sqlite() as place:
        found["unused"] = asyncio.run(inprocess.unused(place, scale))
        found["sqlite"] = asyncio.run(inprocess.used(place, scale.work))
    found["memory_sqlite"] = asyncio.run(inprocess.in_memory(scale.work))
    with postgresql() as place, network(place) as far:
        found["network"] = bare(place, far.place, 300)
        found["round_trips"] = asyncio.run(inprocess.round_trips(far))
        found["postgresql"] = asyncio.run(inprocess.used(place, scale.work))
        found["far"] = asyncio.run(inprocess.used(far.place, scale.far))
        _peers(found, place, far, scale, venvs)
        found["readers"] = http.slow_readers(place, venvs, scale, CONTENDERS if scale.everybody else OWN)
        _growth(found, place, far, scale)
    return found


def _peers(found: dict[str, Any], place: Place, far: Network, scale: Scale, venvs: Path) -> None:
    again = CONTENDERS if scale.everybody else FEW
    pool = {"pool_size": scale.connections, "max_overflow": 0}  # otherwise connecting is what is measured
    with running(place, venvs, **pool) as processes:
        found["versions"] = {one.contender.module: one.do("versions") for one in processes}
        seen = {one.contender.module: promises.observe(one, place) for one in processes}
        found["promises"] = {module: promises.words(one) for module, one in seen.items()}
        for module, said in found["promises"].items():
            if module.startswith("ours") and said:
                raise AssertionError(f"{module}: {said}")
        found["peers"] = peers_inprocess.measure(processes, place, scale.peers)
        found["http"] = _by_loop("asyncio", http.load(processes, place, scale, [("/unused", http.PLAIN), *TURNS]))
    with running(place, venvs, again, "uvloop", **pool) as processes:
        found["http"] |= _by_loop("uvloop", http.load(processes, place, scale, TURNS))
    with running(far.place, venvs, again) as processes:
        found["peers_round_trips"] = peers_inprocess.round_trips(processes, far)
        found["far_peers"] = peers_inprocess.measure(processes, place, scale.far_peers, ("/read", "/write"))


def _by_loop(loop: str, loads: dict[tuple[str, str, str], http.Load]) -> dict[tuple[str, ...], http.Load]:
    return {(loop, *key): load for key, load in loads.items()}


def _growth(found: dict[str, Any], place: Place, far: Network, scale: Scale) -> None:
    found["databases"] = asyncio.run(growth.databases(place, far.place, scale))
    found["concurrency"] = asyncio.run(growth.concurrency(place, scale))
    with frozen():
        found["frozen concurrency"] = asyncio.run(growth.concurrency(place, scale))
    found["messages"] = asyncio.run(growth.messages(place, scale))
    found["loops"] = growth.loops(place, scale)
    found["memory"] = asyncio.run(growth.memory(place, scale))


def write(folder: Path, found: dict[str, Any], judged: list[budgets.Budget]) -> None:
    """Write the results in every form."""
    (folder / "results.rst").write_text(tables.document(found, judged))
    (folder / "results.svg").write_text(chart.draw(found))
    (folder / "growth.svg").write_text(curves.draw(found))
    plain = _plain({**found, "budgets": judged})
    (folder / "results.json").write_text(json.dumps(plain, indent=1, ensure_ascii=False) + "\n")


def _plain(value: Any) -> Any:
    """Return ``value`` with what JSON does not know made plain: named tuples, and tuples as keys."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {", ".join(map(str, key)) if isinstance(key, tuple) else key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return round(value, 3) if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
