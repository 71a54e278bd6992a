"""The losses give on a CUDA device what they give on the CPU."""

from __future__ import annotations

import pytest
import torch

from losses import Group, PNULoss

pytestmark = pytest.mark.gpu


def value_and_gradient(loss, device, logits, *others):
    z = logits.detach().to(device).requires_grad_()  # a leaf, also where the device is the same
    output = loss(z, *(tensor.to(device) for tensor in others))
    output.loss.backward()
    return output, z.grad


@pytest.mark.parametrize("surrogate", ["logistic", "sigmoid"])
@pytest.mark.parametrize("balance", [-0.3, 0.3])
@pytest.mark.parametrize("form", ["weighted", "convex", "sakai", "nnpu", "upu", "pn"])
def test_pnu_losses_on_cuda_agree_with_the_cpu(form, balance, surrogate):
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(4096, generator=generator) * 4
    groups = torch.randint(len(Group), (4096,), generator=generator)
    targets, weights = (torch.rand(4096, generator=generator) for _ in range(2))
    batch = (logits, groups, targets, weights)
    loss = PNULoss(form=form, balance=balance, theta=0.3, surrogate=surrogate)
    expected, slope = value_and_gradient(loss, "cpu", *batch)
    found, found_slope = value_and_gradient(loss, "cuda", *batch)
    assert found.loss.is_cuda
    torch.testing.assert_close(found.loss.cpu(), expected.loss, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found_slope.cpu(), slope, rtol=1e-4, atol=1e-8)
    for name, part in expected.parts.items():
        torch.testing.assert_close(found.parts[name].cpu(), part, rtol=1e-4, atol=1e-5)


def test_half_precision_under_cuda_autocast_is_widened():
    logits = torch.tensor([1e4, -1e4, 3.0, -3.0], device="cuda", dtype=torch.bfloat16, requires_grad=True)
    groups = torch.tensor([0, 1, 4, 4], device="cuda")
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = PNULoss(form="weighted")(logits, groups).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(logits.grad).all()
