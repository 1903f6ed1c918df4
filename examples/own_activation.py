"""An activation of your own: registered, its degree proven, used in a certified layer; and one that is refused.

python examples/own_activation.py
"""

import torch

import subdeq_plugin as sd
from subdeq_plugin.errors import DegreeError


def main() -> None:
    sd.register_activation("swish", lambda t: t * t.sigmoid())
    print("swish(t) + 0.5:", sd.Activation("swish", shift=0.5).degree())

    layer = sd.SubhomLinear(4, 12, activation="swish", shift=0.5, power=0.5)
    x = torch.rand(3, 4)
    certificate = sd.certify(layer, x)
    print(certificate)
    z = sd.SubDEQ(layer, f_tol=1e-5)(x)
    print("guaranteed errors:", certificate.error_bound(z).tolist())
    assert certificate.unique

    sd.register_activation("wave", lambda t: t.sin())
    try:
        sd.Activation("wave", shift=0.5).degree()
    except DegreeError as refusal:
        print("refused:", refusal)
    else:
        raise AssertionError("sin(t) + 0.5 is negative somewhere and must be refused")


if __name__ == "__main__":
    main()
