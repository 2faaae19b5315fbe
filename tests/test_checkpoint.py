"""A checkpoint restores everything, and a damaged one is passed over."""

from pathlib import Path

import pytest
import torch

from moe.checkpoint import load_checkpoint, save_checkpoint


def trained(steps: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A module after some AdamW steps; equal arguments give equal states."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    for _ in range(steps):
        advance(module, optimizer)
    return module, optimizer


def advance(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    module(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_training_goes_on_bit_for_bit_after_a_restore(tmp_path: Path) -> None:
    module, optimizer = trained(3)
    save_checkpoint(tmp_path, 3, module, optimizer, {"past.0": torch.ones(2)})
    other, other_optimizer = trained(0)
    step, state = load_checkpoint(tmp_path, other, other_optimizer)
    assert step == 3 and state["past.0"].tolist() == [1, 1]
    advance(module, optimizer)
    advance(other, other_optimizer)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))


def test_the_last_two_are_kept_and_a_damaged_newest_falls_back(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    module, optimizer = trained(1)
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, module, optimizer, {})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name[:8] for name in names] == ["00000002", "00000003"]
    content = bytearray((tmp_path / names[1]).read_bytes())
    content[-1] ^= 1
    (tmp_path / names[1]).write_bytes(content)
    assert load_checkpoint(tmp_path, *trained(0))[0] == 2
    assert "damaged" in capsys.readouterr().err


def test_no_checkpoint_starts_from_the_beginning(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "none", *trained(0)) == (0, {})
