"""Writes a trained CNN as a folder to take elsewhere: the network, what it is fed with, a script that runs it, a card.

    python src/export.py --model 2d --format onnx|torch|safetensors [--dataset demo] [--out FOLDER]

The default folder is `exported/<model>-<format>` in the data set's results.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from files import shown


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Writes a trained CNN as a folder to take elsewhere.")
    parser.add_argument("--model", default="2d", help="2d (the default) or 3d")
    parser.add_argument("--format", default="onnx", choices=["onnx", "torch", "safetensors"],
                        help="onnx (the default): runs with onnxruntime; torch: an exported program, runs with torch; "
                             "safetensors: the weights, for the code of this project")
    parser.add_argument("--dataset", default=os.environ.get("DATASET") or "demo",
                        help="whose trained models: demo, ucf101 or a folder (default: DATASET, or demo)")
    parser.add_argument("--out", type=Path, help="the folder (default: exported/MODEL-FORMAT in the results)")
    asked = parser.parse_args(arguments)
    from deployment.package import NotExported, export_model
    from deployment.trained import NotTrained
    from models import WeightsError
    from videos.places import locate

    try:
        _, _, results = locate(asked.dataset)
        folder = asked.out or results / "exported" / f"{asked.model}-{asked.format}"
        export_model(asked.model, asked.format, results, folder)
    except (OSError, ValueError, NotTrained, WeightsError, NotExported) as error:
        raise SystemExit(f"error: {error}") from None
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"exported: {shown(folder)} ({size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
