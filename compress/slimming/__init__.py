"""Network slimming (arXiv 1708.06519): scores, threshold, kept channels, surgery.

Read in this order: `selection` says how a channel is chosen, `surgery` how it is removed from a
model of ours, `traced` how from any other, `absorb` what becomes of its constant contribution,
`slim` puts them together, `target` finds the ratio for a wanted size, `report` tells the result.
"""
