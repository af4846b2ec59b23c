//! Memory that ran out. libtorch tells it by a panic from anywhere in a pass; from here on it is an error like others.

use std::panic::{self, AssertUnwindSafe};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// No room for a tensor, on the host or on a GPU (exit code 7).
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct OutOfMemory(String);

impl OutOfMemory {
    /// What libtorch told, with what to do.
    fn new(told: &str) -> Self {
        Self(format!(
            "{told}; fewer samples at once (`--batch`; `batch` in settings, with `accumulate`), smaller images or `--compute bf16` need \
             less; `distill` has `activation_checkpointing`, `generate` has `--offload` and `--vae-tiling`"
        ))
    }
}

/// What the first panic of any thread told.
static TOLD: Mutex<Option<String>> = Mutex::new(None);

/// From now on panics because memory ran out say nothing themselves.
pub fn hold_panics() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| match info.payload_as_str().and_then(told) {
        Some(text) => drop(first_told().get_or_insert(text)),
        None => usual(info),
    }));
}

/// Does something, and makes an error of a panic because memory ran out. Other panics go on.
///
/// # Errors
/// [`OutOfMemory`], and those of `work`.
pub fn attempt<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    match (result, first_told().take()) {
        (Ok(Ok(value)), _) => Ok(value),
        (_, Some(text)) => Err(OutOfMemory::new(&text).into()),
        (Ok(Err(error)), None) => {
            let torch = error.chain().find_map(|cause| told(&cause.downcast_ref::<tch::TchError>()?.to_string()));
            Err(torch.map_or(error, |text| OutOfMemory::new(&text).into()))
        }
        (Err(panic), None) => panic::resume_unwind(panic),
    }
}

fn first_told() -> MutexGuard<'static, Option<String>> {
    TOLD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a message of libtorch says, if that is that memory ran out: without its C++ stack and its settings for PyTorch.
fn told(message: &str) -> Option<String> {
    let signs = ["out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"];
    if !signs.iter().any(|sign| message.contains(sign)) {
        return None;
    }
    // A panic shows the error as Rust code; an error names its kind.
    let text = message.split_once("Torch(\"").map_or(message, |(_, text)| text);
    let text = text.trim_start_matches("Internal torch error: ");
    let end = ["\n", "\\n", " If reserved but unallocated"].iter().filter_map(|end| text.find(end)).min().unwrap_or(text.len());
    Some(text[..end].trim_end_matches(['.', ' ']).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtorchs_words_for_it_are_known() {
        let cuda = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.15 GiB of which 8.25 MiB is free. \
                    If reserved but unallocated memory is large try setting PYTORCH_ALLOC_CONF=expandable_segments:True to avoid \
                    fragmentation.\nException raised from malloc at CUDACachingAllocator.cpp:1 (most recent call first):\nframe #0: x";
        let short = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.15 GiB of which 8.25 MiB is free";
        assert_eq!(told(cuda).as_deref(), Some(short));
        // As `unwrap` shows it.
        let shown = format!("called `Result::unwrap()` on an `Err` value: {:?}", tch::TchError::Torch(cuda.into()));
        assert_eq!(told(&shown).as_deref(), Some(short));
        let cpu = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes. Error code 12 (Cannot allocate memory)\n";
        assert_eq!(told(cpu).as_deref(), Some(cpu.trim_end()));
        assert!(told("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`").is_some());
        assert_eq!(told("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), None);
    }
}
