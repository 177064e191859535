"""A GPU that is none, for tests of what runs on one: see CONTRIBUTING.md."""
