"""`amp eval efficiency`, from a checkout: parameters, FLOPs and throughput."""

from amp.commands.eval.efficiency import main
from amp.run.console import run_script

if __name__ == "__main__":
    run_script(main)
