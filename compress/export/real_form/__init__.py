"""Networks with complex tensors, in real numbers, before they are exported.

- `values`: a complex tensor as a pair of real ones;
- `rules`: what the operators of torch do to pairs;
- `transforms`: Fourier transforms of pairs;
- `network`: the network, run by these rules.
"""

from compress.export.real_form.network import RealForm, real_form

__all__ = ["RealForm", "real_form"]
