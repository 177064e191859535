"""The libraries that vision towers come from, one file each; `amp.towers.library.Library` is what each file states."""
