//! Bytes of a text file as people's editors write them -> text. Used for captions, their tables, and prompts.

/// The text of UTF-8, with or without a mark of its byte order, and of UTF-16 with one; or what is wrong with it.
pub(crate) fn decode(bytes: Vec<u8>) -> Result<String, &'static str> {
    let wide = |bytes: &[u8], from: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| from([pair[0], pair[1]])).collect();
        String::from_utf16(&units).map_err(|_| "not UTF-16, as its first bytes say")
    };
    match bytes.as_slice() {
        [0xff, 0xfe, rest @ ..] => wide(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => wide(rest, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] => String::from_utf8(rest.to_vec()).map_err(|_| NOT_UTF8),
        _ => String::from_utf8(bytes).map_err(|_| NOT_UTF8),
    }
}

const NOT_UTF8: &str = "not UTF-8; save it as UTF-8";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_the_byte_order_are_no_part_of_the_text() {
        let wide = |order: fn(u16) -> [u8; 2]| "\u{feff}ein Bär".encode_utf16().flat_map(order).collect::<Vec<u8>>();
        let all = ["ein Bär".into(), "\u{feff}ein Bär".into(), wide(u16::to_le_bytes), wide(u16::to_be_bytes)];
        assert!(all.into_iter().all(|bytes: Vec<u8>| decode(bytes).unwrap() == "ein Bär"));
        assert!(decode(b"ein B\xe4r".to_vec()).is_err() && decode(b"\xff\xfe\x00\xd8".to_vec()).is_err());
    }
}
