"""Where settings come from: YAML files and --set, the command line, keyword arguments."""
