"""``python -m kdkernels.demo``: the losses of this package distil a small network on scikit-learn's handwritten digits.

`protocol` says what is compared and how, `methods` lists what is compared; a further method is one entry there.
"""
