"""`amp score` from a checkout: scores the hidden neurons of every MLP."""

from amp.commands.score import main
from amp.run.console import run_script

if __name__ == "__main__":
    run_script(main)
