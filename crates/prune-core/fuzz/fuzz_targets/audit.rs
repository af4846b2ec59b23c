//! Any bytes as the file of an audit: an error, or an audit that is written and read unchanged.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prune_core::audit::AuditFile;

mod model;

fuzz_target!(|data: &[u8]| {
    let table = model::table();
    let Ok(audit) = AuditFile::from_json(data, &table) else { return };
    let text = audit.to_json().expect("an accepted audit can be written");
    assert_eq!(AuditFile::from_json(text.as_bytes(), &table).expect("and read again"), audit);
});
