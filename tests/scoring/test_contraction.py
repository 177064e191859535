"""Laws of the sums over tokens: those of the written-out products, in fp32, however many images come at a time."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from amp.scoring import contraction
from amp.scoring.contraction import sums_over_tokens

COMPARE = """
import torch
from amp.scoring._contraction_kernel import contract
for dtype in (torch.float32, torch.bfloat16):
    for shape in ((3, 17, 131), (2, 5, 7)):
        a, g = torch.randn(2, *shape).to(dtype)
        torch.testing.assert_close(contract(a, g), (a.double() * g.double()).sum(1).float(), rtol=0, atol=1e-5)
"""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 7, 12), (5, 2, 3, 12)])
@pytest.mark.parametrize("cache", [1, 700, 2**20])
def test_they_are_those_of_the_products(
    dtype: torch.dtype, shape: tuple[int, ...], cache: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contraction, "CORE_CACHE", cache)
    a, g = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    found_BH = sums_over_tokens(a, g)
    assert found_BH.dtype == torch.float32
    expected_BH = (a.double() * g.double()).flatten(1, -2).sum(dim=1).float()
    torch.testing.assert_close(found_BH, expected_BH, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_kernel_of_a_gpu_gives_the_same() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", COMPARE]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert run.returncode == 0, run.stderr
