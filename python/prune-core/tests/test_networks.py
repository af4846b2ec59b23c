"""Real classes with random weights: scores against hooks, shared passes against plain ones, removal for real, files, limits."""

import copy
import gc
import weakref

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")

import prune_core as pc
from prune_core.passes import Passes

import networks

torch.set_num_threads(1)


def hooked(network, batch, ids):
    """The output with branches switched off by hooks of torch, which know nothing of this package: outputs become zero."""

    def zero(module, args, output):
        if type(module).__name__ == "ResnetBlock2D":
            return args[0] if module.conv_shortcut is None else module.conv_shortcut(args[0])
        return (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) and len(output) == 1 else zeros(output)

    def zeros(value):
        return tuple(map(zeros, value)) if isinstance(value, tuple) else None if value is None else torch.zeros_like(value)

    def through(module, args, kwargs, output):
        return kwargs["encoder_hidden_states"], kwargs["hidden_states"]

    hooks = []
    for id in ids:
        module = network.get_submodule(id)
        whole = type(module).__name__ == "FluxSingleTransformerBlock"
        hooks.append(module.register_forward_hook(through, with_kwargs=True) if whole else module.register_forward_hook(zero))
    try:
        with torch.no_grad():
            return pc.run_model(network, batch)
    finally:
        for hook in hooks:
            hook.remove()


def without(network, branches, batch, ids):
    """The output without branches, by the passes of this package, none of them shared."""
    passes = Passes(network, branches, 0, False)
    with torch.no_grad(), passes.installed():
        ((_, output),) = passes.run(0, [frozenset(ids)], lambda: pc.run_model(network, batch))
    return output


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_scores_are_those_of_hooks(name):
    network, given = networks.made(name)
    branches = pc.branches(network)
    batches = [given(2), given(3)]
    scores = pc.score(network, batches, branches=branches)
    assert scores.num_samples == 5 and scores.criterion == "output_loss"
    for id in branches.ids:
        losses = []
        for batch in batches:
            change = hooked(network, batch, [id]) - hooked(network, batch, [])
            losses += change.double().square().flatten(1).mean(1).tolist()
        assert scores.samples(id) == pytest.approx(losses, rel=1e-5, abs=1e-12), id
    assert all(value > 0 for value in scores.values.values())


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_shared_passes_give_the_same_numbers(name):
    network, given = networks.made(name)
    branches = pc.branches(network)
    batches = [given(2), given(2)]
    plain = pc.score(network, batches, branches=branches, prefix=False)
    for sets_at_once in (1, 5, 1000):
        assert pc.score(network, batches, branches=branches, sets_at_once=sets_at_once).values == plain.values
    shared = pc.audit(network, batches, plain, branches=branches, sets=6, layers=[2])
    assert shared.points() == pc.audit(network, batches, plain, branches=branches, sets=6, layers=[2], prefix=False).points()


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_what_is_removed_is_gone_and_loads_again(name, tmp_path):
    network, given = networks.made(name)
    branches = pc.branches(network)
    batch = given(2)
    scores = pc.score(network, [batch], branches=branches)
    first, last = branches[0].block, branches[-1].block
    plans = {
        "best": pc.solve(scores, ratio=0.2),
        "blocks": pc.solve(scores, ratio=0.2, together=branches.by_block()),
        "one": pc.Plan(branches.table, [branches.ids[0]]),
        "first": pc.Plan(branches.table, [branch.id for branch in branches if branch.block == first]),
        "last": pc.Plan(branches.table, [branch.id for branch in branches if branch.block == last]),
        "most": pc.Plan(branches.table, branches.ids[1:]),
    }
    for label, plan in plans.items():
        expected = without(network, branches, batch, plan.removed)
        cut = pc.apply(copy.deepcopy(network), plan)
        assert sum(p.numel() for p in cut.parameters()) == plan.params_left, label
        with torch.no_grad():
            torch.testing.assert_close(pc.run_model(cut, batch), expected, msg=label)
        cut.save_pretrained(tmp_path / label)
        loaded = pc.load(type(network), tmp_path / label).eval()
        assert type(loaded) is type(network) and sum(p.numel() for p in loaded.parameters()) == plan.params_left, label
        with torch.no_grad():
            torch.testing.assert_close(pc.run_model(loaded, batch), expected, msg=label)
        # And once more, from what was loaded.
        loaded.save_pretrained(tmp_path / f"{label} again")
        with torch.no_grad():
            torch.testing.assert_close(pc.run_model(pc.load(type(network), tmp_path / f"{label} again").eval(), batch), expected, msg=label)
    with torch.no_grad():
        torch.testing.assert_close(pc.run_model(network, batch), hooked(network, batch, []))


