"""Images: which files there are, how they are read, in which order, with which augmentation.

`listing.list_images` gives the images of a split, `batches.Batches` reads them in a fixed global order, `pixels`
decodes them, `loading` hands them over from worker processes, `identity` tells one set of files from another.

Nothing is imported here: what only looks at names must answer before torch is loaded.
"""
