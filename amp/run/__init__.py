"""One verb at work in one folder.

`run.open_run` gives a script its `Run`: folder, identity, header, what is done; `identity` says what decides a result,
`checkpoints` holds states that a killed run goes on from. `world` are the processes. `console`, `options`, `tables` and
`figures` speak with people, `files` writes beside and renames. `processes` says who is who among them, how
they end, and notes a stop that is asked for.

Nothing is imported here: the console must answer before torch is loaded.
"""