@pytest.mark.parametrize("name", [name for name, (_, given) in networks.NETWORKS.items() if given is networks.tokens])
def test_what_is_left_of_a_decoder_generates_with_a_cache(name):
    network, given = networks.made(name)
    branches = pc.branches(network)
    assert all(branch.kv_bytes == (128 if name != "gpt2" else 256) for branch in branches if branch.kind == "self_attention")
    attention = [branch.id for branch in branches if branch.kind == "self_attention"]
    prompt = given(2)["input_ids"]
    for removed in ([attention[0]], [attention[1], branches[-1].id], branches.by_block()[1]):
        cut = pc.apply(copy.deepcopy(network), removed)
        settings = dict(max_new_tokens=6, do_sample=False, pad_token_id=0)
        assert torch.equal(cut.generate(prompt, **settings), cut.generate(prompt, use_cache=False, **settings)), removed


def test_whole_blocks_need_no_special_loader(tmp_path):
    import transformers

    network, given = networks.made("qwen3")
    branches = pc.branches(network)
    scores = pc.score(network, [given(2)], branches=branches)
    plan = pc.solve(scores, ratio=0.4, together=branches.by_block())
    assert len(pc.export.layer_indices(plan)) == 2
    cut = pc.apply(network, plan)
    assert cut.config.num_hidden_layers == 2 and len(cut.config.layer_types) == 2
    cut.save_pretrained(tmp_path)
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    batch = given(2)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, cut(**batch).logits)
    # The automatic classes work with what keeps parts of blocks, too.
    other, _ = networks.made("llama")
    pc.apply(other, ["model.layers.1.mlp"]).save_pretrained(tmp_path / "part")
    again = pc.load(transformers.AutoModelForCausalLM, tmp_path / "part", dtype=torch.bfloat16)
    assert type(again).__name__ == "LlamaForCausalLM" and again.dtype == torch.bfloat16
    assert not list(again.model.layers[1].mlp.parameters())


def test_models_of_one_configuration_are_pruned_apart():
    network, _ = networks.made("vit")
    other = type(network)(network.config)
    pc.apply(network, pc.branches(network).by_block()[0])
    assert network.config.num_hidden_layers == 2 and other.config.num_hidden_layers == 3
    assert network.vit.config is network.config
    pc.apply(other, ["vit.layers.0.mlp"])
    assert not hasattr(network.config, "prune_core") and len(other.config.prune_core["removed"]) == 1


def test_blocks_are_found_whole():
    network, given = networks.made("llama")
    branches = pc.branches(network, granularity="block", example=given(1))
    assert branches.ids == [f"model.layers.{at}" for at in range(4)]
    scores = pc.score(network, [given(2)], branches=branches)
    pairs = pc.branches(network, example=given(1))
    assert branches.table.macs == [a.macs + b.macs for a, b in zip(pairs[::2], pairs[1::2])]
    plan = pc.solve(scores, ratio=0.2)
    expected = without(network, branches, given(2), plan.removed)
    assert pc.export.llama_cpp(plan) == f"--prune-layers {plan.removed[0].split('.')[-1]}"
    assert pc.apply(network, plan).config.num_hidden_layers == 3 and expected.shape[-1] == 64


