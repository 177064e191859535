"""The demonstration that needs no download: a small dense CLIP, trained on digit scenes."""
