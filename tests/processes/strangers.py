"""What a stranger does with a folder: runs the Python of its README, in a process where this project is missing."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from amp.towers.library import FOLDER

# The Python of a README ends with `model`; how it is called is the library's.
READER = """
import sys, warnings
sys.modules["amp"] = None
warnings.simplefilter("ignore")
from pathlib import Path
import torch
from PIL import Image
image = Image.open("image.png")
link = Path("path/to/this/folder")
for folder in sys.argv[1:]:
    link.unlink(missing_ok=True)
    link.symlink_to(folder)
    own = {"__name__": "__main__"}
    try:
        exec(Path(folder, "snippet.py").read_text(), own)
        model = own["model"].eval()
        for parameter in model.parameters():  # A file's tensors lie anywhere, and sums hang on where.
            parameter.data = parameter.data.clone()
        x = torch.load(Path(folder, "images.pt")).to(next(p.dtype for p in model.parameters() if p.ndim == 4))
        with torch.no_grad():
            if hasattr(model, "get_image_features"):
                found = model.get_image_features(x).pooler_output
            elif hasattr(model, "encode_image"):
                found = model.encode_image(x)
            else:
                output = model(x)
                found = output if isinstance(output, torch.Tensor) else output[0]
        if "processor" in own:
            pixels = own["processor"](image, return_tensors="pt").pixel_values[0]
        else:
            pixels = own["transform"](image) if "transform" in own else torch.empty(0)
        seen = {"found": found, "pixels": pixels, "class": type(model).__name__}
    except Exception as error:
        import traceback
        seen = {"error": traceback.format_exc()}
    torch.save(seen, Path(folder, "seen.pt"))
"""


def snippets(folder: Path) -> list[str]:
    """The blocks of Python in a folder's README, in their order."""
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.S)


def read_as_strangers(folders: Sequence[Path], image: Image.Image, place: Path) -> list[dict[str, Any]]:
    """What the last Python of every folder's README gives, run in one process: `{found, pixels, class}`, or `{error}`.

    Args:
        folders: with `images.pt`, what the model is called with.
        image: what the transform, or the image processor, is called with.
        place: the process's own folder.
    """
    (place / FOLDER).parent.mkdir(parents=True, exist_ok=True)
    image.save(place / "image.png")
    for folder in folders:
        (folder / "snippet.py").write_text(snippets(folder)[-1])
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_MODULES_CACHE": str(place / "modules")}
    command = [sys.executable, "-c", READER, *map(str, folders)]
    ended = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return [torch.load(folder / "seen.pt", weights_only=True) for folder in folders]