def test_macs_are_counted_as_in_closed_form():
    network, given = networks.made("llama")
    branches = pc.branches(network, example=given(1))
    # 8 tokens; queries and output 32 x 32, keys and values 32 x 16, 4 heads of 8; three matrices of 32 x 48.
    attention = 8 * (2 * 32 * 32 + 2 * 32 * 16) + 2 * 4 * 8 * 8 * 8
    assert branches.table.macs == [attention, 8 * 3 * 32 * 48] * 4
    assert branches.table.total_macs == sum(branches.table.macs) + 8 * 32 * 64
    assert branches.table.params[:2] == [2 * 32 * 32 + 2 * 32 * 16 + 32, 3 * 32 * 48 + 32]
    assert branches.resources["kv_bytes"].whole == 4 * 2 * 16 * 4


def test_patterns_find_branches_of_any_model():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.mix = torch.nn.LayerNorm(6), torch.nn.Linear(6, 6)
            self.pair = torch.nn.GRU(6, 6, batch_first=True)

        def forward(self, x):
            x = x + self.mix(self.norm(x))
            return x + self.pair(x)[0]

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.blocks, self.head = torch.nn.Linear(3, 6), torch.nn.ModuleList(Block() for _ in range(3)), torch.nn.Linear(6, 2)

        def forward(self, x):
            x = self.stem(x)
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    torch.manual_seed(0)
    network, batches = Network(), [torch.randn(4, 5, 3), torch.randn(2, 5, 3)]
    with pytest.raises(pc.errors.InvalidInputError, match="no block that a ready rule knows"):
        pc.branches(network)
    with pytest.raises(pc.errors.UnknownLayerError, match="did you mean `blocks.[0-2].mix`"):
        pc.branches(network, ["blocks.*.mixx"])
    with pytest.raises(pc.errors.InvalidInputError, match="lies inside"):
        pc.branches(network, ["blocks.*", "blocks.*.mix"])
    branches = pc.branches(network, [pc.Pattern("blocks.*.mix", kind="mixer", owns=("norm",)), "blocks.*.pair"])
    assert branches.ids == [f"blocks.{at}.{part}" for at in range(3) for part in ("mix", "pair")]
    assert branches[0].params == 6 * 6 + 6 + 12 and branches[0].kind == "mixer"
    scores = pc.score(network, batches, branches=branches)
    before = [network(batch) for batch in batches]
    with torch.no_grad():
        for at in range(3):
            kept = network.blocks[at].forward
            network.blocks[at].forward = lambda x, block=network.blocks[at]: x + block.pair(x)[0]
            losses = [x for batch, was in zip(batches, before) for x in (network(batch) - was).square().flatten(1).mean(1).tolist()]
            network.blocks[at].forward = kept
            assert scores.samples(f"blocks.{at}.mix") == pytest.approx(losses, rel=1e-5)
    plan = pc.solve(scores, ratio=0.3)
    expected = without(network, branches, batches[0], plan.removed)
    pc.apply(network, plan, branches)
    assert sum(p.numel() for p in network.parameters()) == plan.params_left
    torch.testing.assert_close(network(batches[0]), expected)


def test_shared_parameters_are_not_counted_as_gone():
    network, _ = networks.made("llama")
    network.model.layers[2].mlp = network.model.layers[1].mlp
    params = dict(zip(pc.branches(network).table.ids, pc.branches(network).table.params))
    assert params["model.layers.0.mlp"] == 3 * 32 * 48 + 32 and params["model.layers.1.mlp"] == 32


def test_a_model_that_changes_answers_in_place_is_measured_without_sharing():
    network, given = networks.made("vit")
    inner = network.vit.layers[1].forward

    def in_place(hidden_states, *args, **kwargs):
        output = inner(hidden_states.mul_(1.5), *args, **kwargs)
        return output

    network.vit.layers[1].forward = in_place
    batches = [given(2), given(2)]
    plain = pc.score(network, batches, prefix=False)
    assert pc.score(network, batches).values == plain.values


