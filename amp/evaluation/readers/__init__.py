"""Labelled images and images with captions, read by the rule of `amp.data.pixels` and by no automatic decoder.

`shards` are clip_benchmark's exports to webdataset, `captions` its retrieval sets, `folders` are class folders.
"""
