"""The demo's trained model, as it comes with the package: the file `amp demo --full` trains, without its empty rows.

    python -m amp.demo.shipped out/demo/dense/model.safetensors

writes it anew after `amp demo --full`. The text encoder's table has 49,408 rows, and all but those of the captions'
words are zero; `dense.safetensors` beside this file holds the others, and every other tensor bit by bit.

V rows of the table, U of them in use, D embedding width.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file

from amp.run.console import run_script, say
from amp.run.files import atomic
from amp.run.sealed import read_tensors, write_tensors
from amp.settings.base import Parser

FILE = Path(__file__).with_name("dense.safetensors")
TABLE, ROWS = "token_embedding.weight", "rows"


def write_shipped(out_file: Path) -> None:
    """Writes the trained model as open_clip loads it. Raises UserError where the package's file is damaged."""
    header, tensors = read_tensors(FILE, "reinstall the package")
    used_U, table_UD = tensors.pop(ROWS), tensors[TABLE]
    tensors[TABLE] = torch.zeros(header[ROWS], table_UD.shape[1])
    tensors[TABLE][used_U] = table_UD
    with atomic(out_file) as partial:
        write_tensors(partial, tensors)


def ship(dense_file: Path, out_file: Path = FILE) -> None:
    """Writes the package's file from a model that `amp.demo.dense` has trained."""
    tensors = load_file(dense_file)
    table_VD = tensors[TABLE]
    tensors[ROWS] = table_VD.any(dim=1).nonzero().squeeze(1)
    tensors[TABLE] = table_VD[tensors[ROWS]]
    with atomic(out_file) as partial:
        write_tensors(partial, tensors, {ROWS: len(table_VD)})


def main() -> None:
    parser = Parser(prog="python -m amp.demo.shipped", description="Writes the demo's model into the package.")
    parser.add_argument("dense", type=Path, help="the model that `amp demo --full` has trained")
    ship(parser.parse_args().dense)
    say(f"wrote {FILE}")


if __name__ == "__main__":
    run_script(main)
