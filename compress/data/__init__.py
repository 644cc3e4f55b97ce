"""Labelled images in four splits, and how they become network inputs.

`compress.data.spec.load_data` reads "digits", "cifar10:DIR",
"cifar100:DIR", "folder:DIR" and "numpy:FILE.npz";
`compress.data.augment.Augment` turns a batch into augmented, normalised images and soft targets.
"""
