"""Prune a vision transformer: by the change of its answers, and by the accuracy that is lost.

    python examples/vit.py

Trains a small ViT of transformers on drawn shapes, some twenty seconds; then everything as for a large one.
"""

import torch
from transformers import ViTConfig, ViTForImageClassification

import prune_core as pc


def shapes(count, seed):
    """Squares, crosses, rings and stripes on noise: `[count, 3, 16, 16]`, and which is which."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (count,), generator=random)
    images = 0.3 * torch.randn(count, 3, 16, 16, generator=random)
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    centers = torch.randint(5, 11, (count, 2), generator=random)
    for image, label, (cy, cx) in zip(images, labels, centers):
        dy, dx = y - cy, x - cx
        masks = [(dy.abs() < 3) & (dx.abs() < 3), (dy == 0) | (dx == 0), (dy**2 + dx**2 - 12).abs() < 6, (dx + dy) % 4 == 0]
        image += masks[label].float()
    return images, labels


def small_vit():
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(hidden_size=48, num_hidden_layers=8, num_attention_heads=4, intermediate_size=96, image_size=16,
                                                patch_size=4, num_labels=4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(250):
        images, labels = shapes(32, step)
        loss = model(pixel_values=images, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def accuracy(model, images, labels):
    with torch.no_grad():
        return (model(pixel_values=images).logits.argmax(-1) == labels).float().mean().item()


def cross_entropy(output, original, batch):
    """By how much the right answer becomes less likely; may be negative."""
    rise = [torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none") for logits in (output, original)]
    return rise[0] - rise[1]


def main():
    model = small_vit()
    images, labels = shapes(256, 10_000)
    test = shapes(512, 20_000)
    print(f"accuracy {accuracy(model, *test):.1%}")
    batches = [{"pixel_values": image, "labels": label} for image, label in zip(images.split(32), labels.split(32))]
    searching, held_out = batches[:4], batches[4:]

    def forward(model, batch):
        return model(pixel_values=batch["pixel_values"]).logits

    branches = pc.branches(model, example=searching[0] | {"pixel_values": images[:1]}, forward=forward)
    measuring = dict(branches=branches, forward=forward, loss={"output_loss": "output", "cross_entropy": cross_entropy})
    scores = pc.score(model, searching, **measuring)

    for criterion, one in scores.items():
        front = pc.front(one, resource="macs")
        plans = {f"{ratio:.0%}": pc.plan_at(front, ratio=ratio) for ratio in (0.2, 0.4, 0.6)}
        audit = pc.audit(model, held_out, scores, plans=plans, sets=8, **measuring)
        print(f"\n{criterion}: slope {audit.slope(criterion=criterion):.2f}, rank correlation {audit.spearman(criterion=criterion):.2f}")
        print("MACs gone   predicted   measured   accuracy")
        for name, plan in plans.items():
            cut = pc.apply(small_copy(model), plan)
            print(f"{name:>9}   {plan.predicted:9.4f}   {audit.measured(name, criterion):8.4f}   {accuracy(cut, *test):.1%}")
        measured = pc.measured_front(model, batches, one, resource="macs", max_forwards=3000, **measuring)
        cut = pc.apply(small_copy(model), measured.plan_at(ratio=0.4))
        print(f"{measured}; its plan for 40%: {accuracy(cut, *test):.1%} right")


def small_copy(model):
    copy = ViTForImageClassification(model.config).eval()
    copy.load_state_dict(model.state_dict())
    return copy


if __name__ == "__main__":
    main()
