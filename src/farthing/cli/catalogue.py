"""``farthing targets``: the catalogue of devices, and what is known of this machine."""

from __future__ import annotations

import argparse

from farthing.cli.options import add_json
from farthing.cli.show import as_json, room, table

TYPE_CHECKING = False

if TYPE_CHECKING:
    from farthing.catalogue import Device
    from farthing.target import Target

NOT_MEASURED = (
    "Figures are as their sources state them; none was measured, and no speed is derived from them: measure on the "
    "device, with `farthing target add` and `farthing bench --on`."
)


def targets_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``farthing targets``."""
    parser.add_argument(
        "name",
        nargs="?",
        default="",
        help="show one device with the sources of its figures; `this`: this machine",
    )
    add_json(parser)
    parser.epilog = (
        "`farthing optimize --target NAME` keeps to what a device can run, and to what fits its memory."
    )


def targets(parsed: argparse.Namespace) -> int:
    """Run ``farthing targets``."""
    from farthing import catalogue
    from farthing.target import THIS, Target

    if not parsed.name:
        found = catalogue.devices()
        if parsed.json:
            for name, device in found.items():
                print(as_json({"name": name, **catalogue.plain(device)}))
        else:
            print(f"{_list(found)}\n\n{NOT_MEASURED}")
    elif parsed.name == THIS:
        here = Target.detect()
        print(as_json(here) if parsed.json else _machine(here))
    else:
        device = catalogue.device(parsed.name)
        print(
            as_json({"name": parsed.name, **catalogue.plain(device)})
            if parsed.json
            else _one(parsed.name, device)
        )
    return 0


def _list(found: dict[str, Device]) -> str:
    from farthing.catalogue import shown

    rows = [
        [
            name,
            device.kind,
            device.value("cpu") or "-",
            str(device.value("cores") or "-"),
            f"{shown(device.value('memory_mb'), 'MiB')}" if device.value("memory_mb") else "-",
            device.value("accelerator") or "-",
            str(device.value("tops") or "-"),
        ]
        for name, device in found.items()
    ]
    head = ["name", "kind", "processor", "cores", "memory", "accelerator", "TOPS"]
    return table(head, rows, ("TOPS", "kind", "accelerator"), room())


def _one(name: str, device: Device) -> str:
    from farthing.catalogue import FIGURES, shown

    rows = [
        [FIGURES[key].about, shown(figure.value, FIGURES[key].unit), figure.note, figure.source]
        for key, figure in device.figures.items()
    ]
    said = {"architecture": (device.arch,), "engines": device.engines, "element types": device.dtypes}
    lines = [f"{name}: {device.title}, {device.kind}", ""]
    lines += [f"{key:<14} {', '.join(value) or 'any'}" for key, value in said.items()]
    lines += ["", table(["figure", "value", "note", "source"], rows, ("note",), room()), "", "Sources:"]
    lines += [f"{key}: {source.title}, {source.url}" for key, source in device.sources.items()]
    return "\n".join([*lines, "", NOT_MEASURED])


def _machine(here: Target) -> str:
    levels = [f"L{level} {size} KiB" for level, size in enumerate(here.caches_kb, 1)]
    rows = {
        "board": here.board,
        "processor": here.cpu,
        "architecture": here.arch,
        "instruction sets": ", ".join(here.isa),
        "cores": str(here.cores or ""),
        "memory": f"{here.memory_mb} MiB" if here.memory_mb else "",
        "data caches": ", ".join(levels),
        "accelerators": ", ".join(here.accelerators),
    }
    return "\n".join(f"{key:<17} {value or 'none found, or not known'}" for key, value in rows.items())
