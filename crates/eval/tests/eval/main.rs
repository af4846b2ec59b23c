//! Tests of measuring: each published metric against its own package, and a whole evaluation as one call.

mod scorers;
mod evaluation;
