"""`amp eval compare`, from a checkout: pruned beside dense."""

from amp.commands.eval.compare import main
from amp.run.console import run_script

if __name__ == "__main__":
    run_script(main)
