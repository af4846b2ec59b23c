//! What a file is that is not what was asked for: told by its first bytes, or by the names of its tensors, in one table each.
//!
//! The names are those of published files; diffusers' `single_file_utils` and ComfyUI's `model_detection` tell models by the same ones.

use super::files::TensorFile;

/// A kind of file, and what its holder can do with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// What it is, as the predicate of a sentence: `a LoRA`.
    pub what: &'static str,
    /// What to do next.
    pub next: &'static str,
}

const UNET: &str = "name a Stable Diffusion v1, v2 or XL checkpoint, or a diffusers model directory";
const AGAIN: &str = "fetch the file itself again, and look at it before";
const UNPACK: &str = "unpack it and name what is inside";

/// Beginnings of files: how many bytes are skipped, what stands there, what it is, what to do.
const BEGINNINGS: [(usize, &[u8], &str, &str); 30] = [
    (
        0,
        b"version https://git-lfs",
        "a Git LFS pointer, not the file that it stands for",
        "fetch the file itself: `git lfs pull`, or download it from its page",
    ),
    (0, b"GGUF", "a GGUF file (quantised for stable-diffusion.cpp or llama.cpp)", "take the safetensors file that it was made from"),
    (0, b"lmgg", "a GGML file", "take the safetensors file that it was made from"),
    (0, b"tjgg", "a GGML file", "take the safetensors file that it was made from"),
    (0, b"ftrt", "a TensorRT engine, built for one GPU", "take the model that it was built from"),
    (0, b"ptrt", "a TensorRT engine, built for one GPU", "take the model that it was built from"),
    (0, b"\x89HDF\r\n", "an HDF5 file (Keras)", UNET),
    (0, b"\x93NUMPY", "a NumPy array", UNET),
    (0, b"\x1f\x8b", "compressed with gzip", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (0, b"Rar!", "a RAR archive", UNPACK),
    (0, b"\xfd7zXZ", "compressed with xz", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", UNPACK),
    (0, b"PK\x05\x06", "an empty zip archive", AGAIN),
    (0, b"\x89PNG", "a PNG image", UNET),
    (0, b"\xff\xd8\xff", "a JPEG image", UNET),
    (0, b"RIFF", "a RIFF file (WebP image, sound or video)", UNET),
    (0, b"%PDF", "a PDF", UNET),
    (0, b"\x7fELF", "a program (ELF)", UNET),
    (0, b"MZ", "a program for Windows", UNET),
    (0, b"PAR1", "a Parquet table", "as a source of images it goes to `calibrate` or `cache --images`"),
    (0, b"SQLite format 3", "an SQLite database", UNET),
    (0, b"\x0b\xad\xd0\x0d", "a compiled model of a phone", UNET),
    (4, b"TFL3", "a TensorFlow Lite model", "take the model that it was made from"),
    (
        257,
        b"ustar",
        "a tar archive; if PyTorch wrote it, one from before 0.1.10",
        "unpack it; a file of old PyTorch: load it with that and save it again",
    ),
    (0, b"#!/", "a script", UNET),
    (0, b"\x80\x02", "a Python pickle that torch.save did not write", "save the tensors as safetensors"),
    (0, b"\x80\x03", "a Python pickle that torch.save did not write", "save the tensors as safetensors"),
    (0, b"\x80\x04", "a Python pickle that torch.save did not write", "save the tensors as safetensors"),
    (0, b"\x80\x05", "a Python pickle that torch.save did not write", "save the tensors as safetensors"),
];

/// Words with which text begins, in lower case and behind white space: what it is, what to do.
const TEXTS: [(&str, &str, &str); 6] = [
    ("<!doctype html", "a web page, not a file of weights", "the link needs a login or has moved; fetch the file itself"),
    ("<html", "a web page, not a file of weights", "the link needs a login or has moved; fetch the file itself"),
    ("<?xml", "an XML page, as storage services send for errors", "the link has expired; fetch the file again"),
    ("<error", "an XML page, as storage services send for errors", "the link has expired; fetch the file again"),
    ("{", "a JSON text", "name the weights, or the folder that the text describes"),
    ("[", "a JSON text", "name the weights, or the folder that the text describes"),
];

/// Tells a file that is neither safetensors nor PyTorch's by its first bytes.
pub(super) fn bytes(bytes: &[u8]) -> Option<Known> {
    // A safetensors file begins with the length of its header, whose bytes may be anyone's magic.
    if bytes.get(4..9) == Some(b"\0\0\0\0{") {
        return None;
    }
    let begins = |at: usize, magic: &[u8]| bytes.get(at..).is_some_and(|rest| rest.starts_with(magic));
    if let Some((_, _, what, next)) = BEGINNINGS.iter().find(|(at, magic, ..)| begins(*at, magic)) {
        return Some(Known { what, next });
    }
    // The name of its producer stands in the first field or two of an ONNX model.
    let head = &bytes[..bytes.len().min(256)];
    let producer = |name: &[u8]| head.windows(name.len()).any(|w| w == name);
    if head.first() == Some(&8) && (producer(b"pytorch") || producer(b"onnx") || producer(b"tf2onnx")) {
        return Some(Known { what: "an ONNX model", next: "take the PyTorch model that it was exported from" });
    }
    // Flax's msgpack: a map whose first key is a text.
    if bytes.len() > 2 && (0x81..=0x8f).contains(&bytes[0]) && (0xa1..=0xbf).contains(&bytes[1]) {
        return Some(Known { what: "Flax weights (msgpack)", next: "take the safetensors or PyTorch file beside it" });
    }
    let text = text(head)?;
    let known = TEXTS.iter().find(|(word, ..)| text.starts_with(word)).map(|(_, what, next)| Known { what, next });
    Some(known.unwrap_or(Known { what: "a text, not a file of weights", next: AGAIN }))
}

/// The beginning in lower case, where it is text. A safetensors header has its length, which is none, in front.
fn text(head: &[u8]) -> Option<String> {
    let valid = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(e) if e.error_len().is_none() => std::str::from_utf8(&head[..e.valid_up_to()]).ok()?,
        Err(_) => return None,
    };
    let valid = valid.trim_start_matches('\u{feff}').trim_start();
    let printable = !valid.is_empty() && !valid.chars().any(|c| c.is_control() && !c.is_whitespace());
    printable.then(|| valid.to_ascii_lowercase())
}

/// Where a mark stands in a tensor's name.
#[derive(Clone, Copy)]
enum Mark {
    Begins(&'static str),
    Has(&'static str),
    Ends(&'static str),
}
use Mark::{Begins, Ends, Has};

impl Mark {
    fn is_in(self, key: &str) -> bool {
        match self {
            Begins(mark) => key.starts_with(mark),
            Has(mark) => key.contains(mark),
            Ends(mark) => key.ends_with(mark),
        }
    }
}

const OTHER_NET: &str = "this program prunes the U-Nets of Stable Diffusion v1, v2 and XL; its layers are others";

/// What tensors a kind of file has: all marks must be met. The first row that fits counts.
const CONTENTS: [(&[Mark], &str, &str); 47] = [
    (&[Has("lora_controlnet")], "a Control-LoRA", UNET),
    (&[Begins("lora_unet_double_blocks")], "a LoRA for Flux", OTHER_NET),
    (&[Begins("lora_unet_joint_blocks")], "a LoRA for Stable Diffusion 3", OTHER_NET),
    (&[Begins("transformer."), Has(".lora_")], "a LoRA for a diffusion transformer (Flux, SD3 and others)", OTHER_NET),
    (&[Has(".hada_w")], "a LyCORIS adapter (LoHa)", "give it to `remap-lora --lora`, and the model that it was made for to --model"),
    (&[Has(".lokr_w")], "a LyCORIS adapter (LoKr)", "give it to `remap-lora --lora`, and the model that it was made for to --model"),
    (&[Has("lora_")], "a LoRA", "give it to `remap-lora --lora`, and the model that it was made for to --model"),
    (&[Begins("image_proj."), Begins("ip_adapter.")], "an IP-Adapter", UNET),
    (&[Begins("control_model.")], "a ControlNet", UNET),
    (&[Has("input_hint_block.")], "a ControlNet", UNET),
    (&[Has("controlnet_cond_embedding.")], "a ControlNet", UNET),
    (&[Has("controlnet_blocks.")], "a ControlNet of a diffusion transformer", OTHER_NET),
    (&[Has("motion_modules.")], "a motion module (AnimateDiff)", UNET),
    (&[Has("time_stack.")], "Stable Video Diffusion", OTHER_NET),
    (&[Has("temporal_transformer_blocks.")], "Stable Video Diffusion", OTHER_NET),
    (&[Has("double_blocks.0."), Has("img_attn")], "Flux (or a model of its kind), a diffusion transformer", OTHER_NET),
    (&[Has("single_transformer_blocks.0.")], "Flux (or a model of its kind), a diffusion transformer", OTHER_NET),
    (&[Has("joint_blocks.0.")], "Stable Diffusion 3, a diffusion transformer", OTHER_NET),
    (&[Has("transformer_blocks.0.attn.add_")], "Stable Diffusion 3 (or a model of its kind), a diffusion transformer", OTHER_NET),
    (&[Has("double_layers.0.")], "AuraFlow, a diffusion transformer", OTHER_NET),
    (&[Has("adaln_single.")], "PixArt (or a model of its kind), a diffusion transformer", OTHER_NET),
    (&[Has("t_block.1."), Has("y_embedder.")], "PixArt, a diffusion transformer", OTHER_NET),
    (&[Has("clip_txt_pooled_mapper.")], "Stable Cascade (stage C)", OTHER_NET),
    (&[Has("effnet_mapper.")], "Stable Cascade (stage B)", OTHER_NET),
    (&[Has("vquantizer.")], "Stable Cascade (stage A)", OTHER_NET),
    (&[Has("mlp_t5."), Has("blocks.0.")], "Hunyuan-DiT, a diffusion transformer", OTHER_NET),
    (&[Has("cap_embedder.")], "Lumina, a diffusion transformer", OTHER_NET),
    (&[Has("cross_attn."), Has("patch_embedding.")], "a video transformer (Wan)", OTHER_NET),
    (&[Has("blocks.0.attn1."), Has("patchify_proj.")], "a video transformer (LTX)", OTHER_NET),
    (&[Has("add_embedding.image_proj")], "Kandinsky's U-Net", OTHER_NET),
    (
        &[Begins("model_ema.diffusion_model")],
        "a checkpoint of which only the averaged weights (model_ema) are left",
        "take the file that has `model.diffusion_model`",
    ),
    (&[Begins("adapter.body.")], "a T2I-Adapter", UNET),
    (&[Begins("body.0.block1.")], "a T2I-Adapter", UNET),
    (&[Has("emb_params")], "a textual inversion (embedding)", UNET),
    (&[Begins("string_to_param")], "a textual inversion (embedding)", UNET),
    (&[Begins("learned_embeds")], "a textual inversion (embedding)", UNET),
    (&[Has("exp_avg_sq")], "an optimizer's state", UNET),
    (&[Ends("SelfAttention.q.weight")], "a T5 text encoder", UNET),
    (&[Has("text_model.encoder.layers."), Has("vision_model.encoder.layers.")], "a CLIP model", UNET),
    (&[Has("text_model.encoder.layers.")], "a CLIP text encoder", UNET),
    (&[Has("vision_model.encoder.layers.")], "an image encoder", UNET),
    (&[Has("transformer.resblocks.")], "an OpenCLIP model", UNET),
    (&[Has("model.layers.0.self_attn.")], "a language model", UNET),
    (&[Begins("decoder.layers."), Begins("encoder.layers.")], "a small autoencoder (TAESD)", UNET),
    (
        &[Has("decoder.conv_in."), Has("decoder.conv_out.")],
        "an autoencoder (VAE)",
        "name the whole model; a VAE of its own goes into its vae/ folder",
    ),
    (&[Has("body.0.rdb1.")], "an upscaler (ESRGAN)", UNET),
    (&[Has("RDB1.conv1.")], "an upscaler (ESRGAN)", UNET),
];

/// Tells what a file of tensors is by their names; `None` for what is not in the table, Stable Diffusion U-Nets among it.
pub fn identify(file: &TensorFile) -> Option<Known> {
    let met = |mark: &Mark| file.entries.keys().any(|key| mark.is_in(key));
    CONTENTS.iter().find(|(marks, ..)| marks.iter().all(met)).map(|(_, what, next)| Known { what, next })
}
