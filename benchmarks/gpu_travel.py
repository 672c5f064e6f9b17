# Copyright 2026 The ultraflash_diffusers authors. Licensed under the Apache License, Version 2.0.
"""Whether what travels to a rented GPU fits: this checkout's files and the wheels that are missing there.

    python benchmarks/gpu_travel.py                      # by the sizes in benchmarks/gpu/wheels.json
    python benchmarks/gpu_travel.py --wheels FOLDER      # by files: pip download --no-deps -d FOLDER ...

It fails where they are larger than `--limit` together. A GPU's image brings torch, triton, transformers, accelerate,
peft and numpy; the package itself streams without PyAV, which would take half of what may travel.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_WHEELS = Path(__file__).parent / "gpu" / "wheels.json"
_MIB = 2**20


def tracked_bytes(root: Path) -> dict[str, int]:
    """Bytes of the files that git tracks or would track, by their first folder."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=root, capture_output=True, check=True, text=True).stdout.split("\0")
    sizes: dict[str, int] = {}
    for path in (root / name for name in names if name):
        if path.is_file():
            folder = path.relative_to(root).parts[0]
            sizes[folder] = sizes.get(folder, 0) + path.stat().st_size
    return sizes


def wheel_bytes(folder: Path | None) -> dict[str, int]:
    """Bytes of the wheels: of those in a folder, or of those that are known to be needed."""
    if folder is None:
        return json.loads(_WHEELS.read_text())
    return {path.name: path.stat().st_size for path in sorted(folder.glob("*.whl"))}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="a folder of wheels")
    parser.add_argument("--limit", type=float, default=64, help="MiB in all (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.wheels is not None and not options.wheels.is_dir():
        parser.error(f"--wheels {options.wheels}: no such folder")
    sizes = tracked_bytes(ROOT) | wheel_bytes(options.wheels)
    for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
        print(f"{size / _MIB:8.2f} MiB  {name}")
    total = sum(sizes.values()) / _MIB
    print(f"{total:8.2f} MiB  of {options.limit:g}")
    if total > options.limit:
        raise SystemExit(f"{total - options.limit:.2f} MiB too much")


if __name__ == "__main__":
    main()
