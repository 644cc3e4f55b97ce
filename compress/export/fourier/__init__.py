"""Fourier transforms of ONNX graphs as products with real matrices.

- `axis_map`: linear maps along an axis, and their matrices;
- `waves`: complex tensors that are not computed yet;
- `plan`: which form of a transform is fastest;
- `writer`, `products`, `simple_maps`, `transforms`: nodes that compute them;
- `rules_…`: what every node does to complex tensors;
- `rewrite`: the pass.
"""

from compress.export.fourier.rewrite import count_transforms, rewrite_transforms_

__all__ = ["count_transforms", "rewrite_transforms_"]
