//! The bytes of an image file -> upright pixels, as Pillow reads them: `ImageOps.exif_transpose`, then `convert("RGB")`.

use std::io::{BufRead, Cursor, Read, Seek, SeekFrom};

use image::codecs::jpeg::JpegDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, ImageResult, RgbImage};

use super::exif;

/// Header bytes of a JPEG file that are looked at before the whole file is.
const JPEG_HEADER: u64 = 1 << 17;

/// Why bytes are no image that can be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// No byte.
    #[error("an empty file")]
    Empty,
    /// An image of a format that no decoder is built in for.
    #[error("{format} is not read; convert it to PNG or JPEG")]
    Foreign {
        /// The format's name.
        format: &'static str,
    },
    /// Something else.
    #[error("not an image but {what}")]
    NoImage {
        /// What it seems to be.
        what: &'static str,
    },
    /// An image whose end is missing.
    #[error("the image file is truncated")]
    Truncated,
    /// An image without pixels.
    #[error("an empty image")]
    NoPixels,
    /// An image of a form that its decoder does not know.
    #[error("{0}; convert it to PNG or JPEG")]
    Unsupported(image::error::UnsupportedError),
    /// What the decoder reports.
    #[error(transparent)]
    Damaged(#[from] image::ImageError),
}

impl From<std::io::Error> for DecodeError {
    fn from(e: std::io::Error) -> Self {
        Self::Damaged(image::ImageError::IoError(e))
    }
}

/// What the first bytes of a file tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// An image that is read.
    Image,
    /// An image of this format, which is not read.
    Foreign(&'static str),
    /// Something else that is known.
    Other(&'static str),
    /// Nothing that is known.
    Unknown,
}

/// How many bytes [`identify`] looks at.
pub const HEAD: usize = 64;

/// Formats by their first bytes, at an offset.
const FOREIGN: [(usize, &[u8], &str); 16] = [
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypavis", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftyphev", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"ftypmsf1", "HEIF"),
    (4, b"ftypcrx", "a camera's raw format"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"8BPS", "Photoshop's format"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"DDS ", "DDS"),
    (0, b"\0\0\x01\0", "ICO"),
];
const OTHER: [(usize, &[u8], &str); 9] = [
    (0, b"version https://git-lfs", "a Git LFS pointer; fetch the file with `git lfs pull`"),
    (0, b"%PDF", "a PDF document"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"\x1f\x8b", "a file compressed with gzip"),
    (0, b"BZh", "a file compressed with bzip2"),
    (0, b"\xfd7zXZ", "a file compressed with xz"),
    (0, b"\x28\xb5\x2f\xfd", "a file compressed with zstd"),
    (0, b"PAR1", "a Parquet table"),
    (4, b"ftyp", "a video"),
];

