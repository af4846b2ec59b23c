//! The number types that networks compute in, by their names on command lines and in files.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

/// A number type to compute in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compute {
    /// 32 bits.
    F32,
    /// 16 bits, 8 of them for the exponent: every number of f32 in size, 2 to 3 digits. Faster on GPUs and on CPUs with AVX512-BF16
    /// or AMX, far slower on other CPUs.
    Bf16,
    /// 16 bits, 5 of them for the exponent: numbers up to 65,504, 3 to 4 digits.
    F16,
}

impl Compute {
    /// All types.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::F16];

    /// libtorch's name of the type.
    pub fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
            Self::F16 => Kind::Half,
        }
    }

    /// The type's name, as in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }

    /// The type that networks of this kind compute in; f32 for all that are no 16-bit floats.
    pub fn of(kind: Kind) -> Self {
        Self::ALL.into_iter().find(|compute| compute.kind() == kind).unwrap_or(Self::F32)
    }

    /// What numbers computed on `device` in this type were rounded to, for records: the type's name, and `tf32` for f32 on a GPU whose
    /// convolutions multiply in that.
    pub fn recorded(self, device: Device) -> &'static str {
        if self == Self::F32 && device.is_cuda() && torch_ext::allows_tf32() { "tf32" } else { self.name() }
    }
}

impl FromStr for Compute {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|compute| compute.name() == text).ok_or_else(|| format!("expected f32, bf16 or f16, got `{text}`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_has_one_name_everywhere() {
        for compute in Compute::ALL {
            assert_eq!(compute.name().parse(), Ok(compute));
            assert_eq!(Compute::of(compute.kind()), compute);
            assert_eq!(serde_json::to_string(&compute).unwrap(), format!("\"{}\"", compute.name()));
        }
        assert_eq!(Compute::F32.recorded(Device::Cpu), "f32");
        assert_eq!("f8".parse::<Compute>().unwrap_err(), "expected f32, bf16 or f16, got `f8`");
    }
}
