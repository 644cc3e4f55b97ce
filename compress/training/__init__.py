"""Training: one loop (`loop.fit`), and objectives that are functions of (model, batch).

Read in this order: `config` says what can be set, `objectives` what is minimised, `batches` which
images a step sees, `loop` puts them together; `state` and `runfiles` make it survive a kill,
`processes` takes it to several GPUs.
"""
