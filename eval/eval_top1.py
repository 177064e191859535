"""`amp eval top1`, from a checkout: a classifier's own top-1."""

from amp.commands.eval.top1 import main
from amp.run.console import run_script

if __name__ == "__main__":
    run_script(main)