def test_an_interrupted_run_goes_on(tmp_path):
    network, given = networks.made("llama")
    batches, path = [given(2) for _ in range(3)], tmp_path / "scores.json"
    whole = pc.score(network, batches)
    calls = []

    def stops(model, batch):
        calls.append(1)
        if len(calls) > 20:
            raise RuntimeError("power cut")
        return pc.run_model(model, batch)

    with pytest.raises(RuntimeError, match="power cut"):
        pc.score(network, batches, path=path, forward=stops, sets_at_once=2)
    begun = pc.Scores.read(path)
    assert 0 < len(begun) < 8
    assert network.training is False and "forward" not in vars(network.model.layers[0].mlp)
    calls.clear()
    assert pc.score(network, batches, path=path, sets_at_once=2).values == whole.values
    with pytest.raises(pc.errors.ResumeError, match="batches"):
        pc.score(network, batches[:2] + [given(2)], path=path)


def test_several_losses_come_from_the_same_passes(tmp_path):
    network, given = networks.made("llama")
    batches = [given(2)]

    def first_token(output, original, batch):
        return (output[:, 0] - original[:, 0]).abs().sum(-1)

    scores = pc.score(network, batches, loss={"mse": "output", "kl": "kl", "own": first_token}, path=tmp_path)
    assert list(scores) == ["mse", "kl", "own"] and sorted(path.name for path in tmp_path.iterdir()) == ["kl.json", "mse.json", "own.json"]
    assert scores["mse"].values == pc.score(network, batches).values
    id = "model.layers.1.mlp"
    was, now = hooked(network, batches[0], []), hooked(network, batches[0], [id])
    kl = torch.nn.functional.kl_div(now.log_softmax(-1), was.log_softmax(-1), log_target=True, reduction="none").sum(-1).mean(1)
    assert scores["kl"].samples(id) == pytest.approx(kl.tolist(), rel=1e-4)
    assert scores["own"].samples(id) == pytest.approx((now - was)[:, 0].abs().sum(-1).tolist(), rel=1e-5)


def test_bad_input_is_told_before_anything_runs():
    network, given = networks.made("llama")
    batch = given(2)
    for call, words in [
        (lambda: pc.score(network, []), "there are no batches"),
        (lambda: pc.score(network, [{}]), "batch 0 holds no tensor"),
        (lambda: pc.score(network, [batch], loss="l2"), "expected output, kl, a function"),
        (lambda: pc.score(network, [batch], bins=[0]), "1 entries for 2 samples"),
        (lambda: pc.score(network, [batch], loss=lambda *_: [1.0]), "1 numbers for 2 samples"),
        (lambda: pc.score(network, [batch], path="x.json", loss={"a": "kl", "b": "kl"}), "give a folder"),
        (lambda: pc.branches(network, granularity="layer"), "expected branch or block"),
        (lambda: pc.branches(torch.compile(network, backend="eager")), "give model._orig_mod"),
        (lambda: pc.branches(network, ["lm_head"], example=batch), "so it is no residual branch"),
        (lambda: pc.score(network, [batch], loss=lambda *_: [float("nan"), 1.0]), "not a finite number"),
    ]:
        with pytest.raises(pc.errors.InvalidInputError, match=words):
            call()
    with pytest.raises(pc.errors.UnknownLayerError, match="no branch `model.layers.9.mlp`"):
        pc.apply(network, ["model.layers.9.mlp"])
    other, _ = networks.made("gemma2")
    plan = pc.Plan(pc.branches(other).table, ["model.layers.0.mlp"])
    with pytest.raises(pc.errors.OtherModelError, match="make the plan for this model"):
        pc.apply(network, plan)
    pc.apply(network, ["model.layers.0.mlp"])
    with pytest.raises(pc.errors.InvalidInputError, match="were removed from this model before"):
        pc.apply(network, ["model.layers.1.mlp"])


