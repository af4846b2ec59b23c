//! Tests of the rendered world: its captions, and how far its checker can be trusted.

mod grammar;
mod accuracy;
