"""Small networks of real classes with random weights, and inputs for them."""

import diffusers
import torch
import transformers

diffusers.logging.set_verbosity_error()
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

randn = torch.randn


def decoder(name, **settings):
    """A decoder of transformers by the beginning of its classes' names."""
    config = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
                  head_dim=8, max_position_embeddings=64, pad_token_id=0, eos_token_id=1, bos_token_id=2, **settings)
    configs = [getattr(transformers, name + end, None) for end in ("Config", "TextConfig")]
    kind = next(config for config in reversed(configs) if config is not None)
    return lambda: getattr(transformers, name + "ForCausalLM")(kind(**config))


def tokens(batch):
    return {"input_ids": torch.randint(3, 64, (batch, 8))}


def gpt2():
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=2, eos_token_id=1))


def vit():
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, image_size=16, patch_size=4, num_labels=7)
    )


def siglip():
    return transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, image_size=16, patch_size=4)
    )


def pixels(batch):
    return {"pixel_values": randn(batch, 3, 16, 16)}


def flux():
    return diffusers.FluxTransformer2DModel(patch_size=1, in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
                                            joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8], guidance_embeds=False)


def flux_input(batch):
    return dict(hidden_states=randn(batch, 16, 4), encoder_hidden_states=randn(batch, 5, 32), pooled_projections=randn(batch, 32),
                timestep=torch.rand(batch), img_ids=torch.zeros(16, 3), txt_ids=torch.zeros(5, 3))


def sd3():
    return diffusers.SD3Transformer2DModel(sample_size=8, patch_size=1, in_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=4,
                                           joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=64, out_channels=4,
                                           pos_embed_max_size=8, dual_attention_layers=(0, 1), qk_norm="rms_norm")


def sd3_input(batch):
    return dict(hidden_states=randn(batch, 4, 8, 8), encoder_hidden_states=randn(batch, 5, 32), pooled_projections=randn(batch, 64), timestep=1000 * torch.rand(batch))


def pixart():
    return diffusers.PixArtTransformer2DModel(sample_size=8, num_layers=3, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=32,
                                              in_channels=4, cross_attention_dim=24, out_channels=8, use_additional_conditions=False)


def pixart_input(batch):
    return dict(hidden_states=randn(batch, 4, 8, 8), timestep=torch.randint(0, 1000, (batch,)), encoder_hidden_states=randn(batch, 8, 32),
                added_cond_kwargs={"resolution": None, "aspect_ratio": None})


def sana():
    return diffusers.SanaTransformer2DModel(patch_size=1, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=4, num_attention_heads=2,
                                            num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8, sample_size=8)


def sana_input(batch):
    return dict(hidden_states=randn(batch, 4, 8, 8), timestep=torch.randint(0, 1000, (batch,)), encoder_hidden_states=randn(batch, 8, 8))


def unet():
    return diffusers.UNet2DConditionModel(sample_size=8, block_out_channels=(8, 16), layers_per_block=2, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                                          up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=12, attention_head_dim=2, norm_num_groups=4,
                                          transformer_layers_per_block=(1, 2))


def unet_input(batch):
    return dict(sample=randn(batch, 4, 8, 8), timestep=torch.randint(0, 1000, (batch,)), encoder_hidden_states=randn(batch, 5, 12))


NETWORKS = {
    "llama": (decoder("Llama"), tokens),
    "qwen2": (decoder("Qwen2"), tokens),
    "qwen3": (decoder("Qwen3"), tokens),
    "qwen3_moe": (decoder("Qwen3Moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16), tokens),
    "mistral": (decoder("Mistral", sliding_window=4), tokens),
    "gemma2": (decoder("Gemma2"), tokens),
    "gemma3": (decoder("Gemma3"), tokens),
    "phi3": (decoder("Phi3"), tokens),
    "olmo2": (decoder("Olmo2"), tokens),
    "gpt2": (gpt2, tokens),
    "vit": (vit, pixels),
    "siglip": (siglip, pixels),
    "flux": (flux, flux_input),
    "sd3": (sd3, sd3_input),
    "pixart": (pixart, pixart_input),
    "sana": (sana, sana_input),
    "unet": (unet, unet_input),
}


def made(name, seed=0):
    """A network whose weights are all random, also those that begin as zeros or ones, so that no branch is nothing."""
    torch.manual_seed(seed)
    make, given = NETWORKS[name]
    network = make().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network, given
