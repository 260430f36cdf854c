"""The perturbed loss as the paper writes it, and inputs for it: what the tests of kdkernels.methods.pt share."""

import torch
from cases import F64, logits


def loss_of(log_p, t, eps):
    """The definition, (..., C) and (M,) or (C, M) to (...), differentiable in log_p."""
    kl = (torch.xlogy(t, t) - torch.where(t > 0, t * log_p, 0.0)).sum(-1)
    powers = torch.stack([(1 - log_p.exp()) ** m for m in range(1, eps.shape[-1] + 1)], -1)
    return kl + (t * (eps * powers).sum(-1)).sum(-1)


def gradient_at(p, t, eps):
    """The gradient of the loss in the logits of a student p."""
    z = p.log().requires_grad_()
    return torch.autograd.grad(loss_of(z.log_softmax(-1), t, eps).sum(), z)[0]


def teachers(*shape, device="cpu", seed=0, spread=2.0):
    return logits(*shape, dtype=F64, device=device, seed=seed, spread=spread).softmax(-1)


def uniform(*shape, low, high, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return (low + (high - low) * torch.rand(*shape, generator=generator, dtype=F64)).to(device)


def assert_near(a, b, rtol=1e-10, atol=1e-13):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)
