"""`amp distill`, from a checkout: distils a pruned student from its dense teacher."""

from amp.commands.distill import main
from amp.run.console import run_script

if __name__ == "__main__":
    run_script(main)
