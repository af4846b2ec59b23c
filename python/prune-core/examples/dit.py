"""Prune a diffusion transformer, with the time step of each sample as its group.

    python examples/dit.py

Trains a small PixArt of diffusers to denoise coloured blobs by flow matching, half a minute; then everything as for a large one. For Flux or SD3
only the loading and the batches differ.
"""

import copy

import torch
from diffusers import PixArtTransformer2DModel

import prune_core as pc

TEXT = torch.randn(4, 6, 24, generator=torch.Generator().manual_seed(3))


def samples(count, seed):
    """Noised images, time steps, conditions, and the velocities that lead to the images."""
    random = torch.Generator().manual_seed(seed)
    kind = torch.randint(4, (count,), generator=random)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 8), torch.linspace(-1, 1, 8), indexing="ij")
    centers = torch.rand(count, 2, generator=random) - 0.5
    blobs = torch.exp(-4 * ((y - centers[:, :1, None]) ** 2 + (x - centers[:, 1:, None]) ** 2))
    images = 2 * blobs[:, None] * torch.nn.functional.one_hot(kind, 4)[:, :, None, None] - 0.5
    noise, time = torch.randn(images.shape, generator=random), torch.rand(count, generator=random)
    mixed = torch.lerp(images, noise, time[:, None, None, None])
    batch = {"hidden_states": mixed, "encoder_hidden_states": TEXT[kind], "timestep": (1000 * time).long(), "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
    return batch, noise - images


def small_pixart():
    torch.manual_seed(0)
    model = PixArtTransformer2DModel(sample_size=8, num_layers=8, patch_size=2, attention_head_dim=16, num_attention_heads=3, caption_channels=24,
                                     in_channels=4, out_channels=4, cross_attention_dim=48, use_additional_conditions=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(200):
        batch, velocity = samples(32, step)
        loss = (model(**batch).sample - velocity).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss.item():.3f}")
    return model.eval()


def main():
    model = small_pixart()
    batches = [samples(16, 10_000 + at)[0] for at in range(8)]
    searching, held_out = batches[:4], batches[4:]
    bins = [int(step) // 250 for batch in searching for step in batch["timestep"]]

    branches = pc.branches(model, example=samples(1, 0)[0])
    scores = pc.score(model, searching, branches=branches, bins=bins)
    least = min(scores.values, key=scores.values.get)
    print(branches, f"- the least of them is {least}; by quarters of time: {({bin: round(mean, 5) for bin, mean in scores.bin_means(least).items()})}")

    front = pc.front(scores)
    plans = {f"{ratio:.0%}": pc.plan_at(front, ratio=ratio) for ratio in (0.1, 0.2, 0.3, 0.4, 0.5)}
    audit = pc.audit(model, held_out, scores, plans=plans, sets=8, branches=branches)
    print(audit)
    print("parameters gone   predicted   measured   loss of the pruned model")
    test, velocity = samples(128, 20_000)
    for name, plan in plans.items():
        cut = pc.apply(copy.deepcopy(model), plan)
        with torch.no_grad():
            loss = (cut(**test).sample - velocity).square().mean().item()
        print(f"{name:>15}   {plan.predicted:9.5f}   {audit.measured(name):8.5f}   {loss:.4f}")

    measured = pc.measured_front(model, batches, scores, branches=branches, max_forwards=3000)
    print(measured)
    cut = pc.apply(copy.deepcopy(model), measured.plan_at(ratio=0.4))
    with torch.no_grad():
        print(f"its plan for 40%: loss of the pruned model {(cut(**test).sample - velocity).square().mean().item():.4f}")

    better = pc.refine(model, searching, scores, plans["40%"], branches=branches, max_forwards=2000, candidates=16)
    print(better)


if __name__ == "__main__":
    main()
