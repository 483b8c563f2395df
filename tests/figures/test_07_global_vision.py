"""The figures of chapter 7 against autograd and the package."""

import pytest
import torch


def learned(g, f, steps):
    """Gate and branch after `steps` of descent by torch, and both gradients then."""
    parameters = [torch.tensor(v, dtype=torch.float64) for v in (g, f)]
    for step in range(steps + 1):
        with torch.enable_grad():
            gate, branch = (p.detach().requires_grad_() for p in parameters)
            output = 2 + gate.tanh() * branch
            slopes = torch.autograd.grad((output - 3) ** 2 / 2, (gate, branch))
        if step < steps:
            parameters = [p - 0.1 * d for p, d in zip((gate, branch), slopes)]
    return gate.item(), branch.item(), output.item(), *(d.item() for d in slopes)


@pytest.mark.parametrize(
    "g, f, steps",
    [(0.0, 1.5, 0), (0.0, 1.5, 1), (-1.2, 1.5, 60), (3.0, 0.5, 100), (0.05, 0.0, 40)],
)
def test_gate_wakes(figure, g, f, steps):
    shown = figure("gate_wakes")
    shown.set("Gate g at the start", g)
    shown.set("Branch f at the start", f)
    shown.set("Steps of learning", steps)
    got = shown.values()
    names = "gate", "branch", "output", "gateGradient", "branchGradient"
    want = learned(g, f, steps)
    assert [got[name] for name in names] == pytest.approx(want, abs=1e-9)
    assert f"the output is {want[2]:.2f}, wanted is 3" in shown.words()


def test_gate_wakes_says_who_learns(figure):
    shown = figure("gate_wakes")
    assert "Only the gate learns" in shown.words()
    shown.set("Steps of learning", 1)
    assert "Both learn" in shown.words()
    shown.set("Steps of learning", 60)
    assert "arrived" in shown.words()
    shown.set("Branch f at the start", 0)
    assert "dead" in shown.words()
    assert (shown.values()["gate"], shown.values()["branch"]) == (0, 0)
    shown.set("Gate g at the start", 0.05)  # ajar is enough
    shown.set("Steps of learning", 100)
    assert "arrived" in shown.words()


def test_gate_wakes_is_dragged(figure):
    shown = figure("gate_wakes")
    ring = shown.root.locator("[data-drag=gate]").bounding_box()
    x, y = ring["x"] + ring["width"] / 2, ring["y"] + ring["height"] / 2
    width = shown.root.locator("svg").first.bounding_box()["width"]
    shown.page.mouse.move(x, y)
    shown.page.mouse.down()
    shown.page.mouse.move(x + 38 * width / 320, y, steps=3)  # 38 units are 1
    shown.page.mouse.up()
    assert shown.values()["gate"] == pytest.approx(1, abs=0.06)
    assert float(shown.control("Gate g at the start").input_value()) == pytest.approx(
        shown.values()["gate"]
    )
