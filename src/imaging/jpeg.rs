//! JPEG by libjpeg-turbo, the library that Pillow uses, with the same settings; and the marker walk that finds the EXIF
//! orientation and the end of the image.

use image::metadata::Orientation;
use turbojpeg::{Colorspace, Compressor, Decompressor, Image, PixelFormat, Subsamp};

use super::decode::{RgbImage, check_pixels, xmp_orientation};
use crate::error::{Error, Result};

/// No sane progressive file has this many scans; a crafted one makes decoding take minutes.
const MAX_SCANS: u32 = 500;

/// Whether `bytes` begin as a JPEG file.
pub(super) fn is_jpeg(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0xff, 0xd8, 0xff])
}

/// Size of the image by its header, checked against the pixel limit.
pub(super) fn size(bytes: &[u8]) -> Result<(usize, usize)> {
    let header = turbojpeg::read_header(bytes).map_err(failure)?;
    check_pixels(header.width, header.height)?;
    Ok((header.width, header.height))
}

/// Decodes to RGB in the orientation in which the pixels are stored. Damage that libjpeg only warns about is an error.
pub(super) fn decode(bytes: &[u8]) -> Result<RgbImage> {
    let mut decompressor = Decompressor::new().map_err(failure)?;
    decompressor.set_scan_limit(MAX_SCANS).map_err(failure)?;
    let header = decompressor.read_header(bytes).map_err(failure)?;
    let (width, height) = (header.width, header.height);
    check_pixels(width, height)?;
    let cmyk = matches!(header.colorspace, Colorspace::CMYK | Colorspace::YCCK);
    let format = if cmyk { PixelFormat::CMYK } else { PixelFormat::RGB };
    let pitch = width * format.size();
    let mut pixels = vec![0; pitch * height];
    let output = Image { pixels: pixels.as_mut_slice(), width, pitch, height, format };
    decompressor.decompress(bytes, output).or_else(tolerate).map_err(failure)?;
    if cmyk {
        pixels = rgb_from_inverted_cmyk(&pixels);
    }
    RgbImage::new(width, height, pixels)
}

/// Encodes a baseline 4:2:0 file, as Pillow's `save(quality=quality)` does.
pub(super) fn encode(image: &RgbImage, quality: u8) -> Result<Vec<u8>> {
    let mut compressor = Compressor::new().map_err(failure)?;
    compressor.set_quality(i32::from(quality)).map_err(failure)?;
    compressor.set_subsamp(Subsamp::Sub2x2).map_err(failure)?;
    let (width, height) = (image.width(), image.height());
    let source = Image { pixels: image.pixels(), width, pitch: width * 3, height, format: PixelFormat::RGB };
    compressor.compress_to_vec(source).map_err(failure)
}

/// Filler bytes before the end marker, which some cameras write, leave every pixel intact.
fn tolerate(error: turbojpeg::Error) -> Result<(), turbojpeg::Error> {
    match &error {
        turbojpeg::Error::TurboJpegError(text) if text.contains("extraneous bytes before marker 0xd9") => Ok(()),
        _ => Err(error),
    }
}

fn failure(error: turbojpeg::Error) -> Error {
    let text = match error {
        turbojpeg::Error::TurboJpegError(text) => text,
        other => other.to_string(),
    };
    let text = text.trim();
    if text.to_ascii_lowercase().contains("premature end") {
        return Error::data(format!("the JPEG file is truncated or damaged ({text}): replace the image"));
    }
    Error::data(format!("the JPEG file cannot be decoded ({text}): replace the image"))
}

/// Adobe files store inverted CMYK; the arithmetic is Pillow's `convert("RGB")`.
pub(super) fn rgb_from_inverted_cmyk(pixels: &[u8]) -> Vec<u8> {
    let mut rgb = Vec::with_capacity(pixels.len() / 4 * 3);
    for pixel in pixels.chunks_exact(4) {
        let white = i32::from(pixel[3]);
        for &channel in &pixel[..3] {
            let product = (255 - i32::from(channel)) * white + 128;
            let divided = ((product >> 8) + product) >> 8;
            rgb.push((white - divided).clamp(0, 255) as u8);
        }
    }
    rgb
}

/// What stands before the first scan: the EXIF block, if any, and where the scan's data begins.
struct Prologue<'a> {
    exif: Option<&'a [u8]>,
    xmp: Option<&'a [u8]>,
    scan: Option<usize>,
}

fn prologue(bytes: &[u8]) -> Prologue<'_> {
    let mut found = Prologue { exif: None, xmp: None, scan: None };
    let mut at = 2;
    while let Some(&[0xff, marker]) = bytes.get(at..at + 2) {
        if marker == 0xff {
            at += 1;
            continue;
        }
        if marker == 0x01 || (0xd0..=0xd8).contains(&marker) {
            at += 2;
            continue;
        }
        let Some(&[high, low]) = bytes.get(at + 2..at + 4) else { break };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length < 2 {
            break;
        }
        let end = at + 2 + length;
        let Some(body) = bytes.get(at + 4..end) else { break };
        if marker == 0xe1 {
            found.exif = found.exif.or_else(|| body.strip_prefix(b"Exif\0\0"));
            found.xmp = found.xmp.or_else(|| body.strip_prefix(b"http://ns.adobe.com/xap/1.0/\0"));
        }
        at = end;
        if marker == 0xda {
            found.scan = Some(end);
            break;
        }
    }
    found
}

/// The orientation of the EXIF block, else of the XMP block; files without one, or with damaged blocks, are upright.
pub(super) fn orientation(bytes: &[u8]) -> Orientation {
    let Prologue { exif, xmp, .. } = prologue(bytes);
    let orientation = exif.and_then(Orientation::from_exif_chunk).or_else(|| xmp.and_then(xmp_orientation));
    orientation.unwrap_or(Orientation::NoTransforms)
}

/// Fails when the file has no end marker after its first scan: a truncated file, found without decoding it. (Inside
/// scan data the byte 0xff is always stuffed, so the marker cannot occur there by chance.)
pub(super) fn check_end(bytes: &[u8]) -> Result<()> {
    let data = prologue(bytes).scan.and_then(|at| bytes.get(at..)).unwrap_or_default();
    if data.windows(2).rev().any(|pair| pair == [0xff, 0xd9]) {
        return Ok(());
    }
    Err(Error::data("the JPEG file is truncated (it has no end marker): replace the image"))
}
