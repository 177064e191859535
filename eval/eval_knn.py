"""`amp eval knn`, from a checkout: accuracy of the nearest neighbours."""

from amp.commands.eval.knn import main
from amp.run.console import run_script

if __name__ == "__main__":
    run_script(main)
