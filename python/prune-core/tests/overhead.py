"""What measuring costs beside the model's own work: microseconds of a callback, and memory. Prints; nothing is asserted.

    python tests/overhead.py
"""

import resource
import time

import prune_core as pc
from prune_core import _core


def callback():
    """Microseconds from one layer's sixteen samples to the next, with a model that answers at once."""
    count = 1000
    table = pc.LayerTable([f"layers.{at}" for at in range(count)], [1] * count)
    rows = [[[0.5]] * 16]
    model = _core.Model(table, ["loss"], [0] * 16, 1, lambda sets, start, stop: rows)
    run = {"batch": 16, "seed": None, "settings": "{}", "layers": None}
    start = time.perf_counter()
    _core.score(model, run, [], None)
    return 1e6 * (time.perf_counter() - start) / count


def memory():
    """Peak memory of a scored model over that of one pass, for a Llama of 200 MB."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=1000, hidden_size=640, intermediate_size=1600, num_hidden_layers=12, num_attention_heads=10, num_key_value_heads=2)
    model, batch = LlamaForCausalLM(config).eval(), {"input_ids": torch.zeros(4, 64, dtype=torch.long)}
    with torch.no_grad():
        for _ in range(3):
            model(**batch, use_cache=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pc.score(model, [batch, batch], layers=[f"model.layers.{at}.mlp" for at in range(0, 12, 2)])
    return before / 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    print(f"{callback():.1f} us a callback")
    print("peak memory {:.0f} MB for passes alone, {:.0f} MB with scoring".format(*memory()))
