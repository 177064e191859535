"""How each library says itself what a sliced tower is: its own files and objects."""
