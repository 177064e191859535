"""`amp prune`, from a checkout: finds each block's width, and slices the network."""

from amp.commands.prune import main
from amp.run.console import run_script

if __name__ == "__main__":
    run_script(main)
