"""Prune a language model's attention and feed-forwards under limits on latency and on its key-value cache.

    python examples/llm.py                          # a small Llama, trained here on Python's own sources: a minute
    python examples/llm.py --model Qwen/Qwen3-0.6B  # one from the hub, measured on the same text

Needs torch and transformers.
"""

import argparse
import inspect
import textwrap

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import prune_core as pc


def small_llama(text):
    """Eight blocks over characters, trained for some seconds."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=128, hidden_size=96, intermediate_size=192, num_hidden_layers=8, num_attention_heads=6,
                                         num_key_value_heads=2, max_position_embeddings=128))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(150):
        batch = text[torch.randint(len(text) - 64, (16, 1)) + torch.arange(64)]
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 49:
            print(f"step {step + 1}: {loss.item():.2f} nats a character")
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", help="a folder, or org/name on the hub")
    args = parser.parse_args()

    source = inspect.getsource(argparse) + inspect.getsource(textwrap)
    if args.model:
        model = AutoModelForCausalLM.from_pretrained(args.model)
        text = AutoTokenizer.from_pretrained(args.model)(source, return_tensors="pt")["input_ids"][0]
    else:
        text = torch.tensor([min(ord(char), 127) for char in source])
        model = small_llama(text)
    pieces = text[: len(text) // 64 * 64].reshape(-1, 64)
    pieces = pieces[torch.randperm(len(pieces), generator=torch.Generator().manual_seed(1))]
    batches = [{"input_ids": piece} for piece in pieces[:96].split(16)]
    searching, held_out = batches[:4], batches[4:]

    branches = pc.branches(model, example={"input_ids": pieces[:1]})
    latency = pc.latency(model, branches, batches[0])
    resources = {**branches.resources, "latency_ns": latency}
    print(branches, f"- {latency.whole / 1e6:.1f} ms a batch, {resources['kv_bytes'].whole} bytes of cache a token")

    measuring = dict(branches=branches, loss="kl")
    scores = pc.score(model, searching, **measuring)

    # A sixth of the time and a quarter of the cache must go.
    plan = pc.solve(scores, at_least={"latency_ns": 1 / 6, "kv_bytes": 0.25}, resources=resources)
    print(plan)
    for name, least, _, removed in plan.limits:
        print(f"  {name}: {removed} go, at least {least} asked for")

    # What do plans of many ratios lose together, and what did the sum say?
    front = pc.front(scores)
    ratios = [0.1, 0.2, 0.3, 0.4, 0.5]
    plans = {f"{ratio:.0%}": pc.plan_at(front, ratio=ratio) for ratio in ratios}
    audit = pc.audit(model, held_out, scores, plans={**plans, "limits": plan}, sets=8, **measuring)
    print(audit)
    print("parameters gone   predicted   measured   (KL divergence, nats a token)")
    for name, one in {**plans, "limits": plan}.items():
        measured = audit.measured(name)
        print(f"{name:>15}   {one.predicted:9.4f}   {measured:8.4f}   the sum is {'low' if measured > one.predicted else 'high'} by {abs(measured / one.predicted - 1):.0%}")

    # The plans of all budgets, chosen by measuring: what they lose is told by samples that chose nothing.
    measured = pc.measured_front(model, batches, scores, max_forwards=3000, resources=resources, **measuring)
    print(measured)
    for removed, predicted, loss in measured.points[:: max(1, len(measured) // 5)]:
        print(f"{removed / branches.table.total_params:>15.0%}   {predicted:9.4f}   {loss:8.4f}")

    better = pc.refine(model, searching, scores, plan, max_forwards=3000, candidates=16, resources=resources, **measuring)
    print(better)

    # Whole blocks, for programs that remove these alone.
    blocks = pc.solve(scores, ratio=0.2, together=branches.by_block())
    print("llama-quantize", pc.export.llama_cpp(blocks), "model.gguf pruned.gguf Q8_0")

    pc.apply(model, better.plan)
    print(f"{sum(p.numel() for p in model.parameters())} parameters are left")


if __name__ == "__main__":
    main()