def test_adaptive_scores_and_refined_plans():
    network, given = networks.made("llama")
    batches = [given(8) for _ in range(4)]
    full = pc.score(network, batches)
    adaptive = pc.score_adaptively(network, batches, ratios=[0.3], first_samples=4)
    assert adaptive.evaluations < adaptive.full_evaluations == 8 * 32
    assert pc.solve(adaptive.scores, ratio=0.3).removed == pc.solve(full, ratio=0.3).removed
    assert adaptive.certificates[0]["removed"] == pc.solve(full, ratio=0.3).removed
    # From the worst plan of a budget there is something to gain.
    worst = pc.solve(pc.Scores(full.table, {id: -value for id, value in full.values.items()}), ratio=0.3, keep=pc.solve(full, ratio=0.3).removed[:1])
    start = pc.Plan(full.table, worst.removed, scores=full)
    refined = pc.refine(network, batches, full, start, first_samples=4, held_out=0.5)
    assert refined.loss < refined.start_loss and refined.plan.params_removed >= start.params_removed
    audit = pc.audit(network, batches, full, plans={"start": start, "refined": refined.plan})
    assert audit.measured("refined") < audit.measured("start")


def test_measured_fronts_say_what_is_measured():
    network, given = networks.made("llama")
    batches = [given(8) for _ in range(4)]
    full = pc.score(network, batches)
    front = pc.measured_front(network, batches, full, first_samples=4, winners=2, candidates=8)
    assert len(front) > 3 and front.forwards <= 100_000
    costs, losses = [cost for cost, _, _ in front.points], [plan["loss"]["mean"] for plan in front._fields["plans"]]
    assert costs == sorted(costs) and losses == sorted(losses)
    for ratio in (0.1, 0.3, 0.5):
        plan = front.plan_at(ratio=ratio)
        assert plan.params_ratio >= ratio
    # What it says of the samples that choose is what an audit measures there.
    plans = {str(at): plan for at, plan in enumerate(front.plans)}
    audit = pc.audit(network, batches[:2], full, plans=plans, sets=2)
    assert [audit.measured(name) for name in plans] == pytest.approx(losses, rel=1e-6)
    held_out = pc.audit(network, batches[2:], full, plans=plans, sets=2)
    assert [held_out.measured(name) for name in plans] == pytest.approx([loss for _, _, loss in front.points], rel=1e-6)
    with pytest.raises(pc.errors.InfeasibleError, match="no measured plan removes"):
        front.plan_at(ratio=1.0)
    assert "<svg" in front._repr_html_()
    near = pc.audit(network, batches[:1], full, near=[0.3], near_sets=4, sets=2)
    assert "near_optimal=0.3" in near.strata and sum(one["stratum"] == "near_optimal=0.3" for one in near.sets) == 4


def test_little_memory_is_taken_and_all_is_given_back():
    network, given = networks.made("llama")
    batches = [given(4) for _ in range(3)]
    branches = pc.branches(network)
    for memory in (0, 5_000, 1 << 20):
        passes = pc.score(network, batches, branches=branches, memory=memory)
        assert passes.values == pc.score(network, batches, branches=branches, prefix=False).values
    answers = []

    def watched(model, batch):
        output = pc.run_model(model, batch)
        answers.append(weakref.ref(output))
        return output

    pc.score(network, batches, branches=branches, forward=watched)
    gc.collect()
    assert len(answers) > 20 and not any(answer() is not None for answer in answers)


def test_half_of_the_work_is_shared():
    network, given = networks.made("llama")
    branches = pc.branches(network)
    from prune_core.scoring import _Network

    runs = {}
    for prefix in (True, False):
        driven = _Network(network, [given(2)], {"branches": branches, "prefix": prefix})
        with driven.installed(None):
            driven._evaluate([[id] for id in branches.ids], 0, 2)
        runs[prefix] = driven._passes.blocks_run
    # 8 sets and the original through 4 blocks; shared: each set from its block on, after one pass that finds the order.
    assert runs[False] == 9 * 4
    assert runs[True] <= 4 + 4 + 2 * (4 + 3 + 2 + 1)