/// What a file is by its first [`HEAD`] bytes; its name does not count.
pub fn identify(head: &[u8]) -> Content {
    let find = |table: &[(usize, &[u8], &'static str)]| {
        table.iter().find(|(at, magic, _)| head.get(*at..).is_some_and(|rest| rest.starts_with(magic))).map(|(.., what)| *what)
    };
    let text = String::from_utf8_lossy(head).trim_start_matches('\u{feff}').trim_start().to_ascii_lowercase();
    if let Some(format) = find(&FOREIGN) {
        Content::Foreign(format)
    } else if let Some(what) = find(&OTHER) {
        Content::Other(what)
    } else if text.starts_with("<svg") || text.starts_with("<?xml") {
        Content::Foreign("SVG")
    } else if text.starts_with("<!doctype") || text.starts_with("<html") || text.starts_with("<head") {
        Content::Other("a web page")
    } else if image::guess_format(head).is_ok() {
        Content::Image
    } else {
        Content::Unknown
    }
}

/// The upright pixels of an image file, whatever its name: orientation as its metadata states it, of an animation the first image;
/// transparency is dropped, 16 bits become the upper 8.
///
/// # Errors
/// [`DecodeError`]: nothing that is damaged or ends early passes.
pub fn decode(bytes: &[u8]) -> Result<RgbImage, DecodeError> {
    let format = format(bytes)?;
    let whole = match format {
        ImageFormat::Jpeg => jpeg_is_whole(bytes),
        ImageFormat::WebP => webp_is_whole(bytes),
        _ => true,
    };
    if !whole {
        return Err(DecodeError::Truncated);
    }
    let mut decoder = ImageReader::with_format(Cursor::new(bytes), format).into_decoder().map_err(problem)?;
    let orientation = orientation(&mut decoder, format, &mut Cursor::new(bytes));
    let mut image = DynamicImage::from_decoder(decoder).map_err(problem)?;
    image.apply_orientation(orientation);
    let image = match image {
        DynamicImage::ImageRgb8(image) => image,
        DynamicImage::ImageLuma16(_) | DynamicImage::ImageLumaA16(_) | DynamicImage::ImageRgb16(_) | DynamicImage::ImageRgba16(_) => {
            let (wide, upper) = (image.to_rgb16(), |v: u16| (v >> 8) as u8);
            RgbImage::from_fn(wide.width(), wide.height(), |x, y| image::Rgb(wide.get_pixel(x, y).0.map(upper)))
        }
        other => other.to_rgb8(),
    };
    if image.width() == 0 || image.height() == 0 { Err(DecodeError::NoPixels) } else { Ok(image) }
}

/// Width and height of what [`decode`] gives, from headers alone.
///
/// # Errors
/// [`DecodeError`].
pub fn dimensions<R: BufRead + Seek>(mut reader: R) -> Result<(u32, u32), DecodeError> {
    let mut head = Vec::new();
    reader.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
    let format = format(&head)?;
    reader.rewind()?;
    let (size, orientation) = if format == ImageFormat::Jpeg {
        jpeg_header(&mut reader)?
    } else {
        let mut decoder = ImageReader::with_format(&mut reader, format).into_decoder().map_err(problem)?;
        let (size, known) = (decoder.dimensions(), metadata_orientation(&mut decoder, format));
        drop(decoder);
        (size, known.unwrap_or_else(|| late_orientation(format, &mut reader)))
    };
    let turned =
        matches!(orientation, Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH);
    match if turned { (size.1, size.0) } else { size } {
        (0, _) | (_, 0) => Err(DecodeError::NoPixels),
        size => Ok(size),
    }
}

fn format(bytes: &[u8]) -> Result<ImageFormat, DecodeError> {
    let head = &bytes[..bytes.len().min(HEAD)];
    match identify(head) {
        _ if bytes.is_empty() => Err(DecodeError::Empty),
        Content::Foreign(format) => Err(DecodeError::Foreign { format }),
        Content::Other(what) => Err(DecodeError::NoImage { what }),
        Content::Unknown if head.is_ascii() => Err(DecodeError::NoImage { what: "text" }),
        Content::Image | Content::Unknown => Ok(image::guess_format(head)?),
    }
}

fn problem(e: image::ImageError) -> DecodeError {
    match e {
        image::ImageError::IoError(io) if io.kind() == std::io::ErrorKind::UnexpectedEof => DecodeError::Truncated,
        image::ImageError::Unsupported(e) => DecodeError::Unsupported(e),
        e => DecodeError::Damaged(e),
    }
}

fn jpeg_header<R: BufRead + Seek>(reader: &mut R) -> Result<((u32, u32), Orientation), DecodeError> {
    let mut header = Vec::new();
    reader.take(JPEG_HEADER).read_to_end(&mut header)?;
    let open = |bytes: &[u8]| -> ImageResult<_> {
        let mut decoder = JpegDecoder::new(Cursor::new(bytes))?;
        Ok((decoder.dimensions(), metadata_orientation(&mut decoder, ImageFormat::Jpeg)))
    };
    // Where thumbnails and colour profiles are longer than that, the rest is needed.
    let found = match open(&header) {
        Err(_) if header.len() as u64 == JPEG_HEADER => {
            reader.read_to_end(&mut header)?;
            open(&header)
        }
        found => found,
    };
    let (size, orientation) = found.map_err(problem)?;
    Ok((size, orientation.unwrap_or(Orientation::NoTransforms)))
}

fn orientation<R: Read + Seek>(decoder: &mut impl ImageDecoder, format: ImageFormat, file: &mut R) -> Orientation {
    metadata_orientation(decoder, format).unwrap_or_else(|| late_orientation(format, file))
}

/// What EXIF states, else XMP, as far as it stands before the pixels.
fn metadata_orientation(decoder: &mut impl ImageDecoder, format: ImageFormat) -> Option<Orientation> {
    if format == ImageFormat::Tiff {
        return decoder.orientation().ok();
    }
    let chunk = decoder.exif_metadata().ok().flatten();
    let stated = chunk.and_then(|chunk| exif::orientation(&chunk));
    let stated = stated.or_else(|| exif::xmp_orientation(&decoder.xmp_metadata().ok().flatten()?));
    stated.map(upright)
}

/// What a PNG file states after its pixels, where `exiftool` writes it.
fn late_orientation<R: Read + Seek>(format: ImageFormat, file: &mut R) -> Orientation {
    let chunk = if format == ImageFormat::Png { png_exif(file).ok().flatten() } else { None };
    chunk.and_then(|chunk| exif::orientation(&chunk)).map_or(Orientation::NoTransforms, upright)
}

/// Values out of 1 to 8 mean nothing.
fn upright(value: u32) -> Orientation {
    u8::try_from(value).ok().and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms)
}

