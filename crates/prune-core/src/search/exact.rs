//! Scores as integers. Sums of `f64` depend on the order of the summands, so a search over them would have no defined
//! ties and could call a worse set better. Every finite `f64` is an integer times a power of two; brought to one
//! common power, scores add exactly in `i128`.

/// `x = mantissa * 2^exponent` with an odd mantissa, or `None` for 0.
fn decompose(x: f64) -> Option<(i128, i32)> {
    let bits = x.to_bits();
    let field = ((bits >> 52) & 0x7ff) as i32;
    let fraction = i128::from(bits & ((1 << 52) - 1));
    let (mantissa, exponent) = if field == 0 { (fraction, -1074) } else { (fraction | 1 << 52, field - 1075) };
    if mantissa == 0 {
        return None;
    }
    let zeros = mantissa.trailing_zeros();
    let signed = if x < 0.0 { -mantissa } else { mantissa };
    Some((signed >> zeros, exponent + zeros as i32))
}

/// Integers proportional to some `f64`s: value = integer * 2^exponent.
#[derive(Debug, PartialEq)]
pub(crate) struct Exact {
    pub(super) integers: Vec<i128>,
    exponent: i32,
}

/// The greatest common divisor of some integers: sums of them differ by a multiple of it. 1 where all are 0.
pub(super) fn grain(integers: impl IntoIterator<Item = i128>) -> i128 {
    let divisor = |a: i128, b: i128| {
        let (mut a, mut b) = (a.abs(), b.abs());
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    integers.into_iter().fold(0, divisor).max(1)
}

/// Positions of a value that would vanish and of the largest value beside which it would.
#[derive(Debug, PartialEq)]
pub(super) struct Vanishes {
    pub(super) small: usize,
    pub(super) large: usize,
}

impl Exact {
    /// Converts finite values so that no sum of any of them overflows. The conversion is exact as long as the largest
    /// magnitude is less than about 2^118 times the last bit of the smallest (for 227 values); beyond that small
    /// values are rounded to the nearest multiple of 2^-118 of the largest.
    ///
    /// # Errors
    /// A value other than 0 that would be rounded to 0.
    pub(super) fn new(values: &[f64]) -> Result<Self, Vanishes> {
        let parts: Vec<Option<(i128, i32)>> = values.iter().map(|x| decompose(*x)).collect();
        let top_of = |part: &(i128, i32)| part.1 + (128 - part.0.unsigned_abs().leading_zeros()) as i32;
        let top = parts.iter().flatten().map(top_of).max().unwrap_or(0);
        let last_bit = parts.iter().flatten().map(|part| part.1).min().unwrap_or(0);
        // n values below 2^b add up to less than 2^(b + headroom); 126 bits leave the sign and a spare.
        let headroom = (usize::BITS - values.len().leading_zeros()) as i32;
        let exponent = last_bit.max(top - (126 - headroom));
        let mut integers = Vec::with_capacity(values.len());
        for (position, part) in parts.iter().enumerate() {
            let integer = match part {
                None => 0,
                Some((mantissa, at)) if *at >= exponent => mantissa << (at - exponent),
                Some((mantissa, at)) => round_shift(*mantissa, (exponent - at) as u32),
            };
            if integer == 0 && part.is_some() {
                let magnitude = |i: &usize| parts[*i].as_ref().map(&top_of);
                let large = (0..values.len()).max_by_key(magnitude).unwrap_or(position);
                return Err(Vanishes { small: position, large });
            }
            integers.push(integer);
        }
        Ok(Self { integers, exponent })
    }

    /// What the integer 1 stands for.
    pub(super) fn unit(&self) -> f64 {
        self.to_f64(1)
    }

    /// The nearest `f64` of a sum of the integers, up to a unit in the last place.
    pub(super) fn to_f64(&self, sum: i128) -> f64 {
        // The exponent lies in -1074..=1023, and either half of it is a normal power of two.
        let half = self.exponent / 2;
        sum as f64 * power_of_two(half) * power_of_two(self.exponent - half)
    }
}

/// Nearest integer to `mantissa / 2^shift`, halves away from zero.
fn round_shift(mantissa: i128, shift: u32) -> i128 {
    // A mantissa has at most 53 bits.
    if shift > 54 {
        return 0;
    }
    let magnitude = (mantissa.abs() + (1 << (shift - 1))) >> shift;
    magnitude * mantissa.signum()
}

/// 2^e for -1022 <= e <= 1023.
fn power_of_two(e: i32) -> f64 {
    f64::from_bits(((e + 1023) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_and_sums_are_exact() {
        for values in [
            vec![0.1, 0.2, -0.3, 0.0, 1e-9],
            vec![1.0],
            vec![0.0, -0.0],
            vec![5e-324, 1e-320],
            vec![f64::MAX, -f64::MAX],
            vec![1e300, 1e290],
        ] {
            let exact = Exact::new(&values).unwrap();
            let back: Vec<f64> = exact.integers.iter().map(|i| exact.to_f64(*i)).collect();
            assert_eq!(back, values);
        }
        let exact = Exact::new(&[0.1, 0.2, 0.3]).unwrap();
        let [a, b, c] = exact.integers[..] else { panic!() };
        assert_eq!((a + b) + c, a + (b + c));
        assert_ne!(a + b, c);
        let equal = Exact::new(&[0.1; 3]).unwrap();
        assert_eq!(equal.integers[0], equal.integers[2]);
    }

    #[test]
    fn a_wide_range_is_rounded_or_refused() {
        // 2^-110 keeps a few bits beside 1.
        let small = 1.1 * 2f64.powi(-110);
        let exact = Exact::new(&[1.0, small]).unwrap();
        let error = (exact.to_f64(exact.integers[1]) - small).abs();
        assert!(error > 0.0 && error < 2f64.powi(-120));
        assert_eq!(Exact::new(&[0.1, 2.0, 1e300]), Err(Vanishes { small: 0, large: 2 }));
        assert_eq!(round_shift(-3, 1), -2);
        assert_eq!(round_shift(5, 3), 1);
        assert_eq!(round_shift(1, 54), 0);
    }
}
