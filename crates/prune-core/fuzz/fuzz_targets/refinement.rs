//! Any bytes as the file of a refinement: an error, or a record that is written and read unchanged.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prune_core::refine::RefineRecord;

mod model;

fuzz_target!(|data: &[u8]| {
    let table = model::table();
    let Ok(record) = RefineRecord::from_json(data, &table) else { return };
    let text = record.to_json().expect("an accepted record can be written");
    assert_eq!(RefineRecord::from_json(text.as_bytes(), &table).expect("and read again"), record);
});
