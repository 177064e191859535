"""`amp eval probe`, from a checkout: linear probe of its features."""

from amp.commands.eval.probe import main
from amp.run.console import run_script

if __name__ == "__main__":
    run_script(main)