/// The first `eXIf` chunk, found by stepping from chunk to chunk.
fn png_exif<R: Read + Seek>(file: &mut R) -> std::io::Result<Option<Vec<u8>>> {
    const SIGNATURE: u64 = 8;
    file.seek(SeekFrom::Start(SIGNATURE))?;
    loop {
        let mut head = [0; 8];
        file.read_exact(&mut head)?;
        let [a, b, c, d, kind @ ..] = head;
        let length = u32::from_be_bytes([a, b, c, d]);
        match &kind {
            b"IEND" => return Ok(None),
            b"eXIf" => {
                let mut chunk = Vec::new();
                file.take(length.into()).read_to_end(&mut chunk)?;
                return Ok(Some(chunk));
            }
            // The chunk and its checksum.
            _ => file.seek(SeekFrom::Current(i64::from(length) + 4))?,
        };
    }
}

/// Whether there are as many bytes as the file says, those of metadata behind the pixels included.
fn webp_is_whole(bytes: &[u8]) -> bool {
    const RIFF_HEADER: usize = 8;
    let stated = bytes.get(4..RIFF_HEADER).and_then(|size| size.try_into().ok()).map(u32::from_le_bytes);
    stated.is_some_and(|size| bytes.len() - RIFF_HEADER >= size as usize)
}

/// Whether an end of image follows the start of the first scan. The decoder fills what is missing with grey, and Pillow refuses it.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    const START_OF_SCAN: u8 = 0xda;
    const END_OF_IMAGE: [u8; 2] = [0xff, 0xd9];
    let mut rest = bytes.get(2..).unwrap_or_default();
    loop {
        rest = match *rest {
            [0xff, START_OF_SCAN, ..] => return rest.windows(2).any(|pair| pair == END_OF_IMAGE),
            // Fill bytes, and markers without a length.
            [0xff, 0xff, ..] => &rest[1..],
            [0xff, 0x01 | 0xd0..=0xd8, ..] => &rest[2..],
            [0xff, _, high, low, ..] => rest.get(2 + usize::from(u16::from_be_bytes([high, low]))..).unwrap_or_default(),
            // Stray bytes between headers, which decoders skip.
            [_, ..] => &rest[1..],
            [] => return false,
        };
    }
}
