"""From a network to files for other runtimes, each checked against torch before it is kept.

`deployed_form` writes a network as runtimes like it, `segments` cuts it at its exits, `graph`
exports, `simplify`, `lowering` and `lint` fit one of `targets`, `quantise` makes int8, `parity`
compares, `bundle` and `export_job` write.
"""
