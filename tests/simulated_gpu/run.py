"""Runs the tests of a GPU on the simulated one: python tests/simulated_gpu/run.py [options of pytest]."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

HERE, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parents[2]
HEADERS = Path(torch.__file__).parents[1] / "triton" / "backends" / "nvidia" / "include"  # Triton brings CUDA's
# Not simulated: several processes and torch's compiler. Two of the four stores are enough.
CHOSEN = "not all_gpus and not learns and not every_cell and not device- and not disk-"


def libraries(folder: Path, compiler: str) -> dict[str, str]:
    """Builds what stands for CUDA in a folder, and gives the environment in which programs find it."""
    build = [compiler, "-shared", "-fPIC", "-w", "-lpthread", f"-I{HEADERS}"]
    runtime, driver = folder / "libruntime.so", folder / "libcuda.so.1"
    subprocess.run([*build, "-o", str(runtime), str(HERE / "runtime.c")], check=True)
    (folder / "driver.c").write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in _driver_functions()))
    subprocess.run([*build, "-o", str(driver), str(folder / "driver.c")], check=True)
    return {"LD_PRELOAD": str(runtime), "LD_LIBRARY_PATH": str(folder)}


def _driver_functions() -> list[str]:
    """Names that torch looks up in the driver's library."""
    found: set[bytes] = set()
    for name in ("libc10_cuda.so", "libcaffe2_nvrtc.so"):
        found |= set(re.findall(rb"\b(cu[A-Z]\w+)\0", (Path(torch.__file__).parent / "lib" / name).read_bytes()))
    return sorted(name.decode() for name in found)


def main() -> int:
    compiler = shutil.which("cc")
    if torch.cuda.is_available() or not torch.version.cuda or not HEADERS.is_dir() or compiler is None:
        print("no GPU is simulated: that needs a C compiler, a torch for CUDA with Triton, and no GPU")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        environment = libraries(Path(folder), compiler)
        paths = os.pathsep.join(filter(None, (str(ROOT), str(HERE.parent), os.environ.get("PYTHONPATH"))))
        words = ["-p", "simulated_gpu.operators", "-m", "gpu", "-k", CHOSEN, "tests/test_gpu.py", *sys.argv[1:]]
        own = {"PYTHONPATH": paths, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", *words]
        return subprocess.run(command, cwd=ROOT, env=os.environ | own | environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
