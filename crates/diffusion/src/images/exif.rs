//! Which way up an image is, as EXIF and XMP metadata state it.

const ORIENTATION: u16 = 0x0112;
// Types of whole numbers, without and with a sign.
const SHORTS: [u16; 2] = [3, 8];
const LONGS: [u16; 2] = [4, 9];

/// The orientation in an EXIF block; `None` where it states none or is damaged before it does.
pub(super) fn orientation(block: &[u8]) -> Option<u32> {
    let block = block.strip_prefix(b"Exif\0\0").unwrap_or(block);
    let big = match block.get(..4)? {
        b"II*\0" => false,
        b"MM\0*" => true,
        _ => return None,
    };
    let short = |at: usize| -> Option<u16> {
        let bytes = block.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    };
    let long = |at: usize| -> Option<u32> {
        let bytes = block.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    };
    let table = long(4)? as usize;
    // Entries of twelve bytes: tag, type, count, value.
    for entry in 0..usize::from(short(table)?) {
        let at = table + 2 + 12 * entry;
        let (tag, kind, count) = (short(at)?, short(at + 2)?, long(at + 4)?);
        if tag == ORIENTATION && count > 0 {
            return match kind {
                _ if SHORTS.contains(&kind) => short(at + 8).map(u32::from),
                _ if LONGS.contains(&kind) => long(at + 8),
                _ => None,
            };
        }
    }
    None
}

/// The orientation in an XMP packet: `tiff:Orientation="6"` or `<tiff:Orientation>6`.
pub(super) fn xmp_orientation(packet: &[u8]) -> Option<u32> {
    const KEY: &[u8] = b"tiff:Orientation";
    let at = packet.windows(KEY.len()).position(|window| window == KEY)?;
    let value = packet[at + KEY.len()..].strip_prefix(b"=\"").or_else(|| packet[at + KEY.len()..].strip_prefix(b">"))?;
    value.first().filter(|digit| digit.is_ascii_digit()).map(|digit| u32::from(digit - b'0'))
}
