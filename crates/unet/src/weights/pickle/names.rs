//! The Python names that stand in weight files: what they mean, and which of them run programs.

use safetensors::Dtype;

use super::Name;

/// What a name means; `None` for those of objects that say nothing of weights.
pub(super) fn known(module: &str, name: &str) -> Option<Name> {
    Some(match (module, name) {
        ("collections", "OrderedDict") | ("builtins" | "__builtin__", "dict") => Name::OrderedDict,
        ("collections", "defaultdict") => Name::DefaultDict,
        ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor") => Name::RebuildTensor,
        ("torch._utils", "_rebuild_tensor_v3") => Name::RebuildTypedTensor,
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Name::RebuildParameter,
        ("torch._tensor", "_rebuild_from_type_v2") => Name::RebuildSubclass,
        ("torch", "Size") => Name::Size,
        ("torch", storage) if storage.ends_with("Storage") => {
            STORAGES.iter().find(|(name, _)| *name == storage).map(|(_, d)| Name::Storage(*d))?
        }
        ("torch.storage", "UntypedStorage") => Name::Storage(Dtype::U8),
        ("torch", dtype) => DTYPES.iter().find(|(name, _)| *name == dtype).map(|(_, d)| Name::Dtype(*d))?,
        _ => return None,
    })
}

const STORAGES: [(&str, Dtype); 12] = [
    ("FloatStorage", Dtype::F32),
    ("HalfStorage", Dtype::F16),
    ("BFloat16Storage", Dtype::BF16),
    ("DoubleStorage", Dtype::F64),
    ("LongStorage", Dtype::I64),
    ("IntStorage", Dtype::I32),
    ("ShortStorage", Dtype::I16),
    ("CharStorage", Dtype::I8),
    ("ByteStorage", Dtype::U8),
    ("BoolStorage", Dtype::BOOL),
    ("UntypedStorage", Dtype::U8),
    ("ComplexFloatStorage", Dtype::C64),
];

const DTYPES: [(&str, Dtype); 18] = [
    ("float32", Dtype::F32),
    ("float16", Dtype::F16),
    ("bfloat16", Dtype::BF16),
    ("float64", Dtype::F64),
    ("float8_e4m3fn", Dtype::F8_E4M3),
    ("float8_e5m2", Dtype::F8_E5M2),
    ("float8_e4m3fnuz", Dtype::F8_E4M3FNUZ),
    ("float8_e5m2fnuz", Dtype::F8_E5M2FNUZ),
    ("int64", Dtype::I64),
    ("int32", Dtype::I32),
    ("int16", Dtype::I16),
    ("int8", Dtype::I8),
    ("uint8", Dtype::U8),
    ("uint16", Dtype::U16),
    ("uint32", Dtype::U32),
    ("uint64", Dtype::U64),
    ("bool", Dtype::BOOL),
    ("complex64", Dtype::C64),
];

/// Modules with which a pickle reaches the system of whoever runs it.
const DANGEROUS: [&str; 16] = [
    "os",
    "posix",
    "nt",
    "subprocess",
    "sys",
    "shutil",
    "socket",
    "importlib",
    "runpy",
    "ctypes",
    "pty",
    "webbrowser",
    "commands",
    "code",
    "requests",
    "pip",
];
const BUILTINS: [&str; 3] = ["builtins", "__builtin__", "__builtins__"];
/// Built-in functions that do the same.
const DANGEROUS_BUILTINS: [&str; 10] =
    ["eval", "exec", "execfile", "compile", "open", "getattr", "setattr", "__import__", "globals", "breakpoint"];

/// Whether a name can only be meant to run a program.
pub(super) fn runs_programs(module: &str, name: &str) -> bool {
    let first = module.split('.').next().unwrap_or_default();
    DANGEROUS.contains(&first) || (BUILTINS.contains(&module) && DANGEROUS_BUILTINS.contains(&name))
}
