//! Any bytes as `plan.json` of a small model: an error, or a plan that is written and read unchanged.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prune_core::Plan;

mod model;

fuzz_target!(|data: &[u8]| {
    let table = model::table();
    let Ok(plan) = Plan::from_json(data, &table) else { return };
    let text = plan.to_json().expect("an accepted plan can be written");
    assert_eq!(Plan::from_json(text.as_bytes(), &table).expect("and read again"), plan);
});
